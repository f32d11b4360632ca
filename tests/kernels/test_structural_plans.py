"""Plans for all arrays of one structure, shapes and dtypes: the same bits, errors and effects as with the full check."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from support.bits import assert_same_bits, random_words
from support.elementwise import ELEMENTWISE, STAGED
from support.libraries import BY_NAME, PLANNED, Library, each_planned
from support.turns import in_turns, rules_in_turn

import portopt
from portopt import step as slow
from portopt.backend import is_interpreted
from portopt.kernels.host import threads

SHAPES: dict[str, tuple[int, ...]] = {"b": (7,), "a": (4, 5), "c": (), "d": (0, 3), "e": (2, 1, 3)}
DTYPES = {"a": "float32", "b": "float32", "c": "bfloat16", "d": "float32", "e": "float64"}


def tree(seed: int, dtypes: dict[str, str] = DTYPES) -> dict[str, Any]:
    return {name: random_words(shape, dtypes[name], seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture
def only_plans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes all further steps that no plan does fail."""

    do_step = slow.do_step

    def only_interpreted(*arguments: Any, **options: Any) -> Any:
        assert is_interpreted(), "no plan did this step"
        return do_step(*arguments, **options)

    return lambda: monkeypatch.setattr(slow, "do_step", only_interpreted)


def leaves(library: Library, result: Any) -> list[Any]:
    params, state = result
    return library.backend.trees.flatten((params, dict(state.slots)))[0]


def assert_same(library: Library, actual: Any, expected: Any) -> None:
    assert actual[1].step == expected[1].step
    assert list(actual[1].slots) == list(expected[1].slots)
    trees = library.backend.trees
    assert trees.flatten(actual[0])[1] == trees.flatten(expected[0])[1]
    for a, b in zip(leaves(library, actual), leaves(library, expected), strict=True):
        assert type(a) is type(b)
        if a is None or isinstance(a, float):
            assert a == b
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert_same_bits(library.numpy(a), library.numpy(b))


def interpreted(optimizer: portopt.Optimizer, *arguments: Any, **hyperparameters: Any) -> Any:
    with portopt.interpreted():
        return optimizer.replace().apply(*arguments, **hyperparameters)


@pytest.mark.parametrize(
    ("rule", "way"),
    in_turns(
        rules_in_turn([*ELEMENTWISE, *STAGED], 1, always=(portopt.SGD, portopt.Adam, portopt.LAMB, portopt.Prodigy)),
        [(library, clips) for clips in (False, True) for library in PLANNED],
    ),
    ids=lambda given: given.__name__ if isinstance(given, type) else f"{given[0]}{'-clips' * given[1]}",
)
def test_second_step_is_planned_with_the_same_bits(
    rule: type[portopt.Optimizer], way: tuple[Library, bool], only_plans: Callable[[], None]
) -> None:
    library, clips = way
    optimizer = rule(clipnorm=1.0, clipvalue=0.5) if clips else rule()
    params = library.arrays(tree(1))
    found = expected = params, optimizer.init(params)
    for step in range(3):
        grads = library.arrays(tree(100 * step))
        before = [library.numpy(a) for a in leaves(library, found)[: len(SHAPES)]]
        given, found = found, optimizer.apply(found[0], grads, found[1])
        expected = interpreted(optimizer, expected[0], grads, expected[1])
        assert_same(library, found, expected)
        for old, kept in zip(leaves(library, given), before, strict=False):
            assert_same_bits(library.numpy(old), kept, "what was given")
        only_plans()
    assert len(optimizer._cache.pure_plans) == 1


def _bits(tensor: torch.Tensor) -> Any:
    return tensor.detach().reshape(-1).view(torch.int8).numpy()


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
        lambda a, b: {int("2000"): a, 1: b},
        lambda a, b: {"z": a, "none": {}, "b": [b, (), None]},
    ],
    ids=["list", "tuple", "named tuple", "ordered dict", "integer keys", "empty containers"],
)
def test_results_are_in_the_containers_that_were_given(
    build: Callable[[Any, Any], Any], library: Library, only_plans: Callable[[], None]
) -> None:
    def arrays(seed: int) -> Any:
        return build(*library.arrays([random_words(s, "float32", seed + i) for i, s in enumerate([(3, 2), (5,)])]))

    optimizer, params = portopt.Adam(), arrays(1)
    found = expected = params, optimizer.init(params)
    for step in range(3):
        grads = arrays(10 * step)
        found = optimizer.apply(found[0], grads, found[1])
        expected = interpreted(optimizer, expected[0], grads, expected[1])
        assert_same(library, found, expected)
        assert repr(shaped(found[0])) == repr(shaped(params))
        assert repr(shaped(found[1].slots["m"])) == repr(shaped(expected[1].slots["m"]))
        only_plans()


