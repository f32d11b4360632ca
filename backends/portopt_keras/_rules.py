"""Each rule of portopt as a class of Keras, all made by one function."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import keras

import portopt
from portopt.hyperparameters import unknown_argument
from portopt_keras._optimizer import EXCLUSIONS, KerasOptimizer, is_keras_rate

_OPTIONS = {n: p for n, p in inspect.signature(KerasOptimizer).parameters.items() if p.kind is p.KEYWORD_ONLY}
"""What Keras does around the step."""


class RuleOptimizer(KerasOptimizer):
    """A `KerasOptimizer` whose rule is fixed, so that its constructor takes the rule's arguments, and Keras' options.

    A name that both have is the rule's, if its dialect has it: `clipnorm` is the norm of all gradients together, as in Keras 2.
    """

    rule: ClassVar[type[portopt.Optimizer]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        rule, rates = self.rule, ("learning_rate", "lr")
        arguments = inspect.signature(rule).parameters
        for name in kwargs:
            if name not in arguments and name not in _OPTIONS:
                raise unknown_argument(type(self).__name__, name, [*arguments, *_OPTIONS])
        keras_options = self._keras_options(kwargs.get("dialect"))
        own = {name: value for name, value in kwargs.items() if name not in keras_options}
        options = {name: value for name, value in kwargs.items() if name in keras_options}
        if args and is_keras_rate(args[0]):
            options["learning_rate"] = args[0]
            args = (rule().learning_rate, *args[1:])
        for name in rates:
            if is_keras_rate(own.get(name)):
                options["learning_rate"] = own.pop(name)
        super().__init__(rule(*args, **own), **options)

    @classmethod
    def _keras_options(cls, dialect: str | None) -> frozenset[str]:
        """Return the names of Keras' options that the rule does not have in a dialect."""
        return frozenset(_OPTIONS) - frozenset(cls.rule.defaults(dialect))

    def _fixed_names(self) -> frozenset[str]:
        return self._hyperparameters()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as values that JSON can hold."""
        config = super().get_config()
        own = config.pop("optimizer")["config"]
        keras_options = self._keras_options(getattr(self.optimizer, "dialect", None))
        options = {n: v for n, v in config.items() if n in keras_options or n == EXCLUSIONS}
        rate = {"learning_rate": config["learning_rate"]} if "learning_rate" in config else {}
        return {**options, **own, **rate}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Return the optimizer that `get_config` described."""
        own = inspect.signature(cls.rule).parameters
        # Schedules of Keras' are described in its way, and read by it.
        described = {
            n: v for n, v in config.items() if n in own and not (isinstance(v, Mapping) and "registered_name" in v)
        }
        optimizer: Self = super().from_config({**config, **cls.rule.arguments_of(described)}, custom_objects)
        return optimizer


def _class_of(rule: type[portopt.Optimizer]) -> type[RuleOptimizer]:
    """Return the Keras class of a rule, known to Keras as `portopt>Name`."""
    own = inspect.signature(rule).parameters
    parameters = [*own.values(), *(p for name, p in _OPTIONS.items() if name not in own)]
    doc = (
        f"`portopt.{rule.__name__}` as an optimizer of Keras; `portopt.{rule.__name__}` and `KerasOptimizer` describe the "
        "arguments."
    )
    name = rule.__name__
    members = {
        "rule": rule,
        "__doc__": doc,
        "__module__": "portopt_keras",
        "__signature__": inspect.Signature(parameters),
    }
    cls = type(name, (RuleOptimizer,), members)
    keras.saving.register_keras_serializable(package="portopt", name=name)(cls)
    # Keras finds its own optimizers by names in any case.
    keras.saving.get_custom_objects()[f"portopt>{name.lower()}"] = cls
    return cls


CLASSES: Mapping[str, type[RuleOptimizer]] = {rule.__name__: _class_of(rule) for rule in portopt.RULES}
"""The classes of the registry's rules, by name."""
