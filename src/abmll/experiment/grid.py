"""What the names of `abmll compare --methods` mean; no model here.

PRESET                 a published system: lora, reptile, abmll ...
START+POSTERIOR        the start of a preset (or what a meta-learner learns) under any posterior, with the settings of
                       that posterior's own preset: reptile+laplace, lora+inducing
...+empirical          with the empirical prior over the weights of that start (`experiment.empirical`)
...+temperature        with a temperature learned on the validation tasks (`abmll.calibration`)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from abmll.errors import UserError, unknown
from abmll.experiment.config import RunConfig, check, merge
from abmll.experiment.presets import PRESETS, default_preset, posterior_preset, preset
from abmll.meta.config import META, MetaConfig
from abmll.posterior.config import POSTERIORS, USE_WEIGHT_PRIOR, PosteriorConfig

EMPIRICAL, TEMPERATURE = "empirical", "temperature"
# Settings that `--methods` decides.
_NAMED = (("meta", "name"), ("posterior", "name"))
# Groups of settings that make a start, and those that are the same for all methods.
_STARTING, _COMMON = ("meta", "adapter"), ("model", "scoring", "seed")


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the grid.

    Attributes:
        name: as it was given; also its folder's name.
        config: its settings, those of the first seed.
        empirical: whether its posterior gets the start's empirical prior.
        temperature: whether its predictions are those of `fitted` at a learned temperature.
    """

    name: str
    config: RunConfig
    empirical: bool = False
    temperature: bool = False

    @property
    def fitted(self) -> Method:
        """The method whose cells are computed: itself, or itself without a temperature."""
        return replace(self, name=_fitted(self.name), temperature=False)

    def start(self, seed: int) -> RunConfig:
        """The settings that its start depends on; the others are the same for all methods."""
        shown = self.config.context if self.config.meta.in_context else RunConfig().context
        return replace(self.config, context=shown, posterior=PosteriorConfig("point"), seed=seed)


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON values: names a folder by its content."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def methods_of(
    names: Sequence[str], shared: Mapping[str, Any] | None = None, own: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Method, ...]:
    """The methods, every combination checked.

    Args:
        names: see above, each once.
        shared: settings of all methods, nested as in RunConfig. A method whose learner does not read one of `meta`
            goes without it, as one that shows no demonstrations does without `context`; one that no method reads is
            refused.
        own: by a method's name (without `+temperature`), settings of it alone, over the shared ones: such as the rates
            that validation tasks chose. START+POSTERIOR takes over how START is made (`meta`, `adapter`, and `context`
            where it is learned with demonstrations).

    Raises:
        UserError: an unknown name (with the nearest one), a combination that cannot work, or a setting that no method
            reads.
    """
    if not names:
        raise UserError("no method to compare; name at least one, such as lora,abmll")
    if len(set(names)) != len(names):
        raise UserError(f"method {next(n for n in names if names.count(n) > 1)!r} is named twice; each once is needed")
    shared, own = shared or {}, own or {}
    for group, key in _NAMED:
        if key in (shared.get(group) or {}):
            raise UserError(f"--{group} is part of a method's name here, such as reptile+laplace; leave it out")
    if "in_context" in (shared.get("meta") or {}):
        raise UserError("--meta.in_context is part of a method's name here, such as metaicl; leave it out")
    made = [_parsed(name) for name in names]
    for name, settings in own.items():
        if name not in (known := {n for given in names for n in (_fitted(given), _start(given))}):
            raise unknown("method with settings of its own", name, known)
        _check_own(name, settings)
    showing = [method for method in made if method.config.context.shots]
    if shared.get("context") and not showing:
        raise UserError(
            f"--context is read by none of the methods {', '.join(names)}; leave it out, name a method that shows "
            "demonstrations (icl, metaicl, abmll-icl), or give it to single ones with --own"
        )
    read: set[str] = set()
    done = []
    for method in made:
        without = {"meta"} if method in showing else {"meta", "context"}
        config = merge(method.config, {k: v for k, v in shared.items() if k not in without})
        common = _readable(config.meta, shared.get("meta") or {})
        read |= set(common)
        config = merge(config, {"meta": common})
        start = own.get(_start(method.name), {})
        try:
            config = merge(config, {group: start[group] for group in _STARTING if group in start})
            if config.meta.in_context:
                config = merge(config, {"context": start.get("context") or {}})
            config = merge(config, own.get(_fitted(method.name), {}))
        except UserError as error:
            raise UserError(f"own settings of method {method.name!r}: {error}") from None
        if method.config.context.shots and not config.context.shots:
            raise UserError(
                f"method {method.name!r}: it shows demonstrations, but context.shots = 0; leave that out, or the method"
            )
        if config.meta.name == "none":
            config = replace(config, meta=MetaConfig("none"))  # nothing is learned: its settings say nothing
        done.append(_possible(replace(method, config=config)))
    unread = sorted(set(shared.get("meta") or {}) - read)
    if unread:
        raise UserError(f"--meta.{unread[0]} is read by none of the methods {', '.join(names)}; leave it out")
    return tuple(done)


