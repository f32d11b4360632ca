"""Repeated steps in place: with the checks that a plan leaves out, the same bits, errors and effects as with all of them."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bits import assert_same_bits, random_words
from support.elementwise import ELEMENTWISE
from support.libraries import BY_NAME, Library, each_planned
from support.processes import started_python

import portopt
from portopt.kernels.host import threads
from portopt_torch import _backend as torch_backend

SHAPES: dict[str, tuple[int, ...]] = {"a": (4, 5), "b": (7,), "c": (), "d": (0, 3), "e": (2, 1, 3)}
DTYPES = {"a": "float32", "b": "float32", "c": "bfloat16", "d": "float32", "e": "float64"}


def tree(seed: int, dtypes: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        name: random_words(shape, (dtypes or DTYPES)[name], seed + i) for i, (name, shape) in enumerate(SHAPES.items())
    }


def plans(optimizer: portopt.Optimizer) -> int:
    return len(optimizer._cache.plans)


class Twin:
    """The same steps on two copies of everything: one by plans, and one operation by operation with all checks."""

    def __init__(self, optimizer: portopt.Optimizer, library: Library, params: Any) -> None:
        self.library = library
        self.optimizer, self.checked_optimizer = optimizer, optimizer.replace()
        self.params, self.checked_params = library.arrays(params), library.arrays(params)
        self.state = self.optimizer.init(self.params)
        self.checked_state = self.checked_optimizer.init(self.checked_params)

    def step(self, grads: Any, **hyperparameters: Any) -> None:
        given = self.library.arrays(grads) if isinstance(grads, dict) else grads
        self.state = self.optimizer.apply_(self.params, given, self.state, **hyperparameters)
        with portopt.interpreted():
            self.checked_state = self.checked_optimizer.apply_(
                self.checked_params, self.library.arrays(grads), self.checked_state, **hyperparameters
            )
        self.compare()

    def compare(self) -> None:
        assert self.state.step == self.checked_state.step
        for name in self.checked_params:
            self._same(self.params[name], self.checked_params[name], name)
            for slot in self.optimizer.slots:
                self._same(self.state.slots[slot][name], self.checked_state.slots[slot][name], f"{slot} {name}")
        for slot in self.optimizer.scalar_slots:
            assert self.state.slots[slot] == self.checked_state.slots[slot]

    def _same(self, a: Any, b: Any, what: str) -> None:
        assert_same_bits(self.library.numpy(a), self.library.numpy(b), what)


@each_planned
@pytest.mark.parametrize("rule", ELEMENTWISE)
@pytest.mark.parametrize("clip", [{}, {"clipnorm": 1.0, "clipvalue": 0.5}], ids=["plain", "clipped"])
def test_repeated_steps_are_planned_and_have_the_same_bits(
    clip: dict[str, Any], rule: type[portopt.Optimizer], library: Library
) -> None:
    twin = Twin(rule(**clip), library, tree(1))
    for step in range(5):
        twin.step(tree(100 * step))
        assert plans(twin.optimizer) == (step >= 1)


ACTIONS = (
    "plain", "rate", "rate as array", "alias", "other order", "new keys", "missing gradient", "strided gradient", "own gradient",
    "new parameter", "moved state", "step number", "interpreted",
)  # fmt: skip


@each_planned
@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam])
@given(st.lists(st.sampled_from(ACTIONS), min_size=4, max_size=9))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_whatever_changes_between_steps_the_bits_are_the_same(
    library: Library, rule: type[portopt.Optimizer], actions: list[str]
) -> None:
    twin = Twin(rule(clipvalue=3.0), library, tree(1))
    twin.step(tree(7))
    twin.step(tree(8))
    for i, action in enumerate(actions):
        grads: dict[str, Any] = tree(1000 * i)
        hyperparameters: dict[str, Any] = {}
        match action:
            case "rate":
                hyperparameters["learning_rate"] = 0.5
            case "rate as array":
                hyperparameters["learning_rate"] = np.asarray(0.25)
            case "alias":
                hyperparameters["lr"] = 0.125
            case "other order":
                grads = dict(reversed(grads.items()))
            case "new keys":
                grads = {"".join((name, "")): g for name, g in grads.items()}
            case "missing gradient":
                grads["b"] = None
            case "strided gradient":
                grads["a"] = np.asfortranarray(grads["a"])
            case "new parameter":
                for params in (twin.params, twin.checked_params):
                    params["a"] = library.arrays(random_words((4, 5), "float32", 5))
            case "moved state":
                slots = {n: dict(t) if n in rule().slots else t for n, t in twin.state.slots.items()}
                twin.state = portopt.OptimizerState(twin.state.step, slots)
            case "step number":
                twin.state = twin.state._replace(step=twin.state.step + 3)
                twin.checked_state = twin.checked_state._replace(step=twin.checked_state.step + 3)
            case "own gradient":
                twin.state = twin.optimizer.apply_(twin.params, dict(twin.params), twin.state)
                twin.checked_state = twin.checked_optimizer.apply_(
                    twin.checked_params, dict(twin.checked_params), twin.checked_state
                )
                twin.compare()
                continue
            case "interpreted":
                with portopt.interpreted():
                    twin.step(grads)
                continue
        twin.step(grads, **hyperparameters)


class Pair(NamedTuple):
    x: Any
    y: Any


@each_planned
@pytest.mark.parametrize(
    "build",
    [
        lambda a, b: [a, b],
        lambda a, b: (a, [b]),
        lambda a, b: Pair(a, {"deep": {"er": (b,)}}),
        lambda a, b: OrderedDict(z=a, y=b),
        lambda a, b: {2: a, 1: b},
        lambda a, b: {"a": a, "none": {}, "b": [b, ()]},
    ],
    ids=["list", "tuple", "named tuple", "ordered dict", "integer keys", "empty containers"],
)
def test_trees_of_standard_containers_are_planned(build: Callable[[Any, Any], Any], library: Library) -> None:
    def arrays(seed: int) -> tuple[Any, Any]:
        a, b = library.arrays([random_words(shape, "float32", seed + i) for i, shape in enumerate([(3, 2), (5,)])])
        return a, b

    def build_tree(seed: int) -> Any:
        return build(*arrays(seed))

    optimizer, pure = portopt.Adam(), portopt.Adam()
    params, expected = build_tree(1), build_tree(1)
    state, expected_state = optimizer.init(params), pure.init(expected)
    for step in range(4):
        state = optimizer.apply_(params, build_tree(10 * step), state)
        expected, expected_state = pure.apply(expected, build_tree(10 * step), expected_state)
    assert plans(optimizer) == 1
    trees = library.backend.trees
    for a, b in zip(trees.flatten(params)[0], trees.flatten(expected)[0], strict=True):
        assert_same_bits(library.numpy(a), library.numpy(b))


@each_planned
def test_sets_of_parameters_in_turns_have_a_plan_each(library: Library) -> None:
    optimizer = portopt.Adam()
    sets = [library.arrays({"w": random_words((n,), "float32", n)}) for n in (3, 3, 40)]
    states = [optimizer.init(params) for params in sets]
    pure = [(library.arrays(library.numpy(params)), optimizer.init(params)) for params in sets]
    for step in range(4):
        for i, params in enumerate(sets):
            grads = library.arrays({"w": random_words(params["w"].shape, "float32", 50 + step)})
            states[i] = optimizer.apply_(params, grads, states[i])
            pure[i] = optimizer.apply(pure[i][0], grads, pure[i][1])
    assert plans(optimizer) == 3
    for params, (expected, _) in zip(sets, pure, strict=True):
        assert_same_bits(library.numpy(params["w"]), library.numpy(expected["w"]))


@each_planned
def test_a_plan_does_not_keep_arrays_alive(library: Library) -> None:
    optimizer = portopt.Adam()
    params = library.arrays(tree(1))
    state = optimizer.init(params)
    for step in range(3):
        grads = library.arrays(tree(step))
        state = optimizer.apply_(params, grads, state)
    assert plans(optimizer) == 1
    arrays = [weakref.ref(array) for tree in (params, grads, *state.slots.values()) for array in tree.values()]
    assert all(reference() is not None for reference in arrays)
    del params, grads, state
    gc.collect()
    assert not any(reference() is not None for reference in arrays)


def ready(library: Library, **arguments: Any) -> tuple[portopt.Optimizer, Any, Any, Any]:
    """Return an optimizer whose next step is planned, with its arguments."""
    optimizer = portopt.Adam(**arguments)
    params, grads = (library.arrays(tree(seed, dict.fromkeys(SHAPES, "float32"))) for seed in (1, 50))
    state = optimizer.init(params)
    for _ in range(3):
        state = optimizer.apply_(params, grads, state)
    assert plans(optimizer) == 1
    return optimizer, params, grads, state


@each_planned
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be in"),
        ({"lr": -1.0}, ValueError, "lr must be in"),
        ({"learning_rate": "high"}, TypeError, "learning_rate"),
        ({"speed": 1.0}, TypeError, "speed"),
        ({"amsgrad": True}, TypeError, "fixed at construction"),
        ({"lr": 1.0, "learning_rate": 1.0}, TypeError, "another name"),
    ],
)
def test_wrong_hyperparameter_is_refused(
    wrong: dict[str, Any], error: type[Exception], message: str, library: Library
) -> None:
    optimizer, params, grads, state = ready(library)
    before = library.numpy(params)
    with pytest.raises(error, match=message):
        optimizer.apply_(params, grads, state, **wrong)
    for name in SHAPES:
        assert_same_bits(library.numpy(params[name]), before[name])


@each_planned
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda library, g: {**g, "a": library.arrays(np.ones((5, 4), np.float32))},
            r'grads\["a"\] has shape \(5, 4\)',
        ),
        (lambda library, g: {**g, "a": library.arrays(np.ones((4, 5), np.int32))}, r'grads\["a"\] has dtype int32'),
        (lambda library, g: {**g, "a": 1.0}, r'grads\["a"\] is 1.0'),
        (lambda library, g: {**g, "z": g["a"]}, r'grads\["z"\] has no counterpart'),
        (lambda library, g: {n: a for n, a in g.items() if n != "e"}, r'params\["e"\] has no counterpart'),
        (lambda library, g: list(g.values()), "grads must have the structure of params"),
    ],
)
def test_wrong_gradients_are_refused(change: Callable[[Library, Any], Any], message: str, library: Library) -> None:
    optimizer, params, grads, state = ready(library)
    before = library.numpy(params)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.apply_(params, change(library, grads), state)
    for name in SHAPES:
        assert_same_bits(library.numpy(params[name]), before[name])


@each_planned
@pytest.mark.parametrize("state", [None, (1, 2), portopt.OptimizerState(0, {}), portopt.OptimizerState(-1, {})])
def test_wrong_state_is_refused(state: Any, library: Library) -> None:
    optimizer, params, grads, good = ready(library)
    if isinstance(state, portopt.OptimizerState) and state.step < 0:
        state = good._replace(step=-1)
    with pytest.raises((ValueError, TypeError), match="state"):
        optimizer.apply_(params, grads, state)


def test_parameter_made_read_only_is_refused() -> None:
    optimizer, params, grads, state = ready(BY_NAME["numpy"])
    params["a"].flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        optimizer.apply_(params, grads, state)


def test_tensor_with_new_memory_is_updated_there() -> None:
    optimizer, params, grads, state = ready(BY_NAME["torch"])
    old, memory = params["a"].detach().clone(), params["a"].detach()
    params["a"].data = old.clone()
    state = optimizer.apply_(params, grads, state)
    assert_same_bits(memory.numpy(), old.numpy())
    assert not torch.equal(params["a"].nan_to_num(), old.nan_to_num())


def test_resized_tensor_is_refused() -> None:
    optimizer, params, grads, state = ready(BY_NAME["torch"])
    params["b"].resize_(3)
    with pytest.raises(ValueError, match=r'grads\["b"\] has shape \(7,\)'):
        optimizer.apply_(params, grads, state)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_gradient_that_torch_negates_when_it_is_read(shape: tuple[int, ...]) -> None:
    optimizer = portopt.SGD(learning_rate=1.0)
    w = torch.zeros(shape)
    state = optimizer.init(w)
    for step in range(1, 5):
        lazily_negated = torch.full(shape, 1j).conj().imag
        assert lazily_negated.is_neg()
        state = optimizer.apply_(w, lazily_negated if step > 2 else -torch.ones(shape), state)
        assert w.item() == step


def test_sparse_gradient_is_refused() -> None:
    optimizer, params, grads, state = ready(BY_NAME["torch"])
    with pytest.raises(TypeError, match="layout"):
        optimizer.apply_(params, {**grads, "a": torch.ones(4, 5).to_sparse()}, state)


def test_gradient_in_the_memory_of_a_parameter_is_read_before_it_changes() -> None:
    memory = np.arange(1.0, 9.0, dtype=np.float32)
    optimizer = portopt.SGD(learning_rate=1.0)
    w, state = memory[:4], optimizer.init(memory[:4])
    for _ in range(3):
        state = optimizer.apply_(w, np.zeros(4, np.float32), state)
    optimizer.apply_(w, memory[1:5], state)
    assert memory.tolist() == [-1.0, -1.0, -1.0, -1.0, 5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize("is_found", [True, False])
def test_autograd_sees_a_planned_step(is_found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = torch_backend.reader_on("cpu")
    assert reader is not None
    assert reader.versions != (0, 0)
    if not is_found:
        monkeypatch.setattr(torch_backend, "reader_on", lambda device: reader._replace(versions=(0, 0)))
    optimizer, params, grads, state = ready(BY_NAME["torch"])
    versions = [t._version for t in (params["a"], state.slots["m"]["b"], grads["a"])]
    state = optimizer.apply_(params, grads, state)
    after = [t._version for t in (params["a"], state.slots["m"]["b"], grads["a"])]
    assert [new - old for old, new in zip(versions, after, strict=True)] == [1, 1, 0]


def test_tensors_whose_writes_nobody_counts_are_planned() -> None:
    optimizer = portopt.SGD(learning_rate=1.0)
    with torch.inference_mode():
        w = torch.zeros(3)
    state = optimizer.init(w)
    for _ in range(4):
        state = optimizer.apply_(w, torch.ones(3), state)
    assert w.tolist() == [-4.0] * 3
    assert optimizer._cache.plans[0].was_used


@each_planned
@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("arguments", [{}, {"clipnorm": 0.1}], ids=["plain", "clipnorm"])
def test_threads_never_change_a_bit(arguments: dict[str, Any], count: int, library: Library) -> None:
    shapes = {"a": (threads.ELEMENTS_PER_THREAD * 2 + 13,), "b": (5,), "c": (threads.ELEMENTS_PER_THREAD * 3 - 1,)}

    def arrays(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return library.arrays({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})

    def run() -> Any:
        optimizer, params = portopt.Adam(**arguments), arrays(1)
        state = optimizer.init(params)
        for step in range(4):
            state = optimizer.apply_(params, arrays(step), state)
        assert plans(optimizer) == 1
        return library.numpy(params)

    portopt.set_num_threads(1)
    try:
        expected = run()
        portopt.set_num_threads(count)
        actual = run()
    finally:
        portopt.set_num_threads(None)
    for name in shapes:
        assert_same_bits(actual[name], expected[name], name)


def test_a_plan_that_cannot_be_made_fails_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    optimizer, w = portopt.SGD(1.0), np.zeros(3)
    state = optimizer.apply_(w, np.ones(3), optimizer.init(w))
    monkeypatch.setattr(type(portopt.get_backend("numpy")), "plan", fail)
    with pytest.raises(MemoryError):
        optimizer.apply_(w, np.ones(3), state)
    assert w.tolist() == [-1] * 3


def test_schedule_is_evaluated_at_each_step() -> None:
    optimizer = portopt.SGD(learning_rate=lambda step: 2.0 ** -(step + 0))
    w = np.zeros(1)
    state = optimizer.init(w)
    seen = []
    for _ in range(5):
        before = w.copy()
        state = optimizer.apply_(w, np.ones(1), state)
        seen.append(float(before[0] - w[0]))
    assert seen == [1.0, 0.5, 0.25, 0.125, 0.0625]


def test_hyperparameter_of_one_step_is_gone_in_the_next() -> None:
    optimizer = portopt.SGD(learning_rate=1.0)
    w = np.zeros(1)
    state = optimizer.init(w)
    rates: list[dict[str, float]] = [{}, {}, {"lr": 8.0}, {"lr": 8.0}, {}, {"lr": 0.0}, {"lr": -0.0}, {}]
    for overrides in rates:
        state = optimizer.apply_(w, -np.ones(1), state, **overrides)
    assert w[0] == 20.0


def test_bfloat16_arrays_are_planned() -> None:
    optimizer = portopt.Adam()
    w = np.ones(5, ml_dtypes.bfloat16)
    state = optimizer.init(w)
    for _ in range(3):
        state = optimizer.apply_(w, np.ones(5, ml_dtypes.bfloat16), state)
    assert plans(optimizer) == 1


HELD_TO_THE_END = """
import jax, numpy as np, portopt
params, grads = ([np.ones(3, np.float32) for _ in range(3)] for _ in range(2))
optimizer = portopt.Adam()
state = optimizer.init(params)
for _ in range(4):
    state = optimizer.apply_(params, grads, state)
