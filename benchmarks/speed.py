"""What ABMLL costs beside plain PEFT LoRA: time, memory, predictions, start-up, in one table.

    python benchmarks/speed.py                          # everything that this machine can measure (CPU: about an hour)
    python benchmarks/speed.py --cases i --rounds 5     # one case; the table keeps the others
    python benchmarks/speed.py --cases iii              # the GPU's rows, where there is one
    python benchmarks/speed.py --cases i --profile "inner step with KL"   # where one row's time goes; writes nothing

Cases: (i) Llama shape 512 x 4 layers, 2 x 256 tokens, CPU; (ii) MiniLM shape, 8 x 64, CPU; (iii) Llama-3-8B shape,
bf16, GPU; (iv) samples; (v) options; (vi) tokens a second against length, rank and K; (vii) memory a token; (viii)
start-up. All weights are random: nothing is downloaded. Writes results/speed.json and the table in README.md here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")
GPU_SETTINGS = ((2, 512, False), (2, 512, True), (8, 1024, False), (8, 1024, True))
ORDER = ("i", "ii", *(f"iii.{n}" for n in range(1, 1 + len(GPU_SETTINGS))), *CASES[3:])


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="which, separated by commas")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds of (i), (ii), (iii); others at most 5")
    parser.add_argument("--methods", default=None, help="of output,factor,natural,weight,naive; default: all there are")
    parser.add_argument("--gpu-layers", type=int, default=32, help="layers of (iii), fewer for a smaller card")
    parser.add_argument("--profile", metavar="ROW", help="print the profile of this row of (i), (ii) or (iii)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: tries the harness, its numbers mean nothing")
    parser.add_argument("--output", type=Path, help="another JSON file; README.md is then left alone")
    chosen = parser.parse_args(argv)
    chosen.cases = chosen.cases.split(",")
    if unknown := set(chosen.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if chosen.rounds < 1:
        parser.error(f"--rounds {chosen.rounds}; at least 1 is needed")
    if chosen.tiny and chosen.output is None and chosen.profile is None:
        parser.error("--tiny needs --output: numbers that mean nothing do not belong in the table")
    return chosen


def settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """The setting of every case that has one."""
    import torch

    from cost.bases import LLAMA_3_8B, LLAMA_512, MINILM, TINY
    from cost.setting import Setting

    decoder = Setting(LLAMA_512, 2, 256)
    encoder = Setting(MINILM, 8, 64)
    if chosen.tiny:
        decoder, encoder = Setting(TINY["llama"], 2, 120, rank=2), Setting(TINY["bert"], 2, 8, rank=2)
    found = {"i": decoder, "ii": encoder, **dict.fromkeys(("iv", "v", "vi", "vii"), decoder)}
    if torch.cuda.is_available():
        shape = TINY["llama"] if chosen.tiny else replace(LLAMA_3_8B, layers=chosen.gpu_layers)
        for number, (batch, length, checkpointing) in enumerate(GPU_SETTINGS, start=1):
            length = 120 if chosen.tiny else length
            device = torch.device("cuda")
            own = Setting(shape, batch, length, 2 if chosen.tiny else 8, device, torch.bfloat16, checkpointing)
            found[f"iii.{number}"] = own
    return found


def title(name: str, setting: Any) -> str:
    """What a case is."""
    own = {
        "iv": "Samples of the posterior in one prediction",
        "v": "Options of one prompt, answered by their likelihood",
        "vi": "Tokens a second in an episode",
        "vii": "Memory that one more token takes",
        "viii": "Start-up of the command",
    }
    if name == "viii":
        return own[name]
    s = setting.shape
    where = "GPU, bf16" if setting.kind == "gpu" else "CPU"
    kind = "Llama" if s.architecture == "llama" else "BERT encoder"
    size = f"{where}, {kind} {s.hidden} wide x {s.layers} layers, {setting.batch} x {setting.length} tokens"
    size += f", r = {setting.rank}"
    if setting.checkpointing:
        size += ", activation checkpointing"
    return f"{own[name]}: {size}" if name in own else size


def run(name: str, chosen: argparse.Namespace, setting: Any, base: Any) -> dict[str, Any]:
    """One case's record."""
    from cost import must_reach, startup, sweeps

    few = min(chosen.rounds, 5)
    methods = [m for m in chosen.methods if m != "natural"]  # it differs from `factor` in steps alone
    if name == "viii":
        return {"form": "startup", "cells": startup.measure(few)}
    if name == "iv":
        return {"form": "ratios", "cells": sweeps.samples(setting, methods, few, base)}
    if name == "v":
        plain = [m for m in methods if m != "naive"]  # it has no options of its own
        return {"form": "ratios", "cells": sweeps.options(setting, plain, few, base)}
    if name == "vi":
        return {"form": "throughput", "cells": sweeps.throughput(setting, methods, few, base)}
    if name == "vii":
        return {"form": "memory", "cells": sweeps.memory(setting, methods, base)}
    return {"form": "reach", **must_reach.run(setting, chosen.methods, chosen.rounds, base, not chosen.tiny)}