def shaped(tree: Any) -> Any:
    """Return the tree with the shape of each array in its place, entries of dicts in their order."""
    kind = type(tree)
    if isinstance(tree, dict):
        return kind, [(key, shaped(value)) for key, value in tree.items()]
    if isinstance(tree, list | tuple):
        return kind, [shaped(value) for value in tree]
    return None if tree is None else tuple(tree.shape)


@each_planned
def test_new_arrays_are_dense_and_share_no_memory(library: Library, only_plans: Callable[[], None]) -> None:
    optimizer, params = portopt.Adam(), library.arrays(tree(1))
    grads, state = library.arrays(tree(2)), optimizer.init(params)
    first = optimizer.apply(params, grads, state)
    only_plans()
    second = optimizer.apply(params, grads, state)
    every = [*params.values(), *grads.values()]
    every += [a for result in (first, second) for a in leaves(library, result)]
    views = [np.asarray(a) if library.name == "numpy" else _bits(a) for a in every]
    ranges = sorted(np.lib.array_utils.byte_bounds(view) for view in views if view.size)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert all(a.flags.c_contiguous if library.name == "numpy" else a.is_contiguous() for a in every)


@each_planned
def test_models_of_one_structure_share_a_plan(library: Library, only_plans: Callable[[], None]) -> None:
    optimizer = portopt.Adam()
    models = [library.arrays(tree(10 * k)) for k in range(20)]
    steps = [(params, optimizer.init(params)) for params in models]
    grads = library.arrays(tree(3))
    expected = [interpreted(optimizer, params, grads, state) for params, state in steps]
    optimizer.apply(steps[0][0], grads, steps[0][1])
    only_plans()
    for (params, state), result in zip(steps, expected, strict=True):
        assert_same(library, optimizer.apply(params, grads, state), result)
    assert len(optimizer._cache.pure_plans) == 1


@each_planned
def test_structures_in_turns_have_a_plan_each(library: Library, only_plans: Callable[[], None]) -> None:
    optimizer = portopt.Adam()
    models = [library.arrays({"w": random_words((n,), "float32", n)}) for n in (3, 40, 41)]
    for _ in range(2):
        for params in models:
            result = optimizer.apply(params, params, optimizer.init(params))
            assert_same(library, result, interpreted(optimizer, params, params, optimizer.init(params)))
        only_plans()
    assert len(optimizer._cache.pure_plans) == 3


def unusual(library: Library, kind: str) -> tuple[Any, Any]:
    """Return a parameter and a gradient that lies in memory otherwise than kernels read it."""
    if library.name == "numpy":
        rows = np.arange(24, dtype=np.float32)
        return {
            "transposed": (np.ones((4, 3), np.float32), rows[:12].reshape(3, 4).T),
            "strided": (np.ones(12, np.float32), rows[::2]),
            "backwards": (np.ones(24, np.float32), rows[::-1]),
            "broadcast": (np.ones((5, 24), np.float32), np.broadcast_to(rows, (5, 24))),
            "scalar": (np.ones((), np.float32), np.float32(3)),
            "bfloat16 scalar": (np.ones((), ml_dtypes.bfloat16), ml_dtypes.bfloat16(3)),
            "other dtype": (np.ones((4, 3), np.float32), rows[:12].reshape(3, 4).T.astype(np.float64, order="K")),
            "unaligned": (np.ones(3, np.float32), np.frombuffer(bytes(13), np.uint8)[1:].view(np.float32)),
        }[kind]
    numbers = torch.arange(24.0)
    return {
        "transposed": (torch.ones(4, 3), numbers[:12].reshape(3, 4).T),
        "strided": (torch.ones(12), numbers[::2]),
        "backwards": (torch.ones(3), torch.complex(numbers[:3], numbers[:3]).conj().imag),
        "broadcast": (torch.ones(5, 24), numbers.expand(5, 24)),
        "scalar": (torch.ones(()), torch.tensor(3.0)),
        "bfloat16 scalar": (torch.ones((), dtype=torch.bfloat16), torch.tensor(3.0, dtype=torch.bfloat16)),
        "other dtype": (torch.ones(4, 3), numbers[:12].reshape(3, 4).T.double()),
        "unaligned": (torch.ones(3), torch.nn.Parameter(numbers[:6:2])),
    }[kind]


