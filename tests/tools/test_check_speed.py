"""The check of speed: what is slow fails, what was disturbed is tried again, and the times are those of one process."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from support.places import ROOT

from portopt_tools.bench import measuring

pytestmark = pytest.mark.needs("torch")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_speed", ROOT / "scripts" / "check_speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what lets time pass."""
    now = [0.0]
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(("ours", "failed"), [(0.25, 0), (0.5, 0), (0.75, 1)])
def test_a_case_fails_below_half_of_its_target(
    ours: float,
    failed: int,
    once: bool,
    script: ModuleType,
    take: Callable[[float], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = script.Case("a step", 4.0, lambda: (lambda: take(ours), lambda: take(1.0)), once)
    monkeypatch.setattr(script.torch, "set_num_threads", lambda count: None)
    assert script.main(["--out", str(tmp_path / "new" / "speed.json")], [case]) == failed
    result = json.loads((tmp_path / "new" / "speed.json").read_text(encoding="utf-8"))
    assert (result["passed"], result["failed"]) == (1 - failed, failed)
    assert result["cases"][0]["ratio"] == pytest.approx(1 / ours)
    line = capsys.readouterr().out
    assert line.startswith("FAILED" if failed else "passed")
    assert f"a step: {1 / ours:.2f} times as fast; the target is 4, 2 is enough" in line


def test_what_was_slow_is_tried_again_and_what_compiles_is_prepared_anew(
    script: ModuleType, take: Callable[[float], None]
) -> None:
    prepared: list[float] = []

    def prepare() -> tuple[Callable[[], None], Callable[[], None]]:
        prepared.append(8.0 / 2 ** len(prepared))
        seconds = prepared[-1]
        return lambda: take(seconds), lambda: take(1.0)

    assert script.ratio(script.Case("compiling", 1.0, prepare, once=True)) == pytest.approx(0.5)
    assert prepared == [8.0, 4.0, 2.0]
