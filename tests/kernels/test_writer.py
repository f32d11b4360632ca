"""What the writers of all targets share: names, and tables that have every operation."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.cuda_on_host import compile_on_host
from support.gpu_cases import EveryOperation, key_of, norm_program

from portopt.kernels.cuda.source import LANGUAGE as CUDA
from portopt.kernels.cuda.source import cuda_source
from portopt.kernels.cuda.staged_source import LANGUAGE_OF_PASSES, staged_source
from portopt.kernels.groups import kernel_key
from portopt.kernels.host.source import LANGUAGES, kernel_source
from portopt.kernels.key import Flush, KernelKey
from portopt.kernels.names import array_names, identifiers
from portopt.kernels.writer import Language
from portopt.program import ARRAY_OPERATIONS, GIVEN, Kind, Op, Program
from portopt.program.expansion import expand_elementary

Source = Callable[[Program, KernelKey], str]
EACH: dict[str, tuple[Language, Source, Flush]] = {
    "numba, register": (LANGUAGES["register"], kernel_source, "register"),
    "numba, where": (LANGUAGES["where"], kernel_source, "where"),
    "CUDA C": (CUDA, cuda_source, "where"),
}
each = pytest.mark.parametrize(("language", "source", "flush"), EACH.values(), ids=EACH)


def globals_of(source: str) -> set[str]:
    """Return the names that Python source uses and does not make."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    made |= {node.arg for node in ast.walk(ast.parse(source)) if isinstance(node, ast.arg)}
    return {node.id for node in names} - made


@pytest.mark.parametrize("target", [name for name in EACH if name != "CUDA C"])
def test_no_name_of_a_rule_hides_what_the_source_uses(target: str) -> None:
    language, source, flush = EACH[target]
    optimizer, norm = EveryOperation(0.1, clipnorm=1.0), norm_program()
    keys = [key_of(optimizer, dtype) for dtype in ("float16", "bfloat16", "float32", "float64")]
    used = set[str]()
    for key in keys:
        used |= globals_of(source(optimizer.program(), KernelKey(key.dtypes, key.in_place, flush)))
    used |= globals_of(source(norm, kernel_key(norm, {"p": "float32", "g": "float32"}, in_place=True, flush=flush)))
    assert len(used) > 10
    names = array_names(KernelKey(tuple((name, "float32") for name in used), True, flush), language.reserved)
    assert [name for name in used if names[name] == name] == []
    inputs = tuple(Op("input", Kind.FLOAT, label=name) for name in sorted(used))
    assert not used.intersection(identifiers(Program("Named", inputs, {}), {}, language.reserved))


def keeping(slots: Sequence[str]) -> Program:
    """Return a program that takes the root of all squares, and keeps all slots."""
    names = ("p", "g", *slots)
    ops = [Op("load", Kind.ARRAY, label=name) for name in names]
    norm = Op("norm", Kind.FLOAT, (1,)), Op("round", Kind.ARRAY, (len(ops),))
    kept = {name: i for i, name in enumerate(names) if name != "g"}
    return Program("Kept", (*ops, *norm, Op("multiply", Kind.ARRAY, (0, len(ops) + 1))), kept | {"p": len(ops) + 2})


def test_no_array_of_a_rule_hides_what_cuda_c_uses(tmp_path: Path) -> None:
    """Compiled with arrays of all names that sources use, but for those that get others."""
    for staged, language in ((False, CUDA), (True, LANGUAGE_OF_PASSES)):
        slots = ["m"]
        for _ in range(2):
            program = keeping(slots)
            if not staged:
                program = Program("Kept", program.ops[: 2 + len(slots)], {**program.array_outputs, "p": 0})
            key = kernel_key(program, dict.fromkeys(("p", "g", *slots), "float32"), in_place=True, flush="where")
            source = (staged_source if staged else cuda_source)(program, key)
            compile_on_host(source, tmp_path)
            words = set(re.findall(r"\b[A-Za-z]\w*", re.sub("//.*", "", source))) | {"m_before", "m_fours"}
            named = KernelKey(tuple((word, "float32") for word in sorted(words)), True, "where")
            found = array_names(named, language.reserved)
            slots = sorted({"m", *(word for word in words - {"p", "g"} if found[word] == word)})
        assert len(slots) > 20


@each
def test_every_operation_can_be_written(language: Language, source: Source, flush: Flush) -> None:
    assert set(ARRAY_OPERATIONS) - {"load", "round"} <= set(language.arrays)
    scalars = {op.name for op in expand_elementary(norm_program()).ops if op.kind.is_scalar}
    assert scalars - {*GIVEN, "constant"} <= set(language.scalars)


@each
def test_an_operation_that_a_table_lacks_is_named(language: Language, source: Source, flush: Flush) -> None:
    load, norm = Op("load", Kind.ARRAY, label="p"), Op("total_norm", Kind.FLOAT, (0,), "gradient_norm")
    with_array = Program("Tangent", (load, Op("tangent", Kind.ARRAY, (0,))), {"p": 1})
    tangent = Op("round", Kind.ARRAY, (2,))
    with_scalar = Program(
        "Tangent",
        (load, norm, Op("tangent", Kind.FLOAT, (1,)), tangent, Op("add", Kind.ARRAY, (0, 3))),
        {"p": 4},
    )
    for program, kind in ((with_array, "array"), (with_scalar, "scalar")):
        key = kernel_key(program, {"p": "float32", "g": "float32"}, in_place=True, flush=flush)
        with pytest.raises(
            NotImplementedError, match=rf"^{re.escape(language.name)} has no {kind} operation 'tangent'$"
        ):
            source(program, key)


@each
def test_names_that_a_source_cannot_use_are_numbered(language: Language, source: Source, flush: Flush) -> None:
    names = ("table", "Größe", "momentOfG", "p_i", "new_p", "slot_3", "a0", "mean_of")
    key = KernelKey(tuple((name, "float32") for name in ("p", "g", *names)), True, flush)
    found = array_names(key, language.reserved)
    assert found == {"p": "p", "g": "g", **{name: f"slot_{i}" for i, name in enumerate(names, start=2)}}