UNUSUAL = ("transposed", "strided", "backwards", "broadcast", "scalar", "bfloat16 scalar", "other dtype", "unaligned")


@each_planned
@pytest.mark.parametrize("kind", UNUSUAL)
def test_gradients_that_are_not_dense_are_planned(kind: str, library: Library, only_plans: Callable[[], None]) -> None:
    w, g = unusual(library, kind)
    params, grads = {"w": w, "b": w}, {"w": g, "b": g}
    optimizer = portopt.Adam(clipnorm=1.0)
    found = expected = params, optimizer.init(params)
    for _ in range(3):
        found = optimizer.apply(found[0], grads, found[1])
        expected = interpreted(optimizer, expected[0], grads, expected[1])
        assert_same(library, found, expected)
        only_plans()


@each_planned
@pytest.mark.parametrize("kind", UNUSUAL)
def test_steps_in_place_with_gradients_that_are_not_dense_are_planned(
    kind: str, library: Library, only_plans: Callable[[], None]
) -> None:
    w, g = unusual(library, kind)
    optimizer = portopt.Adam()
    expected = w, optimizer.init(w)
    state = optimizer.init(w)
    steps = []
    for _ in range(4):
        expected = interpreted(optimizer, expected[0], g, expected[1])
        steps.append(library.numpy(expected[0]))
    for step in range(4):
        state = optimizer.apply_(w, g, state)
        assert_same_bits(library.numpy(w), steps[step])
        if step == 1:
            only_plans()


@each_planned
@pytest.mark.parametrize("dense", [True, False])
def test_missing_gradients_are_planned(dense: bool, library: Library, only_plans: Callable[[], None]) -> None:
    params = {**library.arrays(tree(1)), "none": None}
    optimizer = portopt.Nadam()
    found = expected = params, optimizer.init(params)
    for _ in range(3):
        grads = {**library.arrays(tree(3)), "none": None, "b": None}
        if not dense:
            grads["a"] = (
                unusual(library, "broadcast")[1][:, :4].T if library.name == "torch" else np.asfortranarray(grads["a"])
            )
            grads["a"] = grads["a"].reshape(4, 5)
        given, found = found, optimizer.apply(found[0], grads, found[1])
        expected = interpreted(optimizer, expected[0], grads, expected[1])
        assert_same(library, found, expected)
        assert found[0]["b"] is given[0]["b"]
        assert found[1].slots["m"]["b"] is given[1].slots["m"]["b"]
        only_plans()


@each_planned
def test_other_gradients_may_be_missing_in_each_step(library: Library) -> None:
    params = library.arrays(tree(1))
    optimizer = portopt.Adam(clipnorm=1.0)
    found = expected = params, optimizer.init(params)
    for step in range(8):
        grads = {**library.arrays(tree(step)), "abcde"[step % 4]: None, "edcba"[step % 3]: None}
        found = optimizer.apply(found[0], grads, found[1])
        expected = interpreted(optimizer, expected[0], grads, expected[1])
        assert_same(library, found, expected)


def models(library: Library, count: int, shape: tuple[int, ...] = (4, 5)) -> list[Any]:
    return [library.arrays({"w": random_words(shape, "float32", k), "b": np.ones(3, np.float32)}) for k in range(count)]


@each_planned
@pytest.mark.parametrize("arguments", [{}, {"clipnorm": 0.5}], ids=["plain", "clips"])
def test_steps_in_place_on_ever_other_arrays_are_planned(
    arguments: dict[str, Any], library: Library, only_plans: Callable[[], None]
) -> None:
    optimizer = portopt.Adam(**arguments)
    for k, params in enumerate(models(library, 40)):
        grads = library.arrays({"w": random_words((4, 5), "float32", 50 + k), "b": np.ones(3, np.float32)})
        state = optimizer.init(params)
        expected = interpreted(optimizer, params, grads, state)
        new = optimizer.apply_(params, grads, state)
        assert_same(library, (params, new), expected)
        if k == 20:
            only_plans()
    assert len(optimizer._cache.plans) == 1


