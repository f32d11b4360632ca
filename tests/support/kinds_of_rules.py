"""The rules by what their steps need, for tests of what is made for some kinds only."""

from __future__ import annotations

import portopt

ELEMENTWISE = [rule for rule in portopt.RULES if rule().program(shape=(3, 4)).is_elementwise]
"""Those that compute each element from that element of the arrays alone, in one pass, as fused kernels do."""
OTHERS = [rule for rule in portopt.RULES if rule not in ELEMENTWISE]
"""Those that reduce or multiply, or need totals of all parameters. Under JAX their programs take seconds to compile."""
