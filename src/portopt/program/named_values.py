"""What `update` sees as `slots` and `c`: values by name, as attributes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn


class _Values:
    """Values as attributes, and nothing else in `vars`; to ask for another one is an error that says what there is."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def _refuse(self, name: str, what: str, remedy: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        import difflib  # only for a message

        close = difflib.get_close_matches(name, vars(self), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise AttributeError(
            f"a rule asked for the {what} {name!r}, which it does not have; {hint}"
            f"it has {', '.join(vars(self)) or 'none'}: {remedy}"
        )


class Slots(_Values):
    """The slots of one parameter."""

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse(name, "slot", "name it in the rule's `slots` too")


class Coefficients(_Values):
    """The coefficients of a step.

    Args:
        totals: names of the totals that `coefficients` was given.
        **values: the coefficients.
    """

    __slots__ = ("_totals",)

    def __init__(self, totals: Iterable[str] = (), /, **values: Any) -> None:
        super().__init__(**values)
        self._totals = tuple(totals)

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("_") and name in self._totals:
            raise AttributeError(
                f"a rule asked for the total {name!r} in `update`, but totals are arguments of `coefficients`: return there what "
                f"is computed from it, or itself, as in `return {{{name!r}: {name}, ...}}`"
            )
        self._refuse(name, "coefficient", "return it from the rule's `coefficients` too")