@pytest.fixture(params=PLANNED, ids=str)
def planned_in_place(request: pytest.FixtureRequest) -> tuple[Library, portopt.Optimizer, Any, Any]:
    """Return a library and an optimizer with a plan for all arrays of a structure, and parameters and state."""
    library, optimizer = request.param, portopt.Adam()
    for params, grads in zip(models(library, 20), models(library, 20), strict=True):
        optimizer.apply_(params, grads, optimizer.init(params))
    assert len(optimizer._cache.plans) == 1
    (params,) = models(library, 1)
    return library, optimizer, params, optimizer.init(params)


def test_gradients_in_written_memory_are_read_before_it_changes(
    planned_in_place: tuple[Library, portopt.Optimizer, Any, Any],
) -> None:
    library, optimizer, params, state = planned_in_place
    # The gradient's elements are later ones of the parameter.
    (memory,) = library.arrays([random_words((25,), "float32", 8)])
    params["w"], grads = memory[:20].reshape(4, 5), {"w": memory[5:].reshape(4, 5), "b": params["b"]}
    expected = interpreted(optimizer, params, grads, state)
    new = optimizer.apply_(params, grads, state)
    assert_same(library, (params, new), expected)


def test_arrays_that_share_memory_are_refused(planned_in_place: tuple[Library, portopt.Optimizer, Any, Any]) -> None:
    library, optimizer, params, state = planned_in_place
    grads, before = models(library, 1)[0], library.numpy(params)
    state.slots["m"]["w"] = state.slots["v"]["w"]
    with pytest.raises(ValueError, match="share memory"):
        optimizer.apply_(params, grads, state)
    for name, array in before.items():
        assert_same_bits(library.numpy(params[name]), array)


def test_read_only_parameter_is_refused_though_its_like_was_stepped() -> None:
    library, optimizer = BY_NAME["numpy"], portopt.Adam()
    for params, grads in zip(models(library, 20), models(library, 20), strict=True):
        optimizer.apply_(params, grads, optimizer.init(params))
    params["w"].flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        optimizer.apply_(params, grads, optimizer.init(params))


def test_autograd_sees_what_a_step_wrote_and_no_more() -> None:
    optimizer = portopt.Adam()
    for params in models(BY_NAME["torch"], 20):
        state = optimizer.init(params)
        versions = [t._version for t in (params["w"], params["b"], state.slots["m"]["w"], state.slots["v"]["b"])]
        optimizer.apply_(params, {"w": torch.ones(4, 5), "b": None}, state)
        after = [t._version for t in (params["w"], params["b"], state.slots["m"]["w"], state.slots["v"]["b"])]
        assert [new - old for old, new in zip(versions, after, strict=True)] == [1, 0, 1, 0]
    assert len(optimizer._cache.plans) == 1


def test_what_is_never_repeated_is_planned_rarely() -> None:
    optimizer = portopt.SGD()
    made = set[int]()
    for n in range(1, 100):
        w = np.ones(n, np.float32)
        optimizer.apply(w, w, optimizer.init(w))
        made.update(map(id, optimizer._cache.pure_plans[:1]))
    known = optimizer._cache.pure_plans
    assert len(made) < 30
    for _ in range(20):
        optimizer.apply(w, w, optimizer.init(w))
    assert optimizer._cache.pure_plans != known
    assert optimizer._cache.pure_plans[0].was_used


def changes(library: Library) -> dict[str, Callable[[Any, Any, Any], tuple[Any, Any, Any]]]:
    """Return ways to make the arguments of a step wrong."""

    def array(shape: tuple[int, ...], dtype: str) -> Any:
        return library.arrays(np.ones(shape, dtype))

    def slots(state: Any, **new: Any) -> Any:
        return state._replace(slots={**state.slots, **new})

    return {
        "shape of gradient": lambda p, g, s: (p, {**g, "a": array((5, 4), "float32")}, s),
        "dimensions of gradient": lambda p, g, s: (p, {**g, "a": array((4,), "float32")}, s),
        "dtype of gradient": lambda p, g, s: (p, {**g, "a": array((4, 5), "int32")}, s),
        "number": lambda p, g, s: (p, {**g, "a": 1.0}, s),
        "further gradient": lambda p, g, s: (p, {**g, "z": g["a"]}, s),
        "lacking gradient": lambda p, g, s: (p, {n: a for n, a in g.items() if n != "e"}, s),
        "container": lambda p, g, s: (p, list(g.values()), s),
        "shape of parameter": lambda p, g, s: ({**p, "a": array((5, 4), "float32")}, g, s),
        "dtype of parameter": lambda p, g, s: ({**p, "a": array((4, 5), "int64")}, g, s),
        "missing parameter": lambda p, g, s: ({**p, "a": None}, g, s),
        "lacking slot": lambda p, g, s: (p, g, slots(s, m={n: a for n, a in s.slots["m"].items() if n != "b"})),
        "missing slot": lambda p, g, s: (p, g, slots(s, v={**s.slots["v"], "b": None})),
        "dtype of slot": lambda p, g, s: (p, g, slots(s, v={**s.slots["v"], "b": array((7,), "int32")})),
        "shape of slot": lambda p, g, s: (p, g, slots(s, v={**s.slots["v"], "b": array((8,), "float32")})),
        "further slot": lambda p, g, s: (p, g, slots(s, w=s.slots["v"])),
        "state": lambda p, g, s: (p, g, (1, 2)),
        "step": lambda p, g, s: (p, g, s._replace(step=-1)),
        "step of another type": lambda p, g, s: (p, g, s._replace(step=1.5)),
    }


