"""What the command line reports with exit status 2."""

from __future__ import annotations


class UnusableArgumentsError(ValueError):
    """The arguments cannot be acted on; the message says why, and what to do about it."""
