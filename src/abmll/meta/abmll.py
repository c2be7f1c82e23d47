"""ABMLL: each task's posterior is a few steps from the prior; the prior is pulled to what the tasks needed.

    phi <- theta
    K times:   INNER step on phi    of  NLL + beta KL(q_phi || p_theta)
    once:      OUTER step on theta  of  beta KL(q_phi || p_theta) - (gamma / T) log p(theta)

Source: Zhang, Snell, Griffiths, arXiv 2508.14285 (docs/method.md, sections 2 and 3). First order: nothing is
differentiated through the inner steps, and one working adapter serves all tasks.
"""

from __future__ import annotations

from abmll.adapter import modes, state
from abmll.adapter.latents import Latent
from abmll.errors import UserError
from abmll.hashing import stable_hash
from abmll.meta.base import Info, MetaLearner
from abmll.meta.config import MetaConfig
from abmll.meta.episodes import Episode
from abmll.posterior.objective import Terms, adamw, check_gradients, descend, finite, kl_share, terms


class Abmll(MetaLearner):
    """The paper's method; every choice that the paper and its reference code leave open is a setting."""

    name = "abmll"
    uses = frozenset(
        {
            *("inner_lr", "outer_lr", "beta", "gamma", "outer_batch", "tasks_per_step", "reset_inner", "order"),
            *("kl", "draw", "scope", "rate", "outer", "outer_schedule", "step_size"),
        }
    )

    @classmethod
    def check(cls, config: MetaConfig, latent: Latent, checkpointed: bool) -> None:
        """A Gaussian is needed; for the natural step one over weights, and a step that does not overshoot."""
        super().check(config, latent, checkpointed)
        if not latent.has_variance:
            raise UserError(
                f"meta-learner 'abmll' needs an adapter with a variance, but its latent is {latent.name!r}; "
                "use latent 'output', 'factor' or 'weight'"
            )
        if config.outer == "adamw":
            return
        if not latent.has_natural:
            raise UserError(
                f"meta-training's outer = 'natural' needs a Gaussian over weights, but the latent is {latent.name!r}; "
                "use latent 'factor', or outer = 'adamw'"
            )
        if not (config.beta > 0 and config.step_size <= (1.0 if config.kl == "closed" else 0.9)):
            raise UserError(
                f"meta-training's outer = 'natural' has beta = {config.beta} and step_size = {config.step_size}; "
                "a positive beta and a step of at most 1 (0.9 with kl = 'sampled') are needed"
            )

    @classmethod
    def last_step_reads(cls, latent: Latent) -> bool:
        """A KL between weights needs no input."""
        return latent.uses_inputs

    def init(self) -> None:
        """The working adapter phi, and AdamW over each of the two adapters that steps by it."""
        state.ensure_task_adapter(self.model)
        if self.config.outer == "adamw":
            self.optimizers["outer"] = adamw(state.parameters(self.model, state.PRIOR), self.config.outer_lr)
        self._reset_inner()

    def _reset_inner(self) -> None:
        self.optimizers["inner"] = adamw(state.parameters(self.model, state.TASK), self.config.inner_lr)

    def step(self, index: int) -> Info:
        """`tasks_per_step` episodes and one step on theta, on the mean of their gradients."""
        c = self.config
        fresh = int(c.outer_batch == "fresh" and state.latent_of(self.model).uses_inputs)
        nll, count, tokens = 0.0, 0, 0
        kl = hyperprior = 0.0
        value, where = 0.0, f"outer step {index}"
        theta = state.parameters(self.model, state.PRIOR)
        for p in theta:
            p.grad = None
        for i in range(index * c.tasks_per_step, (index + 1) * c.tasks_per_step):
            episode = self.episodes(i, c.inner_steps + fresh)
            inner, read = self._inner(episode)
            outer, outer_read = self._outer(episode)
            loss = c.beta * outer.kl - self._gamma / len(self.episodes) * outer.hyperprior
            loss = loss / c.tasks_per_step
            value += finite(loss, where)
            loss.backward()  # type: ignore[no-untyped-call] # now: the next task's phi overwrites this one's
            nll += sum(t.nll.item() for t in inner)
            count += sum(t.n for t in inner)
            tokens += read + outer_read
            kl, hyperprior = inner[-1].kl.item(), outer.hyperprior.item()
        check_gradients(theta, value, where)
        self._outer_step(index)
        passes = c.tasks_per_step * (c.inner_steps + int(state.latent_of(self.model).uses_inputs))
        return Info(episode.task, nll / count, kl, hyperprior, tokens, passes)

    def _outer_step(self, index: int) -> None:
        """One step along the gradients that theta holds, as large as the schedule lets it be."""
        c = self.config
        left = 1.0 - index / self.steps if c.outer_schedule == "linear" else 1.0
        if c.outer == "adamw":
            optimizer = self.optimizers["outer"]
            for group in optimizer.param_groups:
                group["lr"] = c.outer_lr * left
            optimizer.step()
            return
        for layer in state.layers(self.model, state.PRIOR):
            layer.latents[state.PRIOR].natural_step(layer, state.PRIOR, c.step_size * left, c.beta)

    @property
    def _gamma(self) -> float:
        return self.config.beta if self.config.gamma is None else self.config.gamma

    def _mode(self, episode: Episode, step: int, update: str) -> modes.Variational:
        return modes.Variational(
            stable_hash("meta noise", episode.key, step, update),
            posterior=state.TASK,
            prior=state.PRIOR,
            update="prior" if update == "prior" else "posterior",
            scope=self.config.scope,
            kl=self.config.kl,
            draw=self.config.draw,
            rate=self.config.rate,
        )

    def _inner(self, episode: Episode) -> tuple[list[Terms], int]:
        """Phi <- theta, then K steps on phi. Returns each step's terms and the tokens read."""
        c = self.config
        state.copy_adapter(self.model, state.PRIOR, state.TASK)
        if c.reset_inner:
            self._reset_inner()
        done, tokens = [], 0
        n = sum(len(b) for b in episode.batches[: c.inner_steps])
        for k, examples in enumerate(episode.batches[: c.inner_steps]):
            batch = self.collate(episode.task, examples, episode.key)
            t = terms(self.model, self.scorer, batch, self._mode(episode, k, "posterior"))
            share = kl_share(self.model, len(examples) / n)
            descend(t.nll + c.beta * share * t.kl, self.optimizers["inner"], f"inner step {k} on task {episode.task!r}")
            done.append(Terms(t.nll.detach(), t.kl.detach(), t.hyperprior, t.n))
            tokens += batch.n_tokens
        return done, tokens

    def _outer(self, episode: Episode) -> tuple[Terms, int]:
        """KL and hyperprior with a graph to theta alone. `factor` and `weight` need no batch for them."""
        mode = self._mode(episode, self.config.inner_steps, "prior")
        if not state.latent_of(self.model).uses_inputs:
            with modes.use(self.model, mode):
                kl, hyperprior = state.totals(self.model, mode)
            return Terms(kl.detach(), kl, hyperprior, 0), 0
        batch = self.collate(episode.task, episode.batches[-1], episode.key)
        return terms(self.model, self.scorer, batch, mode), batch.n_tokens
