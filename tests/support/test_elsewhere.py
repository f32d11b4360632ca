"""Cases in other processes: what goes wrong there is told here, and what was spoilt is not used again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.case_names import cases_of
from support.elsewhere import KEPT, Elsewhere

MODULE = """
import os, signal, sys, warnings

def process(*arguments, **further):
    return os.getpid(), os.environ.get("WHICH"), arguments

def fails():
    print("printed before")
    os.system("echo printed by a child")
    assert 1 == 2, "so it is"

def warns():
    warnings.warn("take care")

def dies():
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def leaves():
    sys.exit(0)

def reads_and_writes():
    os.write(1, b"not an answer")
    return sys.stdin.read()
"""


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "tried.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.closing(Elsewhere(tmp_path)) as elsewhere:
        yield elsewhere


def test_a_process_is_kept_for_each_environment(processes: Elsewhere) -> None:
    first, which, arguments = processes.call("tried", "process", Path("a"), 2, WHICH="1")
    assert (which, arguments) == ("1", (Path("a"), 2))
    assert first != os.getpid()
    assert processes.call("tried", "process", WHICH="1")[0] == first
    assert processes.call("tried", "process", WHICH="2")[0] != first
    assert processes.call_alone("tried", "process", WHICH="1")[0] != first


def test_only_the_processes_used_last_are_kept(processes: Elsewhere) -> None:
    first = [processes.call("tried", "process", WHICH=str(i))[0] for i in range(KEPT + 1)]
    again = [processes.call("tried", "process", WHICH=str(i))[0] for i in reversed(range(KEPT + 1))]
    assert again[:-1] == first[:0:-1]
    assert again[-1] != first[0]
    with pytest.raises(ProcessLookupError):
        os.kill(first[0], 0)


def test_several_processes_are_asked_at_once(processes: Elsewhere) -> None:
    found = processes.call_in_each([{"WHICH": "1"}, {"WHICH": "2"}], "tried", "process")
    assert [which for _, which, _ in found] == ["1", "2"]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("fails", "AssertionError: so it is\nprinted before\nprinted by a child\n"),
        ("warns", "UserWarning: take care"),
        ("dies", "the process ended with -9\nlast words\n"),
        ("leaves", "SystemExit: 0"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_a_failure_is_told_and_its_process_not_used_again(processes: Elsewhere, function: str, told: str) -> None:
    first, _, _ = processes.call("tried", "process")
    with pytest.raises(pytest.fail.Exception) as caught:
        processes.call("tried", function)
    assert f"cases.tried.{function}:" in str(caught.value)
    assert all(line in str(caught.value) for line in told.splitlines())
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert processes.call("tried", "process")[0] != first


def test_a_case_has_no_part_in_questions_and_answers(processes: Elsewhere) -> None:
    assert processes.call("tried", "reads_and_writes") == ""


def test_cases_are_found_without_importing_them() -> None:
    stateless, mirrored = (
        "case_stateless_apply_leaves_its_arguments",
        "case_a_mirrored_strategy_gives_the_bits_of_one_device",
    )
    found = {backend: cases_of("keras_cases", backend) for backend in ("jax", "torch", "tensorflow")}
    assert [backend for backend, names in found.items() if stateless in names] == ["jax", "torch"]
    assert [backend for backend, names in found.items() if mirrored in names] == ["tensorflow"]
    assert all("case_embeddings_train" in names for names in found.values())
