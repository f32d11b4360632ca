"""What the reference is told that Griffe does not see; Griffe itself is only in the environment of the web site."""

from __future__ import annotations

import importlib
import inspect
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import portopt


class ParameterKind(Enum):
    """As Griffe has it."""

    positional_only = "positional-only"
    positional_or_keyword = "positional or keyword"
    var_positional = "variadic positional"
    keyword_only = "keyword-only"
    var_keyword = "variadic keyword"


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    parts = {
        "Extension": object,
        "ParameterKind": ParameterKind,
        "Parameter": lambda name, **rest: SimpleNamespace(name=name, **rest),
    }
    griffe = ModuleType("griffe")
    vars(griffe).update(parts)
    monkeypatch.setitem(sys.modules, "griffe", griffe)
    monkeypatch.delitem(sys.modules, "website.griffe_extension", raising=False)
    return importlib.import_module("website.griffe_extension")


def test_each_argument_becomes_an_item_and_the_example_code(extension: ModuleType) -> None:
    text = """Do it.

    a, b: no arguments, for they stand elsewhere.

Args:
    first, second: what both are,
        in two lines.
    *rest: others.

Example:
    >>> 1
    1"""
    assert extension.as_griffe_reads(text) == text.replace(
        "    first, second: what both are,\n        in two lines.\n",
        "    first: what both are,\n        in two lines.\n    second: what both are,\n        in two lines.\n",
    ).replace("Example:", "Examples:")


@pytest.mark.parametrize("rule", portopt.RULES, ids=lambda rule: rule.__name__)
def test_rules_have_the_arguments_of_their_constructors(rule: type[portopt.Optimizer], extension: ModuleType) -> None:
    found: dict[str, Any] = {parameter.name: parameter for parameter in extension.arguments(rule)}
    expected = inspect.signature(rule).parameters
    assert list(found) == list(expected)
    assert found["learning_rate"].default == repr(expected["learning_rate"].default)
    assert found["clipnorm"].kind.value == "keyword-only"


def test_the_base_class_has_those_of_every_rule(extension: ModuleType) -> None:
    found = {parameter.name for parameter in extension.arguments(portopt.Optimizer)}
    assert found == {"learning_rate", "lr", "clipnorm", "clipvalue"}
