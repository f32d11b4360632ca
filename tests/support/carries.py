"""Sums of integers in bins, around the numbers at which they carry: what every implementation must finish alike."""

from __future__ import annotations

import itertools

from portopt.program import bins

_EDGES = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**31, 2**32, 2**52 + 1, 2**61 + 2**31)
_SIGNED = sorted({sign * edge for edge in _EDGES for sign in (1, -1)})
SUMS = [bins.Bins(16, sums, 0.0) for sums in itertools.product((1, 2**53 + 1, -(2**40)), _SIGNED, _SIGNED)]
"""Bins of sums."""
SQUARES = [bins.Bins(16, sums, 0.0) for sums in itertools.product((2**31 + 1, 2**53 + 1), _SIGNED, _SIGNED)]
"""Bins of sums of squares, the first of which outweigh the others."""
