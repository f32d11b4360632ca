"""A step on a million raw words, and many on a tenth as many ordinary numbers, against NumPy: all rules, dialects, dtypes."""

from __future__ import annotations

import concurrent.futures
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import portopt
from gpu_check.comparison import differing, ordinary, raw
from gpu_check.options import Options
from gpu_check.targets import Target, targets
from gpu_check.workers import Keep, failure, last_line, run_worker
from portopt_conformance.configurations import Configuration, configurations

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SHAPES = ((77,), (300, 401), (6, 5, 64))
"""Of the parameters beside the large one: a vector, matrices whose rows, columns and slices rules may reduce or multiply."""
_GRADIENTS = 3
_FEWER = 10
"""Many steps are done on so much fewer elements than the one on raw words."""
_SHOWN = 4


def run(options: Options) -> Mapping[str, Any]:
    """Return counts by backend and dtype; the rows stand in `bits.json`."""
    jobs = [
        {"rule": rule.__name__, "clipped": clipped}
        for clipped in (False, True)
        for rule in portopt.RULES
        if any(options.chosen(_name(rule, c, dtype, clipped=clipped)) for c in _chosen(rule) for dtype in _DTYPES)
    ]
    limit = max(10.0, min(95.0, options.left() * 0.5 - 15) / -(-len(jobs) // options.jobs))
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda job: run_worker(options, "bits", job, limit), jobs))
    rows: list[dict[str, Any]] = []
    for job, result in zip(jobs, results, strict=True):
        rows += result.get("rows", [])
        if "exit" in result:
            rows.append({"case": f"{job}", "backend": "any", "error": f"exit {result['exit']}: {result['text']}"})
        elif not result.get("complete"):
            print(f"  {job}: time for {len(result.get('rows', []))} comparisons only", flush=True)
    (options.out / "bits.json").write_text(json.dumps(rows, indent=0), encoding="utf-8")
    counts: dict[str, Any] = {}
    for row in rows:
        dtype = row["case"].split("/")[2] if row["case"].count("/") > 1 else "?"
        of_kind = counts.setdefault(f"{row['backend']} {dtype}", {"same": 0, "wrong": 0, "error": 0})
        of_kind["error" if "error" in row else "wrong" if "wrong" in row else "same"] += 1
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count}")
    bad = [row for row in rows if "wrong" in row or "error" in row]
    for row in bad[:_SHOWN]:
        what = last_line(row["error"]) if "error" in row else json.dumps(row["wrong"])
        print(f"    {row['backend']} {row['case']}: {what[:300]}", flush=True)
    return {**counts, "wrong": len(bad)}


def _chosen(rule: type[portopt.Optimizer]) -> Sequence[Configuration]:
    named = [c for c in configurations(rule) if c.name in ("default", "nesterov", "amsgrad") or c.dialect]
    return sorted(named, key=lambda c: (c.name != "default", not c.dialect))


def _name(rule: type[portopt.Optimizer], configuration: Configuration, dtype: str, *, clipped: bool) -> str:
    return f"{rule.__name__}/{configuration.name}/{dtype}" + "/clipnorm" * clipped


def work(options: Options, argument: Mapping[str, Any], keep: Keep) -> None:
    """Compare one rule, with or without clipnorm, until time is up."""
    start, compared = time.monotonic(), targets(options)
    rule = next(rule for rule in portopt.RULES if rule.__name__ == argument["rule"])
    rows: list[dict[str, Any]] = []
    clipped = argument["clipped"]
    for dtype in _DTYPES:
        for configuration in _chosen(rule):
            if time.monotonic() - start > argument["limit"]:
                keep({"rows": rows, "complete": False})
                return
            optimizer = configuration.optimizer(clipnorm=1.0) if clipped else configuration.optimizer()
            name = _name(rule, configuration, dtype, clipped=clipped)
            if options.chosen(name):
                rows += _compare(options, optimizer, name, dtype, compared, clipped=clipped)
                keep({"rows": rows, "complete": False})
    keep({"rows": rows, "complete": True})


def _compare(
    options: Options,
    optimizer: portopt.Optimizer,
    name: str,
    dtype: str,
    compared: Mapping[str, Target],
    *,
    clipped: bool,
) -> Iterator[dict[str, Any]]:
    for kind in ("raw", "many"):
        # Without kernels, which would have to be compiled for the host first.
        with portopt.interpreted():
            expected = _results(
                options, optimizer, Target(portopt.get_backend("numpy"), "cpu"), dtype, kind, clipped=clipped
            )
        for label, target in compared.items():
            if dtype not in target.backend.dtypes():
                continue
            row: dict[str, Any] = {"case": f"{name}/{kind}", "backend": label}
            try:
                actual = _results(options, optimizer, target, dtype, kind, clipped=clipped)
                wrong = {key: found for key in expected if (found := differing(actual[key], expected[key]))}
                row |= {"wrong": wrong} if wrong else {}
            except Exception:
                row["error"] = failure()
            yield row


def _results(
    options: Options, optimizer: portopt.Optimizer, target: Target, dtype: str, kind: str, *, clipped: bool
) -> dict[str, Any]:
    """Return parameter and slots after a step on raw words, or after many on ordinary numbers."""
    backend, device = target
    is_raw = kind == "raw"
    count = options.words if is_raw else -(-options.words // _FEWER)
    # What reduces words of any bits gives NaN for all of them; so do the norms of clipping.
    finite = clipped or not optimizer.program(shape=(count,)).is_elementwise

    def put(array: Any) -> Any:
        return backend.from_numpy(array, device)

    def tree(first: Any, dtype: str, seed: int) -> list[Any]:
        return [put(first)] + [
            put(ordinary(math.prod(shape), dtype, seed + k).reshape(shape)) for k, shape in enumerate(_SHAPES)
        ]

    with backend.dtype_context(dtype), np.errstate(all="ignore"):
        params = tree(raw(count, dtype, 0, finite=finite) if is_raw else ordinary(count, dtype, 1), dtype, 2)
        gradients = [
            tree(raw(count, dtype, 1, finite=finite) if is_raw else ordinary(count, dtype, 3 + k), dtype, 30 + 9 * k)
            for k in range(1 if is_raw else _GRADIENTS)
        ]
        state = optimizer.init(params)
        trees = [name for name in state.slots if name not in optimizer.scalar_slots]
        if is_raw and not finite:
            slots = dict(state.slots)
            for k, slot in enumerate(trees):
                first, *others = state.slots[slot]
                if first is None or first.shape != (count,):
                    continue
                slots[slot] = [put(raw(count, backend.describe(first).dtype, 50 + k)), *others]
            state = state._replace(slots=slots)
        for step in range(1 if is_raw else options.steps):
            given = gradients[step % len(gradients)]
            if is_raw or backend.name == "jax":
                params, state = optimizer.apply(params, given, state)
            else:
                state = optimizer.apply_(params, given, state)
        found = {"p": params, **{name: state.slots[name] for name in trees}}
        return {
            f"{name}[{k}]": backend.to_numpy(array).reshape(-1)
            for name, arrays in found.items()
            for k, array in enumerate(arrays)
            if array is not None
        }
