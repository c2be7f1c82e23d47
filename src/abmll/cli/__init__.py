"""The command line: one typed function a command; nothing here imports torch before a command needs it."""

from abmll.cli.main import entry_point, main

__all__ = ["entry_point", "main"]
