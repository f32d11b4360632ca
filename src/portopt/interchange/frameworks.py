"""What portopt asks of a framework that has optimizers of its own, and how the frameworks are found.

What is particular to one framework is in its package, which announces a `NativeFramework` through the entry-point group
`portopt.natives`; nothing here, and no question whether an object belongs to a framework, imports one.
"""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from portopt.backend import find_backend
from portopt.interchange.correspondence import STEP, Correspondence, Vocabulary
from portopt.interchange.exchange import Native, NativeArrays
from portopt.interchange.states import by_framework
from portopt.optimizer import Optimizer
from portopt.state import OptimizerState
from portopt.trees import Trees

ENTRY_POINT_GROUP = "portopt.natives"


class NativeFramework(ABC):
    """A framework that has optimizers of its own."""

    name: str
    install_command: str
    """The command that installs the framework."""
    accepts: str
    """What may be given to `NativeOptimizer`, for messages."""
    vocabulary: Vocabulary
    """Of the optimizers with which rules are compared."""
    translator: Translator | None = None
    """What translates its optimizers, if they are translated."""
    backend: Any
    """Portopt's for the framework's arrays; only if that is whose `devices`, `from_numpy` and `to_numpy` it has."""

    @property
    @abstractmethod
    def arrays(self) -> NativeArrays:
        """The arrays that the framework's optimizers update."""

    @abstractmethod
    def owns(self, thing: object) -> bool:
        """Tell whether `thing` is an optimizer of this framework, or a class or factory of them, importing nothing."""

    @abstractmethod
    def version(self) -> str:
        """Return the framework's version; raise `ImportError` if it cannot be imported."""

    @abstractmethod
    def adopt(self, thing: Any, arguments: dict[str, Any]) -> Native:
        """Return the native optimizer that a thing that is owned makes with these arguments."""

    @abstractmethod
    def from_config(self, config: Mapping[str, Any]) -> Native:
        """Return the native optimizer that `Native.config` described."""

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of arrays compiled as the framework's users would; itself where they would not."""
        return function

    def devices(self) -> Mapping[str, str | None]:
        """Map each device's name to None if it can be used, else to the reason why not."""
        devices: Mapping[str, str | None] = self.backend.devices()
        return devices

    def load(self, array: Any, device: str) -> Any:
        """Return a copy of a NumPy array as an array that the framework's optimizers update."""
        return self.backend.from_numpy(array, device)

    def fetch(self, array: Any) -> Any:
        """Return a copy of such an array as a NumPy array."""
        return self.backend.to_numpy(array)


def given_too(what: str, arguments: Iterable[str], remedy: str = "give the class") -> TypeError:
    """Return the error for arguments beside an optimizer that has them already; `what` says that it was given."""
    return TypeError(f"{what}, which has its hyperparameters, so {', '.join(arguments)} cannot be given too: {remedy}")


class Translator(ABC):
    """How a framework's optimizers are translated to rules in its dialect, and back."""

    library: str
    """The framework's name, for messages."""
    vocabulary: Vocabulary
    """Of the optimizers that are translated."""

    @property
    @abstractmethod
    def trees(self) -> Trees:
        """How the framework sees nested containers."""

    def defaults(self, correspondence: Correspondence) -> Mapping[str, Any]:
        """Return the arguments' values that switch their features off."""
        config: Mapping[str, Any] = self.vocabulary.find(correspondence.name)().get_config()
        return config

    @abstractmethod
    def arguments(self, native: Any) -> tuple[str, Mapping[str, Any]]:
        """Return name and arguments of a `Native` of this framework."""

    def own_state(self, native: Any, state: Any, params: Any) -> OptimizerState:
        """Return the framework's form of a state as a `NativeOptimizer`'s."""
        raise TypeError(
            f"the state of a NativeOptimizer of {self.library} is the OptimizerState that its init or apply returned, but "
            f"{type(state).__name__} was given"
        )

    @abstractmethod
    def capture(self, native: Any, params: Any) -> tuple[str, Mapping[str, Any], OptimizerState, Any]:
        """Return name, arguments, state as a `NativeOptimizer`'s, and parameters of a live optimizer."""

    def why_not_constant(self, native: Any) -> str | None:
        """Return who changes the learning rate of a live optimizer from step to step; None if nobody does."""
        return None

    @abstractmethod
    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        """Return the live optimizer."""

    def native_slots(
        self,
        correspondence: Correspondence,
        optimizer: Optimizer,
        state: OptimizerState,
        parameters: Sequence[Any],
        definition: Any,
    ) -> dict[str, Any]:
        """Return a state by the last parts of the framework's names: the number of steps, numbers, and for slots the leaves.

        A leaf is None where the parameter has no such slot.

        Args:
            correspondence: what the optimizer becomes.
            optimizer: portopt's.
            state: its state.
            parameters: the parameters.
            definition: their structure.

        Raises:
            ValueError: the slots have another structure.
        """
        values: dict[str, Any] = {}
        slots: dict[str, list[Any]] = {}
        for ours, theirs in correspondence.slots.items():
            if ours == STEP:
                values[theirs] = state.step
            elif ours in optimizer.scalar_slots:
                values[theirs] = _number(state.slots[ours])
            elif ours in optimizer.slots and ours in state.slots:
                slots[ours], found = self.trees.flatten(state.slots[ours])
                if found != definition:
                    raise ValueError(
                        f"params must have the structure of the slots, but it is {definition}, and theirs {found}"
                    )
        if correspondence.counterpart.begins:
            values[correspondence.counterpart.begins] = not int(state.step)
        if correspondence.counterpart.next_step:
            values[correspondence.counterpart.next_step] = int(state.step) + 1
        return {**values, **by_framework(correspondence, optimizer, slots, parameters)}


def _number(value: Any) -> float:
    """Return a scalar of a state, which some backends hold in an array."""
    backend = find_backend(value)
    return float(value if backend is None else backend.scalar(value))


class Construction(NamedTuple):
    """What constructs an optimizer of a framework.

    Attributes:
        name: how users of the framework call it, such as `"torch.optim.Adam"`.
        factory: a class or function of the framework.
        arguments: its arguments.
        learning_rate: the name of the argument that is the learning rate.
        difference: how its formula differs from portopt's, beside the order of operations; empty if that is not known.
    """

    name: str
    factory: Any
    arguments: dict[str, Any]
    learning_rate: str
    difference: str


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
