"""What the parts below `Optimizer` ask of one; they know these protocols and not the class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from portopt.program import Program
from portopt.program.interpreter import StepScalars
from portopt.state import OptimizerState
from portopt.trees import Tree


class SupportsApply(Protocol):
    """What can do steps."""

    def apply(
        self, params: Tree, grads: object, state: OptimizerState, **hyperparameters: Any
    ) -> tuple[Tree, OptimizerState]:
        """Return parameters and state after one step; the given ones stay untouched."""

    def apply_(self, params: object, grads: object, state: OptimizerState, **hyperparameters: Any) -> OptimizerState:
        """Do one step in place; return the state to use from now on."""


class Rule(Protocol):
    """What a step asks of an optimizer."""

    @property
    def learning_rate(self) -> Any:
        """A number or a schedule."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that it keeps for each parameter."""

    @property
    def scalar_slots(self) -> Mapping[str, float]:
        """Names and first values of the scalars that it keeps for all parameters together."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that a step may be given for each parameter beside the gradient."""

    @property
    def nested(self) -> Mapping[str, Any]:
        """The rules that it is made of, by name."""

    @property
    def rates(self) -> tuple[str, ...]:
        """Names of the hyperparameters that may be schedules."""

    @property
    def slots_for(self) -> Callable[[Any], Iterable[str]]:
        """Returns the names of the slots that a parameter has."""

    def program(self, overrides: Mapping[str, Any] | None = None, shape: tuple[int, ...] | None = None) -> Program:
        """Return the program of a step for which these hyperparameters are given."""

    def fixed_program(self, overrides: Mapping[str, Any] | None = None) -> Program | None:
        """Return the program of a step if it is the same for all parameters."""

    def step_scalars(
        self,
        backend: Any,
        programs: Sequence[Program],
        state: OptimizerState,
        overrides: Mapping[str, Any],
        total_of: Callable[[str, Any], Any],
    ) -> tuple[list[StepScalars], Any]:
        """Return the scalars of a step for each of its programs, checked, and the number of finished steps afterwards."""

    def check_overrides(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyperparameters given for a step under their own names; raise an error if one is none."""

    def hyperparameter_named(self, name: str) -> Any:
        """Return one of its hyperparameters as declared."""

    def check_value(self, owner: str, name: str, value: Any) -> Any:
        """Return the value of a hyperparameter for a step; raise an error that begins with `owner` if it cannot have it."""
