"""The README.md of an adapter folder: what it is, how to use it, and what happens where abmll is not imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CARD = """---
base_model: {base}
library_name: peft
tags:
- abmll
- lora
- uncertainty
---

# {title}

{what} Base model: `{base}`. Latent `{latent}`, rank {r}, scored by `{scoring}`. Written by abmll {abmll} with PEFT
{peft} and transformers {transformers}.{task}

## Use

```python
{usage}
```

It is a PEFT adapter: `PeftModel.from_pretrained(model, folder)` loads it and answers with the adapter's mean, once
`import abmll` has registered the adapter type with PEFT. **A process that has not imported abmll gets `KeyError:
'ABMLL'`.** Where abmll is not installed, give the mean away as a stock LoRA, which loses the variance alone:

```sh
abmll export THIS_FOLDER --to lora --output my_lora
```
"""


def model_card(facts: Mapping[str, Any]) -> str:
    """The card's text, from the content of `abmll.json`."""
    config, versions = facts["config"], facts["versions"]
    prior = facts["kind"] == "prior"
    if prior:
        title = "ABMLL prior"
        what = (
            f"A prior over LoRA adapters, learned by `{config['meta']['name']}`: the start of adaptation to new tasks."
        )
        usage = (
            'import abmll\n\nprior = abmll.load_prior("THIS_FOLDER")\ntask = abmll.adapt(prior, support)  '
            "# a few labelled abmll.Example"
        )
    else:
        title = f"ABMLL posterior of task {facts['task']!r}"
        what = f"A posterior over LoRA adapters (`{config['posterior']['name']}`), fitted to a few labelled examples."
        usage = (
            'import abmll\n\ntask = abmll.load("THIS_FOLDER")\nanswer = task.predict(questions)  '
            "# .probs .answers .confidence .entropy .mutual_information"
        )
    options = f" Options: {json.dumps(facts['options'], ensure_ascii=False)}." if facts.get("options") else ""
    return _CARD.format(
        base=facts["base_model"]["name"],
        title=title,
        what=what,
        latent=config["adapter"]["latent"],
        r=config["adapter"]["r"],
        scoring=config["scoring"]["name"],
        task=options,
        usage=usage,
        abmll=versions["abmll"],
        peft=versions["peft"],
        transformers=versions["transformers"],
    )
