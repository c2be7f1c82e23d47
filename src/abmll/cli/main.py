"""`abmll COMMAND ...`: which command, and what becomes of its errors."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module

from abmll.errors import UserError, unknown

# In the order a user meets them; the text is the first thing `abmll --help` says about each.
COMMANDS = {
    "demo": "watch it work: the embedded model and tasks, minutes on a laptop",
    "metatrain": "learn a prior over LoRA adapters from a suite's train tasks",
    "adapt": "fit a task's posterior to a few labelled examples",
    "predict": "answer questions with a task's posterior, as JSONL",
    "evaluate": "adapt to a suite's unseen tasks; accuracy and calibration with intervals",
    "compare": "methods x seeds on one suite: each start trained once, equal budgets, paired tests",
    "report": "one HTML page, Markdown and CSV from stored results",
    "suites": "list, show, fetch and check suites of tasks",
    "export": "give an adapter's mean away as a stock LoRA or a merged model",
}
INTERRUPTED = 130  # what shells report for Ctrl-C


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; None: those of this process.

    Returns:
        the exit status: 0; 2 for a mistake of the user, said in one line on stderr; 1 for a fault of ours, with a
        traceback, and where a command says what it has not done or what a check has found; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt as interrupt:
        _say(str(interrupt) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `abmll predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        _say("abmll: this is a fault of abmll, not yours; please report it with the lines above")
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from abmll import __version__

        print(f"abmll {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    from abmll.cli.parsing import parse
    from abmll.experiment.quiet import show_own_warnings

    module = import_module(f"abmll.cli.{name}")
    values = parse(module, name, COMMANDS[name], rest)
    if values is None:
        return 0
    threads = values.pop("threads")
    if threads < 1:
        raise UserError(f"--threads {threads}; at least 1 is needed")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what torch starts, and for the demo's processes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        show_own_warnings()
        return int(getattr(module, name)(**values) or 0)


def _overview() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: abmll COMMAND [options]",
            "",
            "Amortized Bayesian meta-learning of LoRA adapters.",
            "",
            *lines,
            "",
            "abmll COMMAND --help lists a command's options. Begin with: abmll demo",
        ]
    )


def _complain(message: str) -> int:
    _say("abmll: " + message)
    return 2


def _say(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)
