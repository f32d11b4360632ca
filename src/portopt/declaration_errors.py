"""What an author may get wrong in the body of a class of optimizers, said when the class is made."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from portopt.dialects import PerDialect
from portopt.hyperparameters import Alias, Hyperparameter, listed
from portopt.program.draws import DISTRIBUTIONS, SEED
from portopt.program.reductions import GRADIENT_NORM, TOTALS_GIVEN
from portopt.slot import Slot

_OF_APPLY = ("params", "grads", "state", GRADIENT_NORM, TOTALS_GIVEN)
_OF_PROGRAMS = ("p", "g", "t")
"""What the parameter, the gradient and the number of the step are called in a program."""


def check_declarations(
    owner: type, declared: Mapping[str, Hyperparameter], aliases: Mapping[str, Alias], dialects: Sequence[str]
) -> None:
    """Raise an error for a mistake in what a class declares itself; what it inherits was checked with its own class.

    Args:
        owner: the class.
        declared: all its hyperparameters, inherited ones too.
        aliases: all its other names.
        dialects: the dialects that it has.
    """
    own = vars(owner)
    for name, field in declared.items():
        if name in own or not dialects:
            _check_dialects(owner, name, field, dialects)
    for name, value in own.items():
        if isinstance(value, Hyperparameter | Alias):
            _check_name(owner, name)
        elif name in declared:
            raise TypeError(
                f"{owner.__name__} {name} is {value!r:.80}, but it inherits a hyperparameter of that name: to change its default "
                f"or range, declare it anew, {name} = portopt.hyperparameter(default=...); if it has no other value, write "
                f"fixed({value!r:.80})"
            )
        if isinstance(value, Hyperparameter):
            for default in (
                value.default.defaults if isinstance(value.default, PerDialect) else ((None, value.default),)
            ):
                _check_default(owner, name, value, *default)
        elif isinstance(value, Alias):
            _check_alias(owner, name, value, declared, dialects)
    for name in _without_value(owner):
        raise TypeError(
            f"{owner.__name__} {name} has no default: write {name}: float = portopt.hyperparameter(default=..., at_least=...), "
            f"portopt.option(default=False) for a flag, or {name}: ClassVar if it is no argument of the constructor"
        )
    # A property is known for an optimizer only.
    slots, scalar_slots = own.get("slots", ()), own.get("scalar_slots", {})
    check_slots(
        owner.__name__,
        () if hasattr(slots, "__get__") else slots,
        {} if hasattr(scalar_slots, "__get__") else scalar_slots,
        declared,
    )
    if not hasattr(own.get("inputs", ()), "__get__"):
        _check_inputs(owner.__name__, own.get("inputs", ()), slots, declared)


def _check_inputs(owner: str, inputs: object, slots: object, declared: Mapping[str, Hyperparameter]) -> None:
    """Raise an error unless the names of further inputs can be those of arguments, and are no others' names."""
    if isinstance(inputs, str) or not isinstance(inputs, Sequence) or not all(isinstance(n, str) for n in inputs):
        raise TypeError(f"{owner} inputs must be a tuple of names, such as ('hessian',), but {inputs!r} was given")
    taken = {*declared, *_OF_APPLY, *_OF_PROGRAMS, *(slots if isinstance(slots, tuple) else ())}
    for name in inputs:
        if name in taken or inputs.count(name) > 1:
            raise TypeError(f"{owner} has an input {name!r}, but that is the name of something else: rename the input")
        if not name.isidentifier():
            raise TypeError(
                f"{owner} has an input {name!r}, but apply takes it as an argument of that name: choose an identifier"
            )


def own_constructor(owner: type) -> TypeError:
    """Return the error for a class with a constructor of its own."""
    definer = next(base for base in owner.__mro__ if "__init__" in vars(base))
    where = "its own" if definer is owner else f"that of {definer.__name__}"
    return TypeError(
        f"{owner.__name__} has an __init__, {where}, but an optimizer is made anew from its hyperparameters: by configs, by "
        "replace, and for the values of one step. Declare each argument in the body of the class, as in "
        "gamma: float = portopt.hyperparameter(default=0.9, at_least=0, below=1), or portopt.option(default=False) for a flag; "
        "check those that must fit together in check_combination(self), and compute what follows from them in a property"
    )


def _check_name(owner: type, name: str) -> None:
    for base in owner.__mro__[1:]:
        inherited = vars(base).get(name)
        if inherited is not None and not isinstance(inherited, Hyperparameter | Alias):
            raise TypeError(
                f"{owner.__name__} declares a hyperparameter {name!r}, but every optimizer has another {name!r}, of "
                f"{base.__name__}: give the hyperparameter another name"
            )
    if name in _OF_APPLY:
        raise TypeError(
            f"{owner.__name__} declares a hyperparameter {name!r}, but that is the name of an argument of apply: give it another"
        )
    if name in _OF_PROGRAMS:
        raise TypeError(
            f"{owner.__name__} declares a hyperparameter {name!r}, but in a step that is the parameter p, its gradient g or the "
            "number t of the step: give it another name"
        )


