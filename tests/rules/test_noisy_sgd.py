"""`NoisySGD`, and what holds for every rule that draws random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary
from support.drawing import drawn_by
from support.libraries import RUNS, Run, steps

import portopt
from portopt.program.draws import Place

SHAPES = {"a": (3, 4), "b": (), "c": (7,)}


class Drawing(portopt.Optimizer):
    """Keeps what it draws."""

    slots = ("first", "second")
    draws = {"noise": "normal", "chance": "uniform"}  # noqa: RUF012  # a mapping that nothing writes to
    seed: int = portopt.seed_hyperparameter(default=5)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, noise: Any, chance: Any) -> Any:
        return p - c.lr * g, {"first": noise, "second": chance}


def tree(seed: int, dtype: str = "float32") -> dict[str, Array]:
    return {name: ordinary(shape, dtype, seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_draws_depend_on_place_step_and_seed_alone(run: Run) -> None:
    optimizer = Drawing(seed=2**53 - 1)
    _, state = steps(run, optimizer, tree(1), [tree(2), tree(3)], "float32")
    assert state.slots["key"] == 2.0**53 - 1
    for number, (name, shape) in enumerate(SHAPES.items()):
        for slot, draw in (("first", "noise"), ("second", "chance")):
            expected = drawn_by(optimizer, draw, 2, Place.of(number, shape), "float32")
            assert_same_bits(state.slots[slot][name], expected, f"{draw} for {name}")


def test_a_parameter_without_gradient_changes_no_draw_of_the_others() -> None:
    optimizer, params, grads = Drawing(), tree(1), tree(2)
    _, whole = optimizer.apply(params, grads, optimizer.init(params))
    _, state = optimizer.apply(params, {**grads, "a": None}, optimizer.init(params))
    assert_same_bits(state.slots["first"]["c"], whole.slots["first"]["c"])
    assert not np.any(state.slots["first"]["a"])


def test_a_step_in_place_draws_as_any_other() -> None:
    optimizer, params = Drawing(), tree(1)
    state = optimizer.init(params)
    for step in (1, 2, 3):
        state = optimizer.apply_(params, tree(2), state)
        numbers = drawn_by(optimizer, "noise", step, Place.of(2, SHAPES["c"]), "float32")
        assert_same_bits(state.slots["first"]["c"], numbers, f"step {step}")


def test_the_state_holds_the_key_and_not_the_optimizer() -> None:
    params = tree(1)
    state = Drawing(seed=3).init(params)
    _, first = Drawing(seed=3).apply(params, params, state)
    _, second = Drawing(seed=4).apply(params, params, state)
    assert_same_bits(second.slots["first"]["a"], first.slots["first"]["a"])
    assert dict(Drawing(seed=3).scalar_slots) == {"key": 3.0}


def test_a_subclass_draws_too() -> None:
    class Further(Drawing):
        scalar_slots = {"total": 1.5}  # noqa: RUF012  # a mapping that nothing writes to

        def coefficients(self, t: Any, total: Any) -> Mapping[str, Any]:
            return {"lr": self.learning_rate_at(t), "total": total + 1}

    params = tree(1)
    optimizer = Further(seed=8)
    _, state = optimizer.apply(params, params, optimizer.init(params))
    assert (state.slots["total"], state.slots["key"]) == (2.5, 8.0)


def test_printed_program_shows_what_is_drawn() -> None:
    assert "    a0 = draw_normal(key, t, 0)\n" in str(portopt.NoisySGD().program())


@pytest.mark.parametrize(
    ("draws", "seed", "message"),
    [
        (
            {"noise": "gaussian"},
            True,
            r"^Mine draws must map names to 'normal' or 'uniform', such as \{\"noise\": \"normal\"\}",
        ),
        (("noise",), True, r"^Mine draws must map names to 'normal' or 'uniform'"),
        (
            {"g": "normal"},
            True,
            r"^Mine draws 'g', but update gets it as an argument of that name: choose an identifier",
        ),
        ({"seed": "normal"}, True, r"^Mine draws 'seed', but update gets it"),
        (
            {"noise": "normal"},
            False,
            r"^Mine draws noise, but has no seed: write `seed: int = portopt.seed_hyperparameter",
        ),
    ],
    ids=["distribution", "no mapping", "the gradient", "a hyperparameter", "no seed"],
)
def test_wrong_declarations_are_said_when_the_class_is_made(draws: Any, seed: bool, message: str) -> None:
    body: dict[str, Any] = {"draws": draws}
    if seed:
        body |= {"seed": portopt.seed_hyperparameter(default=0), "__annotations__": {"seed": int}}
    with pytest.raises(TypeError, match=message):
        type("Mine", (portopt.Optimizer,), body)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, r"^NoisySGD seed must be an integer in \[0, 9007199254740992\), but -1 was given$"),
        (2**53, ValueError, "must be an integer in"),
        (0.5, ValueError, r"^NoisySGD seed must be an integer in .*, but 0\.5 was given$"),
        ("0", TypeError, r"^NoisySGD seed must be a Python integer in .*, but '0' of type str was given$"),
        (True, TypeError, r"^NoisySGD seed must be a Python integer in"),
    ],
)
def test_seeds_are_integers_that_a_float64_holds(seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        portopt.NoisySGD(seed=seed)


def test_a_seed_of_numpy_becomes_an_integer_of_python() -> None:
    seed: Any = np.int64(7)
    assert type(portopt.NoisySGD(seed=seed).seed) is int


def test_a_seed_is_no_value_for_one_step() -> None:
    optimizer, w = portopt.NoisySGD(), np.ones(2)
    with pytest.raises(TypeError, match="'seed' is fixed at construction"):
        optimizer.apply(w, w, optimizer.init(w), seed=1)


@pytest.mark.needs("torch")
def test_groups_of_torch_draw_by_the_place_in_all_parameters() -> None:
    import torch

    from portopt_torch import TorchOptimizer

    arrays = [ordinary((4,), "float32", seed) for seed in range(3)]
    parameters = [torch.nn.Parameter(torch.tensor(array)) for array in arrays]
    optimizer = TorchOptimizer([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}], Drawing(seed=2))
    for moving in (parameters, parameters[2:]):
        optimizer.zero_grad()
        for p in moving:
            p.grad = torch.ones_like(p)
        optimizer.step()
    for number, step in ((0, 1), (1, 1), (2, 2)):
        expected = drawn_by(Drawing(seed=2), "noise", step, Place.of(number, (4,)), "float32")
        assert_same_bits(optimizer.state[parameters[number]]["first"].numpy(), expected, f"parameter {number}")


@pytest.mark.needs("optax")
def test_noisy_sgd_has_the_formula_of_optax(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise of optax replaced by ours."""
    import jax
    import optax

    ours = portopt.NoisySGD(0.3, eta=0.2, gamma=0.7, seed=11)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        params = tree(1, "float64")
        state, theirs = ours.init(params), jax.tree.map(jax.numpy.asarray, params)
        transformation = optax.noisy_sgd(0.3, eta=0.2, gamma=0.7, key=0)
        their_state = transformation.init(theirs)
        for step in range(1, 51):
            noise = {
                name: drawn_by(ours, "noise", step, Place.of(i, shape))
                for i, (name, shape) in enumerate(SHAPES.items())
            }
            monkeypatch.setattr(optax.tree, "random_like", lambda *_, noise=noise, **__: noise)
            params, state = ours.apply(params, tree(step, "float64"), state)
            updates, their_state = transformation.update(tree(step, "float64"), their_state, theirs)
            theirs = optax.apply_updates(theirs, updates)
    for name, p in params.items():
        np.testing.assert_allclose(p, np.asarray(theirs[name]), rtol=1e-12, atol=1e-12)


