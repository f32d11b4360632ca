"""What a step of a rule is given beside gradients, from the call of `apply` to the step: in between Keras prepares gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import portopt

_GIVEN: ContextVar[Mapping[str, Mapping[Any, Any]] | None] = ContextVar("further inputs of a step", default=None)
"""For each input of the step that is being done, an array by the key of its variable."""


@contextlib.contextmanager
def inputs_of_step(
    rule: portopt.Optimizer, variables: Sequence[Any], inputs: Mapping[str, Any], key: Callable[[Any], Any]
) -> Iterator[None]:
    """Within it, the step of `variables` has these inputs.

    Args:
        rule: the optimizer.
        variables: those of the step.
        inputs: for each name, one for each variable, or None.
        key: returns the key of a variable.

    Raises:
        TypeError: the rule has no such input.
        ValueError: there are more or fewer than variables, or one has another shape than its variable.
    """
    given = {}
    for name, of in inputs.items():
        if name not in rule.inputs:
            allowed = ", ".join(("trainable_variables", *rule.inputs))
            raise TypeError(
                f"apply of {type(rule).__name__} got an unknown argument {name!r}; allowed beside gradients are {allowed}"
            )
        if of is not None:
            _check(name, of, variables)
            given[name] = {key(v): x for v, x in zip(variables, of, strict=True) if x is not None}
    token = _GIVEN.set(given)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def inputs_for(keys: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the inputs of the step that is being done, for variables with these keys."""
    found = {name: [of.get(k) for k in keys] for name, of in (_GIVEN.get() or {}).items()}
    return {name: of for name, of in found.items() if any(x is not None for x in of)}


def _check(name: str, given: Any, variables: Sequence[Any]) -> None:
    if not isinstance(given, list | tuple) or len(given) != len(variables):
        what = (
            f"{len(given)} values" if isinstance(given, list | tuple) else f"an object of type {type(given).__name__}"
        )
        raise ValueError(
            f"{name} must be a list with an array for each of the {len(variables)} variables, None for those that have none, but "
            f"{what} was given"
        )
    for variable, x in zip(variables, given, strict=True):
        shape = None if x is None else getattr(x, "shape", ())
        if shape is not None and tuple(shape) != tuple(variable.shape):
            raise ValueError(
                f"{name} of variable {variable.name!r} has shape {tuple(shape)}, but the variable has {tuple(variable.shape)}: "
                "they must agree"
            )
