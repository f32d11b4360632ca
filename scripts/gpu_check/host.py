"""The bits of the kernels' CUDA C where it runs without a GPU: compiled for the host, by the tests that do so.

A case is a module of tests.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_check.checkout import ROOT
from gpu_check.options import Options
from gpu_check.workers import last_line

_TESTS = "test_*cuda*.py"


def run(options: Options) -> Mapping[str, Any]:
    """Return how many of the tests passed; what they printed stands in `host.txt`."""
    modules = sorted((ROOT / "tests" / "kernels").glob(_TESTS))
    tests = [str(module) for module in modules if options.chosen(module.stem)]
    if not tests:
        return {"skipped": "NOT RUN: no module of tests is chosen"}
    report = options.out / "host.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, options.left()), check=False
        )
    except subprocess.TimeoutExpired:
        return {"skipped": "NOT RUN: no time was left"}
    (options.out / "host.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not report.exists():
        return {"skipped": f"NOT RUN: {last_line(done.stdout + done.stderr)}"}
    found = counts(report)
    print(f"  the kernels' CUDA C on the host: {found['passed']} tests passed, {found['wrong']} failed", flush=True)
    return found


def counts(report: Path) -> dict[str, int]:
    """Return how many tests of a JUnit report passed, how many failed, and how many were skipped."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.attrib[name]) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return {"passed": total - failures - errors - skipped, "wrong": failures + errors, "skipped tests": skipped}
