"""Train the embedded model `mini` from scratch, on text this repository generates, with one CPU thread.

    python scripts/train_mini.py --output src/abmll/mini

Deterministic: one command, one machine, one set of weights. Writes config.json, model.safetensors (float16), the
tokenizer, the chat template and the generation config; a checkpoint beside them lets an interrupted run go on.
Pretraining data: `abmll.tasks.synthetic.siblings` (seen families only; no input of the suite).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import string
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from abmll.hashing import stable_hash
from abmll.tasks.prompts import INSTRUCTION, answer_letter, user_message
from abmll.tasks.synthetic import mini_suite
from abmll.tasks.synthetic.siblings import Sibling, siblings
from abmll.tasks.synthetic.suite import draw_output
from abmll.tasks.synthetic.words import vocabulary
from abmll.tasks.task import Example

SPECIAL = ("<pad>", "<s>", "<|end|>", "<unk>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' }}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ raise_exception('mini knows user and assistant turns only') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Stage:
    """A step of the curriculum: family weights, share of words without a fixed meaning, and when the next one begins.

    The next stage begins at the first hundred steps with a mean loss below `until`, or at step `last`.
    """

    weights: dict[str, float]
    private: float
    until: float
    last: int


# First what words mean and how an option is named by its letter; then everything; then more of what comes hard.
STAGES = (
    Stage({"match": 0.3, "pick": 1.5, "topic": 1.0, "tone": 1.0}, 0.0, 0.35, 1000),
    Stage(
        {
            "tone": 1.0,
            "topic": 1.0,
            "entail": 2.0,
            "sums": 1.5,
            "sequence": 2.0,
            "pick": 1.0,
            "odd": 1.0,
            "role": 1.5,
            "match": 0.2,
        },
        0.1,
        0.0,
        3000,
    ),
    Stage(
        {
            "tone": 1.0,
            "topic": 1.0,
            "entail": 3.0,
            "sums": 1.0,
            "sequence": 3.0,
            "pick": 0.7,
            "odd": 0.7,
            "role": 3.0,
            "match": 0.2,
        },
        0.1,
        0.0,
        0,
    ),
)
CYCLES = (3000, 2000)  # steps of each run of the cosine schedule down from the full rate


def rate(step: int) -> float:
    """The learning rate of step `step` (from 0) as a share of the full one: warm up over 100 steps, then cosine."""
    for length in CYCLES:
        if step < length:
            return min((step + 1) / 100, 0.51 + 0.49 * math.cos(math.pi * step / length))
        step -= length
    return 0.02


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level: one token for each word, letter, `A)`, number below 100; the paper's instruction is one token too."""
    letters = string.ascii_uppercase
    words = ["Choices:", "Answer:", *letters, *(f"{x})" for x in letters), *INSTRUCTION.rstrip(".").split()]
    entries = dict.fromkeys([*SPECIAL, INSTRUCTION, *words, *vocabulary()])
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(entries)}, unk_token="<unk>"))
    pattern = Regex(r"Choices:|Answer:|\b[A-Z]\)|\w+|[^\w\s]")
    core.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=t != "<unk>") for t in SPECIAL])
    core.add_tokens([AddedToken(INSTRUCTION, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<|end|>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(vocabulary_size: int, hidden: int, layers: int, heads: int, inner: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.06,
            attention_dropout=0.0,
        )
    )


def prompt(name: str, example: Example) -> str:
    """The chat template's text up to the answer, written by hand: the template engine is too slow for training."""
    return f"<s><|user|>\n{user_message(name, example)}<|end|>\n<|assistant|>\n"


def as_example(sibling: Sibling, rng: random.Random) -> Example:
    item = sibling.item
    return Example(item.input, item.options, draw_output(rng, item), item.probabilities)


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
POOL = 10  # batches drawn together, so that each holds prompts of similar length


def pool(core: Tokenizer, stage: int, seed: int, number: int, size: int, avoid: frozenset[str]) -> list[Batch]:
    """`POOL` batches of (prompt and answer (b, t), last prompt position (b), letter probabilities (b, 26)).

    A function of its arguments alone, so a resumed run sees the data an uninterrupted one would.
    """
    rng = random.Random(stable_hash("train mini", seed, stage, number))
    stream = siblings(rng, STAGES[stage].weights, STAGES[stage].private, avoid)
    rows = [(s.name, as_example(s, rng)) for s in itertools.islice(stream, size * POOL)]
    texts = [prompt(n, e) + answer_letter(e) for n, e in rows]
    ids = [e.ids for e in core.encode_batch(texts, add_special_tokens=False)]
    order = sorted(range(len(rows)), key=lambda i: len(ids[i]))
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(chunks)
    made = []
    for chunk in chunks:
        tokens = torch.zeros(size, max(len(ids[i]) for i in chunk), dtype=torch.long)
        target = torch.zeros(size, 26)
        for row, i in enumerate(chunk):
            tokens[row, : len(ids[i])] = torch.tensor(ids[i])
            probabilities = rows[i][1].oracle or ()
            target[row, : len(probabilities)] = torch.tensor(probabilities)
        made.append((tokens, torch.tensor([len(ids[i]) - 2 for i in chunk]), target))
    return made


def _rotate(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def forward(model: LlamaForCausalLM, tokens: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (b, 3, vocabulary) before, at and after position `last` (b) of right-padded `tokens` (b, t), cheaply.

    They are the model's own: the last layer is computed for the three wanted positions alone, and no padding mask is
    needed before it. Also returns the last layer's input (b, t, hidden).
    """
    b, t = tokens.shape
    rows, places = torch.arange(b)[:, None], torch.stack((last - 1, last, last + 1), 1)  # (b, 1), (b, 3)
    x = inner = model.model.embed_tokens(tokens)  # (b, t, hidden)
    cos, sin = (m[:, None] for m in model.model.rotary_emb(x, torch.arange(t)[None]))  # (1, 1, t, head)
    for i, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        h = layer.input_layernorm(x)
        k, v = (f(h).view(b, t, -1, attention.head_dim).transpose(1, 2) for f in (attention.k_proj, attention.v_proj))
        k = k * cos + _rotate(k) * sin  # (b, heads, t, head)
        if i + 1 < len(model.model.layers):
            q = attention.q_proj(h).view(b, t, -1, attention.head_dim).transpose(1, 2)
            q = q * cos + _rotate(q) * sin
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            inner, x = x, x[rows, places]
            q = attention.q_proj(h[rows, places]).view(b, 3, -1, attention.head_dim).transpose(1, 2)
            q = q * cos[0, 0, places][:, None] + _rotate(q) * sin[0, 0, places][:, None]  # (b, heads, 3, head)
            seen = (torch.arange(t) <= places[:, :, None])[:, None]  # (b, 1, 3, t)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x)), inner


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, core: Tokenizer, letters: torch.Tensor, rows: list[tuple[str, Example]]) -> float:
    """Share of rows whose best letter among their options is the most probable option."""
    ids = [e.ids for e in core.encode_batch([prompt(n, e) for n, e in rows], add_special_tokens=False)]
    tokens = torch.zeros(len(rows), max(map(len, ids)) + 1, dtype=torch.long)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = torch.tensor(one)
    logits = forward(model, tokens, torch.tensor([len(one) - 1 for one in ids]))[0][:, 1, letters]
    right = 0
    for row, (_, example) in enumerate(rows):
        right += int(logits[row, : len(example.options)].argmax()) == example.label
    return right / len(rows)


class Helpers(torch.nn.Module):
    """Two linear read-outs of the last layer's input, trained along and thrown away.

    `judge` tells at each option's word whether that option is right: without it the model has to find at once which
    option is right and where its letter stands, and sits at chance for thousands of steps instead of two hundred.
    `recall` names the right option's word at the answer's place: it brings there what the text is about, which is
    what adaptation to new labels needs. Options are single words.
    """

    def __init__(self, hidden: int, first_mark: int) -> None:
        super().__init__()
        self.judge = torch.nn.Linear(hidden, 1)
        self.recall = torch.nn.Linear(hidden, hidden, bias=False)
        self.first_mark = first_mark  # the token `A)`; `B)` to `Z)` follow it

    def forward(
        self, inner: torch.Tensor, tokens: torch.Tensor, last: torch.Tensor, target: torch.Tensor, words: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two losses (means); `words` (vocabulary, hidden) are the embeddings."""
        marks = tokens[:, :-1]
        row, place = ((marks >= self.first_mark) & (marks < self.first_mark + 26)).nonzero(as_tuple=True)
        right = target[row, tokens[row, place] - self.first_mark]
        inner = F.rms_norm(inner, inner.shape[-1:])
        judge = F.binary_cross_entropy_with_logits(self.judge(inner[row, place + 1])[:, 0], right)
        log_p = (self.recall(inner[torch.arange(len(last)), last]) @ words.T).log_softmax(-1)
        recall = -(right * log_p[row, tokens[row, place + 1]]).sum() / len(last)
        return judge, recall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--checkpoint", type=Path, help="file to resume from and to write every 500 steps")
    parser.add_argument("--steps", type=int, default=sum(CYCLES), help="fewer for a trial; the schedule stays")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--inner", type=int, default=256)
    parser.add_argument("--judge", type=float, default=2.0, help="weight of a training helper")
    parser.add_argument("--recall", type=float, default=0.3, help="weight of a training helper")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    core = tokenizer.backend_tokenizer
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(string.ascii_uppercase)))
    assistant = int(tokenizer.convert_tokens_to_ids("<|assistant|>"))
    first_mark = int(tokenizer.convert_tokens_to_ids("A)"))
    model = build_model(len(tokenizer), args.hidden, args.layers, args.heads, args.inner)
    helpers = Helpers(args.hidden, first_mark)
    print("parameters", sum(p.numel() for p in model.parameters()), "vocabulary", len(tokenizer), flush=True)
    suite = mini_suite()
    avoid = frozenset(e.input for t in suite.tasks for e in t.examples)
    plain = [task for task in suite.train if task.metadata["facts"] == "plain"]
    parameters = [*model.parameters(), *helpers.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    done, stage, seconds = 0, 0, 0.0
    if args.checkpoint and args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        for part, state in zip((model, helpers, optimizer, schedule), saved["states"], strict=True):
            part.load_state_dict(state)
        done, stage, seconds = saved["step"], saved["stage"], saved["seconds"]
    start = time.process_time() - seconds
    ready: list[Batch] = []
    losses: list[tuple[float, float, float]] = []
    for step in range(done + 1, args.steps + 1):
        if not ready:
            ready = pool(core, stage, args.seed, step, args.batch, avoid)
        tokens, last, target = ready.pop()
        logits, inner = forward(model, tokens, last)
        log_p = logits.log_softmax(-1)
        loss = -(target * log_p[:, 1, letters]).sum(-1).mean()
        frame = -(log_p[:, 0, assistant] + log_p[:, 2, tokenizer.eos_token_id]).mean()
        judge, recall = helpers(inner, tokens, last, target, model.model.embed_tokens.weight)
        (loss + 0.1 * frame + args.judge * judge + args.recall * recall).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append((float(loss.detach()), float(judge.detach()), float(recall.detach())))
        if step % 100 == 0 or step == args.steps:
            mean, judged, recalled = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            floors = {t.family: accuracy(model, core, letters, [(t.name, e) for e in t.examples[:100]]) for t in plain}
            shown = " ".join(f"{family} {a:.2f}" for family, a in floors.items())
            seconds = time.process_time() - start
            print(
                f"{step} stage {stage} {seconds:.0f}s loss {mean:.3f} judge {judged:.3f} recall {recalled:.3f} {shown}",
                flush=True,
            )
            over = mean < STAGES[stage].until or step >= STAGES[stage].last
            stage = min(stage + over, len(STAGES) - 1)
            losses = []
        if args.checkpoint and step % 500 == 0:
            states = [part.state_dict() for part in (model, helpers, optimizer, schedule)]
            torch.save({"states": states, "step": step, "stage": stage, "seconds": seconds}, args.checkpoint)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.output)
    model.half().save_pretrained(args.output)
    config = json.loads((args.output / "config.json").read_text())
    config["dtype"] = "float32"  # stored in half precision to be small; to be computed with in full
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=2).save_pretrained(args.output)


if __name__ == "__main__":
    main()
