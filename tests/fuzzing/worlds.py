"""Worlds: parameters, gradients and a state that are stepped and changed; two of one seed differ in their memory only."""

from __future__ import annotations

import gc
import random
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from support.bits import words

import portopt
from fuzzing.arrays import ARRAYS, LARGE, SHAPES, random_values
from fuzzing.trees import Pair, changes, is_array, mapped
from portopt_conformance.words import FORMATS

INTERNAL_ERRORS = (AssertionError, AttributeError, KeyError, IndexError, NameError, SystemError, RecursionError)
"""What no step may raise, whatever it is given."""


class Difference(Exception):
    """The two worlds differ, or a refused step has changed something."""


Operation = Callable[[Any, random.Random], str]
"""Does something to a world, usually with a step at the end; returns what the step raised, or an empty string."""


class Operations(dict[str, tuple[Operation, int]]):
    """Operations by name, and how often each is chosen."""

    def of_weight(self, weight: int) -> Callable[[Operation], Operation]:
        """Return a decorator that adds a function, chosen as often as the weight says."""

        def add(function: Operation) -> Operation:
            self[function.__name__] = (function, weight)
            return function

        return add


class World:
    """Parameters, gradients and a state; two worlds of the same seed are equal in everything but memory.

    Args:
        optimizer: does the steps.
        arrays: makes the arrays.
        rng: decides about the trees.
        large: whether there is an array that kernels split among threads.
    """

    def __init__(self, optimizer: portopt.Optimizer, arrays: Any, rng: random.Random, *, large: bool) -> None:
        self.optimizer, self.arrays = optimizer, arrays
        self.refused = 0
        """How many steps in a row were refused."""
        self._known: list[Any] = []
        self._numbers: dict[int, int] = {}
        dtypes = arrays.dtypes if rng.random() < 0.4 else [rng.choice(arrays.dtypes)]
        self._leaves = [self._leaf(rng, dtypes) for _ in range(rng.choice((1, 2, 3, 4, 4, 6, 9)))]
        if large:
            self._leaves.append(arrays.make(random_values(rng, "float32", (LARGE,)), "plain"))
        self.params = self._tree(rng, list(self._leaves), 0)
        self.grads = self.new_gradients(rng)
        self.state = optimizer.init(self.params)

    def _leaf(self, rng: random.Random, dtypes: Sequence[str]) -> Any:
        shape = rng.choice(SHAPES)
        layout = rng.choice(self.arrays.layouts) if rng.random() < 0.3 else "plain"
        return self.arrays.make(random_values(rng, rng.choice(dtypes), shape), layout)

    def _tree(self, rng: random.Random, leaves: list[Any], depth: int) -> Any:
        if len(leaves) == 1 and (depth or rng.random() < 0.5):
            return leaves[0]
        parts: list[Any] = []
        while leaves:
            size = 1 if depth > 3 or rng.random() < 0.6 else rng.randint(1, len(leaves))
            parts.append(self._tree(rng, leaves[:size], depth + 1) if size > 1 or depth < 2 else leaves[0])
            leaves = leaves[size:]
        keys = [f"k{rng.randrange(1000)}_{i}" for i in range(len(parts))]
        kind = rng.choice(("dict", "dict", "list", "tuple", "ordered", "pair"))
        if kind == "pair" and len(parts) == 2:
            return Pair(*parts)
        made: dict[str, Callable[[], Any]] = {
            "dict": lambda: dict(zip(keys, parts, strict=True)),
            "ordered": lambda: OrderedDict(zip(keys, parts, strict=True)),
            "tuple": lambda: tuple(parts),
            "list": lambda: parts,
        }
        return made.get(kind, made["list"])()

    def new_gradients(self, rng: random.Random) -> Any:
        """Return gradients that fit, on new memory."""

        def gradient(p: Any) -> Any:
            values = self.arrays.values(p)
            layout = rng.choice(self.arrays.layouts) if rng.random() < 0.1 else "plain"
            new = random_values(rng, values.dtype.name, values.shape)
            if self.arrays.name == "torch" and rng.random() < 0.05:
                layout = rng.choice(("negative", "zero"))
            return self.arrays.make(new, layout)

        return mapped(gradient, self.params)

    def step(self, *, grads: Any = None, state: Any = None, pure: bool = False, **overrides: Any) -> str:
        """Do a step; return what it raised, after making sure that nothing has changed, or an empty string."""
        grads = self.grads if grads is None else grads
        state = self.state if state is None else state
        before = self.fingerprint(grads, state)
        try:
            if pure:
                self.params, self.state = self.optimizer.apply(self.params, grads, state, **overrides)
            else:
                self.state = self.optimizer.apply_(self.params, grads, state, **overrides)
        except INTERNAL_ERRORS as error:
            raise Difference(f"a step raised {error!r}:\n{traceback.format_exc()}") from error
        except Exception as error:
            # Texts may end in what an object prints of its memory.
            text = f"{type(error).__name__}: {error}"
            self.refused += 1
            if changed := changes(before, self.fingerprint(grads, state)):
                raise Difference(f"a step that was refused ({text}) changed {changed}") from error
            return text
        self.refused = 0
        return ""

    def fingerprint(self, *more: Any) -> dict[str, Any]:
        """Return structures, scalars, and the bytes of every array that was ever seen, by name."""
        found: dict[str, Any] = {"params": self._described(self.params), "state": self._described(self.state)}
        for i, tree in enumerate((self.grads, *more)):
            found[f"tree {i}"] = self._described(tree)
        for i, array in enumerate(self._known):
            values = ARRAYS["numpy" if isinstance(array, np.ndarray) else "torch"].values(array)
            is_float = values.dtype.name in FORMATS
            found[f"array {i}"] = (values.dtype.name, values.shape, (words(values) if is_float else values).tobytes())
        return found

    def has_view(self, array: Any) -> bool:
        """Tell whether there was a view of a NumPy array: one that is resized would leave it on memory that others get."""
        return any(isinstance(known, np.ndarray) and known.base is array for known in self._known)

    def _described(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return (type(tree).__name__, [(k, self._described(v)) for k, v in tree.items()])
        if isinstance(tree, list | tuple):
            return (type(tree).__name__, [self._described(v) for v in tree])
        if isinstance(tree, float):
            return "nan" if tree != tree else tree.hex()
        if not is_array(tree):
            return repr(tree)
        if id(tree) not in self._numbers:
            self._numbers[id(tree)] = len(self._known)
            self._known.append(tree)
        return f"array {self._numbers[id(tree)]}"

    def begin_anew(self, rng: random.Random) -> None:
        """Put everything on new arrays, which are likely to lie where the old ones lay."""
        self.refused = 0
        self.params = mapped(lambda p: self.arrays.make(self.arrays.values(p), "plain"), self.params)
        self.grads = self.new_gradients(rng)
        self._known.clear()
        self._numbers.clear()
        gc.collect()
        self.state = self.optimizer.init(self.params)


class TorchWorld:
    """Parameters in groups, with gradients, under a `TorchOptimizer`."""

    def __init__(self, rule: portopt.Optimizer, arrays: Any, rng: random.Random, *, large: bool) -> None:
        from portopt_torch import TorchOptimizer

        self.rule, self.arrays, self.refused = rule, arrays, 0
        dtypes = arrays.dtypes if rng.random() < 0.4 else [rng.choice(arrays.dtypes)]
        groups = [
            {"params": [self.parameter(rng, dtypes) for _ in range(rng.choice((1, 2, 4)))]}
            for _ in range(rng.choice((1, 1, 2, 3)))
        ]
        if large:
            groups[0]["params"].append(self.parameter(rng, ["float32"], (LARGE,)))
        self.optimizer = TorchOptimizer(groups, rule)
        self.set_gradients(rng)

    def parameter(self, rng: random.Random, dtypes: Sequence[str], shape: Sequence[int] | None = None) -> Any:
        """Return a new parameter."""
        import torch

        values = random_values(rng, rng.choice(dtypes), rng.choice(SHAPES) if shape is None else shape)
        layout = rng.choice(("plain", "plain", "strided", "transposed", "offset")) if rng.random() < 0.3 else "plain"
        return torch.nn.Parameter(self.arrays.make(values, layout))

    @property
    def parameters(self) -> list[Any]:
        """All parameters of all groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def set_gradients(self, rng: random.Random) -> None:
        """Give each parameter a new gradient."""
        for p in self.parameters:
            values = random_values(rng, str(p.dtype).rpartition(".")[2], p.shape)
            p.grad = self.arrays.make(values, rng.choice(self.arrays.layouts[:-1]))

    def step(self) -> str:
        """Do a step; return what it raised, after making sure that nothing has changed, or an empty string."""
        before = self.fingerprint()
        try:
            self.optimizer.step()
        except INTERNAL_ERRORS as error:
            raise Difference(f"a step raised {error!r}:\n{traceback.format_exc()}") from error
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.refused += 1
            if changed := changes(before, self.fingerprint()):
                raise Difference(f"a step that was refused ({text}) changed {changed}") from error
            return text
        self.refused = 0
        return ""

    def fingerprint(self) -> dict[str, Any]:
        """Return the bytes of parameters, gradients and states, and all that groups hold."""
        found: dict[str, Any] = {}
        for i, group in enumerate(self.optimizer.param_groups):
            found[f"group {i}"] = repr(sorted((k, v) for k, v in group.items() if k != "params"))
            for j, p in enumerate(group["params"]):
                entry = {"p": p, "grad": p.grad, **self.optimizer.state.get(p, {})}
                found |= {f"group {i} [{j}] {name}": self._described(value) for name, value in entry.items()}
        return found

    def _described(self, value: Any) -> Any:
        if not is_array(value):
            return value.hex() if isinstance(value, float) else repr(value)
        values = self.arrays.values(value.to_dense() if value.layout is not value.detach().to_dense().layout else value)
        return (values.dtype.name, values.shape, words(values).tobytes())

    def begin_anew(self, rng: random.Random) -> None:
        """Replace the optimizer by a new one on new parameters."""
        from portopt_torch import TorchOptimizer

        self.refused = 0
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        groups = [{"params": [self.parameter(rng, self.arrays.dtypes) for _ in range(size)]} for size in sizes]
        self.optimizer = TorchOptimizer(groups, self.rule)
        self.set_gradients(rng)
