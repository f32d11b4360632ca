"""Steps on torch's tensors by CUDA C: the interpreter's bits on a played device, and what is queued there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.bits import Array, assert_same_bits, ordinary, random_words
from support.elementwise import ELEMENTWISE, STAGED
from support.gpu_cases import EveryDraw, EveryReduction, EveryTotal, compare_steps, optimizer_of, trees_with_totals
from support.gpu_products import compare_products
from support.recording_driver import Recording
from support.rules_of_each_kind import RULES, Multiplying
from support.torch_on_host import HostTorch, host_torch, to_numpy, to_torch
from support.turns import in_turn

import portopt
import portopt_torch
from portopt.kernels import launch
from portopt_torch._backend import TorchBackend

ROUNDED_SCALARS = TorchBackend.rounded_scalars
SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (0, 3), (12, 7), (1100,), (2, 3, 4))


@pytest.fixture
def played(kernel_directory: Path) -> Iterator[tuple[HostTorch, Recording]]:
    with host_torch(kernel_directory) as found:
        yield found


def trees(dtype: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> tuple[list[Array], list[list[Array]]]:
    params = [ordinary(shape, dtype, i) for i, shape in enumerate(shapes)]
    return params, [[ordinary(shape, dtype, 100 * k + i) for i, shape in enumerate(shapes)] for k in (1, 2)]


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("rule", ELEMENTWISE, ids=lambda rule: rule.__name__)
def test_each_rule_has_the_bits_of_the_interpreter(rule: type[portopt.Optimizer]) -> None:
    compare_steps(to_torch, to_numpy, optimizer_of(rule, True), *trees("float32"))


@pytest.mark.parametrize("rule", in_turn([*STAGED, *RULES, EveryDraw], 0, 2), ids=lambda rule: rule.__name__)
def test_each_rule_that_reduces_has_the_bits_of_the_interpreter(
    rule: type[portopt.Optimizer], played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = rule()
    # Totals of all parameters are numbers that the host is given; and products are torch's.
    played[0].may_wait = bool(optimizer.program(shape=(3, 4)).totals) or rule is Multiplying
    if rule is Multiplying:
        monkeypatch.setattr(TorchBackend, "rounded_scalars", ROUNDED_SCALARS)
    compare_steps(to_torch, to_numpy, optimizer, *trees("float32", SHAPES[1:4:2] if rule.draws else SHAPES))


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("in_place", [False, True])
def test_any_number_of_parameters_of_any_size_and_dtype(in_place: bool) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (1,), (3000,), (1025,), (0, 3), *((k % 7,) for k in range(20))]
    dtypes = [("float32", "float32", "float16", "float64", "bfloat16")[i % 5] for i in range(len(shapes))]
    params = [random_words(s, d, i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]
    gradients = [[ordinary(s, d, 100 + i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]]
    compare_steps(to_torch, to_numpy, portopt.Nadam(clipnorm=0.5), params, gradients, in_place=in_place)


@pytest.mark.usefixtures("played")
def test_step_in_place_on_strided_tensors_writes_them() -> None:
    optimizer = portopt.Adam(0.1)
    whole, gradient = ordinary((40, 30), "float32", 1), ordinary((30, 20), "float32", 2)
    start = whole[::2].copy()
    expected, _ = optimizer.apply(start, gradient.T.copy(), optimizer.init(start))
    tensor = to_torch(whole)
    optimizer.apply_(tensor[::2], to_torch(gradient).T, optimizer.init(tensor[::2]))
    assert_same_bits(to_numpy(tensor)[::2], expected)
    assert_same_bits(to_numpy(tensor)[1::2], whole[1::2])


@pytest.mark.usefixtures("played")
def test_leaves_that_require_grad_stay_leaves_and_autograd_sees_the_change() -> None:
    optimizer = portopt.Adam(0.1)
    leaf = torch.ones(5, requires_grad=True)
    new, _ = optimizer.apply(leaf, torch.ones(5), optimizer.init(leaf))
    assert new.requires_grad
    assert new.is_leaf
    loss = (leaf * leaf).sum()
    optimizer.apply_(leaf, torch.ones(5), optimizer.init(leaf))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


@pytest.mark.usefixtures("played")
def test_every_reduction_of_all_of_rows_and_of_columns() -> None:
    compare_steps(to_torch, to_numpy, EveryReduction(0.1), *trees("float64", ((40, 30), (1, 1), (0, 3), (3, 0))))


def test_every_total_of_all_parameters(played: tuple[HostTorch, Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    played[0].may_wait = True
    monkeypatch.setattr(launch, "JOINED", 9)  # parts of the large ones are joined before
    for params, gradients in trees_with_totals("float32"):
        compare_steps(to_torch, to_numpy, EveryTotal(), params, gradients)


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("rule", [portopt.LAMB, portopt.SM3], ids=lambda rule: rule.__name__)
def test_staged_steps_in_place_and_clipped(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(clipnorm=0.5, clipvalue=0.01)
    compare_steps(to_torch, to_numpy, optimizer, *trees("float32", ((60,), (12, 7), (0,))), in_place=True)


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slices_and_products_have_the_bits_of_the_definition(dtype: str) -> None:
    compare_products(portopt_torch.backend.primitives(dtype), to_torch, to_numpy, few=True)


# What is queued -----------------------------------------------------------------------------------------------------


def test_a_step_takes_a_launch_for_each_kind_of_dtypes_and_clipping_three_more(
    played: tuple[HostTorch, Recording],
) -> None:
    recording = played[1]
    params, (gradients, _) = trees("float32")
    for optimizer, expected in (
        (portopt.Adam(), ["update"]),
        (portopt.Adam(clipnorm=1.0), ["sum_squares", "scalars_of_norm", "update"]),
    ):
        p, g = list(map(to_torch, params)), list(map(to_torch, gradients))
        state = optimizer.init(p)
        recording.clear()
        optimizer.apply_(p, g, state)
        assert recording.kernels() == expected


def test_pinned_memory_is_not_used_again_before_the_device_has_read_it(played: tuple[HostTorch, Recording]) -> None:
    recording = played[1]
    optimizer = portopt.SGD(0.5)
    pairs = [([torch.ones(3)], [torch.full((3,), float(k))]) for k in range(5)]
    recording.play(delayed=True)
    states = [optimizer.init(p) for p, _ in pairs]
    for (p, g), state in zip(pairs, states, strict=True):
        optimizer.apply_(p, g, state)
    assert all(p[0].tolist() == [1.0] * 3 for p, _ in pairs)
    recording.run_queued()
    recording.play()
    assert [p[0].tolist() for p, _ in pairs] == [[1.0 - 0.5 * k] * 3 for k in range(5)]


def test_what_a_step_queues_is_on_the_current_stream(played: tuple[HostTorch, Recording]) -> None:
    library, recording = played
    optimizer, p = portopt.LAMB(clipnorm=1.0), [torch.ones(3, 4)]
    state = optimizer.init(p)
    for library.current_stream in (11, 12):
        recording.clear()
        state = optimizer.apply_(p, [torch.ones(3, 4)], state)
        assert {entry.stream for entry in recording.entries()} == {library.current_stream}
