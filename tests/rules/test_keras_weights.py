"""`get_weights` and `set_weights`: Keras's order and shapes, its older short lists, and resuming from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary
from support.libraries import LIBRARIES, RUNS, Library, Run, each_library
from support.rules_of_each_kind import Factored
from support.turns import in_turns

import portopt
from portopt import OptimizerState
from portopt.keras_weights import has_keras_weights

SHAPES = [(2, 3), (3,), ()]
with_weights = [rule for rule in portopt.RULES if has_keras_weights(rule())]
each_rule = pytest.mark.parametrize("rule", with_weights)
each_rule_in_turns = pytest.mark.parametrize(
    ("rule", "library"),
    in_turns(with_weights, LIBRARIES, in_all=(portopt.Nadam,)),
    ids=lambda x: getattr(x, "__name__", str(x)),
)

ORDER: dict[str, list[str | None]] = {
    "SGD": ["moment"],
    "RMSprop": ["accumulator"],
    "Adagrad": ["accumulator"],
    "Adadelta": ["accumulator", "delta_accumulator"],
    "Adam": ["m", "v", None],
    "Adamax": ["m", "u"],
    "Nadam": ["m_schedule", "m", "v"],
}
"""The state in the order of Keras 2.3.1's classes; None stands for the `vhat` of shape (1,) that its Adam without amsgrad has."""


def arrays(seed: int, dtype: str = "float32") -> list[Array]:
    return [ordinary(shape, dtype, seed + i) for i, shape in enumerate(SHAPES)]


def trained(
    library: Library, optimizer: portopt.Optimizer, steps: int, dtype: str = "float32"
) -> tuple[Any, OptimizerState]:
    params = library.arrays(arrays(1, dtype))
    state = optimizer.init(params)
    for i in range(steps):
        params, state = optimizer.apply(params, library.arrays(arrays(10 * i + 10, dtype)), state)
    return params, state


def order(optimizer: portopt.Optimizer) -> list[str | None]:
    """Return the names of the state's entries in the order of the list, None for placeholders."""
    return [*optimizer.scalar_slots, *optimizer.slots, *(None for _ in optimizer.keras_placeholder_slots)]


@pytest.mark.parametrize(("name", "expected"), ORDER.items())
def test_order_is_that_of_keras(name: str, expected: list[str | None]) -> None:
    assert order(getattr(portopt, name)()) == expected


@each_rule_in_turns
def test_weights_are_in_the_order_that_the_rule_says(rule: type[portopt.Optimizer], library: Library) -> None:
    optimizer = rule()
    _, state = trained(library, optimizer, 2)
    weights = optimizer.get_weights(state)
    assert (weights[0].dtype, weights[0].shape, int(weights[0])) == (np.dtype(np.int64), (), 2)
    rest, on_host = iter(weights[1:]), library.numpy_state(state, tuple(optimizer.scalar_slots))
    for name in order(optimizer):
        if name is not None and name in optimizer.scalar_slots:
            weight = next(rest)
            assert (weight.dtype, weight.shape) == (np.dtype(np.float64), ())
            assert float(weight) == on_host.slots[name]
            continue
        for i in range(len(SHAPES)):
            if name is not None and state.slots[name][i] is None:
                continue  # a parameter without the slot has no weight for it
            weight = next(rest)
            assert isinstance(weight, np.ndarray)
            if name is None:
                assert_same_bits(weight, np.zeros(1, np.float32))
            else:
                assert_same_bits(weight, library.numpy(state.slots[name][i]), name)
    assert list(rest) == []


def test_amsgrad_has_full_maxima() -> None:
    optimizer = portopt.Adam(amsgrad=True)
    _, state = trained(LIBRARIES[0], optimizer, 2)
    weights = optimizer.get_weights(state)
    assert [w.shape for w in weights] == [(), *SHAPES * 3]
    for i in range(len(SHAPES)):
        assert_same_bits(weights[7 + i], state.slots["vhat"][i])


@each_library
def test_weights_are_copies(library: Library) -> None:
    optimizer = portopt.Adagrad()
    _, state = trained(library, optimizer, 1)
    weights = optimizer.get_weights(state)
    before = library.numpy(state.slots["accumulator"][0])
    weights[1][...] = 77.0
    assert_same_bits(library.numpy(state.slots["accumulator"][0]), before)
    given = optimizer.get_weights(state)
    again = optimizer.set_weights(state, given)
    given[1][...] = 77.0
    assert_same_bits(library.numpy(again.slots["accumulator"][0]), before)


