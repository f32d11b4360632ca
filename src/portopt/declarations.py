"""What a class of optimizers declares: its hyperparameters in each dialect, and what a constructor makes of arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from portopt.declaration_errors import check_declarations
from portopt.dialects import PerDialect
from portopt.hyperparameters import (
    Alias,
    Fixed,
    Hyperparameter,
    check_norm,
    not_in_dialect,
    unknown_argument,
)
from portopt.nested import NestedRule, split, with_values
from portopt.program.draws import KEY, SEED
from portopt.program.reductions import GRADIENT_NORM
from portopt.schedules import is_schedule


class Declarations:
    """The hyperparameters of a class in each of its dialects, and their other names.

    Attributes:
        dialects: the names of the dialects, the default one first; none in a rule without dialects.
        declared: the hyperparameters of all dialects together by name, as they stand in the class.
        nested: names of those whose value is an optimizer.
        absent: names of those that the class inherits, but none of its dialects has; None in every optimizer.
        aliases: the other names.
        by_dialect: a dialect's name, None in a rule without dialects, to what it has; the default one first.
    """

    def __init__(self, owner: type) -> None:
        declared: dict[str, Hyperparameter] = {}
        aliases: dict[str, Alias] = {}
        for base in reversed(owner.__mro__):
            for name, value in vars(base).items():
                aliases.pop(name, None)
                if isinstance(value, Hyperparameter):
                    declared[name] = value
                elif isinstance(value, Alias):
                    declared.pop(name, None)
                    aliases[name] = value
                elif isinstance(value, Fixed):
                    declared.pop(name, None)
        self.dialects = declared["dialect"].choices if "dialect" in declared else ()
        check_declarations(owner, declared, aliases, self.dialects)
        self.declared = {n: f for n, f in declared.items() if not self.dialects or f.dialects(self.dialects)}
        self.absent = tuple(declared.keys() - self.declared.keys())
        self.nested = tuple(name for name, field in self.declared.items() if isinstance(field, NestedRule))
        self.aliases = {n: a for n, a in aliases.items() if self._has_alias(a)}
        self.by_dialect = {d: Fields(self, d, self._of_dialect(d)) for d in self.dialects or (None,)}

    def _has_alias(self, alias: Alias) -> bool:
        return alias.dialect in (None, *self.dialects) and self.declared.keys() >= {
            target.partition(".")[0] for target in alias.targets
        }

    def _of_dialect(self, dialect: str | None) -> dict[str, Hyperparameter]:
        if dialect is None:
            return dict(self.declared)
        first = self.dialects[0]
        fields = {name: field.of_dialect(dialect, first) for name, field in self.declared.items()}
        return {name: field for name, field in fields.items() if dialect in self.declared[name].dialects(self.dialects)}

    @property
    def default(self) -> Fields:
        """What the default dialect has."""
        return next(iter(self.by_dialect.values()))

    def chosen(self, owner: str, arguments: Mapping[str, Any]) -> Fields:
        """Return what the dialect among a constructor's arguments has."""
        if "dialect" not in self.declared or "dialect" not in arguments:
            return self.default
        return self.by_dialect[self.declared["dialect"].check(owner, "dialect", arguments["dialect"])]

    def targets(self, name: str) -> tuple[str, ...]:
        """Return the own names of what a name stands for."""
        return self.aliases[name].targets if name in self.aliases else (name,)

    def signature(self) -> inspect.Signature:
        """Return the constructor's signature, with the defaults of the default dialect."""
        kinds = inspect.Parameter
        fields = self.declared
        declared = {n: f.default for n, f in fields.items()}
        defaults = {n: d.of(self.dialects[0]) if isinstance(d, PerDialect) else d for n, d in declared.items()}
        positional = [
            kinds(n, kinds.POSITIONAL_OR_KEYWORD, default=defaults[n]) for n, f in fields.items() if not f.kw_only
        ]
        by_name = [kinds(n, kinds.KEYWORD_ONLY, default=defaults[n]) for n, f in fields.items() if f.kw_only]
        by_name += [kinds(n, kinds.KEYWORD_ONLY, default=None) for n in self.aliases]
        return inspect.Signature([*positional, *by_name])


