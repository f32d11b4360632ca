"""Steps on tensors that are taken for those of played devices, beside the interpreter's on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from support.bits import Array, assert_same_bits, ordinary
from support.torch_on_host import to_numpy, to_torch

import portopt
from portopt.kernels.device_plan import DevicePlan

SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (0, 3), (12, 7), (4100,), (2, 3, 4))


def values(dtype: str, seed: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Array]:
    return [ordinary(shape, dtype, 100 * seed + i) for i, shape in enumerate(shapes)]


class Run:
    """Steps on tensors, and the interpreter's on NumPy arrays beside them.

    Args:
        optimizer: does the steps.
        dtype: of all arrays.
        shapes: of the parameters.
        put: is given a tensor and the number of its parameter before it is used.
    """

    def __init__(
        self,
        optimizer: portopt.Optimizer,
        dtype: str = "float32",
        shapes: Any = SHAPES,
        put: Callable[[Any, int], Any] = lambda tensor, which: tensor,
    ) -> None:
        self.optimizer, self.dtype, self.shapes, self.put = optimizer, dtype, shapes, put
        self.expected = values(dtype, 0, shapes)
        self.expected_state = optimizer.init(self.expected)
        self.params = self.placed(self.expected)
        self.state = optimizer.init(self.params)
        for slots in self.state.slots.values():
            if isinstance(slots, list):
                for which, slot in enumerate(slots):
                    if slot is not None and slot.numel():
                        put(slot, which)
        self.grads = self.placed(values(dtype, 1, shapes))
        self.steps = 0

    def placed(self, arrays: list[Array]) -> list[Any]:
        return [self.put(to_torch(x), which) for which, x in enumerate(arrays)]

    def step(self, *, moved: bool = False, compared: bool = True, in_place: bool = True, **overrides: Any) -> None:
        self.steps += 1
        new = values(self.dtype, self.steps, self.shapes)
        if moved:
            self.grads = self.placed(new)
        else:
            for g, x in zip(self.grads, new, strict=True):
                g.copy_(to_torch(x))
        if in_place:
            self.state = self.optimizer.apply_(self.params, self.grads, self.state, **overrides)
        else:
            self.params, self.state = self.optimizer.apply(self.params, self.grads, self.state, **overrides)
        with portopt.interpreted(), np.errstate(all="ignore"):
            self.expected, self.expected_state = self.optimizer.apply(
                self.expected, new, self.expected_state, **overrides
            )
        if compared:
            self.compare()

    def compare(self) -> None:
        for actual, wanted in zip(self.params, self.expected, strict=True):
            assert_same_bits(to_numpy(actual), wanted)
        assert self.state.step == self.expected_state.step
        for name, wanted in self.expected_state.slots.items():
            if isinstance(wanted, list):
                for a, w in zip(self.state.slots[name], wanted, strict=True):
                    assert (a is None) == (w is None)
                    if w is not None:
                        assert_same_bits(to_numpy(a), w)
            else:
                assert float(self.state.slots[name]).hex() == float(wanted).hex()

    @property
    def is_planned(self) -> bool:
        plans = self.optimizer._cache.plans or self.optimizer._cache.pure_plans
        return bool(plans) and isinstance(plans[0], DevicePlan) and plans[0].was_used
