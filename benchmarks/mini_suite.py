"""What the embedded suite and model give: floor of the model, gain of 16 labelled examples, head-room for a meta-prior.

    python benchmarks/mini_suite.py            # writes benchmarks/results/mini_suite.json and .md

Plain PEFT LoRA (r = 8, alpha = 16; q, v, o and the MLP matrices), AdamW, letter scoring among the item's options.
Starts: `none` (LoRA's own start, B = 0), `multitask` (LoRA trained on all train tasks at once) and `reptile`.
Adaptation: 16 support rows, labels taken in turn; accuracy on 60 other rows. For every start and effort the learning
rate is chosen on the validation tasks; the test tasks are scored once, at that rate. One thread.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from abmll import mini
from abmll.hashing import stable_hash
from abmll.tasks.prompts import LETTERS, user_message
from abmll.tasks.synthetic import bayes_ceiling, mini_suite
from abmll.tasks.task import Example, Suite, Task

SHOTS, QUERY = 16, 60
State = dict[str, torch.Tensor]


class Letters:
    """A LoRA on the embedded model, scored and trained by letters."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        modules = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        torch.manual_seed(0)
        self.model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=modules))
        self.letters = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(LETTERS)))
        self.fresh = self.state()

    def state(self) -> State:
        """A copy of the adapter's weights."""
        return {k: v.clone() for k, v in get_peft_model_state_dict(self.model).items()}

    def load(self, state: State) -> None:
        """Put a copy of these weights into the adapter."""
        set_peft_model_state_dict(self.model, {k: v.clone() for k, v in state.items()})

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained: the adapter's factors."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def logits(self, name: str, rows: list[Example]) -> torch.Tensor:
        """Letter logits (n, 26) of each row, -inf beyond its options."""
        turns = [[{"role": "user", "content": user_message(name, e)}] for e in rows]
        texts = [self.tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = self.model(**batch, logits_to_keep=1).logits[:, -1, self.letters]  # left padding: the last is the answer
        count = torch.tensor([len(e.options) for e in rows])
        return out.masked_fill(torch.arange(26) >= count[:, None], float("-inf"))

    def loss(self, name: str, rows: list[Example]) -> torch.Tensor:
        """Mean cross-entropy among each row's letters."""
        return torch.nn.functional.cross_entropy(self.logits(name, rows), torch.tensor([e.label for e in rows]))

    @torch.no_grad()
    def evaluate(self, name: str, rows: list[Example]) -> tuple[float, float]:
        """(accuracy, NLL in nats) of the drawn outputs."""
        logits, gold = self.logits(name, rows), torch.tensor([e.label for e in rows])
        accuracy = (logits.argmax(-1) == gold).float().mean()
        return float(accuracy), float(torch.nn.functional.cross_entropy(logits, gold))

    def adapt(self, name: str, support: list[Example], steps: int, batch: int, lr: float, key: int) -> None:
        """AdamW steps on batches that go through the support set, shuffled anew each time."""
        rng = random.Random(key)
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=0.0)
        queue: list[Example] = []
        for _ in range(steps):
            if len(queue) < batch:
                queue += rng.sample(support, len(support))
            rows, queue = queue[:batch], queue[batch:]
            self.loss(name, rows).backward()
            optimizer.step()
            optimizer.zero_grad()


def split(task: Task, seed: int) -> tuple[list[Example], list[Example]]:
    """16 support rows with the labels (or letters) in turn, and 60 others."""
    rows = list(task.examples)
    random.Random(stable_hash("benchmark", task.name, seed)).shuffle(rows)
    by_label: dict[object, list[Example]] = defaultdict(list)
    for row in rows[: len(rows) - QUERY]:
        by_label[row.output if task.labels else row.label].append(row)
    support: list[Example] = []
    while len(support) < SHOTS:
        support += [group.pop() for group in by_label.values() if group]
    return support[:SHOTS], rows[len(rows) - QUERY :]


def reptile(model: Letters, tasks: tuple[Task, ...], episodes: int, steps: int, lr: float, rate: float) -> State:
    theta = {k: v.clone() for k, v in model.fresh.items()}
    rng = random.Random(0)
    for episode in range(episodes):
        task = tasks[episode % len(tasks)] if episode % len(tasks) else rng.choice(tasks)
        model.load(theta)
        model.adapt(task.name, rng.sample(task.examples, 32), steps, 4, lr, episode)
        now = rate * (1 - episode / episodes)
        phi = model.state()
        theta = {k: v + now * (phi[k] - v) for k, v in theta.items()}
    return theta


