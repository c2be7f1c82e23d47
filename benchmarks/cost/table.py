"""The stored record as Markdown: what stands in `benchmarks/README.md` between its two markers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cost import profiling

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
NAMES = {
    "output": "`output`",
    "factor": "`factor`",
    "natural": "`factor`, natural step",
    "weight": "`weight`",
    "naive": "`output`, plain torch",
}
SHORT = {**NAMES, "naive": "plain torch"}
Cells = list[dict[str, Any]]


def render(record: Mapping[str, Any]) -> str:
    """All cases of a record, in their order."""
    parts, cases = [_legend(record)], record["cases"]
    there = [name for name in record["order"] if name in cases]
    for name in there:
        if "note" not in cases[name]:
            parts.append(f"### ({name}) {cases[name]['title']}\n\n{_case(cases[name])}\n\n{_where(cases[name])}")
    if empty := [name for name in there if "note" in cases[name]]:
        parts.append("\n".join(["### Empty rows\n", *(f"- ({name}) {cases[name]['title']}" for name in empty)]))
        parts += dict.fromkeys(cases[name]["note"] for name in empty)
    return "\n\n".join(parts) + "\n"


def _legend(record: Mapping[str, Any]) -> str:
    return (
        f"Made by `{record['command']}` (one case alone: `--cases i`; the others' numbers then stay as they are). "
        "Every number is a ratio to plain PEFT LoRA (the same modules, rank, batch, loss, fused AdamW) that ran right "
        "before and after in the same process; the median of the rounds, its quartiles in brackets. Columns are the "
        "latents, and `output` in plain torch as the specification is written. *Floor*: the least ratio for `output`, "
        "from products and bytes counted; in brackets with exponentials and the noise's logarithms and sines, "
        "all at this machine's measured rates (`cost/floor.py`). Absolute times: `results/speed.json`."
    )


def _where(case: Mapping[str, Any]) -> str:
    """The machine and the versions."""
    facts = case.get("facts")
    if facts is None:
        return ""
    machine, versions = facts["machine"], facts["versions"]
    where = [machine["cpu"], f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}", machine["capability"]]
    if machine["accelerator"]:
        where.insert(0, machine["accelerator"])
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if versions[name])
    return f"Measured on {', '.join(where)}; {packages}; commit {str(facts['commit'])[:9]}; {facts['time'][:10]}."


def _case(case: Mapping[str, Any]) -> str:
    return {"reach": _reach, "ratios": _ratios, "throughput": _throughput, "memory": _memory, "startup": _startup}[
        case["form"]
    ](case)


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *lines)])


def _ratio(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    if "failed" in cell:
        return cell["failed"]
    low, high = cell["quartiles"]
    spread = "" if cell["rounds"] == 1 else f" ({low:.2f}–{high:.2f})"
    return f"{cell['ratio']:.2f}{spread}"


def _pivot(cells: Cells) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Rows and methods in their order, and the cells by both."""
    rows = list(dict.fromkeys(c["row"] for c in cells))
    methods = [m for m in NAMES if any(c["method"] == m for c in cells)]
    return rows, methods, {(c["row"], c["method"]): c for c in cells}


def _reach(case: Mapping[str, Any]) -> str:
    """Rows against targets, with verdicts, the floor, and the profiles of what is not met."""
    rows, methods, cells = _pivot(case["cells"])
    lines = []
    for row in rows:
        own = [cells[row, m] for m in methods if (row, m) in cells]
        target = next((c["target"] for c in own if c["target"]), "")
        judged = [c for c in own if c["verdict"] and c["method"] != "naive"]
        lines.append(
            [row, *(_ratio(cells.get((row, m))) for m in methods), target, _verdicts(judged), _floor(case, row)]
        )
    parts = [table(["", *(NAMES[m] for m in methods), "target", "reached?", "floor"], lines)]
    parts += [f"{name}: {why}." for name, why in case.get("failed", {}).items()]
    parts += [f"No {what}: LoRA itself did not fit." for what in ["times"] if "lora" not in case]
    for name, ops in case.get("profiles", {}).items():
        row, _, method = name.partition("|")
        parts.append(f"Where the time goes in *{row}*, {NAMES[method]}: {profiling.text(ops)}.")
    return "\n\n".join(parts)


def _verdicts(cells: Cells) -> str:
    """One word where all agree, else each method's own."""
    if len({c["verdict"] for c in cells}) <= 1:
        return cells[0]["verdict"] if cells else ""
    return "; ".join(f"{SHORT[c['method']]} {c['verdict']}" for c in cells)


def _floor(case: Mapping[str, Any], row: str) -> str:
    least = case.get("floor", {}).get(row)
    return f"{least['products_and_bytes']:.2f} ({least['with_elementary']:.2f})" if least else ""


def _ratios(case: Mapping[str, Any]) -> str:
    rows, methods, cells = _pivot(case["cells"])
    return table(["", *(NAMES[m] for m in methods)], [[r, *(_ratio(cells.get((r, m))) for m in methods)] for r in rows])


def _throughput(case: Mapping[str, Any]) -> str:
    rows, methods, cells = _pivot(case["cells"])
    lines = []
    for row in rows:
        own = [cells[row, m] for m in methods if "ratio" in cells.get((row, m), {})]
        lora = f"{own[0]['lora_tokens_per_second']:.0f}" if own else ""
        line = [row, lora]
        for m in methods:
            cell = cells.get((row, m))
            speed = f"{cell['tokens_per_second']:.0f}; " if cell and "ratio" in cell else ""
            line.append(speed + _ratio(cell))
        lines.append(line)
    return table(["", "LoRA, tokens/s", *(f"{NAMES[m]}, tokens/s; time ratio" for m in methods)], lines)


def _memory(case: Mapping[str, Any]) -> str:
    """KB a token, beside LoRA's."""
    names = {"lora": "PEFT LoRA"} | NAMES
    kinds = {"allocated": "tensors at the peak", "saved": "saved for backward", "resident": "resident pages"}
    kinds = {k: v for k, v in kinds.items() if all(k in c["bytes_per_token"] for c in case["cells"])}
    lora = case["cells"][0]["bytes_per_token"]
    lines = []
    for cell in case["cells"]:
        slope = cell["bytes_per_token"]
        each = [f"{slope[k] / 1000:.1f} ({slope[k] / lora[k]:.2f} x)" if lora[k] > 0 else "" for k in kinds]
        lines.append([names[cell["method"]], *each])
    return table(["KB a token (ratio to LoRA)", *kinds.values()], lines)


def _startup(case: Mapping[str, Any]) -> str:
    lines = []
    for cell in case["cells"]:
        s = cell["seconds"]
        lines.append([f"`{cell['row']}`" if "--" in cell["row"] or "suites" in cell["row"] else cell["row"],
                      f"{s['median']:.2f} ({s['low']:.2f}–{s['high']:.2f})"])  # fmt: skip
    return table(["seconds, median of fresh processes (quartiles)", ""], lines)


def insert(readme: Path, text: str) -> None:
    """Replace what stands between the markers of a Markdown file; ValueError where it has none."""
    before, found, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{readme} has no {BEGIN} ... {END} to write the table between")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
