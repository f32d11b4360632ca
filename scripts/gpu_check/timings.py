"""Times of a step beside what the memory allows, for portopt and for the libraries themselves."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import portopt
from gpu_check.contenders import Shapes, contenders
from gpu_check.measuring import kernels_of, measure
from gpu_check.options import Options
from gpu_check.targets import synchronize, torch_device
from gpu_check.workers import GRACE, Keep, failure, last_line, run_worker
from portopt.program import Program
from portopt_tools.bench import cases
from portopt_tools.bench.shapes import SHAPE_SETS

_SHARE = 0.36
"""Of the time that is left, where other sections come after it."""
_PARTS = ((("torch", "cupy"), 0.65), (("jax",), 0.35))
"""Libraries whose steps are timed in one process, and their share of the time."""
_COPIED = 1 << 28


def run(options: Options) -> Mapping[str, Any]:
    """Return how many rows there are; they stand in `timings.json`."""
    is_last = options.sections[-1] == "timings"
    limit = max(20.0, options.left() - GRACE if is_last else min(110.0, options.left() * _SHARE))
    rows: list[dict[str, Any]] = []
    copies, failed = list[float](), 0
    parts = [([name for name in libraries if name in options.backends], share) for libraries, share in _PARTS]
    shared = sum(share for chosen, share in parts if chosen)
    for chosen, share in parts:
        if not chosen:
            continue
        result = run_worker(options, "timings", {"backends": chosen}, limit * share / shared)
        rows += result.get("rows", [])
        copies.append(result.get("copy_gb_s", 0.0))
        if "text" in result:
            failed += not result.get("rows")
            print(f"  {', '.join(chosen)}: {last_line(result['text'])}", flush=True)
    found = {"copy_gb_s": max(copies, default=0.0), "rows": rows}
    (options.out / "timings.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"  a copy moves {found['copy_gb_s']:.0f} GB/s")
    for row in rows:
        print(f"  {row['rule']:8} {row['shapes']:10} {row['who']:23} {_short(row)}", flush=True)
    broken = [row for row in rows if "error" in row and row["who"].startswith("portopt")]
    return {"rows": len(rows), "copy_gb_s": found["copy_gb_s"], "wrong": len(broken) + failed}


def _short(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return "error: " + last_line(row["error"])[:120]
    text = f"{row['ms']:.3f} ms, {row['of_copy']:.0%} of copy, Python {row['python_us']:.0f} us"
    if "kernels" in row:
        text += f"; {row['kernels']} kernels of {row['kernel_us']:.0f} us, {row['copies']} copies, {row['waits']} waits"
    return text


def _shape_sets(options: Options) -> dict[str, Shapes]:
    if options.small:
        return {"one-10K": [(10_000,)], "20x256": [(256,)] * 20}
    models = {name: [tuple(s) for s in SHAPE_SETS[name].shapes] for name in ("resnet50", "gpt2-small")}
    small = {"200x256": [(256,)] * 200, "1000x256": [(256,)] * 1000}
    few = {"one-10M": [(10_000_000,)], "one-100M": [(100_000_000,)], "4x1000": [(1000,)] * 4}
    return {**few, **small, **models}


def work(options: Options, argument: Mapping[str, Any], keep: Keep) -> None:
    """Time until time is up: Adam on all shapes, then the other rules on the largest array.

    JAX, which compiles for each set of shapes, does what has many arrays last.
    """
    start, options = time.monotonic(), dataclasses.replace(options, backends=tuple(argument["backends"]))
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"rows": rows, "copy_gb_s": _copy_rate(options)}
    sets, rules = _shape_sets(options), {case.rule: case.optimizer for case in cases.built_in()}
    largest = "one-10K" if options.small else "one-100M"
    plan = [("Adam", name) for name in sets]
    # Rules that look at rows and columns need a matrix.
    matrix = "matrix-10K" if options.small else "matrix-100M"
    sets[matrix] = [(100, 100) if options.small else (10_000, 10_000)]
    elementwise = {rule for rule, optimizer in rules.items() if optimizer.program(shape=(3, 4)).is_elementwise}
    plan += [(rule, largest if rule in elementwise else matrix) for rule in rules if rule != "Adam"]
    if "jax" in options.backends:
        plan.sort(key=lambda entry: len(sets[entry[1]]))
    for rule, name in plan:
        for contender in contenders(options, rule, rules[rule], sets[name]):
            if time.monotonic() - start > argument["limit"]:
                return
            row: dict[str, Any] = {"rule": rule, "shapes": name, "who": contender.name}
            if options.chosen(f"{rule}/{name}/{contender.name}"):
                rows.append(row)
                try:
                    row |= _timed(options, contender.make, rules[rule], sets[name], result["copy_gb_s"])
                except Exception:
                    row["error"] = failure()
                keep(result)
            gc.collect()


def _timed(options: Options, make: Any, rule: portopt.Optimizer, shapes: Shapes, copy_gb_s: float) -> dict[str, Any]:
    step, wait = make()
    row = measure(options, step, wait)
    # Parameter, gradient and slots of its shape are read once, all but the gradient written.
    program = rule.program(shape=shapes[0])
    slots = [name for name in program.array_outputs if name != "p" and _is_whole(program, name)]
    moved = 4 * sum(map(math.prod, shapes)) * (3 + 2 * len(slots))
    row["of_copy"] = moved / (row["ms"] / 1e3) / (copy_gb_s * 1e9)
    if options.on_gpu and type(rule) is portopt.Adam:
        row |= kernels_of(step, wait or (lambda: synchronize(options)))
    return row


def _is_whole(program: Program, name: str) -> bool:
    """Tell whether a slot has the shape of its parameter."""
    return all(op.dims is None for op in program.ops if op.reads == name)


def _copy_rate(options: Options) -> float:
    """Return the GB/s that a copy of a large array reads and writes."""
    torch = importlib.import_module("torch")
    count = 1 << 20 if options.small else _COPIED
    source = torch.zeros(count, dtype=torch.float32, device=torch_device(options))
    target = torch.empty_like(source)
    seconds = measure(options, lambda: target.copy_(source))["ms"] / 1e3
    return float(np.float64(8 * count / seconds / 1e9))