class Fields(dict[str, Hyperparameter]):
    """The hyperparameters that a class has in one dialect, by name.

    Attributes:
        dialect: the dialect; None in a rule without dialects.
        numeric: names of those that are numbers, and so may be given for one step.
    """

    def __init__(self, declarations: Declarations, dialect: str | None, fields: Mapping[str, Hyperparameter]) -> None:
        super().__init__(fields)
        self._declarations = declarations
        self.dialect = dialect
        self.numeric = tuple(name for name, field in fields.items() if field.is_numeric)

    def values_of(self, owner: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each declared hyperparameter, given a constructor's arguments; None for one of other dialects."""
        positional = [name for name, field in self.items() if not field.kw_only]
        if len(args) > len(positional):
            raise TypeError(
                f"{owner} takes at most {len(positional)} positional arguments ({', '.join(positional)}), but "
                f"{len(args)} were given"
            )
        declared = self._declarations.declared
        given = dict(zip(positional, args, strict=False))
        of_inner: dict[str, dict[str, Any]] = {name: {} for name in self._declarations.nested}
        for name, target, value in self._spelled_out(owner, kwargs):
            head, _, rest = target.partition(".")
            if rest and head in of_inner:
                if rest in of_inner[head]:
                    raise self._twice(owner, target, kwargs)
                if value is not None:
                    of_inner[head][rest] = value
                continue
            if target not in declared:
                raise unknown_argument(owner, name, [*self, *self._other_names()])
            if target not in self and value is not None:
                raise self._not_in_dialect(owner, name)
            if target in given:
                raise self._twice(owner, target, kwargs)
            given[target] = value
        values = {name: self._value_of(owner, name, given) for name in declared}
        for name, changes in of_inner.items():
            values[name] = with_values(values[name], changes)
        return values | dict.fromkeys(self._declarations.absent)

    def _value_of(self, owner: str, name: str, given: Mapping[str, Any]) -> Any:
        field = self.get(name)
        if field is None:
            return None
        value = given.get(name, field.default)
        return value if name == "learning_rate" and is_schedule(value) else field.check(owner, name, value)

    def values_for_step(self, owner: str, overrides: Mapping[str, Any], inputs: Sequence[str] = ()) -> dict[str, Any]:
        """Return hyperparameters given for one step under their own names; raise an error if one is no hyperparameter.

        Args:
            owner: what the error says was given them.
            overrides: values by name.
            inputs: what else a step may be given, for the error.
        """
        checked: dict[str, Any] = {}
        for name, target, value in self._spelled_out(owner, overrides):
            if name == GRADIENT_NORM:
                checked[name] = check_norm(owner, value)
                continue
            field = self.get(target)
            if field is None and target in self._declarations.declared:
                raise self._not_in_dialect(owner, name)
            if field is None or not field.is_numeric:
                if field is not None:
                    raise TypeError(
                        f"{owner}: {name!r} is fixed at construction; construct another optimizer to change it"
                    )
                raise unknown_argument(owner, name, [*self.numeric, *self._other_names(), *inputs])
            if target in checked:
                raise TypeError(f"{owner} was given {name!r} and another name of it at once; give only one of them")
            checked[target] = field.check_value(owner, name, value)
        return checked

    def _twice(self, owner: str, target: str, kwargs: Mapping[str, Any]) -> TypeError:
        """Return the error for a hyperparameter that was given under several names, or by position and name."""
        named = {name for name in kwargs if target in self._declarations.targets(name)}
        names = " and ".join(sorted(named if "." in target else {target, *named}))
        return TypeError(f"{owner} was given {names} at once, which are one hyperparameter; give only one of them")

    def own_and_inner(self, owner: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the values of a step that are the rule's own, as given, and those of each inner rule by its name."""
        return split(self._spelled_out(owner, overrides), self._declarations.nested, owner)

    def _spelled_out(self, owner: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        """Yield the name that was given, the hyperparameter's own name, and the value."""
        for name, value in given.items():
            alias = self._declarations.aliases.get(name)
            if alias is None:
                yield name, name, value
            elif alias.dialect in (None, self.dialect):
                for target, part in alias.spelled_out(owner, name, value).items():
                    yield name, target, part
            elif value is not None:
                raise self._not_in_dialect(owner, name)

    def _other_names(self) -> list[str]:
        """Return the aliases that the dialect has."""
        return [name for name, a in self._declarations.aliases.items() if a.dialect in (None, self.dialect)]

    def _not_in_dialect(self, owner: str, name: str) -> TypeError:
        declarations = self._declarations
        alias = declarations.aliases.get(name)
        if alias is not None and alias.dialect is not None:
            return alias.elsewhere(owner, name, str(self.dialect))
        dialects = declarations.declared[declarations.targets(name)[0]].dialects(declarations.dialects)
        return not_in_dialect(owner, name, str(self.dialect), dialects)


class WithKey:
    """The scalars of a rule that draws random numbers: its own, and the key that these come from."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __get__(self, instance: Any, owner: type) -> Mapping[str, float]:
        own = self._own.__get__(instance, owner) if hasattr(self._own, "__get__") else self._own
        return own if instance is None else {**own, KEY: float(getattr(instance, SEED))}


class OfClassOrInstance:
    """A method that can be called on a class too, whose defaults then count."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return functools.partial(self.function, owner if instance is None else instance)
