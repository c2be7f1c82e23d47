"""The embedded model `mini`: a Llama of about a million parameters, packaged with its tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The packaged folder, to be given to `from_pretrained`; needs no network and imports no torch."""
    return Path(__file__).resolve().parent
