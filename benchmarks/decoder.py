"""The decoder path on a real Llama file: metatrain, adapt, predict, evaluate, export, by the commands a user types.

    python benchmarks/decoder.py [--data ../shared]        # about two minutes on an idle core

The model, stories260K, has 260 thousand parameters and was trained on children's stories: this shows that the path
holds from end to end on a real checkpoint, tokenizer and real tasks. Its accuracy is no claim about anything.
Writes results/decoder.json and results/decoder.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL, SUITE, TASK = "stories260K", "nli", "nli_sick"
RUNS = {
    "output, options": ["--adapter.latent", "output", "--scoring.name", "options"],
    "factor, letters": ["--adapter.latent", "factor", "--scoring.name", "letters", "--scoring.prompt", "plain"],
}


def walk(name: str, data: Path, work: Path) -> dict[str, Any]:
    """One latent and scorer through every command; what each printed or wrote that can be checked."""
    from abmll.cli import main

    suite, model = f"{data}/tasks:{SUITE}", f"{data}/models/{MODEL}"
    rows = data / "tasks" / SUITE / f"{TASK}.jsonl"
    questions, answers = work / "questions.jsonl", work / "answers.jsonl"
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()[-40:]]
    questions.write_text("".join(json.dumps({"input": r["input"], "options": r["options"]}) + "\n" for r in lines))
    prior, task = str(work / "prior"), str(work / "task")
    commands = {
        "metatrain": [
            "--model",
            model,
            "--suite",
            suite,
            *RUNS[name],
            "--meta.episodes",
            "20",
            "--output",
            prior,
        ],
        "adapt": [prior, "--data", str(rows), "--shots", "16", "--output", task],
        "predict": [task, "--input", str(questions), "--samples", "5", "--output", str(answers)],
        "evaluate": [prior, "--suite", suite, "--query", "20", "--output", str(work / "evaluation")],
        "export": [task, "--to", "lora", "--output", str(work / "lora")],
    }
    found: dict[str, Any] = {"run": name, "seconds": {}}
    for command, arguments in commands.items():
        began = time.time()
        if (status := main([command, *arguments])) != 0:
            raise SystemExit(f"abmll {command} ended with status {status}")
        found["seconds"][command] = round(time.time() - began, 1)
    predicted = [json.loads(line) for line in answers.read_text().splitlines()]
    result = json.loads((work / "evaluation" / "result.json").read_text())
    steps = [json.loads(line) for line in (work / "prior" / "metrics.jsonl").read_text().splitlines()]
    found |= {
        "nll_first": sum(s["nll"] for s in steps[:5]) / 5,
        "nll_last": sum(s["nll"] for s in steps[-5:]) / 5,
        "answers": len(predicted),
        "largest_sum_error": max(abs(sum(p["probabilities"]) - 1) for p in predicted),
        "mutual_information": predicted[0]["mutual_information"] is not None,
        "evaluation": result["summary"]["rows"],
        "export_difference": export_difference(data / "models" / MODEL, task, work / "lora"),
    }
    return found


def export_difference(base: Path, task: str, lora: Path) -> float:
    """Largest difference of the logits of the posterior's mean and of the exported stock LoRA."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 43).reshape(2, 20)
    logits = []
    for folder in (task, str(lora)):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        with torch.no_grad():
            logits.append(model(ids).logits)
    return float((logits[0] - logits[1]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=HERE.parent.parent / "shared", help="folder with tasks/ and models/"
    )
    args = parser.parse_args()
    if not (args.data / "models" / MODEL).is_dir():
        raise SystemExit(f"{args.data}/models/{MODEL} is missing; name the folder with --data")
    from abmll.experiment.provenance import provenance

    runs = []
    for name in RUNS:
        with tempfile.TemporaryDirectory() as work:
            runs.append(walk(name, args.data, Path(work)))
    record = {"command": "python benchmarks/decoder.py", "model": MODEL, "suite": SUITE, "runs": runs, **provenance()}
    (HERE / "results" / "decoder.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# The decoder path on a real Llama file",
        "",
        f"{MODEL} (260 thousand parameters, children's stories) on the suite `{SUITE}`: 10 train tasks, 4 unseen ones.",
        "It shows that every command works from end to end; the model is too small for the numbers to mean anything.",
        "",
        f"Made by `{record['command']}`, {record['time']}.",
        "",
        "| run | " + " | ".join(f"{c} (s)" for c in runs[0]["seconds"]) + " | train NLL, first and last 5 episodes | "
        "accuracy | NLL (nats) | mean = exported LoRA to |",
        "|---|" + "---|" * (len(runs[0]["seconds"]) + 4),
    ]
    for run in runs:
        metrics = run["evaluation"][0]["metrics"]
        lines.append(
            f"| {run['run']} | "
            + " | ".join(f"{s:.0f}" for s in run["seconds"].values())
            + f" | {run['nll_first']:.3f}, {run['nll_last']:.3f} | {metrics['accuracy']['value']:.3f} | "
            f"{metrics['nll']['value']:.3f} | {run['export_difference']:.1e} |"
        )
    (HERE / "results" / "decoder.md").write_text("\n".join([*lines, ""]))
    print((HERE / "results" / "decoder.md").read_text())


if __name__ == "__main__":
    main()
