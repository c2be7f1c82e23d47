"""`abmll report`: what result folders hold, as one page to read, print or send."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from abmll.errors import UserError


def report(
    folders: list[Path],
    *,
    baseline: str | None = None,
    output: Path | None = None,
    scope: Literal["new tasks", "these tasks"] = "new tasks",
    bins: int = 15,
    mixed: bool = False,
    common_only: bool = False,
    overwrite: bool = False,
) -> None:
    """Write report.html (one file that needs nothing else), report.md and report.csv from stored predictions.

    Args:
        folders: result folders of abmll evaluate, compare or demo.
        baseline: compare the other methods with this one; by default what a comparison names, or LoRA.
        output: an .html file or a folder; by default the result folder, where there is one only.
        scope: whom the intervals speak of.
        bins: bins of the calibration error.
        mixed: put different suites or protocols on one page, a table each, instead of refusing.
        common_only: leave out tasks and seeds that a method lacks, instead of refusing; so is done anyway where a
            comparison names cells that failed.
        overwrite: replace files that are no report.
    """
    from abmll.report.page import make_report
    from abmll.report.source import read

    if output is None and len(folders) > 1:
        raise UserError(f"{len(folders)} result folders and no --output; say where their report goes")
    source = read(folders, mixed=mixed)
    try:
        paths = make_report(
            source,
            output or folders[0],
            baseline=baseline,
            scope=scope,
            bins=bins,
            common_only=common_only,
            overwrite=overwrite,
        )
    except UserError as error:  # the metrics name their argument, not this command's option
        raise UserError(str(error).replace("common_only=True", "--common_only")) from None
    for path in paths:
        print(path)
