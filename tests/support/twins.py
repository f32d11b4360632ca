"""Steps by kernels beside steps by the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from support.bits import assert_same_bits

import portopt


def same(a: Any, b: Any, what: str) -> None:
    for name, value in a.items():
        if value is not None:
            assert_same_bits(np.asarray(value), np.asarray(b[name]), f"{what} {name}")


class Twin:
    """Steps in place by kernels, and as many by the interpreter."""

    def __init__(self, rule: portopt.Optimizer, params: Any, convert: Callable[[Any], Any] = np.copy) -> None:
        self.rule, self.convert = rule, convert
        self.params = {name: convert(p) for name, p in params.items()}
        self.expected = {name: np.copy(p) for name, p in params.items()}
        self.state, self.expected_state = rule.init(self.params), rule.init(self.expected)

    def step(self, grads: Any, **hyperparameters: Any) -> None:
        own = {name: self.convert(g) for name, g in grads.items()}
        with np.errstate(all="ignore"):
            with portopt.interpreted():
                self.expected, self.expected_state = self.rule.apply(
                    self.expected, grads, self.expected_state, **hyperparameters
                )
            self.state = self.rule.apply_(self.params, own, self.state, **hyperparameters)

    def compare(self) -> None:
        same(self.expected, self.params, "parameter")
        for name, arrays in self.expected_state.slots.items():
            if name in self.rule.scalar_slots:
                assert_same_bits(np.float64(arrays), np.float64(self.state.slots[name]), name)
                continue
            same(arrays, self.state.slots[name], name)
