"""Case (viii): how long a command takes to start, in fresh processes, beside importing PEFT."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from cost.clock import Spread

COMMANDS = {
    "abmll --help": ["-c", "from abmll.cli import entry_point; entry_point()", "--help"],
    "abmll suites": ["-c", "from abmll.cli import entry_point; entry_point()", "suites"],
    "python, nothing imported": ["-c", "pass"],
    "python, import peft": ["-c", "import peft"],
}


def measure(repeats: int = 5) -> list[dict[str, Any]]:
    """Seconds from start to exit, all commands in turn `repeats` times, after one run that fills the disk cache."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(-1, repeats):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return [{"row": name, "seconds": asdict(Spread.of(values))} for name, values in seconds.items()]
