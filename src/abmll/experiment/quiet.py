"""Other libraries' bars, advice and warnings, silenced for a command or a process of ours."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from abmll.errors import AbmllWarning


def quiet() -> None:
    """Silence the libraries' bars and advice, and use the threads that were asked for. Imports torch."""
    import torch
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def show_own_warnings() -> None:
    """Of all warnings show ours alone, each text once a process: what others warn of is not for a command's users.

    Until the end of the caller's `warnings.catch_warnings`, if it has one.
    """
    told = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:  # Python's own memory is lost whenever somebody touches the filters
            told.add(str(message))
            print(f"warning: {message}", file=sys.stderr, flush=True)

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", AbmllWarning)
    warnings.showwarning = show