def _check_dialects(owner: type, name: str, field: Hyperparameter, dialects: Sequence[str]) -> None:
    if not isinstance(field.default, PerDialect):
        return
    if not dialects:
        raise TypeError(
            f"{owner.__name__} {name} has a default for each dialect, but {owner.__name__} has no dialects: give one default, or "
            f"state the dialects, dialect: Dialect = dialect_option(default={field.default.dialects[0]!r})"
        )
    if foreign := [dialect for dialect in field.default.dialects if dialect not in dialects]:
        raise TypeError(
            f"{owner.__name__} {name} has a default for {listed(map(repr, foreign), 'and')}, but the dialects of "
            f"{owner.__name__} are {listed(map(repr, dialects), 'and')}: leave it out, or add the dialect"
        )


def _check_default(owner: type, name: str, field: Hyperparameter, dialect: str | None, default: Any) -> None:
    where = f"{owner.__name__} {name}: the default {default!r}{f' of the dialect {dialect!r}' if dialect else ''}"
    if field.range is None:
        return
    for what, value in ((where, default), (f"{owner.__name__} {name}: the value {field.off!r} for off", field.off)):
        if value is ... or (value is None and (field.none_means is not None or field.off is None)):
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{what} must be a number in its range {field.range}")
        if float(value) not in field.range:
            raise ValueError(f"{what} is outside its own range {field.range}")


def _check_alias(
    owner: type, name: str, alias: Alias, declared: Mapping[str, Hyperparameter], dialects: Sequence[str]
) -> None:
    for target in alias.targets:
        if target.partition(".")[0] not in declared:
            raise TypeError(
                f"{owner.__name__} {name} is another name of {target!r}, which {owner.__name__} does not declare: it has "
                f"{', '.join(declared)}"
            )
    if alias.dialect not in (None, *dialects):
        raise TypeError(
            f"{owner.__name__} {name} is a name in the dialect {alias.dialect!r}, but the dialects of {owner.__name__} are "
            f"{', '.join(map(repr, dialects)) or 'none'}"
        )


def _without_value(owner: type) -> Iterator[str]:
    """Yield the names that the class annotates but gives no value."""
    for name, annotation in inspect.get_annotations(owner).items():
        if not name.startswith("_") and not hasattr(owner, name) and "ClassVar" not in str(annotation):
            yield name


def check_draws(owner: type, draws: Any, hyperparameters: Mapping[str, Hyperparameter]) -> None:
    """Raise an error unless a class's random numbers have names and distributions, and come from a seed."""
    if not isinstance(draws, Mapping) or not all(draws[name] in DISTRIBUTIONS for name in draws):
        raise TypeError(
            f'{owner.__name__} draws must map names to {listed(map(repr, DISTRIBUTIONS), "or")}, such as {{"noise": "normal"}}, '
            f"but {draws!r} was given"
        )
    taken = (*_OF_PROGRAMS, "xp", "slots", "c", *hyperparameters, *getattr(owner, "inputs", ()))
    if wrong := [name for name in draws if name in taken or not str(name).isidentifier()]:
        raise TypeError(
            f"{owner.__name__} draws {wrong[0]!r}, but update gets it as an argument of that name: choose an identifier that is "
            "no hyperparameter and no other argument"
        )
    if draws and SEED not in hyperparameters:
        raise TypeError(
            f"{owner.__name__} draws {', '.join(draws)}, but has no seed: write `seed: int = "
            "portopt.seed_hyperparameter(default=0)` in the body of the class"
        )


def check_slots(
    owner: str,
    slots: object,
    scalar_slots: object,
    hyperparameters: Mapping[str, Hyperparameter],
) -> None:
    """Raise an error unless the names of slots can be those of attributes, and are no others' names."""
    if isinstance(slots, str) or not isinstance(slots, Sequence) or not all(isinstance(name, str) for name in slots):
        example = f"({slots!r},)" if isinstance(slots, str) else '("m", "v")'
        raise TypeError(f"{owner} slots must be a tuple of names, such as {example}, but {slots!r} was given")
    if not isinstance(scalar_slots, Mapping) or not all(
        isinstance(first, numbers.Real) for first in scalar_slots.values()
    ):
        raise TypeError(
            f'{owner} scalar_slots must map names to first values, such as {{"m_schedule": 1.0}}, but {scalar_slots!r} was given'
        )
    # What inner rules have was checked with them.
    names = [name for name in (*slots, *scalar_slots) if "." not in name]
    for name in names:
        taken = "a hyperparameter's" if name in hyperparameters else "the parameter's" if name == "p" else None
        taken = "the gradient's" if name == "g" else taken
        if taken is not None or names.count(name) > 1:
            raise TypeError(
                f"{owner} has a slot {name!r}, but that is {taken or 'the name of another slot'}: rename the slot"
            )
        if not name.isidentifier():
            raise TypeError(f"{owner} has a slot {name!r}, but update reads slots as attributes: choose an identifier")
    for slot in slots:
        start = slot.start if isinstance(slot, Slot) and "." not in slot else "p"
        if isinstance(start, str) and start != "p" and start not in hyperparameters:
            raise TypeError(
                f"{owner} has a slot {str(slot)!r} that starts at {start!r}, which is no hyperparameter of it: allowed are a "
                f"number, 'p', and {listed(hyperparameters, 'or')}"
            )
