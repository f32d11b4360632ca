"""What a backend is: the protocol, and what its methods take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from portopt.arithmetic import Arithmetic
from portopt.backend.graphs import Graphs
from portopt.program import Program
from portopt.program.draws import Place
from portopt.protocols import Rule
from portopt.state import OptimizerState
from portopt.trees import Trees


class ArrayInfo(NamedTuple):
    """Shape and device must agree between a parameter, its gradient and its slots; None is a device that is not known yet."""

    shape: tuple[int, ...]
    dtype: str
    device: str | None


Arrays = Mapping[str, Any]
"""Parameter `"p"`, gradient `"g"` and slots by name: one parameter's arrays."""


_T = TypeVar("_T")
Pairs = Mapping[str, _T] | Iterable[tuple[str, _T]]


class Leaf(dict[str, Any]):
    """One parameter's arrays by name, like `Arrays`, with what a step found out about them when it checked its arguments.

    Attributes:
        infos: name to what the array is.
        dtypes: name to dtype name.
        number: of the parameter in its tree.
    """

    __slots__ = ("_place", "dtypes", "infos", "number")

    def __init__(
        self, arrays: Pairs[Any], infos: Pairs[ArrayInfo], number: int = 0, place: Place | None = None
    ) -> None:
        super().__init__(arrays)
        self.number = number
        self._place = place
        self.infos = dict(infos)
        self.dtypes = {name: info.dtype for name, info in self.infos.items()}

    @property
    def place(self) -> Place:
        """Where the parameter's elements are, which random numbers depend on."""
        return Place.of(self.number, self.infos["p"].shape) if self._place is None else self._place

    @property
    def is_part(self) -> bool:
        """Whether other processes hold other elements of the parameter."""
        return self._place is not None and self._place.is_part

    def like(self, arrays: Pairs[Any]) -> Leaf:
        """Return a leaf of other arrays of the same parameter, of which the same is known."""
        return Leaf(arrays, self.infos, self.number, self._place)


def described(backend: Backend, parameters: Sequence[Arrays]) -> Sequence[Leaf]:
    """Return parameters as leaves; those that a step gave to its backend are leaves already."""
    return [
        arrays if isinstance(arrays, Leaf) else Leaf(arrays, {n: backend.describe(a) for n, a in arrays.items()})
        for arrays in parameters
    ]


class Work(NamedTuple):
    """What a step does to those parameters that one program is for.

    Attributes:
        program: what to run.
        scalars: the value of each scalar operation of the step, by its index in the program.
        parameters: the arrays of each parameter; those of a step are each a `Leaf`, which `described` makes of others.
    """

    program: Program
    scalars: Sequence[Any]
    parameters: Sequence[Arrays]


class MemoryRange(NamedTuple):
    """First and one-past-last byte of an array's memory on one device; equal if the array is empty."""

    device: str
    start: int
    end: int


Step = Callable[..., tuple[Any, OptimizerState]]
"""Takes parameters, gradients, state and hyperparameters of the step; returns new parameters and state."""


@dataclass(frozen=True)
class Mode:
    """One way in which a backend executes steps.

    Attributes:
        name: what the mode is called in tables, such as `"eager"` or `"jit"`.
        step: returns a function that does one step of an optimizer, of which it may ask all that an `Optimizer` has. The
            function may consume its arguments.
        run: does several steps, one for each element of a list of gradients, and returns the final parameters and state.
            The default calls the mode's step for each.
        compiled: whether one step runs as a compiled whole, so that mistakes of a compiler can show.
        without_kernels: whether the library's own compiler does all of such a step, where in others it calls portopt's kernels.
    """

    name: str
    step: Callable[[Any], Step]
    run: Callable[[Any, Any, Sequence[Any], OptimizerState], tuple[Any, OptimizerState]] | None = None
    compiled: bool = False
    without_kernels: bool = False

    def many(self, optimizer: Any, params: Any, gradients: Sequence[Any], state: OptimizerState) -> tuple[Any, Any]:
        """Do one step for each element of `gradients`."""
        if self.run is not None:
            return self.run(optimizer, params, gradients, state)
        step = self.step(optimizer)
        for gradient in gradients:
            params, state = step(params, gradient, state)
        return params, state


class PlannedStep(Protocol):
    """What a backend's `plan` returns: further steps on the same arrays, or on arrays like them, with fewer checks."""

    backend: Backend
    """The one that made the plan."""
    program: Program
    """What the steps run."""
    inputs: tuple[str, ...]
    """The rule's further inputs that the steps are given."""
    in_place: bool
    """Whether the steps overwrite parameters and slots."""
    was_used: bool
    """Whether it has done a step."""
    does_first: bool
    """Whether it does the step too that it was made in, if that makes new arrays: what it compiles for others is enough then."""
    remarks: tuple[str, ...]
    """What else `portopt.explain` says of its steps; a clause each."""

    def step(
        self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]
    ) -> tuple[Any, OptimizerState] | None:
        """Do a step and return parameters and the new state; None, with nothing done, if anything is not as it was."""

    def fits(self, rule: Rule, params: Any, grads: Any, state: Any, overrides: dict[str, Any]) -> bool:
        """Tell whether `step` would do a step, doing nothing."""