def multitask(model: Letters, tasks: tuple[Task, ...], steps: int, lr: float) -> State:
    model.load(model.fresh)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        task = rng.choice(tasks)
        model.loss(task.name, rng.sample(task.examples, 8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state()


def measure(model: Letters, task: Task, start: State, seeds: list[int], steps: int, batch: int, lr: float) -> dict:
    """Means over seeds: accuracy and NLL before and after."""
    rows = []
    for seed in seeds:
        support, query = split(task, seed)
        model.load(start)
        before = model.evaluate(task.name, query)
        model.adapt(task.name, support, steps, batch, lr, seed)
        rows.append([*before, *model.evaluate(task.name, query)])
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return dict(zip(("before", "before_nll", "after", "after_nll"), (round(m, 4) for m in means), strict=True))


def average(cells: list[dict], key: str) -> float:
    """Mean over tasks."""
    return round(sum(c[key] for c in cells) / len(cells), 4)


def floor(model: Letters, suite: Suite) -> dict[str, dict[str, float]]:
    """Accuracy of the model without adaptation on the plain train tasks: held-out items of the pretraining families."""
    model.load(model.fresh)
    found = {}
    for task in suite.train:
        if task.metadata["facts"] == "plain":
            accuracy = model.evaluate(task.name, list(task.examples))[0]
            chance = sum(1 / len(e.options) for e in task.examples) / len(task)
            found[task.family or ""] = {
                "accuracy": round(accuracy, 4),
                "chance": round(chance, 4),
                "bayes": round(bayes_ceiling(task)[0], 4),
            }
    return found


def markdown(result: dict) -> str:
    """The result file in words and tables."""
    lines = ["# Embedded suite and model: what 16 labelled examples give", ""]
    lines += [f"`python benchmarks/mini_suite.py`; {result['cpu_seconds']} CPU seconds, one thread. Accuracy in %.", ""]
    lines += ["Without adaptation, held-out items of the pretraining families (200 each):", ""]
    lines += ["| family | accuracy | chance | Bayes |", "|---|---|---|---|"]
    for family, f in result["floor"].items():
        lines.append(f"| {family} | {100 * f['accuracy']:.1f} | {100 * f['chance']:.1f} | {100 * f['bayes']:.1f} |")
    over = [f["accuracy"] - f["chance"] for f in result["floor"].values()]
    lines += ["", f"Mean above chance: {100 * sum(over) / len(over):.1f} points.", ""]
    lines += [f"Test tasks, {SHOTS} shots, {QUERY} query rows, seeds {result['seeds']}; mean over tasks:", ""]
    lines += ["| start | steps x batch | lr | tasks | before | after | gain | NLL after | chance | Bayes |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for row in result["summary"]:
        numbers = [100 * row[k] for k in ("before", "after", "gain")]
        lines.append(
            f"| {row['start']} | {row['steps']} x {row['batch']} | {row['lr']:g} | {row['kind']} | "
            + " | ".join(f"{n:.1f}" for n in numbers)
            + f" | {row['after_nll']:.3f} | {100 * row['chance']:.1f} | {100 * row['bayes']:.1f} |"
        )
    lines += ["", f"By task, start `none`, {result['efforts'][-1]}:", ""]
    lines += ["| task | family | chance | before | after | Bayes |", "|---|---|---|---|---|---|"]
    for c in result["cells"]:
        if c["start"] == "none" and f"{c['steps']}x{c['batch']}" == result["efforts"][-1]:
            numbers = " | ".join(f"{100 * c[k]:.1f}" for k in ("chance", "before", "after", "bayes"))
            lines.append(f"| {c['task']} | {c['family']} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=mini.path())
    parser.add_argument("--efforts", default="5x4,10x8", help="steps x batch, several")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--starts", default="none,multitask,reptile")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mini_suite.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time()
    suite, model = mini_suite(), Letters(args.model)
    seeds = [int(s) for s in args.seeds.split(",")]
    rates, names = [float(v) for v in args.rates.split(",")], args.starts.split(",")
    result: dict = {"shots": SHOTS, "query": QUERY, "seeds": seeds, "efforts": args.efforts.split(","), "rates": rates}
    result["floor"] = floor(model, suite)
    print(json.dumps(result["floor"]), flush=True)
    makers = {
        "none": lambda: model.fresh,
        "multitask": lambda: multitask(model, suite.train, 600, 2e-3),
        "reptile": lambda: reptile(model, suite.train, 300, 8, 3e-3, 0.3),
    }
    result["summary"], result["cells"] = [], []
    for start in names:
        state = makers[start]()
        print(f"{start}: ready at {time.process_time() - clock:.0f}s", flush=True)
        for effort in result["efforts"]:
            steps, batch = (int(v) for v in effort.split("x"))
            trial = {
                lr: average([measure(model, t, state, seeds[:1], steps, batch, lr) for t in suite.validation], "after")
                for lr in rates
            }
            lr = max(trial, key=lambda rate: trial[rate])
            cells = []
            for task in suite.test:
                bayes, bayes_nll = bayes_ceiling(task)
                facts = {"task": task.name, "family": task.family, "kind": task.metadata["kind"]}
                facts |= {"start": start, "steps": steps, "batch": batch, "lr": lr}
                facts |= {"chance": sum(1 / len(e.options) for e in task.examples) / len(task)}
                facts |= {"bayes": round(bayes, 4), "bayes_nll": round(bayes_nll, 4)}
                cells.append(facts | measure(model, task, state, seeds, steps, batch, lr))
            for kind in ("seen-family", "unseen-family"):
                some = [c for c in cells if c["kind"] == kind]
                row = {"start": start, "steps": steps, "batch": batch, "lr": lr, "kind": kind, "validation": trial[lr]}
                row |= {k: average(some, k) for k in ("chance", "before", "after", "before_nll", "after_nll")}
                row |= {k: average(some, k) for k in ("bayes", "bayes_nll")} | {"gain": 0.0}
                row["gain"] = round(row["after"] - row["before"], 4)
                result["summary"].append(row)
                print(json.dumps(row), flush=True)
            result["cells"] += cells
    result["cpu_seconds"] = round(time.process_time() - clock)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
