"""A step of another framework's optimizer: its arrays, the optimizer, and what goes in and out."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from portopt.backend import ArrayInfo, backends
from portopt.leaves import leaves_like
from portopt.trees import STANDARD_TREES, Trees


class NativeArrays(ABC):
    """The arrays that a native optimizer updates."""

    name: str
    """The library's name."""
    trees: Trees = STANDARD_TREES
    """How the library sees nested containers."""
    shares_memory: bool = False
    """Whether `borrow` always gives an array on the memory of a writable NumPy array."""

    @abstractmethod
    def owns(self, leaf: object) -> bool:
        """Tell whether `leaf` is an array of this library."""

    @abstractmethod
    def describe(self, array: Any) -> ArrayInfo:
        """Return shape, dtype name and device of an array."""

    @abstractmethod
    def borrow(self, array: Any) -> Any:
        """Return a NumPy array as one of this library for the length of a step, without a copy where that is possible."""

    def give_back(self, array: Any) -> Any:
        """Return an array that a step on borrowed ones made as a NumPy array that may be written.

        A copy, unless a library lends its arrays to nobody else: several of them may be on one memory, a given one's too.
        """
        return np.array(array)

    @abstractmethod
    def copy(self, array: Any) -> Any:
        """Return a copy of an array."""

    @abstractmethod
    def why_read_only(self, array: Any) -> str | None:
        """Return what keeps an array from being written, such as "is a read-only array"; None if nothing does."""

    def assign(self, target: Any, value: Any) -> None:
        """Write `value` into `target`, which is not read-only."""
        raise TypeError(f"arrays of {self.name} cannot be changed")

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which arrays of a dtype can be borrowed."""
        return nullcontext()


class Tree(NamedTuple):
    """The structure of the parameters, and how to see it."""

    trees: Trees
    definition: Any

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return a tree of this structure."""
        return self.trees.unflatten(self.definition, leaves)

    def flatten(self, tree: Any, name: str) -> list[Any]:
        """Return the leaves of a slot of this structure; raise `ValueError` if its structure is another."""
        leaves, found = self.trees.flatten(tree)
        if found != self.definition:
            raise ValueError(
                f"state.slots[{name!r}] must have the structure of params, {self.definition}, but it has {found}: start from "
                "init(params), or give the state that goes with these parameters"
            )
        return leaves


