"""A sentence encoder as a few-shot classifier: the option whose embedding is closest to the input's.

    python examples/encoder.py SUITE_FOLDER [MODEL]

MODEL is a BERT-like sentence encoder, by default sentence-transformers/all-MiniLM-L6-v2 from the hub. SUITE_FOLDER
has train/ and test/, each with one JSONL file a task; every test task is learned from 16 rows and answered on the
others.
"""

import sys
from dataclasses import replace

from peft import get_peft_model
from transformers import AutoModel, AutoTokenizer

import abmll
from abmll.metrics import ece
from abmll.tasks import draw_rows


def main(
    folder: str, model: str = "sentence-transformers/all-MiniLM-L6-v2", episodes: int = 100, shots: int = 16
) -> dict[str, tuple[float, float]]:
    """Learn a prior, adapt to every test task; returns accuracy and calibration error by task."""
    base, tokenizer = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    suite = abmll.load_suite(folder)

    config = abmll.preset("abmll")
    config = replace(
        config,
        scoring=abmll.ScoringConfig(name="embedding", max_length=64),
        meta=replace(config.meta, episodes=episodes),
    )
    adapter = abmll.AbmllConfig(r=8, latent="output", log_variance=config.adapter.log_variance)
    prior = abmll.metatrain(get_peft_model(base, adapter), tokenizer, suite.train, config)

    found = {}
    for task in suite.test:
        rows = draw_rows(task, shots=shots, query=100, seed=1)
        answers = abmll.adapt(prior, rows.support, name=task.name).predict(rows.query, samples=4)
        labels = [question.label for question in rows.query]
        correct = answers.probs.argmax(-1).numpy() == labels
        found[task.name] = (float(correct.mean()), ece(answers.confidence.clamp(max=1), correct))
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for name, (right, error) in main(*sys.argv[1:]).items():
        print(f"{name:24s} accuracy {right:.2f}  calibration error {error:.2f}")
