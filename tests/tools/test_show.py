from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys

import pytest
from support.commands import exit_status
from support.elementwise import ELEMENTWISE, STAGED
from support.turns import in_turns

import portopt
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.program.products import operands_of
from portopt_tools.show import DEFAULT_SHAPE, TARGETS, show

OUTPUT = pytest.CaptureFixture[str]
SOURCES = [target for target in TARGETS if target != "program"]
every_rule = pytest.mark.parametrize("rule", portopt.RULES, ids=lambda rule: rule.__name__)


@every_rule
def test_the_program_of_every_rule_is_printed(rule: type[portopt.Optimizer], capsys: OUTPUT) -> None:
    assert exit_status(["show", rule.__name__.upper(), "--target", "program"]) == 0
    assert capsys.readouterr().out == f"{rule().program(shape=DEFAULT_SHAPE)}\n"


@pytest.mark.parametrize(
    ("rule", "dtype"),
    in_turns([*ELEMENTWISE, *STAGED], list(COMPUTE_DTYPE), in_all=(portopt.Adam, portopt.LAMB)),
    ids=lambda x: getattr(x, "__name__", str(x)),
)
@pytest.mark.parametrize("target", SOURCES)
def test_the_source_of_every_rule_names_its_arrays_and_dtype(
    rule: type[portopt.Optimizer], target: str, dtype: str, capsys: OUTPUT
) -> None:
    status = exit_status(["show", rule.__name__.lower(), "--target", target, "--dtype", dtype])
    text, error = capsys.readouterr()
    if status and rule.draws:
        assert f"{rule.__name__} cannot be written for --target {target}: " in error
        return
    assert f"{rule.__name__} on {dtype}, computed in {COMPUTE_DTYPE[dtype]}" in text
    assert all(name in text for name in rule().program(shape=DEFAULT_SHAPE).array_outputs)


@pytest.mark.parametrize("target", SOURCES)
def test_sources_are_for_float32_unless_a_dtype_is_named(target: str) -> None:
    assert show(portopt.Adam(), target) == show(portopt.Adam(), target, "float32")
    assert show(portopt.Adam(), target) != show(portopt.Adam(), target, "float64")


def test_generated_python_is_python() -> None:
    assert any(isinstance(node, ast.FunctionDef) for node in ast.parse(show(portopt.Nadam(), "numba")).body)


@pytest.mark.parametrize("target", ["program", *SOURCES])
def test_options_of_the_rule_decide_what_is_shown(target: str, capsys: OUTPUT) -> None:
    config = '{"class_name": "Adam", "config": {"amsgrad": true}}'
    assert exit_status(["show", config, "--target", target]) == 0
    assert "vhat" in capsys.readouterr().out
    assert exit_status(["show", "adam", "--target", target]) == 0
    assert "vhat" not in capsys.readouterr().out


def test_a_rule_may_stand_in_a_file(tmp_path: object, capsys: OUTPUT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("rule.json", "w", encoding="utf-8") as file:  # noqa: PTH123  # relative, as a user types it
        file.write('{"class_name": "SGD", "config": {"momentum": 0.5}}')
    assert exit_status(["show", "rule.json"]) == 0
    assert capsys.readouterr().out.startswith("program SGD\n  scalars, float64, given learning_rate, momentum\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RULE"),
        (["adm"], "unknown optimizer: 'adm'; did you mean 'Adam'?"),
        (['{"class_name": "Adam", "config": {"beta_1": 2}}'], "beta_1 must be in [0, 1), but 2 was"),
        (["adam", "--target", "fortran"], "invalid choice: 'fortran'"),
        (["adam", "--target", "numba", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["adam", "--shape", "3,x"], "must be lengths such as 256,512, but '3,x' was given"),
        (["adam", "--dtype", "float16"], "a program has no dtype, so --dtype float16 has no meaning"),
    ],
)
def test_unusable_arguments_are_refused(arguments: list[str], message: str, capsys: OUTPUT) -> None:
    assert exit_status(["show", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_a_program_that_depends_on_the_shape_is_shown_for_the_one_that_is_named(capsys: OUTPUT) -> None:
    for shape in ("3,4", "3", ""):
        assert exit_status(["show", "adammini", "--shape", shape]) == 0
        expected = portopt.AdamMini().program(shape=tuple(map(int, shape.split(","))) if shape else ())
        assert capsys.readouterr().out == f"{expected}\n"


def test_a_kernel_that_cannot_hold_a_program_is_not_shown(capsys: OUTPUT) -> None:
    assert exit_status(["show", "Muon", "--target", "numba"]) == 2
    assert "Muon cannot be written for --target numba: its step " in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_what_is_run_for_a_program_with_products_is_shown_in_order(dtype: str) -> None:
    optimizer = portopt.Muon()
    program = optimizer.program(shape=DEFAULT_SHAPE)
    text = show(optimizer, "cuda", dtype)
    lines = text.splitlines()
    products = [i for i, op in enumerate(program.ops) if op.name == "matmul"]
    multiplied = [line for line in lines if line.startswith("// ") and " @ " in line]
    names = program.names()
    assert [line.removeprefix("// ").partition(" = ")[0] for line in multiplied] == [names[i] for i in products]
    assert all(("6 products" if dtype == "float64" else "a product") in line for line in multiplied)
    for i, line in zip(products, multiplied, strict=True):
        assert re.match(rf"\n*// {names[i]}: kernel rescaled, of source \d", text.partition(line)[2])
    # X X' takes one slicing.
    needed = {(operand.source, operand.axis) for pair in operands_of(program).values() for operand in pair}
    assert text.count("kernel rows_sliced") + text.count("kernel columns_sliced") == len(needed) < 2 * len(products)
    for kernel in ("rows_sliced", "columns_sliced", "rescaled"):
        assert len(re.findall(rf"__global__ void (?:\w+\(\w+\) )?{kernel}\(", text)) == (
            2 if kernel == "rescaled" else 1
        )
    assert text.count("struct Table {") == 1


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m portopt show nadam --target cuda | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("/", "")


def test_a_rule_that_a_target_cannot_express_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT) -> None:
    def cannot(program: object, dtype: str) -> str:
        raise NotImplementedError("it has no array operation 'tan'")

    monkeypatch.setitem(TARGETS, "numba", cannot)
    assert exit_status(["show", "adam", "--target", "numba"]) == 2
    assert "Adam cannot be written for --target numba: it has no array operation 'tan'" in capsys.readouterr().err
