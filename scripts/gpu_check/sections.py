"""The sections of the check, one after another."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from gpu_check import bits, conformance, host, launches, operations, profile, semantics, timings, versions
from gpu_check.options import WITHOUT_A_GPU, Options
from gpu_check.page import write_page
from gpu_check.workers import failure, last_line

LEAST_SECONDS = 8
"""A section is not begun with less than this left."""

_SECTIONS: Mapping[str, Callable[[Options], Mapping[str, Any]]] = {
    "versions": versions.run,
    "launches": launches.run,
    "profile": profile.run,
    "host": host.run,
    "operations": operations.run,
    "timings": timings.run,
    "semantics": semantics.run,
    "bits": bits.run,
    "conformance": conformance.run,
}


def run_sections(options: Options, no_gpu: str | None = None) -> int:
    """Run the chosen sections and save what they found; return 1 if one failed, or found something wrong.

    Args:
        options: of the check.
        no_gpu: why there is no GPU; then those sections that need one are not run.
    """
    for name in _SECTIONS:
        # What an earlier run found is not to stand beside what this one finds.
        (options.out / f"{name}.json").unlink(missing_ok=True)
    summary: dict[str, Any] = {"arguments": sys.argv[1:], "errors": {}, "not run": []}
    for name, run in _SECTIONS.items():
        if name not in options.sections:
            continue
        if no_gpu is not None and name not in WITHOUT_A_GPU:
            summary["not run"].append(name)
            continue
        if options.left() < LEAST_SECONDS:
            summary["errors"][name] = "no time was left"
            continue
        start = time.monotonic()
        try:
            summary[name] = run(options)
        except Exception:
            summary["errors"][name] = failure()
            print(f"!! {name}: {last_line(failure())}", flush=True)
        print(f"-- {name}: {time.monotonic() - start:.1f} s, {options.left():.0f} s left", flush=True)
        _save(options, summary)
    _save(options, summary)
    wrong = [name for name in _SECTIONS if isinstance(summary.get(name), dict) and summary[name].get("wrong")]
    for name, text in summary["errors"].items():
        print(f"ERROR in {name}: {last_line(text)}")
    if summary["not run"]:
        print(f"NOT RUN: {', '.join(summary['not run'])}: {no_gpu}")
    write_page(options, summary, no_gpu)
    print(f"wrong: {', '.join(wrong) or 'nothing'}; files in {options.out}", flush=True)
    return int(bool(wrong or summary["errors"]))


def _save(options: Options, summary: Mapping[str, Any]) -> None:
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1, default=str), encoding="utf-8")
