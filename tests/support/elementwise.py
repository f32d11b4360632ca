"""The rules by what their steps on a matrix are for kernels: each is found by what its program has, none is named."""

from __future__ import annotations

import portopt
from portopt.kernels.launch import can_run

ELEMENTWISE = [rule for rule in portopt.RULES if rule().program(shape=(3, 4)).is_elementwise]
"""The rules whose steps are elementwise, which every kind of kernel can hold."""

STAGED = [
    rule for rule in portopt.RULES if rule not in ELEMENTWISE and can_run(rule().program(shape=(3, 4)).after_totals)
]
"""The rules that reduce or draw, or need totals of all parameters, and for whose steps there are kernels of a GPU."""
