"""Any portopt optimizer as an optimizer of Keras 3, on Keras' JAX, torch and TensorFlow backends.

Importing this package imports keras and registers its classes, so that Keras finds them by name (`"portopt>Adam"`). Each rule of
portopt has a class of its name here, such as `portopt_keras.SGD`; `get`, `serialize` and `deserialize` know them without prefix.
"""

from typing import Any

from portopt_keras._configuration import deserialize as deserialize
from portopt_keras._configuration import get as get
from portopt_keras._configuration import serialize as serialize
from portopt_keras._optimizer import KerasOptimizer as KerasOptimizer
from portopt_keras._rules import CLASSES

globals().update(CLASSES)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"portopt_keras has no {name!r}; it has KerasOptimizer and {', '.join(CLASSES)}")
