"""`AbmllConfig`: the PEFT configuration of an ABMLL adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from peft import PeftConfig
from peft.utils import PeftType

from abmll.errors import UserError, unknown
from abmll.settings import check_modules, check_number

# Where a log-variance starts if nothing is said. `output`: the published value, a standard deviation of 4.5e-5.
# `factor`: a standard deviation of 0.0025 of the elements of A. `weight`: the least standard deviation is e^-10.
START_LOG_VARIANCE = {"point": 0.0, "output": -20.0, "factor": 2.0 * math.log(0.0025), "weight": -20.0}


@dataclass
class AbmllConfig(PeftConfig):  # type: ignore[misc]
    """Configuration of one ABMLL adapter: one diagonal Gaussian over low-rank updates of linear layers.

    What LoRA also has is called what LoRA calls it. Raises UserError for a rank below 1, an unknown latent, a dropout
    outside [0, 1), an alpha or a variance that is not positive, and a text that is no regular expression.
    """

    r: int = field(default=8, metadata={"help": "Rank of every low-rank pair."})
    lora_alpha: float = field(default=16, metadata={"help": "The update is scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input, in train mode."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Names (or a regex) of the linear layers to adapt, or 'all-linear'. None: q, v, o and the MLP "
            "matrices of a known architecture (k only where it is one matrix with q; not the head)."
        },
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names or regex never to adapt."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Other modules to train and save."})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "Set by itself: True for GPT-2's Conv1D layers."})
    latent: str = field(
        default="output",
        metadata={"help": "Where the Gaussian lives: 'output', 'factor', 'weight', or 'point' for none."},
    )
    log_variance: float | None = field(
        default=None,
        metadata={
            "help": "Start of the log-variance: log c of 'output', L of 'factor', 2 log c of 'weight'. None: -20, "
            "2 log 0.0025, -20."
        },
    )
    learn_log_c: bool = field(
        default=False, metadata={"help": "'output': learn log c, one scalar a layer (B_l A_l x alone has no bias)."}
    )
    b_variance: float = field(
        default=0.05, metadata={"help": "'factor': fixed prior variance v_B of the point factor B."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.ABMLL
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment] # PEFT's own convention
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise UserError(
                f"layers_to_transform = {self.layers_to_transform} needs a list of target_modules; PEFT ignores it "
                f"beside the string {self.target_modules!r}: put the layers into the regex"
            )
        if self.latent not in START_LOG_VARIANCE:
            raise unknown("latent", self.latent, START_LOG_VARIANCE)
        if not isinstance(self.r, int) or self.r <= 0:
            raise UserError(f"rank r = {self.r!r}; a positive integer is needed")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise UserError(f"lora_dropout = {self.lora_dropout}; a probability in [0, 1) is needed")
        check_number("lora_alpha", self.lora_alpha, positive=True)
        check_number("b_variance", self.b_variance, positive=True)
        if self.log_variance is not None:
            check_number("log_variance", self.log_variance)
        check_modules("target_modules", self.target_modules)
        check_modules("exclude_modules", self.exclude_modules)
        if self.learn_log_c and self.latent != "output":
            raise UserError(f"learn_log_c belongs to latent 'output', not to {self.latent!r}; drop one of the two")

    @property
    def start_log_variance(self) -> float:
        """Where the log-variance starts: `log_variance`, or the latent's own default."""
        return START_LOG_VARIANCE[self.latent] if self.log_variance is None else self.log_variance