class Native(ABC):
    """One native optimizer with its hyperparameters, which keeps no state."""

    arrays: NativeArrays
    updates_in_place: bool = False
    """Whether `apply` can write into the given arrays."""

    @abstractmethod
    def describe(self) -> str:
        """Return the Python expression, or a description, of the optimizer."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return `{"optimizer": name, "arguments": dict}` for JSON; raise `ValueError` if it cannot be known."""

    @abstractmethod
    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        """Return the slots before the first step."""

    @abstractmethod
    def apply(
        self,
        tree: Tree,
        leaves: list[Any],
        gradients: list[Any],
        slots: Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
        *,
        in_place: bool,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Do one step.

        Args:
            tree: the structure of the parameters.
            leaves: the parameters; None where there is none.
            gradients: one for each parameter, or None, which leaves the parameter as it is.
            slots: what `init` or the step before returned.
            hyperparameters: values for this step only.
            in_place: write the results into the given arrays; only if `updates_in_place`.

        Returns:
            The new parameters and slots; unless `in_place`, they share no memory with what was given.
        """

    def check_slots(self, slots: Mapping[str, Any], expected: Iterable[str]) -> None:
        """Raise `ValueError` if a state has other slots than those that the optimizer has."""
        if set(slots) != set(expected):
            raise ValueError(
                f"state has the slots {sorted(slots)}, but {self.describe()} has {sorted(expected)}: start from init(params) of "
                "this optimizer"
            )


def expression(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a name and the arguments that follow it in `NativeOptimizer(...)`."""
    return name + "".join(f", {argument}={value!r}" for argument, value in arguments.items())


class Exchange:
    """The arguments of one step as the arrays of the framework, and the results as those that were given."""

    def __init__(self, arrays: NativeArrays, params: Any) -> None:
        self.arrays, self._params = arrays, params
        leaves, definition = arrays.trees.flatten(params)
        self.tree = Tree(arrays.trees, definition)
        self._numpy = backends()["numpy"]
        first = next((leaf for leaf in leaves if leaf is not None), None)
        if first is None:
            raise ValueError("params holds no array; give an array, or nested dicts, lists and tuples of arrays")
        self.borrowed = not arrays.owns(first) and self._numpy.owns(first)
        self.given: Any = self._numpy if self.borrowed else arrays
        for i, leaf in enumerate(leaves):
            if leaf is not None and not self.given.owns(leaf):
                raise self._foreign(f"params{arrays.trees.paths(params)[i]}", leaf)
        self._given_leaves = leaves
        self._infos = [None if leaf is None else self.given.describe(leaf) for leaf in leaves]
        wide = self.borrowed and any(info is not None and info.dtype == "float64" for info in self._infos)
        self.context: AbstractContextManager[Any] = arrays.dtype_context("float64") if wide else nullcontext()

    def _foreign(self, path: str, leaf: object) -> TypeError:
        allowed = self._numpy.name if self.borrowed else self.arrays.name
        also = "" if self.borrowed or self.arrays.name == "numpy" else " (or NumPy, all of them)"
        return TypeError(
            f"{path} is {type(leaf).__module__}.{type(leaf).__qualname__}, but this optimizer updates arrays of {allowed}{also}: "
            "nothing is moved between libraries silently; convert it first"
        )

    @functools.cached_property
    def leaves(self) -> list[Any]:
        """The parameters; only inside `context`."""
        return [self._lent(leaf) for leaf in self._given_leaves]

    def _lent(self, leaf: Any) -> Any:
        return self.arrays.borrow(leaf) if self.borrowed and self._numpy.owns(leaf) else leaf

    def gradients(self, grads: Any) -> list[Any]:
        """Return the gradients, after checks."""
        trees = self.tree.trees
        gradients = leaves_like(trees, self.tree.definition, self._params, grads, "grads")
        for i, (info, gradient) in enumerate(zip(self._infos, gradients, strict=True)):
            if gradient is None:
                continue
            path = trees.paths(self._params)[i]
            if info is None:
                raise ValueError(f"params{path} is None, so grads{path} must be None too")
            if not self.given.owns(gradient):
                raise self._foreign(f"grads{path}", gradient)
            described = self.given.describe(gradient)
            for what, error in (("shape", ValueError), ("dtype", TypeError)):
                left, right = getattr(info, what), getattr(described, what)
                if left != right:
                    raise error(f"grads{path} has {what} {right}, but params{path} has {what} {left}; they must agree")
        return [self._lent(gradient) for gradient in gradients]

    def slots(self, state: Any) -> dict[str, Any]:
        """Return the slots of a state, after checks."""
        slots = getattr(state, "slots", None)
        if not isinstance(slots, Mapping) or not hasattr(state, "step"):
            raise TypeError(
                f"state must be the OptimizerState that init or the previous step returned, but {type(state).__name__} was given"
            )
        trees = self.tree.trees
        converted: dict[str, Any] = {}
        for name, slot in slots.items():
            leaves, definition = trees.flatten(slot)
            for i, leaf in enumerate(leaves):
                if leaf is not None and self.borrowed == self.arrays.owns(leaf) and self.arrays.name != "numpy":
                    raise self._foreign(f"state.slots[{name!r}]{trees.paths(slot)[i]}", leaf)
            converted[name] = trees.unflatten(definition, [self._lent(leaf) for leaf in leaves])
        return converted

    def returned(self, results: Any) -> Any:
        """Return a tree of results as arrays of the library of the parameters."""
        if not self.borrowed or self.arrays.name == "numpy":
            return results
        leaves, definition = self.tree.trees.flatten(results)
        given_back = [self.arrays.give_back(leaf) if self.arrays.owns(leaf) else leaf for leaf in leaves]
        return self.tree.trees.unflatten(definition, given_back)

    def check_writable(self) -> None:
        """Raise `TypeError` if a parameter cannot be changed in place."""
        for i, leaf in enumerate(self._given_leaves):
            reason = None if leaf is None else self.given.why_read_only(leaf)
            if reason is not None:
                path = f"params{self.tree.trees.paths(self._params)[i]}"
                raise TypeError(f"{path} {reason}, so it cannot be changed in place; copy it, or use apply")

    def write(self, leaves: Sequence[Any]) -> None:
        """Write new parameters into the given ones."""
        for target, value in zip(self._given_leaves, leaves, strict=True):
            if target is not None:
                self.given.assign(target, self.returned(value) if self.borrowed else value)