def _parsed(name: str) -> Method:
    """The method without the user's settings."""
    first, *rest = name.split("+")
    extras = {EMPIRICAL: False, TEMPERATURE: False}
    while rest and rest[-1] in extras and not extras[rest[-1]]:
        extras[rest.pop()] = True
    if first not in PRESETS and (first not in META or (first == "none" and not rest)):
        raise unknown("method", first, dict.fromkeys([*PRESETS, *(m for m in META if m != "none")]))
    config = preset(first if first in PRESETS else default_preset(first))
    for posterior in rest[:1]:
        if posterior not in POSTERIORS:
            raise unknown(f"posterior of method {name!r}", posterior, [*POSTERIORS, *extras])
        config = merge(config, {"posterior": posterior_preset(posterior)})
    if rest[1:]:
        raise UserError(f"method {name!r} has more than one posterior ({', '.join(rest)}); one is needed")
    if name.endswith(f"+{TEMPERATURE}+{EMPIRICAL}"):
        raise UserError(f"method {name!r}: '+{TEMPERATURE}' comes last; swap the two")
    return Method(name, config, extras[EMPIRICAL], extras[TEMPERATURE])


def _fitted(name: str) -> str:
    return name.removesuffix(f"+{TEMPERATURE}")


def _start(name: str) -> str:
    return name.split("+")[0]


def _check_own(name: str, settings: Any) -> None:
    """UserError where settings of one method are none, or would make another method or another question of it."""
    if not isinstance(settings, Mapping):
        raise UserError(
            f"own settings of method {name!r} are {settings!r}; write them as {{meta: {{inner_lr: 0.001}}}}"
        )
    for group, value in settings.items():
        if group in _COMMON:
            raise UserError(f"own settings of method {name!r}: {group} is the same for all methods; leave it out there")
        if isinstance(value, Mapping) and (group, "name") in _NAMED and "name" in value:
            raise UserError(f"own settings of method {name!r}: {group}.name is part of its name; leave it out")


def _readable(meta: MetaConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the changes that the learner reads."""
    from abmll.meta.registry import used_settings

    used, kept = used_settings(meta.name), {}
    for key in changes:
        changed = merge(meta, {key: changes[key]})  # values that no learner takes are refused here
        try:
            changed.refuse_unused(used)
        except UserError:
            continue
        kept[key] = changes[key]
    return kept


def _possible(method: Method) -> Method:
    """The method itself; UserError where its parts do not fit each other."""
    from abmll.adapter.config import AbmllConfig
    from abmll.meta.registry import check_meta_learner
    from abmll.posterior.registry import check_posterior

    config = method.config
    try:
        check(config)
        AbmllConfig(**asdict(config.adapter))
        check_meta_learner(config.meta, config.adapter.latent, config.model.gradient_checkpointing)
        check_posterior(config.posterior, config.adapter.latent, config.meta.name != "none")
        if method.empirical and config.posterior.name not in USE_WEIGHT_PRIOR:
            raise UserError(
                f"posterior {config.posterior.name!r} has no place for a prior over the weights; leave '+{EMPIRICAL}' "
                f"out, or use {', '.join(USE_WEIGHT_PRIOR)}"
            )
        if method.empirical:
            check_floor(1.0, config.adapter.latent)
    except UserError as error:
        raise UserError(f"method {method.name!r}: {error}") from None
    return method


def check_floor(floor: float, latent: str) -> None:
    """UserError where an adapter of this latent needs no empirical prior, or its variances' floor is not positive."""
    if latent == "factor":
        raise UserError("latent 'factor' has learned a Gaussian over its weights; leave the empirical prior out")
    if not floor > 0:
        raise UserError(f"the empirical prior's floor = {floor}; a positive number is needed")
