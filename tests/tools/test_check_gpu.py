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
    few = "RMSprop/default/float32,torch large,torch totals,Adam/20x256/portopt,1/operations/add/float32"
    code, printed, summary = check(tmp_path, *TINY, "--backends", "torch", "--layers", "1", "--only", few)
    assert code == 0, printed
    assert summary["errors"] == {}
    assert summary["versions"]["numpy"]
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


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    code, printed, _ = check(tmp_path, "--budget", "60", CUDA_VISIBLE_DEVICES="")
    assert code == 0
    assert printed.startswith("NOT RUN: no library has a CUDA device (torch: ")
