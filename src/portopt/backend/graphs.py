"""What a library says that repeats steps in graphs of what is queued on a device, and the scalars of such steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, NoReturn, Protocol

from portopt.arithmetic import HOST
from portopt.program import Program
from portopt.program.interpreter import StepScalars


class DeviceNumber(NamedTuple):
    """A number in the memory of a device.

    Attributes:
        address: where it is.
        dtype: its dtype's name.
        owner: what keeps the memory alive.
    """

    address: int
    dtype: str
    owner: Any

    def __float__(self) -> NoReturn:
        raise RuntimeError(
            "a number in the memory of a device was asked for on the host, which a captured step cannot do"
        )


class DeviceScalars(StepScalars):
    """The scalars of a step whose number, and whose scalars of the state, lie on a device; kernels compute them there.

    Attributes:
        inputs: those of the program's scalar inputs that the host knows.
        places: where those are that the host does not know; the finished steps before the step are there as `"t"`.
        schedules: those that are given by schedules.
        written: where kernels put the new scalars of the state, and as `"t"` the finished steps.
    """

    def __init__(
        self,
        program: Program,
        inputs: Mapping[str, Any],
        places: Mapping[str, DeviceNumber],
        schedules: Mapping[str, Callable[[Any], Any]],
        written: Mapping[str, DeviceNumber],
    ) -> None:
        super().__init__(program, HOST, inputs)
        self.places = places
        self.schedules = schedules
        self.written = written

    def of(self, program: Program) -> DeviceScalars:
        return DeviceScalars(program, self.inputs, self.places, self.schedules, self.written)


class Graphs(Protocol):
    """How steps are done whose number, and whose scalars of the state, lie on a device, so that a graph can repeat them."""

    def has_number(self, value: Any) -> bool:
        """Tell whether a value is one number in the memory of a device."""

    def has_step(self, value: Any) -> bool:
        """Tell whether a state's number of finished steps is in the memory of a device."""

    def place(self, value: Any) -> DeviceNumber:
        """Return where a number is, given it as an array of no axes."""

    def put(self, value: float, like: Any) -> Any:
        """Return a number as an array of no axes, int64 or float64, on the device of an array; raise an error if it is no GPU."""

    def empty(self, like: Any) -> Any:
        """Return a new array of no axes like another one."""

    def assign(self, target: Any, value: float) -> None:
        """Write a number into an array of no axes."""

    def why_not(
        self, programs: Sequence[tuple[Program, Sequence[Any]]], schedules: Iterable[Any], numbers: Mapping[str, Any]
    ) -> str | None:
        """Return why kernels cannot do a step without the host; None if they can.

        Args:
            programs: what the step runs, each with the parameters that it is for.
            schedules: those that give the step's rates.
            numbers: those of the step's numbers that are on a device, by name.
        """

    def plan(
        self,
        programs: Sequence[Program],
        trees: tuple[Any, Any, Any],
        parameters: Sequence[Any],
        overrides: Mapping[str, Any],
        scalars_of: Callable[[Any, Sequence[tuple[Program, Sequence[Any]]]], Sequence[DeviceScalars]],
    ) -> Any:
        """Return a plan of further steps in place like one outside of a graph, as `Backend.plan` does, or why there is none.

        Args:
            programs: what the steps run on each parameter.
            trees: parameters, gradients, or a tuple of these and further inputs, and state.
            parameters: the arrays of each parameter that has a gradient.
            overrides: the hyperparameters that are given for the step alone.
            scalars_of: returns the scalars of the step for each program, given what finds totals, and the programs with their
                parameters.
        """

    def refuse_capture(self, arrays: Iterable[Any], reason: str | None = None) -> None:
        """Raise an error if what is queued on the devices of arrays is being captured.

        Args:
            arrays: of the step.
            reason: why the step cannot be captured; None if its state is on the host.
        """

    def kept(self, owner: Any) -> AbstractContextManager[Any]:
        """Return a context in which what is allocated for a graph lives as long as an array."""
