"""Memory that arrays have, lose and get anew: steps leave them resizable, see every change, and refuse what holds no elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.libraries import BY_NAME

import portopt

BACKEND = portopt.get_backend("torch")


def torch_steps(kind: str, optimizer: portopt.Optimizer, w: Any, g: Any, state: portopt.OptimizerState) -> Any:
    """Do four steps; return all tensors that they had to do with."""
    for _ in range(4):
        if kind == "apply":
            w, state = optimizer.apply(w, g, state)
        elif kind == "interpreted":
            with portopt.interpreted():
                state = optimizer.apply_(w, g, state)
        else:
            state = optimizer.apply_(w, g, state)
    return [w, g, *(state.slots[name] for name in optimizer.slots)]


@pytest.mark.parametrize("kind", ["apply", "apply_", "interpreted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("clip", [{}, {"clipnorm": 1.0}], ids=["plain", "clipped"])
def test_tensors_stay_resizable(clip: dict[str, Any], dtype: torch.dtype, kind: str) -> None:
    w, g = torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)
    optimizer = portopt.RMSprop(**clip)
    for tensor in {id(t): t for t in (w, g, *torch_steps(kind, optimizer, w, g, optimizer.init(w)))}.values():
        tensor.resize_(50)
        assert tensor.numel() == 50


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_made_of_numpy_arrays_are_resizable(dtype: str) -> None:
    array = BACKEND.to_numpy(torch.arange(6).reshape(2, 3).T.to(getattr(torch, dtype)))
    tensor = BACKEND.from_numpy(array, "cpu")
    assert tensor.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert BACKEND.from_numpy(np.float32(3), "cpu").shape == ()
    tensor.resize_(50)


def test_planned_arrays_of_numpy_stay_resizable() -> None:
    optimizer, w, g = portopt.Adam(), np.ones(5, np.float32), np.ones(5, np.float32)
    state = optimizer.init(w)
    for _ in range(4):
        state = optimizer.apply_(w, g, state)
    for array in (w, g, *state.slots.values()):
        array.resize(5000, refcheck=False)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_resized_arrays_are_stepped_where_they_are_now(library: str) -> None:
    def resize(array: Any, size: int) -> None:
        array.resize(size, refcheck=False) if library == "numpy" else array.resize_(size)
        array[:] = 1

    (w, g) = BY_NAME[library].arrays([np.ones(5, np.float32)] * 2)
    optimizer = portopt.SGD(0.5)
    state = optimizer.init(w)
    for _ in range(4):
        state = optimizer.apply_(w, g, state)
    resize(g, 400_000)
    with pytest.raises(ValueError, match=r"grads has shape \(400000,\), but params has shape \(5,\)"):
        optimizer.apply_(w, g, state)
    for array in (w, state.slots["moment"]):
        resize(array, 400_000)
    for step in range(1, 4):
        state = optimizer.apply_(w, g, state)
        assert np.asarray(w).tolist() == [1 - step / 2] * 400_000
    resize(g, 4)
    with pytest.raises(ValueError, match=r"grads has shape \(4,\)"):
        optimizer.apply_(w, g, state)


def test_memory_in_another_place_is_seen() -> None:
    """An array may stay the same object, of the same shape, and yet have its elements elsewhere."""
    optimizer, w = portopt.SGD(1.0), np.zeros(5)
    state = optimizer.init(w)
    for _ in range(3):
        state = optimizer.apply_(w, np.ones(5), state)
    before = w.ctypes.data
    for size in (1 << 20, 5):
        w.resize(size, refcheck=False)
    others = [np.full(5, 9.0) for _ in range(100)]
    w[:] = 0
    state = optimizer.apply_(w, np.ones(5), state)
    assert (w == -1).all(), before
    assert all((other == 9).all() for other in others)


def _without_storage(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def _with_half_a_storage(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() // 2)
    return tensor


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


def _wrapped(tensor: torch.Tensor) -> torch.Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(tensor, tensor)  # type: ignore[no-untyped-call]  # of torch


REFUSED: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "zeros": (
        lambda t: torch._efficientzerotensor(t.shape),
        r"_efficientzerotensor\) are not supported; convert with clone\(\)",
    ),
    "functionalized": (torch._to_functional_tensor, "functionalized tensors are not supported"),
    "without storage": (
        _without_storage,
        r"its elements need \d+ bytes, but its storage was resized to 0; resize it back",
    ),
    "half a storage": (_with_half_a_storage, r"its elements need \d+ bytes, but its storage was resized to \d+"),
    "fake": (_fake, "tensors of type FakeTensor with .* are not supported: they have no memory of their own"),
    "wrapper": (_wrapped, "tensors of type TwoTensor with .* are not supported: they have no memory of their own"),
    "meta": (lambda t: t.to("meta"), "grads has device meta, but params has device cpu"),
    "sparse": (lambda t: t.to_sparse(), "tensors of layout torch.sparse_coo are not supported"),
}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("steps", [1, 4], ids=["unplanned", "planned"])
def test_array_resized_by_the_schedule_is_refused(steps: int, library: str) -> None:
    (w, g) = BY_NAME[library].arrays([np.zeros(4, np.float32), np.ones(4, np.float32)])
    resizes = False

    def schedule(step: Any) -> float:
        if resizes:
            g.resize(2, refcheck=False) if library == "numpy" else g.resize_(2)
        return 1.0

    optimizer = portopt.SGD(schedule)
    state = optimizer.init(w)
    for _ in range(steps - 1):
        state = optimizer.apply_(w, g, state)
    resizes = True
    with pytest.raises(ValueError, match=r"changed its size while the step was computed|grads has shape"):
        optimizer.apply_(w, g, state)
    assert np.asarray(w).tolist() == [1 - steps] * 4


@pytest.mark.parametrize("which", ["p", "g"])
def test_tensor_narrowed_by_the_schedule_is_refused(which: str) -> None:
    w, g = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)

    def schedule(step: Any) -> float:
        tensor = w if which == "p" else g
        tensor.data = tensor.data.float()
        return 1.0

    optimizer = portopt.SGD(schedule)
    with pytest.raises(ValueError, match="changed its size while the step was computed"):
        optimizer.apply_(w, g, optimizer.init(w))


@pytest.mark.parametrize("planned", [False, True], ids=["unplanned", "planned"])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("kind", REFUSED)
def test_gradient_without_elements_in_memory_is_refused(kind: str, size: int, planned: bool) -> None:
    make, message = REFUSED[kind]
    optimizer, w = portopt.SGD(1.0), torch.zeros(size)
    state = optimizer.init(w)
    if planned:
        for _ in range(3):
            state = optimizer.apply_(w, torch.zeros(size), state)
    gradient = make(torch.ones(size))
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.apply_(w, gradient, state)
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.apply(w, gradient, state)
    assert w.tolist() == [0] * size
    if kind in ("zeros", "functionalized"):
        with pytest.raises(TypeError, match="not supported"):
            BACKEND.gradient_norm([gradient])


@pytest.mark.parametrize("which", ["params", "state"])
@pytest.mark.parametrize("kind", ["without storage", "half a storage"])
def test_written_tensor_that_lost_its_memory_is_refused(kind: str, which: str) -> None:
    optimizer, w = portopt.SGD(1.0), torch.zeros(4)
    state = optimizer.init(w)
    for _ in range(3):
        state = optimizer.apply_(w, torch.zeros(4), state)
    REFUSED[kind][0](w if which == "params" else state.slots["moment"])
    with pytest.raises(TypeError, match=f"{which}.*{REFUSED[kind][1]}"):
        optimizer.apply_(w, torch.ones(4), state)


@pytest.mark.parametrize(
    "transform", [torch.func.vmap, lambda f: torch.func.functionalize(f)], ids=["vmap", "functionalize"]
)
def test_tensors_inside_transformations_of_torch_are_refused(transform: Callable[[Any], Any]) -> None:
    optimizer = portopt.SGD(1.0)
    with pytest.raises(TypeError, match="are not supported"):
        transform(lambda w: optimizer.apply(w, w, optimizer.init(w))[0])(torch.ones(2, 3))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_planned_gradient_that_torch_negates_when_it_is_read(size: int) -> None:
    optimizer, w = portopt.SGD(1.0), torch.zeros(size)
    state = optimizer.init(w)
    for _ in range(3):
        state = optimizer.apply_(w, torch.zeros(size), state)
    state = optimizer.apply_(w, torch._neg_view(torch.ones(size)), state)
    assert w.tolist() == [1.0] * size


def test_negated_gradient_counts_in_the_norm_of_a_planned_step() -> None:
    optimizer, w = portopt.SGD(1.0, clipnorm=1.0), torch.zeros(2)
    state = optimizer.init(w)
    for _ in range(4):
        state = optimizer.apply_(w, torch._neg_view(torch.tensor([3.0, 4.0])), state)
    assert w.tolist() == pytest.approx([2.4, 3.2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.inference_mode()(lambda: torch.ones(4))(),
        lambda: torch.ones(4, requires_grad=True),
        lambda: torch.ones(4).conj(),
        lambda: torch.ones(4).as_subclass(type("Plain", (torch.Tensor,), {})),
        lambda: torch.ones(9)[5:],
    ],
    ids=["inference", "with autograd", "conjugate", "subclass", "part of a storage"],
)
def test_gradient_of_another_kind_with_its_own_elements(make: Callable[[], Any]) -> None:
    optimizer, w = portopt.SGD(1.0), torch.zeros(4)
    state = optimizer.init(w)
    for step in range(1, 5):
        state = optimizer.apply_(w, make(), state)
        assert w.tolist() == [-step] * 4


def test_tensors_are_read_though_the_first_step_is_within_a_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from portopt_torch import _layout

    _layout.plain_keys.cache_clear()
    expected = _layout.plain_keys(), _layout.find_layout()
    assert expected[1] is not None
    _layout.plain_keys.cache_clear()
    with FakeTensorMode(), torch.device("meta"):
        assert (_layout.plain_keys(), _layout.find_layout()) == expected
