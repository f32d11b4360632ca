"""Optimizers of this package by name and config, as `keras.optimizers` has Keras' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

import portopt
from portopt_keras._optimizer import KerasOptimizer
from portopt_keras._rules import CLASSES

_PREFIX = "portopt>"


def get(identifier: Any) -> KerasOptimizer:
    """Return an optimizer of Keras from a rule's name in any case, a config, a portopt optimizer, or a `KerasOptimizer` (itself).

    Names are portopt's, with the prefix by which Keras knows them or without.

    Raises:
        ValueError: the name is unknown, the config is incomplete or of an optimizer of Keras itself, or `identifier` is of
            another type.

    Example:
        >>> import portopt_keras
        >>> type(portopt_keras.get("adam")).__name__, portopt_keras.get("portopt>SGD").name
        ('Adam', 'sgd')
    """
    if isinstance(identifier, KerasOptimizer):
        return identifier
    if isinstance(identifier, portopt.Optimizer):
        return KerasOptimizer(identifier)
    if isinstance(identifier, str):
        return deserialize({"class_name": identifier, "config": {}})
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if isinstance(identifier, keras.optimizers.Optimizer):
        raise ValueError(
            f"{identifier!r} is an optimizer of Keras itself: use it as it is, or make its counterpart here, such as "
            "portopt_keras.Adam(dialect='keras3')"
        )
    raise ValueError(
        f"could not interpret the optimizer identifier {identifier!r} of type {type(identifier).__name__}: give a name such as "
        "'adam', a dict with 'class_name' and 'config', or an optimizer instance"
    )


def serialize(optimizer: KerasOptimizer) -> dict[str, Any]:
    """Return the config that `deserialize`, and `keras.optimizers.deserialize`, turn back into an equal optimizer.

    Raises:
        TypeError: `optimizer` is no `KerasOptimizer`.

    Example:
        >>> import portopt_keras
        >>> portopt_keras.serialize(portopt_keras.Adam())["registered_name"]
        'portopt>Adam'
    """
    if not isinstance(optimizer, KerasOptimizer):
        raise TypeError(
            f"portopt_keras.serialize takes an optimizer of portopt_keras, but {optimizer!r} of type {type(optimizer).__name__} "
            "was given: portopt.serialize takes one of portopt, keras.optimizers.serialize one of Keras"
        )
    config: dict[str, Any] = keras.optimizers.serialize(optimizer)
    return config


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> KerasOptimizer:
    """Return the optimizer that a config describes; the config is left alone.

    Args:
        config: what `serialize`, or `portopt.serialize`, returned: `{"class_name": name in any case, "config": arguments}`.
        custom_objects: further objects of Keras by name, such as schedules, for this call.

    Raises:
        ValueError: the class is unknown or Keras' own, or `class_name` or `config` is missing.

    Example:
        >>> import portopt_keras
        >>> portopt_keras.deserialize({"class_name": "adam", "config": {"beta_1": 0.5}}).optimizer.beta_1
        0.5
    """
    if str(config.get("module")).partition(".")[0] == "keras":
        raise ValueError(
            f"the config is of {config.get('class_name')!r} of Keras itself, whose arguments mean other things: give it to "
            "keras.optimizers.deserialize, or make its counterpart here, such as portopt_keras.Adam(dialect='keras3')"
        )
    name = str(config.get("class_name")).lower().removeprefix(_PREFIX)
    classes: dict[str, type[KerasOptimizer]] = {KerasOptimizer.__name__.lower(): KerasOptimizer}
    classes |= {rule.lower(): cls for rule, cls in CLASSES.items()}
    if name in classes and isinstance(config.get("config"), Mapping):
        optimizer: KerasOptimizer = classes[name].from_config(config["config"], custom_objects)
        return optimizer
    return KerasOptimizer(portopt.deserialize({**config, "class_name": name} if "class_name" in config else config))
