"""The conformance suite, quick cases, many processes at a time, each until its time is up."""

from __future__ import annotations

import concurrent.futures
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_check.options import Options
from gpu_check.targets import targets
from gpu_check.workers import Keep, last_line, run_cases

_PROCESSES = {2: 1, 3: 2, 4: 1, 5: 3}
"""How many processes share the cases of a layer; layers 0 and 1 are one's together."""
_SHOWN = 6


def run(options: Options) -> Mapping[str, Any]:
    """Return counts by backend; the failures' texts stand in `conformance.json`."""
    jobs = list(_jobs(options))
    limit = max(8.0, (options.left() - 30) / -(-len(jobs) // options.jobs))
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda job: _run_all(options, job, limit), jobs))
    total: dict[str, dict[str, Any]] = {}
    for job, result in zip(jobs, results, strict=True):
        counts = total.setdefault(job["name"], {"cases": 0, "run": 0, "passed": 0, "failed": []})
        for key in ("cases", "run", "passed"):
            counts[key] += result[key]
        counts["failed"] += result["failed"]
    (options.out / "conformance.json").write_text(json.dumps(total, indent=1), encoding="utf-8")
    for name, counts in total.items():
        failed = counts["failed"]
        missed = counts["cases"] - counts["run"]
        print(f"  {name}: {counts['passed']} passed, {len(failed)} failed, {missed} of {counts['cases']} not reached")
        seen: dict[str, list[str]] = {}
        for case in failed:
            seen.setdefault(
                last_line(case["text"]) if "Traceback" in case["text"] else case["text"].split("\n")[0], []
            ).append(case["id"])
        for text, ids in list(seen.items())[:_SHOWN]:
            print(f"    FAILED {len(ids)}, such as {ids[0]}: {text[:300]}", flush=True)
    counted = {name: {**counts, "failed": len(counts["failed"])} for name, counts in total.items()}
    return {**counted, "wrong": sum(counts["failed"] for counts in counted.values())}


def _jobs(options: Options) -> Iterator[dict[str, Any]]:
    for name, target in targets(options).items():
        groups = [[layer for layer in options.layers if layer < 2]]
        groups += [[layer] for layer in options.layers if layer > 1 and (layer < 5 or name == "jax")]
        job: dict[str, Any] = {"name": name, "backend": target.backend.name, "device": target.device, "mode": ""}
        for layers in filter(None, groups):
            parts = _PROCESSES.get(layers[0], 1)
            for part in range(parts):
                yield {**job, "layers": layers, "part": part, "of": parts}
        # What the quick cases leave out: each operation by the library's own kernels, and two steps in one computation.
        for layer, mode in ((1, "interpreted"), (5, "pairs")):
            if layer in options.layers and mode in {**target.backend.modes, **target.backend.extra_modes}:
                yield {**job, "layers": [layer], "mode": mode, "part": 0, "of": 1}


def _run_all(options: Options, job: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """Run a worker's cases; one that ends its process is a failure."""
    total: dict[str, Any] = {"cases": 0, "run": 0, "passed": 0, "failed": []}
    for result in run_cases(options, "conformance", job, limit):
        total["cases"] = max(total["cases"], result.get("cases", 0))
        total["passed"] += result.get("passed", 0)
        total["run"] += result.get("run", 0)
        total["failed"] += result.get("failed", [])
        if "stopped" in result:
            print(f"  {job['name']} {result.get('running', 'first case')}: not finished in its time", flush=True)
        if "exit" not in result or "stopped" in result:
            continue
        crashed = {"id": result.get("running", f"{job['layers']}"), "text": f"exit {result['exit']}: {result['text']}"}
        total["failed"].append(crashed)
        total["run"] += "running" in result
        print(f"  {job['name']} {crashed['id']}: exit {result['exit']}: {last_line(result['text'])[:300]}", flush=True)
    return total


def work(options: Options, argument: Mapping[str, Any], keep: Keep) -> None:
    """Run cases, those of one configuration together, configurations in random order, until time is up."""
    from portopt_conformance.find import find
    from portopt_conformance.suite import cases

    start = time.monotonic()
    groups: dict[tuple[str, str, str], list[Any]] = {}
    layers, mode = argument["layers"], argument["mode"]
    for case in cases(find(argument["backend"]), device=argument["device"], layers=layers, quick=not mode):
        if options.chosen(case.id) and (not mode or case.mode == mode):
            groups.setdefault((case.subject, case.variant, case.mode), []).append(case)
    order = list(groups.values())
    random.Random(1).shuffle(order)
    mine = [case for i, group in enumerate(order) if i % argument["of"] == argument["part"] for case in group]
    result: dict[str, Any] = {"cases": len(mine), "passed": 0, "run": 0, "failed": []}
    for case in mine[argument["skip"] :]:
        if time.monotonic() - start > argument["limit"]:
            break
        # If the process ends here, this says where.
        keep({**result, "running": case.id, "began": time.monotonic() - start})
        outcome = case.run()
        result["run"] += 1
        if outcome.passed:
            result["passed"] += 1
        else:
            result["failed"].append({"id": case.id, "text": outcome.text})
    keep(result)
