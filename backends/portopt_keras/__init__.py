"""Keras 3 and portopt: any portopt optimizer as an optimizer of Keras, and Keras' own optimizers inside portopt.

Keras finds the classes of this package by name (`"portopt>Adam"`), whichever of the two is imported first. Each rule of portopt
has a class of its name here, such as `portopt_keras.SGD`. Keras is imported when one of them is first used.
"""

from typing import TYPE_CHECKING, Any

from portopt_keras import _registration

if TYPE_CHECKING:
    from portopt_keras._optimizer import KerasOptimizer as KerasOptimizer


def __getattr__(name: str) -> Any:
    if name == "native":
        from portopt_keras._native import native

        return native
    if name.startswith("__"):
        # What inspection asks of every module; not worth an import of Keras.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    classes = _registration.classes()
    if name not in classes:
        raise AttributeError(f"portopt_keras has no {name!r}; it has {', '.join(classes)}")
    return classes[name]


_registration.with_keras()
