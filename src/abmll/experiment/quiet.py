"""Other libraries' bars and advice, silenced for a command or a process of ours."""

from __future__ import annotations

import os


def quiet() -> None:
    """Silence the libraries' bars and advice, and use the threads that were asked for. Imports torch."""
    import torch
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
