"""TensorFlow tensors and variables as arrays of portopt, eagerly and inside `tf.function`.

It is not among `portopt.backends()`. Once this package is imported, portopt takes TensorFlow's arrays.
"""

from portopt.backend import recognize
from portopt_tensorflow._backend import TensorFlowBackend as TensorFlowBackend
from portopt_tensorflow._backend import backend as backend

recognize(backend)


def __getattr__(name: str) -> object:
    if name == "native":
        from portopt_tensorflow._framework import native

        return native
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
