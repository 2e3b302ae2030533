"""Errors that name what was given, what is known, and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_error(kind: str, given: str, known: Iterable[str]) -> ValueError:
    """A ValueError for an unknown name, to be raised by the caller.

    Args:
      kind: what the name stands for, e.g. "corpus" or "config key".
      given: the unknown name.
      known: the names that would have been accepted.
    """
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    listing = ", ".join(names) if len(names) <= 30 else ", ".join(names[:30]) + ", ..."
    return ValueError(f"unknown {kind} {given!r}{hint} Known: {listing or 'none'}.")
