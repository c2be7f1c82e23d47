"""Your own tasks, one JSONL file each: learn a prior from some, adapt to a new one, and ask.

    python examples/own_data.py TRAIN_FOLDER NEW_TASK.jsonl [MODEL]

Rows: {"input": "the soup was cold", "options": ["good", "bad"], "output": "bad"}. TRAIN_FOLDER holds one such file a
task. MODEL is a decoder with a chat template: a hub id, a folder, or `mini`, the model inside the package. The first
16 rows of NEW_TASK are learned from, the others are answered.
"""

import sys
from dataclasses import replace

from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import abmll
from abmll import mini


def main(train_folder: str, new_task: str, model: str = "mini", episodes: int = 100) -> list[dict[str, object]]:
    """Learn, adapt, answer; returns what is printed."""
    name = str(mini.path()) if model == "mini" else model
    base = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(name)
    suite = abmll.load_suite(train_folder)

    # A distribution over LoRA adapters that says how far tasks differ from each other.
    config = abmll.preset("abmll-factor")
    config = replace(config, meta=replace(config.meta, episodes=episodes))
    adapter = abmll.AbmllConfig(r=8, latent=config.adapter.latent, log_variance=config.adapter.log_variance)
    prior = abmll.metatrain(get_peft_model(base, adapter), tokenizer, suite.train, config)

    # A new task: 16 labelled examples, then questions.
    task = abmll.load_task(new_task)
    adapted = abmll.adapt(prior, task.examples[:16], name=task.name)
    answers = adapted.predict(task.examples[16:], samples=10)
    adapted.save_pretrained("my_adapter", overwrite=True)  # a PEFT adapter; abmll.load("my_adapter") brings it back

    found = []
    for question, answer, confidence, doubt in zip(
        answers.examples, answers.answers, answers.confidence, answers.mutual_information, strict=True
    ):
        # Mutual information: how much the draws of the adapter disagree, so how much more labels would help.
        found.append(
            {"input": question.input, "answer": answer, "confidence": float(confidence), "doubt": float(doubt)}
        )
    return found


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for row in main(*sys.argv[1:]):
        print(row)
