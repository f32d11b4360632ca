"""Scalars of a step whose number, and whose state, lie on the device: what a graph can repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, ordinary
from support.cuda_on_host import HostArray, Kernel, compile_on_host, on_device
from support.gpu_cases import EveryDraw, key_of, staged_key

import portopt
from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import round_scalar
from portopt.kernels.cuda.source import NUMBERS, ONLY_CHUNK, cuda_source
from portopt.kernels.cuda.staged_source import staged_source
from portopt.kernels.cuda.tables import Chunks, columns_of
from portopt.kernels.norm_dependence import STEP, NormDependence, norm_dependence
from portopt.program import Program
from portopt.program.interpreter import evaluate_scalars

RULES = (portopt.Adam(clipnorm=0.5), portopt.Nadam(), portopt.ScheduleFree(learning_rate=0.1), EveryDraw())


def on_the_device(optimizer: portopt.Optimizer) -> frozenset[str]:
    return frozenset(
        {STEP, *optimizer.scalar_slots, *{"learning_rate"}.intersection(optimizer.program().scalar_inputs)}
    )


def typed(values: list[Any]) -> list[Any]:
    return [
        np.bool_(x) if isinstance(x, bool) else np.int64(x) if isinstance(x, int) else np.float64(x) for x in values
    ]


def of_numbers(values: list[Any], dtype: str = "float64") -> HostArray:
    return np.asarray(values, dtype).view(HostArray)


class Graph:
    """What a graph has of a step: the arguments of the kernel that computes scalars, and its results."""

    def __init__(self, optimizer: portopt.Optimizer, program: Program, split: NormDependence, dtype: str) -> None:
        # Those of an inner rule have other names than attributes, and any value will do.
        hyperparameters = {name: getattr(optimizer, name, 0.5) for name in program.scalar_inputs}
        self.inputs = {**hyperparameters, **optimizer.scalar_slots}
        self.norm = of_numbers([[-2128, 0, 0, 0, 0]] * 2, "int64")
        self.step = of_numbers([0], "int64")
        kept = dict.fromkeys((*split.numbers_on_device, *split.state_outputs))
        self.kept = {name: of_numbers([self.inputs[name]]) for name in kept}
        self.rounded = of_numbers([0] * len(split.rounded_on_device), dtype)
        self.unrounded = of_numbers([0] * len(split.unrounded_on_device))
        known = split.host_scalars({name: x for name, x in self.inputs.items() if name not in split.on_device})
        self.given = typed([known[i] for i in split.given])
        self.arguments = (
            *((self.norm, np.int64(2)) if program.uses_gradient_norm else ()),
            *(self.step, self.step),
            *(x for name in split.numbers_on_device for x in (self.kept[name], np.int64(0))),
            *(self.kept[name] for name in split.state_outputs),
            *self.given,
            *((self.rounded,) if split.rounded_on_device else ()),
            *((self.unrounded,) if split.unrounded_on_device else ()),
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", RULES, ids=lambda rule: type(rule).__name__)
def test_each_repetition_has_the_scalars_of_its_own_step(
    optimizer: portopt.Optimizer, dtype: str, tmp_path: Path
) -> None:
    program, names = optimizer.program(shape=(3, 4)), on_the_device(optimizer)
    split = norm_dependence(program, names)
    if program.is_elementwise:
        source = cuda_source(program, key_of(optimizer, dtype), names)
    else:
        source = staged_source(program, staged_key(program, dtype), names)
    graph = Graph(optimizer, program, split, dtype)
    kernel, inputs = Kernel(compile_on_host(source, tmp_path), "scalars_of_norm"), graph.inputs
    for step in (1, 2, 3):
        kernel((1,), (256,), graph.arguments)
        inputs |= {STEP: step, "gradient_norm": 0.0}
        expected = evaluate_scalars(split.program, HOST, inputs)
        wanted = [round_scalar(float(expected[j]), dtype) for _, j in split.rounded_on_device]
        assert_same_bits(np.asarray(graph.rounded), np.asarray(wanted, dtype), f"step {step}")
        assert graph.unrounded.tolist() == [float(expected[i]) for i in split.unrounded_on_device]
        inputs |= {name: float(expected[i]) for name, i in split.program.scalar_outputs.items()}
        assert {name: x.item() for name, x in graph.kept.items()} == {name: inputs[name] for name in graph.kept}
        assert graph.step.tolist() == [step]
    assert bool(split.unrounded_on_device) == isinstance(optimizer, EveryDraw)


def test_numbers_of_any_dtype_change_between_repetitions_and_results_may_lie_elsewhere(tmp_path: Path) -> None:
    optimizer = portopt.Nadam()
    program, names = optimizer.program(), on_the_device(optimizer)
    split = norm_dependence(program, names)
    graph = Graph(optimizer, program, split, "float32")
    kernel = Kernel(
        compile_on_host(cuda_source(program, key_of(optimizer, "float32"), names), tmp_path), "scalars_of_norm"
    )
    new_step, new, rate = of_numbers([0], "int64"), of_numbers([0]), graph.kept["learning_rate"]
    others = {"learning_rate": rate, "m_schedule": graph.kept["m_schedule"]}
    found = []
    for dtype in (*NUMBERS, "float64"):
        number = np.asarray([2], "uint16" if dtype == "bfloat16" else dtype).view(HostArray)
        if dtype == "bfloat16":
            number[...] = 0x4000
        places = {**others, "learning_rate": number}
        inputs = [x for name in split.numbers_on_device for x in (places[name], np.int64(0))]
        inputs[1 + 2 * split.numbers_on_device.index("learning_rate")] = np.int64(NUMBERS.index(dtype))
        kernel((1,), (256,), (graph.step, new_step, *inputs, new, *graph.given, graph.rounded))
        found.append(graph.rounded.tolist())
    assert all(rounded == found[0] for rounded in found)
    assert (graph.step.item(), new_step.item(), graph.kept["m_schedule"].item()) == (0, 1, 1.0)
    assert new.item() not in (0.0, 1.0)
    kernel((1,), (256,), graph.arguments)
    assert graph.rounded.tolist() != found[0]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_step_reads_its_scalars_from_memory(in_place: bool, tmp_path: Path) -> None:
    optimizer = portopt.Nadam(0.1)
    key, program, names = key_of(optimizer, "float32", in_place=in_place), optimizer.program(), on_the_device(optimizer)
    split = norm_dependence(program, names)
    library = compile_on_host(cuda_source(program, key, names), tmp_path)
    graph = Graph(optimizer, program, split, "float32")
    params: list[Array] = [ordinary((n,), "float32", n) for n in (5, 5000)]
    gradients = [ordinary(p.shape, "float32", 1 + p.size) for p in params]
    expected, state = params, optimizer.init(params)
    rows = [
        [on_device(p), on_device(g), *(on_device(state.slots[name][i]) for name, _ in key.dtypes[2:])]
        for i, (p, g) in enumerate(zip(params, gradients, strict=True))
    ]
    new = [] if in_place else [[on_device(np.zeros_like(p)) for _ in program.array_outputs] for p in params]
    addresses = [[a.data.ptr for a in (*row, *(new[i] if new else ()))] for i, row in enumerate(rows)]
    chunks, columns = Chunks([p.size for p in params], ONLY_CHUNK), columns_of(addresses)
    words = np.asarray(chunks.argument(chunks.words.buffer_info()[0], columns.buffer_info()[0]), np.int64)
    by_value = words.view(np.dtype([("words", np.int64, words.shape)]))
    known = split.host_scalars({name: x for name, x in graph.inputs.items() if name not in names})
    rounded = [np.float32(round_scalar(float(known[j]), "float32")) for _, j in split.rounded_on_host]
    for _ in range(3):
        Kernel(library, "scalars_of_norm")((1,), (256,), graph.arguments)
        Kernel(library, "update")((chunks.number,), (256,), (by_value, *rounded, graph.rounded))
        with portopt.interpreted():
            expected, state = optimizer.apply(expected, gradients, state)
        for i, row in enumerate(rows):
            if not in_place:
                for name, array in zip(program.array_outputs, new[i], strict=True):
                    row[[name for name, _ in key.dtypes].index(name)][...] = array
            assert_same_bits(np.asarray(row[0]), expected[i])
