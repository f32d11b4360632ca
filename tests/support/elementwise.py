"""The rules whose steps are elementwise, which every kind of kernel can hold."""

from __future__ import annotations

import portopt

ELEMENTWISE = [rule for rule in portopt.RULES if rule().program(shape=(3, 4)).is_elementwise]
