"""Rules as they are named on a command line: `Adam`, `mypackage.rules:Signum`, or a config.

This is the one place that turns such a text into a rule. Only a command line names modules to import: a config in a checkpoint,
or one given to `portopt.get`, never does.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from portopt.interchange.configuration import deserialize, find_class
from portopt.optimizer import Optimizer
from portopt.rules import RULES

NAMES = ", ".join(rule.__name__ for rule in RULES)
CLASS_HELP = f"{NAMES} (in any case), or a class of your own as MODULE:CLASS, also from the current folder"
OPTIMIZER_HELP = (
    f"{CLASS_HELP}, or a config as JSON text or in a file that ends in .json, such as "
    '\'{"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}}\''
)
"""What `--help` says of arguments that `rule_class` and `optimizer` read."""

_Value = TypeVar("_Value")


def optimizer(text: str) -> Optimizer:
    """Return the optimizer that a name, `module:Class` or a config describes; a config's class may be `module:Class`, too.

    Raises:
        ValueError, TypeError, OSError: there is none; the message says why.
    """
    config = configuration(text)
    if config is None:
        cls = rule_class(text)
        try:
            return cls()
        except (TypeError, ValueError) as error:
            remedy = json.dumps({"class_name": text, "config": {"...": "..."}})
            raise type(error)(f"{text} cannot be made without arguments ({error}): give a config, {remedy}") from error
    name = config.get("class_name") if isinstance(config, dict) else None
    custom = {name: imported_class(name)} if isinstance(name, str) and ":" in name else None
    return _of_portopt(deserialize(config, custom), text)


def rule_class(text: str) -> type[Optimizer]:
    """Return the class that a name or `module:Class` names.

    Raises:
        ValueError, TypeError: there is none; the message says why.
    """
    if ":" in text:
        return imported_class(text)
    try:
        cls: type[Optimizer] = find_class({"class_name": text, "config": {}})
    except ValueError as error:
        hint = ", or a class of your own as MODULE:CLASS, with a colon" if "." in text else ""
        raise ValueError(f"{error}{hint}") from None
    if not issubclass(cls, Optimizer):
        raise TypeError(f"{text!r} is no rule of portopt, but the optimizer of another framework")
    return cls


def configuration(text: str) -> Any | None:
    """Return what a config as JSON, or in a file that ends in `.json`, holds; None if the text is neither."""
    if text.endswith(".json"):
        text = Path(text).read_text(encoding="utf-8").lstrip()
    elif not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from error


def imported_class(text: str) -> type[Optimizer]:
    """Return the subclass of `Optimizer` that `module:Class` names; the module may lie in the current folder.

    Raises:
        ValueError: the module cannot be imported, or has no such class.
        TypeError: it is no subclass of `Optimizer`.
    """
    module_name, _, path = text.partition(":")
    if not module_name or not path:
        raise ValueError(f"{text!r} must be MODULE:CLASS, such as mypackage.rules:Signum")
    found: Any = _module(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{module_name} has no {path!r}{_classes_of(sys.modules[module_name], path)}")
        found = getattr(found, name)
    if not (isinstance(found, type) and issubclass(found, Optimizer)) or found is Optimizer:
        what = f"an object of {type(found).__name__}: name its class" if isinstance(found, Optimizer) else repr(found)
        raise TypeError(f"{text} must be a subclass of portopt.Optimizer, but is {what}")
    return found


def as_argument_type(read: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Return a function of this module as the type of an argument of `argparse`, which then prints its errors."""

    def parse(text: str) -> _Value:
        try:
            return read(text)
        except (ValueError, TypeError, OSError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _of_portopt(made: Any, text: str) -> Optimizer:
    if not isinstance(made, Optimizer):
        raise TypeError(f"{text!r} describes the optimizer of another framework, but a rule of portopt is needed")
    return made


def _module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        # First, as `python -m` has it: the command `portopt` would else find only what is installed.
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name!r}, installed or in {folder}{_modules_like(name)}"
            ) from error
        raise ValueError(f"{name} cannot be imported: {error}") from error
    except Exception as error:
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _modules_like(name: str) -> str:
    parent, _, last = name.rpartition(".")
    folders = getattr(sys.modules.get(parent), "__path__", []) if parent else [str(Path.cwd())]
    near = difflib.get_close_matches(last, [module.name for module in pkgutil.iter_modules(folders)], n=1)
    return f"; did you mean {'.'.join(filter(None, (parent, near[0])))!r}?" if near else ""


def _classes_of(module: ModuleType, wanted: str) -> str:
    rules = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value.__module__ == module.__name__
    ]
    near = difflib.get_close_matches(wanted, rules, n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else ""
    return suggestion + (f"; its rules are {', '.join(rules)}" if rules else "; it defines no rule")
