"""A tiny random model folder, a tiny suite and how they are made: for tests of everything around the method."""

import json
import random
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import abmll
from abmll.experiment.config import merge
from abmll.tasks import Example, Suite, Task, save_suite

COLOURS = ("red", "green", "blue", "grey")
ANIMALS = ("cat", "dog", "owl", "fox")
TEXT = (
    "Return only the label of the correct answer for the question below. Choices: Answer: is it a the , ? ) . "
    "warm cold A B C D E F G H I J K L M N O P Q R S T U V W X Y Z 0 1 2 3 4 5 6 7 8 9"
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a word or mark; unknown words are <unk>."""
    words = sorted({*re.findall(r"\w+|[^\w\s]", TEXT), *COLOURS, *ANIMALS})
    special = ["<pad>", "<s>", "<|end|>", "<unk>", "<|user|>", "<|assistant|>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>", unk_token="<unk>"
    )
    made.chat_template = TEMPLATE if chat else None
    return made


def save_llama(folder: Path, seed: int = 0, chat: bool = True) -> Path:
    """A random Llama of two layers and 16 dimensions, with its tokenizer."""
    words = tokenizer(chat)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    """A random sentence encoder of two layers and 16 dimensions, with its tokenizer."""
    words = tokenizer(chat=False)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|end|>", special_tokens=[("<s>", 1), ("<|end|>", 2)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def task(name: str, rows: int = 24, options: tuple[str, ...] = ("warm", "cold", "grey")) -> Task:
    """Which colour the animal is: the name's own rule, learnable from examples."""
    rng = random.Random(name)
    rule = {(a, c): rng.choice(options) for a in ANIMALS for c in COLOURS}
    pairs = [rng.choice(sorted(rule)) for _ in range(rows)]
    inputs = [f"{a} {c} {i % 10} {i // 10}" for i, (a, c) in enumerate(pairs)]
    return Task(name, tuple(Example(x, options, rule[p]) for x, p in zip(inputs, pairs, strict=True)))


def suite(train: int = 4, test: int = 2) -> Suite:
    """Train tasks t0, t1 ... and unseen tasks u0, u1 ..."""
    return Suite("tiny", tuple(task(f"t{i}") for i in range(train)), tuple(task(f"u{i}") for i in range(test)))


def save(folder: Path) -> Path:
    """The tiny suite on disk: FOLDER/suites.json and FOLDER/tiny."""
    save_suite(suite(), folder)
    return folder / "tiny"


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(meta: str = "abmll", latent: str = "output", **changes: object) -> abmll.RunConfig:
    """Quick settings: four steps of two inner ones at rates that move something."""
    rates = {"abmll": {"inner_lr": 0.02, "outer_lr": 0.05, "beta": 1e-2}}.get(meta, {"inner_lr": 0.02})
    posterior = {"name": "point" if latent == "point" else "variational", "lr": 0.02, "steps": 3, "samples": 3}
    made = merge(
        abmll.RunConfig(),
        {
            "adapter": {"latent": latent},
            "meta": {"name": meta, "episodes": 4, "inner_steps": 2, "batch_size": 3, **rates},
            "posterior": {**posterior, "batch_size": 4, "beta": 1e-2},
        },
    )
    return merge(made, changes)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
