"""Tiny random models of several architectures, small tokenizers trained on the spot, and questions of every shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from abmll.scoring import Scorer
from abmll.tasks.prompts import INSTRUCTION
from abmll.tasks.task import Example

TASK_NAME = "colours"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
CORPUS = [
    *[f"{INSTRUCTION}\n\n", "Choices:\nA) \nB) \nC) \nD) \n", "Answer:\n"] * 8,
    *["the warm sun sets", "over a cold grey sea", "light green", "dark red", "neither one nor the other"],
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

# inputs of very different length, 2 to 4 options, options of one token and of many, and options that come again
EXAMPLES = (
    Example("the sun", ("warm", "cold", "light green"), "cold"),
    Example("a grey sea over the dark red sun; " * 3, ("warm", "cold"), "warm"),
    Example("neither", ("dark red", "sea", "warm", "neither one nor the other"), "neither one nor the other"),
    Example("x", ("one", "two"), "one"),
)


def bpe(*, chat: bool = True, start: bool = False, both_ends: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE. `start`: texts begin with <s>; `both_ends`: and end with </s>, as encoders have it."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    if start or both_ends:
        ends = [("<s>", 1), ("</s>", 2)]
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if both_ends else "<s> $A", special_tokens=ends
        )
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = TEMPLATE if chat else None
    return made


SIZES = {
    "vocab_size": 360,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
DECODER = {**SIZES, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**DECODER)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=360, n_embd=16, n_layer=2, n_head=2, n_positions=256, initializer_range=0.3, bos_token_id=1
        )
    ),
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**{**SIZES, "max_position_embeddings": 258})),
}
DECODERS = ("llama", "qwen2", "mistral", "gpt2")
SETUPS = [(name, m) for name in ("letters", "options") for m in DECODERS] + [
    ("embedding", m) for m in ("bert", "roberta")
]


@dataclass(frozen=True)
class Setup:
    """An adapted model, its scorer, and the same model as plain Hugging Face code sees it."""

    model: PeftModel
    scorer: Scorer[Any]
    tokenizer: PreTrainedTokenizerFast

    def batch(self, examples: Sequence[Example]) -> Any:
        return self.scorer.collate(TASK_NAME, examples)

    @torch.no_grad()
    def log_probs(self, examples: Sequence[Example]) -> Tensor:
        return self.scorer.option_log_probs(self.model, self.batch(examples))

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """(tokens, vocabulary): one text alone, no padding, positions and mask left to the model."""
        return self.model(input_ids=torch.tensor([list(ids)])).logits[0]


Build = Callable[..., Setup]
