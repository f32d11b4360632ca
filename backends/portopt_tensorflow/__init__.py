"""TensorFlow and portopt: tensors and variables as arrays of portopt, eagerly and in `tf.function`, and its own optimizers.

The backend is not among `portopt.backends()`. Once this package is imported, portopt takes TensorFlow's arrays.
"""

from typing import Any

from portopt.backend import recognize
from portopt_tensorflow._backend import TensorFlowBackend as TensorFlowBackend
from portopt_tensorflow._backend import backend as backend

recognize(backend)


def __getattr__(name: str) -> Any:
    if name == "native":
        from portopt_tensorflow._native import native

        return native
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
