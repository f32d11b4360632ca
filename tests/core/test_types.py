"""What a type checker says of programs that use portopt: `make types` has both mypy and basedpyright read this file.

The wrong calls carry comments that ignore the error; a checker refuses such a comment as soon as there is no error any more. They
are wrong when they run, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, assert_type

import numpy as np
import pytest

import portopt
from portopt import OptimizerState
from portopt.arithmetic import HOST
from portopt.scalars import Scalar, ScalarLike
from portopt.schedules import Constant, CosineDecay, LearningRate

if TYPE_CHECKING:
    import jax
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.float32]

Tree = TypeVar("Tree")


class Layer(NamedTuple):
    kernel: Array
    bias: Array


def test_a_step_gives_the_tree_that_it_got() -> None:
    opt = portopt.Adam(learning_rate=0.1)
    w = np.ones(2, np.float32)
    layer = Layer(w, w)
    state = assert_type(opt.init(layer), OptimizerState)
    new, after = opt.apply(layer, layer, state)
    assert_type(new, Layer)
    assert_type(after, OptimizerState)
    assert_type(opt.apply_(Layer(w.copy(), w.copy()), layer, opt.init(layer)), OptimizerState)
    tree = {"layers": [layer, layer]}
    assert_type(opt.apply(tree, tree, opt.init(tree))[0], dict[str, list[Layer]])
    # None leaves a parameter as it is.
    assert_type(opt.apply(layer, Layer(w, None), state)[0], Layer)  # type: ignore[arg-type]  # of `Layer`, not of `apply`


if TYPE_CHECKING:

    def arrays_of_any_library(opt: portopt.Optimizer, state: OptimizerState, w: torch.Tensor, v: jax.Array) -> None:
        assert_type(opt.apply(w, w, state)[0], torch.Tensor)
        assert_type(opt.apply([v], [v], state, learning_rate=v, gradient_norm=w)[0], list[jax.Array])

    def a_step_of_ones_own(opt: portopt.Optimizer, params: Tree, state: OptimizerState) -> Tree:
        return opt.apply(params, params, state)[0]


def test_values_for_one_step_are_numbers() -> None:
    opt, w = portopt.Adam(clipnorm=1.0), np.ones(2)
    state = opt.init(w)
    opt.apply(w, w, state, learning_rate=0.5, beta_1=np.float32(0.5), epsilon=np.asarray(1e-8), clipnorm=None)
    with pytest.raises(TypeError, match="learning_rate"):
        opt.apply(w, w, state, learning_rate="0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gradient_norm"):
        opt.apply_(w, w, state, gradient_norm="2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state must be the OptimizerState"):
        opt.apply(w, w, {"m": w})  # type: ignore[arg-type]


def test_constructors_know_their_arguments() -> None:
    assert_type(portopt.Adam(0.1, beta_1=0.5, amsgrad=True, dialect="torch"), portopt.Adam)
    assert_type(portopt.Adam(betas=(0.5, 0.9), eps=1e-8, dialect="torch").replace(betas=(0.5, 0.5)), portopt.Adam)
    with pytest.raises(TypeError, match="beta_3"):
        portopt.Adam(beta_3=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="beta_1"):
        portopt.Adam(beta_1="0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dialect"):
        portopt.Adam(dialect="keras")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="learning_rate"):
        portopt.SGD(learning_rate=[0.1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="betas"):
        portopt.Adam(betas=(0.5,), dialect="torch")  # type: ignore[arg-type]


def test_learning_rates_are_numbers_or_schedules() -> None:
    def halved(step: Scalar) -> Scalar:
        return 0.1 / (step + 1)

    rates: list[LearningRate] = [0.1, 1, Constant(0.1), CosineDecay(0.1, steps=10), halved, lambda step: 0.1]
    for rate in rates:
        assert_type(portopt.SGD(rate).learning_rate, float | Callable[[Any], Any])
    assert_type(Constant(0.1), Constant)
    assert_type(CosineDecay(0.1, steps=10)(3), float)
    if TYPE_CHECKING:
        assert_type(Constant(0.1)(Scalar(3, HOST)), ScalarLike)
    with pytest.raises(TypeError, match="rate"):
        portopt.schedules.ExponentialDecay(0.1, rate="0.5", steps=10)  # type: ignore[arg-type]


def test_a_rule_of_ones_own_is_read_like_a_dataclass() -> None:
    class Signed(portopt.Optimizer):
        scale: float = portopt.hyperparameter(default=1.0, at_least=0)
        flipped: bool = portopt.option(default=False)

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - c.lr * self.scale * xp.sign(g), {}

    assert_type(Signed(0.1, scale=0.5, flipped=True).scale, float)
    assert_type(Signed().replace(scale=2.0), Signed)
    with pytest.raises(TypeError, match="scales"):
        Signed(scales=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="scale"):
        Signed(scale="0.5")  # type: ignore[arg-type]