def main(argv: list[str] | None = None) -> int:
    chosen = arguments(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler announces every start and stop
    warnings.simplefilter("ignore")
    from abmll.experiment.quiet import quiet

    quiet()
    from cost import machine
    from cost.abmll_method import available

    there = available()
    chosen.methods = there if chosen.methods is None else chosen.methods.split(",")
    if missing := set(chosen.methods) - set(there):
        print(f"speed: no method {', '.join(sorted(missing))}; there are {', '.join(there)}", file=sys.stderr)
        return 2
    by_case = settings(chosen)
    names = [n for n in ORDER if n.partition(".")[0] in chosen.cases]
    if chosen.profile is not None:
        return profile(chosen, by_case, [n for n in names if n in by_case])
    path = chosen.output or HERE / "results" / "speed.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}}
    record |= {"command": "python benchmarks/speed.py", "order": ORDER}
    bases = Bases()
    for name in names:
        if name.startswith("iii") and name not in by_case:
            if not record["cases"].get(name, {}).get("cells"):
                record["cases"][name] = {"title": _gpu_title(name), "note": NO_GPU, "facts": None}
        else:
            setting = by_case.get(name)
            print(f"({name}) {title(name, setting)}", file=sys.stderr, flush=True)
            case = {"title": title(name, setting), **run(name, chosen, setting, bases(setting))}
            case["facts"] = machine.facts(setting.device if setting is not None else bases.cpu)
            record["cases"][name] = case
        write(record, path, chosen.output is None)  # what is measured is kept, whatever comes after
    return 0


NO_GPU = (
    "Not measured yet: no NVIDIA GPU was at hand. `python benchmarks/speed.py --cases iii` on a machine that has one "
    "fills these rows (`--gpu-layers N` for a card of less than 80 GB)."
)


def _gpu_title(name: str) -> str:
    batch, length, checkpointing = GPU_SETTINGS[int(name.partition(".")[2]) - 1]
    more = ", activation checkpointing" if checkpointing else ""
    return f"GPU, bf16, Llama-3-8B shape, {batch} x {length} tokens, r = 8{more}"


class Bases:
    """The base model at hand: cases of one shape share it, and there is one at a time."""

    def __init__(self) -> None:
        import torch

        self.cpu = torch.device("cpu")
        self.key: Any = None
        self.model: Any = None

    def __call__(self, setting: Any) -> Any:
        """The setting's base model; the one before is let go."""
        key = None if setting is None else (setting.shape, setting.device, setting.dtype)
        if key != self.key:
            self.model = None
            self.key, self.model = key, None if setting is None else setting.base()
        return self.model


def write(record: dict[str, Any], path: Path, readme: bool) -> None:
    from cost import table

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = table.render(record)
    if readme:
        table.insert(HERE / "README.md", text)
    else:
        path.with_suffix(".md").write_text(text, encoding="utf-8")


def profile(chosen: argparse.Namespace, by_case: dict[str, Any], names: list[str]) -> int:
    """Print where one row's time goes, for every chosen method."""
    from cost import must_reach
    from cost.rows import CHOICE, MANY, MEAN, TRAINING
    from cost.setting import Bench

    regions = {row.name: row.region for row in (*TRAINING, MEAN, MANY, CHOICE)}
    if chosen.profile not in regions:
        print(f"speed: no row {chosen.profile!r}; there are: {'; '.join(regions)}", file=sys.stderr)
        return 2
    bases = Bases()
    for name in names:
        if name.partition(".")[0] not in ("i", "ii", "iii"):
            continue
        bench = Bench(by_case[name], bases(by_case[name]))
        for method in chosen.methods:
            print(f"({name}) {chosen.profile}, {method}")
            for op in must_reach.profile(bench, bench.abmll(method), regions[chosen.profile]):
                print(f"  {100 * op['share']:5.1f} %  {op['ms']:9.2f} ms  {op['calls']:6d} x  {op['op']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