@each_planned
@pytest.mark.parametrize("change", list(changes(BY_NAME["numpy"])))
def test_wrong_arguments_have_the_errors_of_the_full_check(change: str, library: Library) -> None:
    optimizer = portopt.Adam()
    params, grads = library.arrays(tree(1)), library.arrays(tree(2))
    state = optimizer.init(params)
    optimizer.apply(params, grads, state)
    given = changes(library)[change](params, grads, state)
    with pytest.raises((TypeError, ValueError)) as expected:
        optimizer.replace().apply(*given)
    with pytest.raises(type(expected.value)) as found:
        optimizer.apply(*given)
    assert str(found.value) == str(expected.value)
    assert len(optimizer._cache.pure_plans) == 1


@each_planned
def test_other_keys_have_the_errors_of_the_full_check(library: Library) -> None:
    optimizer, (w,) = portopt.Adam(), library.arrays([np.ones(3, np.float32)])
    state = optimizer.init({1000: w, "b": w})
    for right in ({1000: w, "b": w}, {int("1000"): w, "b": w}):
        optimizer.apply(right, right, state)
    for wrong in ({1001: w, "b": w}, {1000: w, "c": w}, {"1000": w, "b": w}, {1000.0: w, "d": w}):
        with pytest.raises(ValueError, match="structure of params"):
            optimizer.apply({1000: w, "b": w}, wrong, state)


@each_planned
@pytest.mark.parametrize("wrong", [{"learning_rate": -1.0}, {"speed": 1.0}, {"lr": 1.0, "learning_rate": 1.0}])
def test_wrong_hyperparameters_are_refused(wrong: dict[str, Any], library: Library) -> None:
    optimizer, params = portopt.Adam(), library.arrays(tree(1))
    state = optimizer.init(params)
    optimizer.apply(params, params, state)
    with pytest.raises((TypeError, ValueError)) as expected:
        optimizer.replace().apply(params, params, state, **wrong)
    with pytest.raises(type(expected.value)) as found:
        optimizer.apply(params, params, state, **wrong)
    assert str(found.value) == str(expected.value)


@each_planned
def test_slots_of_another_dtype_are_stepped_in_it(library: Library) -> None:
    optimizer, params = portopt.Adam(), library.arrays({"w": random_words((5,), "float32", 1)})
    for slot_dtype in ("float32", "bfloat16", "float32"):
        state = optimizer.init(params, slot_dtype=slot_dtype)
        found = optimizer.apply(params, params, state)
        assert_same(library, found, interpreted(optimizer, params, params, state))


@each_planned
def test_hyperparameters_of_one_step_and_schedules(library: Library, only_plans: Callable[[], None]) -> None:
    params = library.arrays({"w": random_words((5,), "float32", 1)})
    for rate in (0.5, lambda step: 2.0 ** -(step + 0), portopt.schedules.ExponentialDecay(0.1, 2, 0.5)):
        optimizer = portopt.SGD(rate)
        found = expected = params, optimizer.init(params)
        for given in ({}, {}, {"learning_rate": 0.25}, {"learning_rate": 0.25}, {}):
            found = optimizer.apply(found[0], params, found[1], **given)
            expected = interpreted(optimizer, expected[0], params, expected[1], **given)
            assert_same(library, found, expected)