assert optimizer._cache.plans
flatten = lambda tree: (params, grads, state, optimizer)
jax.tree_util.register_pytree_node(type("Held", (), {}), flatten, lambda *_: None)
"""


def test_arrays_that_live_until_the_interpreter_ends_say_nothing_then() -> None:
    run = started_python(HELD_TO_THE_END)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("steps", [1, 4], ids=["checked", "planned"])
def test_the_slots_of_a_state_keep_their_order(steps: int) -> None:
    optimizer, w = portopt.Nadam(), np.ones(3)
    first = optimizer.init(w)
    names = list(reversed(first.slots))
    state = first._replace(slots={name: first.slots[name] for name in names})
    for _ in range(steps):
        state = optimizer.apply_(w, np.ones(3), state)
        assert list(state.slots) == names
    assert list(optimizer.apply(w, np.ones(3), state)[1].slots) == names


def test_a_gradient_may_move_to_wherever_nothing_is_written() -> None:
    optimizer, memory = portopt.SGD(0.5), np.arange(32, dtype=np.float32)

    def tensor(first: int) -> torch.Tensor:
        return torch.from_numpy(memory[first : first + 4])

    params = list(map(tensor, (0, 8, 16)))
    expected, state = [p.clone() for p in params], optimizer.init(params)
    others = optimizer.init(expected)
    # What lies between the parameters and behind them, and at last what a step writes before it reads it.
    for step, first in enumerate((4, 4, 4, 12, 20, 24, 4, 8)):
        gradients = list(map(tensor, (12, 20, first)))
        is_planned = str(portopt.explain(optimizer, params, gradients, state, in_place=True)).startswith("planned")
        assert is_planned == (step > 1 and first != 8)
        copies = [g.clone() for g in gradients]
        others = optimizer.apply_(expected, copies, others)
        state = optimizer.apply_(params, gradients, state)
        assert [p.tolist() for p in params] == [p.tolist() for p in expected]