class RoundsAtRandom(portopt.Optimizer):
    """Gradient descent whose float32 result is rounded to bfloat16 up or down, with the chance that its value has."""

    draws = {"chance": "uniform"}  # noqa: RUF012  # a mapping that nothing writes to
    seed: int = portopt.seed_hyperparameter(default=0)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, chance: Any) -> Any:
        new = p - c.lr * g
        # A number of 8 bits, and 2**16 + 1 times it less 2**16 times it: the number rounded to 8 bits.
        scaled = new * (2.0**16 + 1)
        near = scaled - (scaled - new)
        unit = abs(near) * 2.0**-7
        return near + xp.where(chance * unit < abs(new - near), xp.sign(new - near) * unit, 0.0), {}


@pytest.mark.needs("ml_dtypes")
def test_stochastic_rounding_lets_small_steps_add_up() -> None:
    """In bfloat16, 1 - 2**-12 rounds to 1: without random rounding nothing would ever move."""
    import ml_dtypes

    optimizer, plain = RoundsAtRandom(2.0**-12), portopt.SGD(2.0**-12)
    w = fixed = np.ones(2000, ml_dtypes.bfloat16)
    g = np.ones_like(w)
    state, plain_state = optimizer.init(w), plain.init(w)
    for _ in range(256):
        w, state = optimizer.apply(w, g, state)
        fixed, plain_state = plain.apply(fixed, g, plain_state)
    assert np.all(fixed.astype(np.float32) == 1)
    assert abs(w.astype(np.float64).mean() - (1 - 256 * 2.0**-12)) < 3e-3
