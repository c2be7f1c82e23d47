"""All settings of a run in one typed tree: the Python API, the YAML file and the command line read the same object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

from abmll.errors import UserError, unknown
from abmll.meta.config import MetaConfig
from abmll.posterior.config import PosteriorConfig
from abmll.scoring.config import ContextConfig, ScoringConfig, check_context
from abmll.settings import check_modules, check_number, check_types

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which base model, and how it is loaded.

    Attributes:
        name: `mini` (the embedded one), a local folder, or a hub id.
        revision: of a hub model.
        dtype: of the frozen base model (`auto`: float32 on a CPU, bfloat16 elsewhere); adapters are always float32.
        device: `auto`: the accelerator if there is one.
        quantize: load the base model in 4 or 8 bit (bitsandbytes).
        gradient_checkpointing: recompute activations in backward.
    """

    name: str = "mini"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    quantize: Literal["none", "4bit", "8bit"] = "none"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_types(self, "model")


Latent = Literal["output", "factor", "weight", "point"]
LATENTS = Latent.__args__  # type: ignore[attr-defined]
# Settings of the adapter that not every latent reads, and those latents that do.
SOME_LATENTS = {"log_variance": ("output", "factor", "weight"), "learn_log_c": ("output",), "b_variance": ("factor",)}


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """The adapter's settings; see `AbmllConfig`, which they become.

    Attributes:
        latent: where the Gaussian lives: `output`, `factor`, `weight`, or `point` for none.
        r: rank.
        lora_alpha: the update is scaled by lora_alpha / r.
        target_modules: names or regex of the layers to adapt; None: the architecture's default.
        log_variance: start of the log-variance; None: the latent's own.
        learn_log_c: `output`: learn log c, one scalar a layer.
        b_variance: `factor`: prior variance v_B of the point factor B.
    """

    latent: Latent = "output"
    r: int = 8
    lora_alpha: float = 16
    target_modules: list[str] | str | None = None
    log_variance: float | None = None
    learn_log_c: bool = False
    b_variance: float = 0.05

    def __post_init__(self) -> None:
        check_types(self, "adapter")
        if self.r <= 0:
            raise UserError(f"rank r = {self.r}; a positive integer is needed")
        for name in ("lora_alpha", "b_variance"):
            check_number(name, getattr(self, name), positive=True)
        if self.log_variance is not None:
            check_number("log_variance", self.log_variance)
        check_modules("target_modules", self.target_modules)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run: a start learned by `meta` from a suite's train tasks, and a `posterior` fitted on each new task.

    Attributes:
        model: the base model.
        adapter: the adapter on it.
        scoring: how the model answers.
        context: demonstrations in its prompts.
        meta: how the start is learned.
        posterior: how a task's posterior is fitted from it.
        seed: of everything random.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if not abs(self.seed) < 2**63:
            raise UserError(f"seed = {self.seed}; a number that fits into 64 bits is needed")

    def hash(self) -> str:
        """A short fingerprint of all settings."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def merge(config: T, changes: Mapping[str, Any]) -> T:
    """`config` with nested changes, {"meta": {"beta": 1e-6}}; UserError for a key that does not exist."""
    updates: dict[str, Any] = {}
    known = [f.name for f in fields(config)]  # type: ignore[arg-type]
    for key, value in changes.items():
        if key not in known:
            raise unknown("config key", key, known)
        old = getattr(config, key)
        if is_dataclass(old) and not isinstance(value, type(old)):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"config key {key!r} = {value!r} is no group of settings; its settings are needed by name"
                )
            value = merge(old, value)
        updates[key] = value
    return replace(config, **updates)  # type: ignore[type-var]


def to_yaml(config: RunConfig) -> str:
    """The settings as a YAML file that `--config` and `read_yaml` read."""
    import yaml

    return str(yaml.safe_dump(asdict(config), sort_keys=False))


def read_yaml(path: Path) -> RunConfig:
    """The settings that `to_yaml` wrote; UserError where the file is missing or broken."""
    if not path.is_file():
        raise UserError(f"{path} is missing; the folder is no run folder of abmll")
    values = read_mapping(path)
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError where the file cannot be read or holds something else."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """With 1e-4 a number, as in YAML 1.2 and on the command line."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("+-.0123456789"))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}); write settings as name: value") from None
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path} holds no settings; write them as name: value")
    return {str(key): value for key, value in values.items()}


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The RunConfig that `asdict` wrote; UserError for unknown keys."""
    return merge(RunConfig(), values)


def check(config: RunConfig) -> None:
    """UserError for combinations that cannot work, before anything is loaded."""
    check_context(config.scoring, config.context)
    if config.meta.in_context and not config.context.shots:
        raise UserError("meta.in_context shows demonstrations, but context.shots = 0; say how many")
    needs_variance = [n for n in ("abmll", "variational") if n in (config.meta.name, config.posterior.name)]
    if needs_variance and config.adapter.latent == "point":
        raise UserError(
            f"{needs_variance[0]!r} needs a variance, but adapter.latent is 'point'; use 'output', 'factor' or 'weight'"
        )
