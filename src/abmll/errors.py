"""What a user's mistake raises and what is told beside a result, and the hint that names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend: one line that names the value, what was expected, and the way out.

    The command line prints the message and exits with status 2, without a traceback; anything else is our fault.
    """


class AbmllWarning(UserWarning):
    """A result that is not what its user will take it for; names the way out. The command line shows it in one line."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry; suggests the nearest known name."""
    names = sorted(known)
    by_small = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_small, n=1, cutoff=0.5)
    hint = f"did you mean {by_small[near[0]]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}")