@each_planned
@pytest.mark.parametrize("count", [1, 3])
def test_threads_never_change_a_bit(count: int, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ELEMENTS_PER_THREAD", 64)
    monkeypatch.setattr(threads, "_chosen", count)
    for optimizer in (portopt.Adam(clipnorm=0.5), portopt.Adafactor(0.1)):
        params = library.arrays({"a": random_words((40, 9), "float32", 1), "b": random_words((500,), "float32", 2)})
        grads = {**params, "a": params["a"].T.reshape(40, 9)}
        found = expected = params, optimizer.init(params)
        for _ in range(3):
            found = optimizer.apply(found[0], grads, found[1])
            expected = interpreted(optimizer, expected[0], grads, expected[1])
            assert_same(library, found, expected)


@each_planned
def test_threads_may_do_steps_of_one_plan_at_once(library: Library) -> None:
    optimizer = portopt.Adam()
    models = [library.arrays(tree(100 * k)) for k in range(4)]
    grads = library.arrays(tree(7))
    odd = {**grads, "a": grads["a"].T.reshape(5, 4).T}
    state = optimizer.init(models[0])
    expected = [optimizer.apply(params, grads, state) for params in models]
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for turn_ in range(40):
                given = odd if turn_ % 3 == k % 3 else grads
                found = optimizer.apply(models[k], given, state)
                if given is grads:
                    assert_same(library, found, expected[k])
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failures


def test_autograd_goes_on_with_new_parameters(only_plans: Callable[[], None]) -> None:
    optimizer = portopt.Adam()
    params = {"w": torch.nn.Parameter(torch.ones(3)), "b": torch.ones(2)}
    grads = {"w": torch.ones(3), "b": torch.ones(2)}
    state = optimizer.init(params)
    expected, _ = optimizer.apply(params, grads, state)
    only_plans()
    for _ in range(2):
        params, state = optimizer.apply(params, grads, state)
        for name, tensor in params.items():
            assert type(tensor) is torch.Tensor
            assert (tensor.requires_grad, tensor.is_leaf) == (expected[name].requires_grad, expected[name].is_leaf)
        assert params["w"].requires_grad
        assert not state.slots["m"]["w"].requires_grad
    # Unlike tensors on memory of NumPy's.
    params["b"].resize_(5)


def test_new_tensors_are_like_those_that_torch_itself_makes(
    only_plans: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, shapes = portopt.Adam(), [(3, 4), (), (0, 3), (2, 1, 3)]
    params, gradients = ([torch.ones(shape) for shape in shapes] for _ in range(2))
    state = optimizer.init(params)
    for _ in range(3):
        params, state = optimizer.apply(params, gradients, state)
    only_plans()
    params, state = optimizer.apply(params, gradients, state)
    for made in (params, *state.slots.values()):
        for tensor, shape in zip(made, shapes, strict=True):
            like = torch.empty(shape)
            assert (tensor.stride(), tensor.storage_offset()) == (like.stride(), 0)
            assert tensor.untyped_storage().nbytes() == like.untyped_storage().nbytes()
            assert not tensor._is_view()
            assert tensor.untyped_storage().resizable()
    params[0].zero_()
    assert params[1]._version == state.slots["m"][0]._version == 0
    # A mode of the user's sees what is made.
    made, empty_like = list[Any](), torch.empty_like

    def counted(like: Any) -> Any:
        made.append(like)
        return empty_like(like)

    monkeypatch.setattr(torch, "empty_like", counted)
    optimizer.apply(params, gradients, state)
    assert made == []
    with torch.device("cpu"):
        optimizer.apply(params, gradients, state)
    assert len(made) == 3 * len(shapes)


def test_tensors_of_one_optimizer_may_be_followed_by_arrays() -> None:
    optimizer = portopt.Adam()
    for library in (BY_NAME["numpy"], BY_NAME["torch"]) * 2:
        params = library.arrays(tree(1))
        state = optimizer.init(params)
        assert_same(library, optimizer.apply(params, params, state), interpreted(optimizer, params, params, state))
    assert len(optimizer._cache.pure_plans) == 2


def test_tensor_without_memory_is_refused() -> None:
    optimizer, params = portopt.Adam(), {"w": torch.ones(3)}
    state = optimizer.init(params)
    optimizer.apply(params, {"w": torch.ones(3)}, state)
    with pytest.raises(TypeError, match="without memory"):
        optimizer.apply(params, {"w": torch._efficientzerotensor((3,))}, state)
    with pytest.raises(TypeError, match="layout"):
        optimizer.apply(params, {"w": torch.ones(3).to_sparse()}, state)
