"""What Griffe cannot see in the source: how rules and named tuples are constructed, and two habits of our docstrings."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe

from portopt import Optimizer

ARGUMENTS = re.compile(r"^(?:Args|Attributes):\n(?:(?: .*)?\n)*", re.MULTILINE)
SEVERAL = re.compile(
    r"^(?P<indent> +)(?P<names>[*\w]+(?:, [*\w]+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)$", re.MULTILINE
)


class PortoptExtension(griffe.Extension):
    """Completes the objects before they are looked for and their docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_griffe_reads(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        if any(str(base) == "NamedTuple" for base in cls.bases):
            set_constructor(cls, list(fields(cls)))
        elif cls.module.path.startswith(("portopt.rules.", "portopt.optimizer")):
            rule = getattr(importlib.import_module(cls.module.path), cls.name, None)
            if isinstance(rule, type) and issubclass(rule, Optimizer):
                set_constructor(cls, list(arguments(rule)))

    def on_alias(self, *, alias: griffe.Alias, **kwargs: Any) -> None:
        # Griffe would do so when someone asks, and until then the object does not know that it is found under this name too.
        if alias.public:
            with contextlib.suppress(griffe.AliasResolutionError, griffe.CyclicAliasError):
                alias.resolve_target()


def as_griffe_reads(text: str) -> str:
    """Return a docstring with one argument an item, and its examples under the heading that makes them code."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return ARGUMENTS.sub(lambda section: SEVERAL.sub(one_each, section[0]), text + "\n").rstrip("\n")


def one_each(item: re.Match[str]) -> str:
    return "\n".join(f"{item['indent']}{name}: {item['text']}" for name in item["names"].split(", "))


def fields(cls: griffe.Class) -> Iterator[griffe.Parameter]:
    for member in cls.attributes.values():
        if member.annotation is not None:
            yield griffe.Parameter(member.name, kind=ANY_WAY, annotation=member.annotation, default=member.value)


def arguments(rule: type[Optimizer]) -> Iterator[griffe.Parameter]:
    # The base class has no signature of its own, since it is not called; a subclass has that of its hyperparameters.
    for parameter in inspect.signature(type(rule.__name__, (rule,), {})).parameters.values():
        annotation = None if parameter.annotation is parameter.empty else str(parameter.annotation)
        default = None if parameter.default is parameter.empty else repr(parameter.default)
        kind = griffe.ParameterKind(parameter.kind.description)
        yield griffe.Parameter(parameter.name, kind=kind, annotation=annotation, default=default)


def set_constructor(cls: griffe.Class, parameters: list[griffe.Parameter]) -> None:
    own = griffe.Parameter("self", kind=ANY_WAY)
    cls.set_member(
        "__init__", griffe.Function("__init__", parameters=griffe.Parameters(own, *parameters), returns="None")
    )


ANY_WAY = griffe.ParameterKind.positional_or_keyword
