"""A step on a million raw words, and many on a tenth as many ordinary numbers, against NumPy: all rules, dialects, dtypes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import portopt
from gpu_check.comparison import differing, ordinary, raw
from gpu_check.options import Options
from gpu_check.targets import Target, targets
from gpu_check.workers import GRACE, Keep, failure, last_line, run_cases
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
    names = [case.name for case in _cases() if options.chosen(case.name)]
    # What is alike comes to different processes, so that all of them have as much to do.
    shares = [share for k in range(options.jobs) if (share := names[k :: options.jobs])]
    limit = max(10.0, options.left() - GRACE - 5)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda share: list(run_cases(options, "bits", {"cases": share}, limit)), shares))
    rows: list[dict[str, Any]] = []
    unfinished = []
    for result in itertools.chain.from_iterable(results):
        rows += result.get("rows", [])
        if "stopped" in result:
            unfinished.append(result.get("running", "before its first case"))
        elif "exit" in result:
            running = result.get("running", "before its first case")
            rows.append({"case": running, "backend": "any", "error": f"exit {result['exit']}: {result['text']}"})
    (options.out / "bits.json").write_text(json.dumps(rows, indent=0), encoding="utf-8")
    reached = len({row["case"].rpartition("/")[0] for row in rows if row["case"].count("/") > 1})
    print(f"  {reached} of {len(names)} cases were reached", flush=True)
    if unfinished:
        print(f"  not finished in their time: {', '.join(unfinished)}", flush=True)
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
    return {**counts, "wrong": len(bad), "cases": len(names), "reached": reached, "unfinished": unfinished}


class _Case(NamedTuple):
    rule: type[portopt.Optimizer]
    configuration: Configuration
    dtype: str
    clipped: bool

    @property
    def name(self) -> str:
        """What `--only` chooses by."""
        return f"{self.rule.__name__}/{self.configuration.name}/{self.dtype}" + "/clipnorm" * self.clipped

    def optimizer(self) -> portopt.Optimizer:
        """Return what does the steps."""
        return self.configuration.optimizer(clipnorm=1.0) if self.clipped else self.configuration.optimizer()


def _cases() -> list[_Case]:
    """Return all cases: first each rule's defaults in every dtype, then its dialects; clipped ones last of each."""
    cases = []
    for rule in portopt.RULES:
        named = [c for c in configurations(rule) if c.name in ("default", "nesterov", "amsgrad") or c.dialect]
        cases += [_Case(rule, c, dtype, clipped) for c in named for dtype in _DTYPES for clipped in (False, True)]
    return sorted(
        cases, key=lambda case: (case.configuration.name != "default", case.clipped, _DTYPES.index(case.dtype))
    )


def work(options: Options, argument: Mapping[str, Any], keep: Keep) -> None:
    """Compare the named cases, until time is up."""
    start, compared = time.monotonic(), targets(options)
    known = {case.name: case for case in _cases()}
    result: dict[str, Any] = {"rows": [], "run": 0}
    for name in argument["cases"][argument["skip"] :]:
        if time.monotonic() - start > argument["limit"]:
            break
        # If the process ends here, this says where.
        running = {"running": name, "began": time.monotonic() - start}
        keep({**result, **running})
        for row in _compare(options, known[name], compared):
            result["rows"].append(row)
            keep({**result, **running})
        result["run"] += 1
    keep(result)


def _compare(options: Options, case: _Case, compared: Mapping[str, Target]) -> Iterator[dict[str, Any]]:
    optimizer, dtype = case.optimizer(), case.dtype
    # Compiled for the host takes longer than one operation after the other, but for sums, which have many.
    is_elementwise = not case.clipped and optimizer.program(shape=_SHAPES[0]).is_elementwise
    for kind in ("raw", "many"):
        with portopt.interpreted() if is_elementwise else contextlib.nullcontext():
            numpy = Target(portopt.get_backend("numpy"), "cpu")
            expected = _results(options, optimizer, numpy, dtype, kind, clipped=case.clipped)
        for label, target in compared.items():
            if dtype not in target.backend.dtypes():
                continue
            row: dict[str, Any] = {"case": f"{case.name}/{kind}", "backend": label}
            try:
                actual = _results(options, optimizer, target, dtype, kind, clipped=case.clipped)
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
