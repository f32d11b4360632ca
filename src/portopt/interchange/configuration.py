"""Optimizers by name and config, as Keras has them: `get`, `serialize`, `deserialize`, and registration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from portopt import rules
from portopt.interchange.native import NativeOptimizer, TFOptimizer, wrap
from portopt.nested import find_classes_by
from portopt.optimizer import Optimizer

_registered: dict[str, type[Optimizer]] = {}
AnyRule = TypeVar("AnyRule", bound=type[Optimizer])


def register(cls: AnyRule) -> AnyRule:
    """Make an `Optimizer` subclass known to `get` and `deserialize` by its name; usable as a decorator.

    Raises:
        TypeError: `cls` is no subclass of `Optimizer`.
        ValueError: the name, in any case, is taken by a built-in rule or by another class.

    Example:
        >>> import portopt
        >>> @portopt.register
        ... class PlainDescent(portopt.Optimizer):
        ...     def update(self, xp, p, g, slots, c):
        ...         return p - c.lr * g, {}
        >>> portopt.get("plaindescent").learning_rate
        0.01
    """
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):  # type: ignore[redundant-expr]  # callers may be untyped
        raise TypeError(f"only a subclass of portopt.Optimizer can be registered, but {cls!r} was given")
    known: type | None = {**_known(), **_NATIVE}.get(cls.__name__.lower())
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"the name {cls.__name__!r} is taken by {known.__module__}.{known.__qualname__}; rename the class"
        )
    _registered[cls.__name__.lower()] = cls
    return cls


def known_rules() -> list[type[Optimizer]]:
    """Return the built-in rules and those that were registered."""
    return list(_known().values())


def _known() -> dict[str, type[Optimizer]]:
    return {**{rule.__name__.lower(): rule for rule in rules.RULES}, **_registered}


_NATIVE: Mapping[str, type[NativeOptimizer]] = {c.__name__.lower(): c for c in (NativeOptimizer, TFOptimizer)}


@overload
def get(identifier: str | Optimizer) -> Optimizer: ...
@overload
def get(identifier: Any) -> Any: ...
def get(identifier: Any) -> Any:
    """Return an optimizer from a name in any case, a config dict, or an optimizer (itself).

    An optimizer of another framework is wrapped into a `NativeOptimizer`, one of TensorFlow into a `TFOptimizer`.

    Raises:
        ValueError: the name is unknown, the config is incomplete, or `identifier` is of another type.

    Example:
        >>> import portopt
        >>> portopt.get("ADAM").beta_1
        0.9
        >>> portopt.get({"class_name": "SGD", "config": {"lr": 0.5}}).learning_rate
        0.5
    """
    if isinstance(identifier, Optimizer | NativeOptimizer):
        return identifier
    if isinstance(identifier, str):
        return deserialize({"class_name": identifier, "config": {}})
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if (native := wrap(identifier)) is not None:
        return native
    raise ValueError(
        f"could not interpret the optimizer identifier {identifier!r} of type {type(identifier).__name__}: "
        "give a name such as 'adam', a dict with 'class_name' and 'config', or an optimizer instance"
    )


def serialize(optimizer: Optimizer | NativeOptimizer) -> dict[str, Any]:
    """Return `{"class_name": ..., "config": ...}`, which `deserialize` turns back into an equal optimizer.

    Example:
        >>> import portopt
        >>> portopt.serialize(portopt.Adagrad(0.5))["class_name"]
        'Adagrad'
    """
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, type[Optimizer]] | None = None) -> Any:
    """Return the optimizer that a config describes; the config is left alone.

    Args:
        config: `{"class_name": name in any case, "config": constructor arguments}`.
        custom_objects: further classes by name, for this call.

    Raises:
        ValueError: the class is unknown, or `class_name` or `config` is missing.

    Example:
        >>> import portopt
        >>> portopt.deserialize({"class_name": "adam", "config": {"beta_1": 0.5}}).beta_1
        0.5
    """
    return find_class(config, custom_objects).from_config(config["config"])


def find_class(config: Mapping[str, Any], custom_objects: Mapping[str, type[Optimizer]] | None = None) -> Any:
    """Return the class that a config of `deserialize` names."""
    if not (isinstance(config, Mapping) and "class_name" in config and isinstance(config.get("config"), Mapping)):  # type: ignore[redundant-expr]  # callers may be untyped
        raise ValueError(
            f"improper config format: {config!r}; it must be a dict with the keys 'class_name' and 'config', the latter a dict"
        )
    name = str(config["class_name"])
    custom = {key.lower(): cls for key, cls in (custom_objects or {}).items()}
    known: dict[str, Any] = {**_known(), **_NATIVE, **custom}
    cls = known.get(name.lower())
    if cls is None:
        import difflib

        names = [c.__name__ for c in known.values()]
        near = difflib.get_close_matches(name.lower(), known, n=1)
        suggestion = f"did you mean {known[near[0]].__name__!r}? " if near else ""
        raise ValueError(
            f"unknown optimizer: {name!r}; {suggestion}known are {', '.join(names)}, and classes given to portopt.register"
        )
    return cls


find_classes_by(find_class)
