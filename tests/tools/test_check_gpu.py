"""The check of a GPU, tried on the CPU: it runs from a checkout, finds what is wrong, and keeps all of what failures say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.places import ROOT

SCRIPT = ROOT / "scripts" / "check_gpu.py"


def check(out: Path, *arguments: str, **environment: str) -> tuple[int, str, dict[str, Any]]:
    """Run the check; return its exit status, what it printed, and its summary."""
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--jobs", "1", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=out, env={**os.environ, **environment}, timeout=1700
    )
    summary = out / "summary.json"
    return done.returncode, done.stdout + done.stderr, json.loads(summary.read_text()) if summary.exists() else {}


TINY = ("--device", "cpu", "--small", "--budget", "500", "--words", "300", "--steps", "2")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_section_runs_on_the_cpu(tmp_path: Path) -> None:
    few = (
        *("RMSprop/default/float32", "torch large", "torch totals", "Adam/20x256/portopt", "1/operations/add/float32"),
        *("TorchOptimizer", "test_cuda_scalars"),
    )
    code, printed, summary = check(tmp_path, *TINY, "--backends", "torch", "--layers", "1", "--only", ",".join(few))
    assert code == 0, printed
    assert summary["errors"] == {}
    assert summary["versions"]["numpy"]
    assert summary["launches"]["rows"] >= 3
    assert summary["host"]["passed"] >= 1
    assert summary["host"]["wrong"] == 0
    assert summary["operations"]["torch: a/b wrong"] == "0.00%"
    assert summary["timings"]["rows"] >= 2
    assert summary["semantics"]["torch large"]["found"] == {"elements": 65539, "wrong": 0}
    assert set(summary["semantics"]["torch totals"]["found"].values()) == {"same"}
    assert summary["bits"]["torch float32"] == {"same": 4, "wrong": 0, "error": 0}
    assert summary["conformance"]["torch"]["passed"] >= 1
    assert summary["conformance"]["torch"]["failed"] == 0


def test_a_failure_is_counted_and_its_whole_text_is_kept(tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    # NumPy plays CuPy's part on the CPU.
    broken.write_text(
        "import builtins, importlib.abc, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'portopt_numpy._backend' and '--worker=conformance' in sys.argv:\n"
        "            import portopt.optimizer as optimizer\n"
        "            def refuse(self, *a, **k): raise KeyError('the last line')\n"
        "            optimizer.Optimizer.apply = refuse\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    sections = ("--sections", "conformance", "--layers", "1", "--only", "1/operations/add/float32")
    code, printed, summary = check(tmp_path, *TINY, "--backends", "cupy", *sections, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert summary["conformance"]["cupy"]["failed"] >= 1
    assert "KeyError: 'the last line'" in printed
    failed = json.loads((tmp_path / "conformance.json").read_text())["cupy"]["failed"]
    assert failed[0]["text"].startswith("Traceback")
    assert failed[0]["text"].rstrip().endswith("KeyError: 'the last line'")


def test_a_case_that_ends_its_process_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if '--worker=conformance' in sys.argv:\n"
        "    import importlib.abc\n"
        "    class Finder(importlib.abc.MetaPathFinder):\n"
        "        def find_spec(self, name, path, target=None):\n"
        "            if name == 'portopt_conformance.purity':\n"
        "                from portopt_conformance import primitives\n"
        "                write = primitives.OPERATIONS['sqrt']\n"
        "                primitives.OPERATIONS['sqrt'] = (write[0], lambda *a: os.abort())\n"
        "    sys.meta_path.insert(0, Finder())\n"
    )
    sections = ("--sections", "conformance", "--layers", "1", "--only", "sqrt/float32/apply,add/float32/apply")
    code, printed, summary = check(tmp_path, *TINY, "--backends", "cupy", *sections, PYTHONPATH=str(tmp_path))
    assert code == 1
    counts = summary["conformance"]["cupy"]
    assert (counts["failed"], counts["run"]) == (1, counts["cases"])
    assert counts["passed"] == counts["cases"] - 1
    assert "1/operations/sqrt/float32/apply/words: exit -6: Fatal Python error: Aborted" in printed


def test_without_a_gpu_what_needs_one_is_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    chosen = ("--budget", "60", "--sections", "versions,timings,bits", "--page", str(page))
    code, printed, summary = check(tmp_path, *chosen, CUDA_VISIBLE_DEVICES="")
    assert code == 0
    assert "NOT RUN: timings, bits: no library has a CUDA device (torch: " in printed
    assert summary["not run"] == ["timings", "bits"]
    assert "- timings, bits: no library has a CUDA device" in page.read_text()


TIMED = {
    "rule": "Adam",
    "shapes": "one-100M",
    "of_copy": 0.93,
    "python_us": 21.0,
    "kernels": 1,
    "copies": 0,
    "waits": 0,
}
PROFILED = {"tensors": 200, "caches": "warm"}
FOUND: dict[str, Any] = {
    "summary": {
        "versions": {
            "gpu": "A GPU, 1.0",
            "python": "3.12.1",
            "torch": "2.11.0",
            "nvrtc": [13, 0],
            "cupy": "missing: ImportError: no",
        },
        "bits": {
            "torch float32": {"same": 4, "wrong": 0, "error": 1},
            "wrong": 1,
            "cases": 9,
            "reached": 5,
            "unfinished": ["Shampoo/default/float16"],
        },
        "conformance": {"torch": {"cases": 9, "run": 8, "passed": 7, "failed": 1}, "wrong": 1},
        "semantics": {
            "torch totals": {"found": {"a": "same", "b": "same"}},
            "torch stream": {
                "found": {"bits": "same", "returned_ms": 1.25, "a rule": {"differs": "Traceback\n  /a/path\nE: no"}}
            },
            "torch graph": {"text": "Traceback\nRuntimeError: a|b"},
            "wrong": ["torch graph"],
        },
        "errors": {"operations": "Traceback\nKeyError: 'x'"},
    },
    "profile": [
        {**PROFILED, "step": "apply_", "us": {"step": 25.5, "look": 11.4}, "driver_us": {"cuLaunchKernel": 3.9}},
        {**PROFILED, "step": "apply", "us": {"step": 959.1, "new arrays": 675.9}, "driver_us": {"a": 9.0, "b": 6.0}},
        {**PROFILED, "step": "apply", "caches": "", "error": "Traceback"},
    ],
    "timings": {
        "copy_gb_s": 4200.0,
        "rows": [
            {**TIMED, "who": "portopt torch", "ms": 0.5},
            {**TIMED, "who": "torch.optim fused", "ms": 0.6},
            {**TIMED, "who": "torch.optim foreach", "ms": 1.6},
            {**TIMED, "who": "optax jit", "ms": 0.1},
            {**TIMED, "who": "portopt jax jit", "error": "Traceback\nno"},
        ],
    },
}


def options_for(folder: Path) -> Any:
    """Return the options of a check that writes a page."""
    from gpu_check.options import from_command_line

    return from_command_line(["--out", str(folder / "out"), "--page", str(folder / "page.md")])


def test_a_page_says_what_the_sections_found(tmp_path: Path) -> None:
    from gpu_check.page import ON_A_GPU, write_page

    options = options_for(tmp_path)
    for name in ("timings", "profile"):
        (options.out / f"{name}.json").write_text(json.dumps(FOUND[name]))
    write_page(options, FOUND["summary"], None)
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(ON_A_GPU)
    for line in (
        "on A GPU, 1.0.",
        "Versions: python 3.12.1, torch 2.11.0, cupy missing, nvrtc 13.0.",
        "| one-100M | portopt torch | 0.500 ms | 93% | 1.20× torch.optim fused | 21 µs | 1 | 0 | 0 |",
        "| one-100M | torch.optim fused | 0.600 ms | 93% |  | 21 µs | 1 | 0 | 0 |",
        "5 of 9 cases were reached",
        "| torch float32 | 4 | 0 | 1 |",
        "Not finished in their time: Shampoo/default/float16.",
        "| apply_ | 200 | warm | 25.5 | 11.4 |  | 3.9 |",
        "| apply | 200 | warm | 959.1 |  | 675.9 | 15.0 |",
        "| torch | 9 | 8 | 7 | 1 |",
        "| torch totals | the same bits in 2 cases |",
        "| torch stream | bits same, returned_ms 1.25, a rule FAILED: E: no |",
        "| torch graph | FAILED: RuntimeError: a\\|b |",
        "- operations: KeyError: 'x'",
    ):
        assert line in page
    assert "portopt jax jit" not in page


def test_a_page_without_a_gpu_says_what_was_not_run_and_replaces_none_of_a_gpu(tmp_path: Path) -> None:
    from gpu_check.page import ON_A_GPU, write_page

    options = options_for(tmp_path)
    launch = {"step": "apply_", "tensors": 200, "library": "torch", "launches": 1, "uploads": 0, "bytes": 0, "waits": 0}
    (options.out / "launches.json").write_text(json.dumps([{**launch, "python_us": 14.04}]))
    summary = {"versions": {}, "host": {"passed": 5, "wrong": 0}, "errors": {}, "not run": ["timings"]}
    write_page(options, summary, "no CUDA device")
    page = (tmp_path / "page.md").read_text()
    assert "on a machine without a GPU" in page
    assert "| apply_ | 200 | torch | 1 | 0 | 0 | 0 | 14.0 µs |" in page
    assert "5 tests passed, 0 failed" in page
    assert "- timings: no CUDA device" in page
    (tmp_path / "page.md").write_text(f"{ON_A_GPU}\nfigures\n")
    write_page(options, summary, "no CUDA device")
    assert (tmp_path / "page.md").read_text() == f"{ON_A_GPU}\nfigures\n"


def test_what_time_did_not_suffice_for_is_named_and_is_not_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpu_check import bits
    from gpu_check.options import from_command_line

    row = {"case": "Adam/default/float32/raw", "backend": "torch"}
    results = [
        {"rows": [row], "exit": 124, "text": "", "stopped": True, "running": "Shampoo/default/float16"},
        {"exit": 1, "text": "ValueError: no", "running": "Adam/default/float16"},
    ]
    monkeypatch.setattr(bits, "run_cases", lambda *_: results)
    found = bits.run(from_command_line(["--out", str(tmp_path), "--jobs", "1", "--only", "Adam/default"]))
    assert found["torch float32"] == {"same": 1, "wrong": 0, "error": 0}
    assert found["any float16"] == {"same": 0, "wrong": 0, "error": 1}
    assert (found["wrong"], found["unfinished"]) == (1, ["Shampoo/default/float16"])
    assert "not finished in their time: Shampoo/default/float16" in capsys.readouterr().out


def test_sections_are_in_the_order_in_which_they_are_run(tmp_path: Path) -> None:
    """The last one has all of the time that is left."""
    from gpu_check.options import from_command_line

    options = from_command_line(["--out", str(tmp_path), "--sections", "bits,timings"])
    assert options.sections == ("timings", "bits")


@pytest.mark.parametrize(("began", "had_too_little_time"), [(80.0, True), (10.0, False), (None, False)])
def test_what_began_early_and_does_not_end_hangs(
    began: float | None, had_too_little_time: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_check import workers
    from gpu_check.options import from_command_line

    class Hanging:
        def __init__(self, command: list[str], **_: Any) -> None:
            given = json.loads(command[-1].removeprefix("--argument="))
            if began is not None:
                Path(given["result"]).write_text(json.dumps({"running": "a case", "began": began}))
            self.is_killed = False

        def wait(self, timeout: float | None = None) -> int:
            if not self.is_killed:
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            return -9

        def kill(self) -> None:
            self.is_killed = True

    monkeypatch.setattr(subprocess, "Popen", Hanging)
    options = from_command_line(["--out", str(tmp_path), "--budget", "1000"])
    found = workers.run_worker(options, "bits", {}, 100.0)
    assert ("stopped" in found) == had_too_little_time
    assert found["exit"] == 124
    assert found["text"].endswith("it was stopped: it ran on after its time")
