"""The training problem: a multi-layer perceptron, 64-32-10 with softmax cross-entropy, on scikit-learn's handwritten digits.

Loss and gradients are computed by NumPy in float64 whatever library updates the parameters, so that a difference between
two runs can only come from the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from portopt.trees import STANDARD_TREES
from portopt_tools.errors import UnusableArgumentsError

PIXELS, HIDDEN, CLASSES = 64, 32, 10
TEST_IMAGES = 360
_BRIGHTEST = 16

Parameters = Sequence[npt.NDArray[Any]]
"""The arrays of the model in the order of `PATHS`."""

_MODEL = {
    "hidden": {"bias": (HIDDEN,), "kernel": (PIXELS, HIDDEN)},
    "output": {"bias": (CLASSES,), "kernel": (HIDDEN, CLASSES)},
}
_SHAPES, DEFINITION = STANDARD_TREES.flatten(
    {layer: {name: np.empty(shape) for name, shape in arrays.items()} for layer, arrays in _MODEL.items()}
)
PATHS: tuple[str, ...] = tuple(
    f'["{layer}"]["{name}"]' for layer, arrays in sorted(_MODEL.items()) for name in sorted(arrays)
)
"""How Python code reaches each parameter from `params`."""


@dataclass(frozen=True)
class Digits:
    """Images as rows of pixels in [0, 1], and their digits."""

    train_images: npt.NDArray[np.float64]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.float64]
    test_labels: npt.NDArray[np.int64]


def load_digits(seed: int) -> Digits:
    """Return the data set, split at random into 1437 images for training and 360 for the test."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UnusableArgumentsError(
            f'the handwritten digits come with scikit-learn, which cannot be imported ({error}): pip install "portopt[demo]"'
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng([seed, 0]).permutation(len(images))
    images, labels = images[order] / _BRIGHTEST, labels[order]
    return Digits(images[TEST_IMAGES:], labels[TEST_IMAGES:], images[:TEST_IMAGES], labels[:TEST_IMAGES])


def initial_parameters(seed: int, dtype: str) -> Parameters:
    """Return zero biases and Glorot-uniform kernels."""
    random = np.random.default_rng([seed, 1])
    arrays = []
    for layer in _MODEL.values():
        inputs, outputs = layer["kernel"]
        limit = np.sqrt(6 / (inputs + outputs))
        arrays += [np.zeros(layer["bias"]), random.uniform(-limit, limit, layer["kernel"])]
    return [array.astype(numpy_dtype(dtype)) for array in arrays]


def numpy_dtype(name: str) -> Any:
    """Return NumPy's dtype of that name, bfloat16 included."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise UnusableArgumentsError(
            f"the gradients are computed in NumPy, which has bfloat16 only through ml_dtypes ({error}): pip install ml_dtypes"
        ) from error
    return np.dtype(ml_dtypes.bfloat16)


def batches(seed: int, images: int, batch_size: int, epochs: int) -> npt.NDArray[np.int64]:
    """Return the rows of each step's batch; what is left at the end of an epoch's order is not used in it."""
    random = np.random.default_rng([seed, 2])
    steps = images // batch_size
    orders = [random.permutation(images)[: steps * batch_size].reshape(steps, batch_size) for _ in range(epochs)]
    return np.concatenate(orders)


class Network:
    """The gradients of one batch, and the quality of a model.

    All runs share one instance: its buffers stay where they are, and some BLAS libraries round differently when an operand
    is aligned differently in memory.
    """

    def __init__(self, batch_size: int) -> None:
        self._images = np.empty((batch_size, PIXELS))
        self._hidden = np.empty((batch_size, HIDDEN))
        self._outputs = np.empty((batch_size, CLASSES))
        self._back = np.empty((batch_size, HIDDEN))
        self._parameters = [np.empty(array.shape) for array in _SHAPES]
        self._gradients = [np.empty(array.shape) for array in _SHAPES]

    def gradients(self, digits: Digits, rows: npt.NDArray[np.int64], parameters: Parameters) -> Parameters:
        """Return the gradients of the mean loss of the batch `rows`, in the parameters' dtype."""
        for buffer, array in zip(self._parameters, parameters, strict=True):
            np.copyto(buffer, array, casting="unsafe")
        bias, kernel, output_bias, output_kernel = self._parameters
        bias_gradient, kernel_gradient, output_bias_gradient, output_kernel_gradient = self._gradients
        hidden, outputs, back = self._hidden, self._outputs, self._back
        with np.errstate(all="ignore"):
            images = np.take(digits.train_images, rows, axis=0, out=self._images)
            np.maximum(np.matmul(images, kernel, out=hidden) + bias, 0.0, out=hidden)
            np.add(np.matmul(hidden, output_kernel, out=outputs), output_bias, out=outputs)
            outputs[...] = np.exp(_log_softmax(outputs))
            outputs[np.arange(len(rows)), digits.train_labels[rows]] -= 1.0
            outputs /= len(rows)

            np.sum(outputs, axis=0, out=output_bias_gradient)
            np.matmul(hidden.T, outputs, out=output_kernel_gradient)
            np.matmul(outputs, output_kernel.T, out=back)
            back *= hidden > 0.0
            np.sum(back, axis=0, out=bias_gradient)
            np.matmul(images.T, back, out=kernel_gradient)
            return [g.astype(p.dtype) for g, p in zip(self._gradients, parameters, strict=True)]

    def quality(self, digits: Digits, parameters: Parameters) -> tuple[float, float]:
        """Return the mean loss over all training images, and the accuracy on the test images."""
        with np.errstate(all="ignore"):
            scores = _log_softmax(_forward(digits.train_images, parameters))
            loss = -np.mean(scores[np.arange(len(scores)), digits.train_labels])
            predicted = np.argmax(_forward(digits.test_images, parameters), axis=1)
        return float(loss), float(np.mean(predicted == digits.test_labels))


def _forward(images: npt.NDArray[np.float64], parameters: Parameters) -> npt.NDArray[np.float64]:
    bias, kernel, output_bias, output_kernel = (array.astype(np.float64) for array in parameters)
    return np.asarray(np.maximum(images @ kernel + bias, 0.0) @ output_kernel + output_bias)


def _log_softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True)))