@runtime_checkable
class Backend(Protocol):
    """What portopt asks of an array library."""

    name: str
    """The name in `portopt.backends`, tables and messages."""
    install_command: str
    """The command that installs the library."""
    trees: Trees
    """How the library sees nested containers."""
    modes: Mapping[str, Mode]
    """Ways to execute steps, the first one being what `apply` does by default."""
    extra_modes: Mapping[str, Mode]
    """Further ways, which the conformance suite tests but `portopt compare` does not list."""
    settings: Mapping[str, Callable[[], AbstractContextManager[Any]]]
    """Settings of the library, as contexts, under each of which the bits must be the same."""

    @property
    def graphs(self) -> Graphs | None:
        """How steps are done that a graph repeats; None where there are none."""

    def owns(self, leaf: object) -> bool:
        """Tell whether `leaf` is an array of this library, or a container that only this library can flatten."""

    def version(self) -> str:
        """Return the library's version; raise `ImportError` if it cannot be imported."""

    def devices(self) -> Mapping[str, str | None]:
        """Map each device's name to None if it can be used, else to the reason why not."""

    def dtypes(self) -> tuple[str, ...]:
        """Return the names of the supported parameter dtypes that the library has, inside `dtype_context`."""

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which arrays of a dtype can be made; most libraries need nothing."""

    def describe(self, array: Any) -> ArrayInfo:
        """Return shape, dtype name and device of an array; raise `TypeError` for a kind of array that is not supported."""

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        """Return a new array on the device of `like`, of its shape unless one is given, filled with `value`."""

    def full_along(
        self, like: Any, value: float, dtype: str, shape: tuple[int, ...], axes: Sequence[int | None]
    ) -> Any:
        """Return what `full` does; `axes` are those of `like` that the new array has, None for an axis of its own."""

    def copied(self, array: Any, dtype: str) -> Any:
        """Return a new array of a dtype with the elements of a parameter, as a step loads them."""

    def to_numpy(self, array: Any) -> Any:
        """Return a copy of an array as a NumPy array of the same dtype (bfloat16 as that of ml_dtypes)."""

    def from_numpy(self, array: Any, device: str | None) -> Any:
        """Return a copy of a NumPy array as an array of this library on `device`."""

    def arithmetic(self, values: Iterable[Any]) -> Arithmetic:
        """Return the arithmetic for scalars: the host's, unless one of `values` is only known at run time."""

    def scalar(self, value: Any) -> Any:
        """Return a number, 0-d array or stored scalar as a value of the arithmetic that `arithmetic([value])` returns."""

    def stored_scalar(self, value: Any) -> Any:
        """Return an arithmetic's float64 value in the form in which a state keeps it."""

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        """Return the Euclidean norm of all gradients together, in any order of summation the same bits."""

    def total(self, name: str, works: Sequence[Work]) -> Any:
        """Return one of `TOTALS` over the array `"x"` that each program makes of each of its parameters."""

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        """Run each program on its parameters.

        Args:
            works: what a step does.
            in_place: write the results into the given parameters and slots; if an error is raised, nothing may be written.

        Returns:
            New parameter and slots of each parameter, in the order of `works`; the given ones if `in_place`.
        """

    def plan(
        self,
        programs: Sequence[Program],
        trees: tuple[Any, Any, OptimizerState],
        parameters: Sequence[Arrays],
        *,
        in_place: bool = True,
        same_arrays: bool = True,
    ) -> PlannedStep | str:
        """Return what does further steps like one with fewer checks, or why each of them is checked in full.

        A plan has `step(rule, params, grads, state, overrides)`, which returns parameters and the new state, or None, with
        nothing done, if anything is not as it was in the step that it was made after. Its
        `fits`, of the same arguments, tells beforehand whether it would do a step, `backend` is this one, `inputs`
        names the further inputs that the steps have, and `in_place` is as given.

        Args:
            programs: what the steps run on each parameter.
            trees: parameters, gradients and state as the step was given them; where it was given further inputs, a tuple of
                gradients and these in place of the gradients.
            parameters: the arrays of each parameter that has a gradient, in the order of the tree.
            in_place: whether the steps overwrite parameters and slots, or make new arrays.
            same_arrays: whether they are on these arrays, as long as they exist; else on all that are like them.
        """

    def why_not_fused(self, program: Program, parameters: Sequence[Arrays]) -> str | None:
        """Return why `update` would run the program's operations one by one; None if compiled kernels hold all of them."""

    def check_in_place(self, parameters: Sequence[Arrays], paths: Callable[[int], str]) -> None:
        """Raise an error if one of the arrays cannot be changed in place; `paths(i)` names parameter `i`."""
