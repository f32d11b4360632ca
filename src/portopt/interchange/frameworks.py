"""What portopt asks of a framework that has optimizers of its own, and how the frameworks are found.

What is particular to one framework is in its package, which announces an object with the attributes of `NativeFramework`
through the entry-point group `portopt.natives`; nothing here, and no question whether an object belongs to a framework,
imports one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from portopt.backend import ArrayInfo
from portopt.interchange.correspondence import Correspondence, Vocabulary
from portopt.optimizer import Optimizer, OptimizerState
from portopt.trees import Trees

ENTRY_POINT_GROUP = "portopt.natives"


class NativeArrays(Protocol):
    """The arrays that a native optimizer updates."""

    name: str
    """The library's name."""
    trees: Trees
    """How the library sees nested containers."""
    shares_memory: bool
    """Whether `borrow` always gives an array on the memory of a writable NumPy array."""

    def owns(self, leaf: object) -> bool:
        """Tell whether `leaf` is an array of this library."""

    def describe(self, array: Any) -> ArrayInfo:
        """Return shape, dtype name and device of an array."""

    def borrow(self, array: Any) -> Any:
        """Return a NumPy array as one of this library for the length of a step, without a copy where that is possible."""

    def give_back(self, array: Any) -> Any:
        """Return an array that a step on borrowed ones made as a NumPy array that may be written."""

    def why_read_only(self, array: Any) -> str | None:
        """Return what keeps an array from being written, such as "is a read-only array"; None if nothing does."""

    def assign(self, target: Any, value: Any) -> None:
        """Write `value` into `target`."""

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which arrays of a dtype can be borrowed."""


class Native(Protocol):
    """One native optimizer with its hyperparameters, which keeps no state."""

    arrays: NativeArrays
    updates_in_place: bool
    """Whether `apply` can write into the given arrays."""

    def describe(self) -> str:
        """Return the Python expression, or a description, of the optimizer."""

    def config(self) -> dict[str, Any]:
        """Return `{"optimizer": name, "arguments": dict}` for JSON; raise `ValueError` if it cannot be known."""

    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        """Return the slots before the first step."""

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


class NativeFramework(Protocol):
    """What portopt asks of a framework that has optimizers of its own."""

    name: str
    install_command: str
    """The command that installs the framework."""
    accepts: str
    """What may be given to `NativeOptimizer`, for messages."""
    vocabulary: Vocabulary
    """Of the optimizers with which rules are compared."""

    def owns(self, thing: object) -> bool:
        """Tell whether `thing` is an optimizer of this framework, or a class or factory of them, importing nothing."""

    def version(self) -> str:
        """Return the framework's version; raise `ImportError` if it cannot be imported."""

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> Native:
        """Return the native optimizer that a thing that is owned makes with these arguments."""

    def from_config(self, config: Mapping[str, Any]) -> Native:
        """Return the native optimizer that `Native.config` described."""

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of arrays compiled as the framework's users would; itself where they would not."""

    def devices(self) -> Mapping[str, str | None]:
        """Map each device's name to None if it can be used, else to the reason why not."""

    def load(self, array: Any, device: str) -> Any:
        """Return a copy of a NumPy array as an array that the framework's optimizers update."""

    def fetch(self, array: Any) -> Any:
        """Return a copy of such an array as a NumPy array."""


class Construction(NamedTuple):
    """What constructs an optimizer of a framework.

    Attributes:
        name: how users of the framework call it, such as `"torch.optim.Adam"`.
        factory: a class or function of the framework.
        arguments: its arguments.
        learning_rate: the name of the argument that is the learning rate.
    """

    name: str
    factory: Any
    arguments: dict[str, Any]
    learning_rate: str


class Translator(Protocol):
    """How a framework's optimizers are translated; an attribute `translator` of a `NativeFramework` that has one.

    It may also have `why_not_constant(native)`, which says who changes the learning rate of a live optimizer, or returns None.
    """

    vocabulary: Vocabulary
    trees: Trees

    def defaults(self, correspondence: Correspondence) -> Mapping[str, Any]:
        """Return the arguments' values that switch their features off."""

    def arguments(self, native: Any) -> tuple[str, Mapping[str, Any]]:
        """Return name and arguments of a `Native` of this framework."""

    def own_state(self, native: Any, state: Any, params: Any) -> OptimizerState:
        """Return the framework's form of a state as a `NativeOptimizer`'s."""

    def capture(self, native: Any, params: Any) -> tuple[str, Mapping[str, Any], OptimizerState, Any]:
        """Return name, arguments, state as a `NativeOptimizer`'s, and parameters of a live optimizer."""

    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        """Return the live optimizer."""


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


@functools.cache
def frameworks() -> Mapping[str, NativeFramework]:
    """Return what is installed for each framework, found through the entry-point group `portopt.natives`.

    One that cannot be loaded is left out, with a warning: the others must go on working.
    """
    from importlib import metadata

    found: dict[str, NativeFramework] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            warnings.warn(
                f"the native optimizers of {entry.name!r} ({entry.value}) cannot be loaded and are left out: {error!r}",
                RuntimeWarning,
                stacklevel=2,
            )
    return dict(sorted(found.items()))


def find_framework(thing: object) -> NativeFramework | None:
    """Return the framework whose optimizer, class or factory `thing` is, or None."""
    return next((framework for framework in frameworks().values() if framework.owns(thing)), None)


def get_framework(name: str) -> NativeFramework:
    """Return the framework of that name."""
    if name not in frameworks():
        raise ValueError(f"no framework is named {name!r}; known are {', '.join(frameworks())}")
    return frameworks()[name]
