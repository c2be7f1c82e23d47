import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of research data beside the checkout, or $ABMLL_SHARED; the test is skipped where it is absent."""
    folder = Path(os.environ.get("ABMLL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "tasks" / "suites.json").is_file():
        pytest.skip(f"the research data is not at {folder}; set ABMLL_SHARED to the folder that holds tasks/")
    return folder