def test_parameters_are_in_the_order_of_the_tree() -> None:
    optimizer = portopt.Adagrad()
    params = {"b": np.zeros(2), "a": [np.zeros(3), np.zeros(4)], "c": None}
    weights = optimizer.get_weights(optimizer.init(params))
    assert [w.shape for w in weights] == [(), (3,), (4,), (2,)]


@pytest.mark.parametrize(
    ("optimizer", "library"),
    in_turns([*(rule() for rule in with_weights), portopt.Adam(amsgrad=True)], LIBRARIES, in_all=(portopt.Nadam(),)),
    ids=str,
)
def test_weights_give_the_state_back(optimizer: portopt.Optimizer, library: Library) -> None:
    params, state = trained(library, optimizer, 3)
    again = optimizer.set_weights(optimizer.init(params), optimizer.get_weights(state))
    assert type(again) is OptimizerState
    assert type(again.step) is int
    assert again.step == 3
    ours, theirs = (library.numpy_state(s, tuple(optimizer.scalar_slots)) for s in (again, state))
    for name in optimizer.slots:
        for one, other in zip(ours.slots[name], theirs.slots[name], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert_same_bits(one, other)
        for one, p in zip(again.slots[name], params, strict=True):
            assert one is None or type(one) is type(p)
    for name in optimizer.scalar_slots:
        assert ours.slots[name] == theirs.slots[name]


JAX = [run for run in RUNS if run.mode.compiled or run.library.name == "jax"]
"""One rule is enough where each costs seconds of compilation: the one with a scalar in its state."""


@pytest.mark.parametrize(
    ("rule", "run"),
    [
        *in_turns(with_weights, [run for run in RUNS if run not in JAX], in_all=(portopt.Nadam,)),
        *((portopt.Nadam, run) for run in JAX),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_resumed_training_equals_uninterrupted_training(rule: type[portopt.Optimizer], run: Run) -> None:
    library, optimizer = run.library, rule(learning_rate=0.1, clipnorm=1.0)
    gradients = [library.arrays(arrays(10 * i + 10)) for i in range(4)]
    start = library.arrays(arrays(1))
    expected, expected_state = run.mode.many(optimizer, start, gradients, optimizer.init(start))

    start = library.arrays(arrays(1))
    params, state = run.mode.many(optimizer, start, gradients[:2], optimizer.init(start))
    weights, saved = optimizer.get_weights(state), library.numpy(params)
    params = library.arrays(saved)
    restored = optimizer.set_weights(optimizer.init(params), weights)
    params, state = run.mode.many(optimizer, params, gradients[2:], restored)
    for one, other in zip(library.numpy(params), library.numpy(expected), strict=True):
        assert_same_bits(one, other)
    for one, other in zip(optimizer.get_weights(state), optimizer.get_weights(expected_state), strict=True):
        assert_same_bits(one, other)


@each_library
def test_weights_of_one_library_go_on_in_another(library: Library) -> None:
    optimizer = portopt.Nadam(0.1)
    params, state = trained(library, optimizer, 2)
    expected = optimizer.get_weights(trained(library, optimizer, 3)[1])
    host = library.numpy(params)
    resumed = optimizer.set_weights(optimizer.init(host), optimizer.get_weights(state))
    _, resumed = optimizer.apply(host, arrays(30), resumed)
    for one, other in zip(optimizer.get_weights(resumed), expected, strict=True):
        assert_same_bits(one, other)


@each_library
def test_values_are_converted_to_the_dtype_of_the_slots(library: Library) -> None:
    optimizer = portopt.Adagrad()
    params = library.arrays([np.zeros(2, np.float32)])
    state = optimizer.set_weights(optimizer.init(params), [np.asarray(5.0), np.asarray([0.1, 0.2])])
    assert state.step == 5
    assert_same_bits(library.numpy(state.slots["accumulator"][0]), np.asarray([0.1, 0.2], np.float32))
    assert optimizer.set_weights(optimizer.init(params), [5, [1.0, 2.0]]).slots["accumulator"][0][1] == 2.0


def test_scalar_of_float32_from_keras_is_taken() -> None:
    optimizer = portopt.Nadam()
    state = optimizer.init([np.zeros(2)])
    weights = [np.int64(3), np.float32(0.25), np.zeros(2), np.ones(2)]
    assert optimizer.set_weights(state, weights).slots["m_schedule"] == 0.25


# Lists that Keras 2.2.4 wrote


@each_library
@pytest.mark.parametrize("rule", [rule for rule in with_weights if rule.keras_short_list == (0, 0.0)])
def test_short_list_without_iterations_starts_at_zero(rule: type[portopt.Optimizer], library: Library) -> None:
    optimizer = rule()
    params, state = trained(library, optimizer, 2)
    weights = optimizer.get_weights(state)
    old = optimizer.set_weights(optimizer.init(params), weights[1:])
    assert old.step == 0
    for one, other in zip(optimizer.get_weights(old)[1:], weights[1:], strict=True):
        assert_same_bits(one, other)


@each_library
def test_short_list_of_nadam_lacks_the_momentum_schedule(library: Library) -> None:
    optimizer = portopt.Nadam()
    params, state = trained(library, optimizer, 2)
    weights = optimizer.get_weights(state)
    old = optimizer.set_weights(optimizer.init(params), [weights[0], *weights[2:]])
    assert old.step == 2
    assert library.numpy_state(old, ("m_schedule",)).slots["m_schedule"] == 1.0
    for one, other in zip(optimizer.get_weights(old)[2:], weights[2:], strict=True):
        assert_same_bits(one, other)


# Errors


@each_rule
def test_wrong_number_of_weights_is_refused(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule()
    params, state = trained(LIBRARIES[0], optimizer, 1)
    weights = optimizer.get_weights(state)
    short = 2 if rule.keras_short_list else 1
    for wrong in ([], weights[short:], [*weights, weights[-1]]):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared as a whole
            optimizer.set_weights(optimizer.init(params), wrong)
        assert str(caught.value) == (
            f"{rule.__name__} has {len(weights)} weights for these parameters, but a list of {len(wrong)} was given; "
            "it must come from get_weights of the same optimizer with parameters of the same shapes"
        )


def test_short_lists_are_those_of_keras() -> None:
    missing = {
        rule: rule.keras_short_list for rule in (portopt.RMSprop, portopt.Adagrad, portopt.Adadelta, portopt.Nadam)
    }
    assert list(missing.values()) == [(0, 0.0), (0, 0.0), (0, 0.0), (1, 1.0)]
    assert portopt.SGD.keras_short_list is portopt.Adam.keras_short_list is portopt.Adamax.keras_short_list is None


def test_wrong_shape_is_refused_by_its_place() -> None:
    optimizer = portopt.Adagrad()
    state = optimizer.init([np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match=r"^weight 2 must have shape \(3,\), but an array of shape \(2,\) was given$"):
        optimizer.set_weights(state, [np.asarray(1), np.zeros(2), np.zeros(2)])
    with pytest.raises(ValueError, match=r"^weight 0 must have shape \(\), but an array of shape \(1,\) was given$"):
        optimizer.set_weights(state, [np.ones(1), np.zeros(2), np.zeros(3)])


@pytest.mark.parametrize("step", [-1, 0.5, np.nan, np.inf])
def test_number_of_steps_must_be_a_count(step: float) -> None:
    optimizer = portopt.Adagrad()
    with pytest.raises(
        ValueError,
        match=rf"^weight 0 is the number of finished steps, an integer of at least 0, but {float(step)} was given$",
    ):
        optimizer.set_weights(optimizer.init([np.zeros(2)]), [np.asarray(step), np.zeros(2)])


def test_state_without_arrays_is_refused() -> None:
    optimizer = portopt.Adagrad()
    with pytest.raises(ValueError, match=r"the state holds no array; start from init\(params\)"):
        optimizer.get_weights(OptimizerState(0, {"accumulator": {}}))
    with pytest.raises(ValueError, match=r"the state holds no array; start from init\(params\)"):
        optimizer.set_weights(OptimizerState(0, {"accumulator": []}), [0])


def test_state_given_is_left_alone() -> None:
    optimizer = portopt.Adagrad()
    state = optimizer.init([np.zeros(2)])
    optimizer.set_weights(state, [np.asarray(3), np.ones(2)])
    assert state.step == 0
    assert_same_bits(state.slots["accumulator"][0], np.zeros(2))


def test_lists_have_the_slots_that_a_parameter_has_in_their_own_shapes() -> None:
    params = [np.ones((3, 4)), np.ones(5)]
    optimizer = Factored()
    state = optimizer.init(params)
    weights = optimizer.get_weights(state)
    assert [w.shape for w in weights] == [(), (3,), (4,), (5,)]
    restored = optimizer.set_weights(state, [w + 2 for w in weights])
    assert [np.asarray(w).tolist() for w in optimizer.get_weights(restored)] == [(w + 2).tolist() for w in weights]
    assert restored.slots["row"][1] is None
    only_vectors = optimizer.init(params[1:])
    assert [w.shape for w in optimizer.get_weights(only_vectors)] == [(), (5,)]
