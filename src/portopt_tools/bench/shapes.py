"""Sets of parameter shapes to measure on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

QUICK_ELEMENTS, QUICK_TENSORS = 1 << 14, 6
"""What `--quick` leaves of a set: so many tensors, each cut to so many elements."""


@dataclass(frozen=True)
class ShapeSet:
    """The shapes of the parameters that one step updates.

    Attributes:
        name: what `--shapes` calls it.
        shapes: one shape a tensor, in the order of the model.
    """

    name: str
    shapes: tuple[Shape, ...]

    @property
    def parameters(self) -> int:
        """The number of elements of all tensors together."""
        return sum(map(math.prod, self.shapes))

    def quick(self) -> ShapeSet:
        """Return a small set of the same kind, for a run that only shows that everything works."""
        sizes = [min(math.prod(shape), QUICK_ELEMENTS) for shape in self.shapes[:QUICK_TENSORS]]
        return ShapeSet(self.name, tuple((size,) for size in sizes))


def _resnet50() -> list[Shape]:
    """Return the trainable tensors of ResNet-50.

    He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2015, https://arxiv.org/abs/1512.03385, table 1, with
    the batch normalisation and the classifier of torchvision's `resnet50`: 161 tensors, 25,557,032 parameters.
    """

    def convolution(inputs: int, outputs: int, size: int) -> list[Shape]:
        # No bias, but the scale and the shift of the batch normalisation that follows.
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes = convolution(3, 64, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(channels, width, 1) + convolution(width, width, 3) + convolution(width, 4 * width, 1)
            if block == 0:
                shapes += convolution(channels, 4 * width, 1)
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def _gpt2_small() -> list[Shape]:
    """Return the trainable tensors of GPT-2 small.

    Radford, Wu, Child, Luan, Amodei, Sutskever, "Language models are unsupervised multitask learners", 2019, table 2, in the
    layout of the released checkpoint, whose output matrix is the token embedding: 148 tensors, 124,439,808 parameters.
    """
    vocabulary, context, width, layers = 50257, 1024, 768, 12
    norm: list[Shape] = [(width,), (width,)]

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    attention = norm + linear(width, 3 * width) + linear(width, width)
    feed_forward = norm + linear(width, 4 * width) + linear(4 * width, width)
    return [(vocabulary, width), (context, width), *layers * (attention + feed_forward), *norm]


_MAKERS: Mapping[str, Callable[[], list[Shape]]] = {
    "one-10M": lambda: [(10_000_000,)],
    "one-50M": lambda: [(50_000_000,)],
    "resnet50": _resnet50,
    "gpt2-small": _gpt2_small,
    "200x600": lambda: [(20, 30)] * 200,
    "1000x256": lambda: [(256,)] * 1000,
    # The model of `portopt compare`: two layers with biases, 2,410 parameters.
    "mlp-digits": lambda: [(64, 32), (32,), (32, 10), (10,)],
}

SHAPE_SETS: Mapping[str, ShapeSet] = {name: ShapeSet(name, tuple(make())) for name, make in _MAKERS.items()}
"""All sets by name."""
