"""How a command ends when it does not do what was asked: an error of the arguments, and the exit statuses."""

from __future__ import annotations

SUCCESS, FAILURE, UNUSABLE_ARGUMENTS, BROKEN_PIPE = 0, 1, 2, 141
"""Exit statuses; `stopping.py` has those of a run that was stopped."""


class UnusableArgumentsError(ValueError):
    """The arguments cannot be acted on; the message says why, and what to do about it."""
