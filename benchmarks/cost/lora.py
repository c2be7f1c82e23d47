"""The baseline: plain PEFT LoRA, as somebody without abmll would write it, with the same loss function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abmll.scoring import Scorer
from abmll.tasks import Example
from abmll.tasks.prompts import option_continuation, question_prompt
from cost.bases import checkpoint, twin
from cost.clock import Action, Probe
from cost.floor import Layer


class Lora:
    """A PeftModel of its own on the shared base, and its fused AdamW."""

    def __init__(self, base: nn.Module, rank: int, lr: float = 1e-5, checkpointing: bool = False) -> None:
        from peft import LoraConfig, get_peft_model

        from abmll.adapter.model import TARGET_MODULES

        modules = TARGET_MODULES[base.config.model_type]  # type: ignore[union-attr,index]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=modules)
        self.model = get_peft_model(twin(base), config).eval()
        if checkpointing:
            checkpoint(self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0, fused=True)

    def adapted(self) -> dict[str, nn.Module]:
        """The adapted layers by their names in the base model."""
        from peft.tuners.lora import LoraLayer

        base = self.model.get_base_model()
        return {name: m for name, m in base.named_modules() if isinstance(m, LoraLayer)}

    def layers(self, scorer: Scorer[Any], task: str, examples: Sequence[Example]) -> list[Layer]:
        """The adapted layers as one step sees them: their sizes, rows read, and whether their input has a gradient."""
        found: list[Layer] = []

        def note(layer: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
            x = inputs[0]
            rows = x.numel() // x.shape[-1]
            found.append(Layer(layer.in_features, layer.out_features, rows, x.requires_grad))

        handles = [m.register_forward_hook(note) for m in self.adapted().values()]
        scorer.nll(self.model, scorer.collate(task, examples))
        for handle in handles:
            handle.remove()
        return found

    def steps(self, scorer: Scorer[Any], task: str, batches: Sequence[Sequence[Example]]) -> Action:
        """A gradient step on every batch; region `step`."""

        def action(probe: Probe) -> None:
            with probe("step"):
                for examples in batches:
                    self.step(scorer, task, examples)

        return action

    def step(self, scorer: Scorer[Any], task: str, examples: Sequence[Example]) -> None:
        """Encode, forward, backward, AdamW."""
        loss, _ = scorer.nll(self.model, scorer.collate(task, examples))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def forwards(self, scorer: Scorer[Any], task: str, batches: Sequence[Sequence[Example]]) -> Action:
        """Probabilities of every batch's options, without gradients; region `forward`."""

        def action(probe: Probe) -> None:
            with probe("forward"), torch.no_grad():
                for examples in batches:
                    scorer.option_log_probs(self.model, scorer.collate(task, examples))

        return action

    def rerun(self, tokenizer: Any, task: str, questions: Sequence[Example]) -> Action:
        """The likelihood of every option, prompt and option in a row of its own, all in one batch; region `rerun`."""

        def action(probe: Probe) -> None:
            with probe("rerun"):
                self.option_log_likelihoods(tokenizer, task, questions)

        return action

    @torch.no_grad()
    def option_log_likelihoods(self, tokenizer: Any, task: str, questions: Sequence[Example]) -> Tensor:
        """Summed log-likelihood in nats of each option's tokens, (questions, options): all of one length."""
        device = next(self.model.parameters()).device
        prompts, answers = [], []
        for question in questions:
            prompt = tokenizer(question_prompt(task, question)).input_ids
            for option in question.options:
                prompts.append(prompt)
                answers.append(tokenizer(option_continuation(option), add_special_tokens=False).input_ids)
        ids = torch.tensor([p + a for p, a in zip(prompts, answers, strict=True)], device=device)
        keep = len(answers[0])
        logits = self.model(input_ids=ids, logits_to_keep=keep + 1).logits[:, :-1].float()  # (rows, keep, V)
        each = -F.cross_entropy(logits.transpose(1, 2), ids[:, -keep:], reduction="none")  # (rows, keep)
        return each.sum(-1).reshape(len(questions), -1)
