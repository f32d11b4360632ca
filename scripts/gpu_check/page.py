"""What a run found, as a page of the documentation."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_check.options import Options
from gpu_check.workers import last_line

ON_A_GPU = "<!-- on a GPU -->"
"""What a page begins with that says what a GPU did."""
_KNOWN = ("gpu", "python", "numpy", "torch", "jax", "jaxlib", "cupy", "nvrtc", "optax", "numba")
_PORTOPT = "portopt"


def write_page(options: Options, summary: Mapping[str, Any], no_gpu: str | None) -> None:
    """Write the page that the options name; one of a run on a GPU is left as it is by a run without.

    Args:
        options: of the check.
        summary: what the sections found.
        no_gpu: why there is no GPU, if there is none.
    """
    path = options.page
    if path is None:
        return
    if no_gpu and path.exists() and path.read_text(encoding="utf-8").startswith(ON_A_GPU):
        print(f"{path.name} has what a GPU did, and stays as it is", flush=True)
        return
    path.write_text(page(options, summary, no_gpu), encoding="utf-8")


def page(options: Options, summary: Mapping[str, Any], no_gpu: str | None) -> str:
    """Return the page; arguments as for `write_page`."""
    found = [*_head(summary, no_gpu), *_launches(options), *_profile(options), *_host(summary)]
    found += [*_timings(options), *_bits(summary), *_semantics(summary)]
    return "\n".join([*found, *_not_run(summary, no_gpu)]).rstrip("\n") + "\n"


def _head(summary: Mapping[str, Any], no_gpu: str | None) -> Iterator[str]:
    versions = summary.get("versions", {})
    if no_gpu is None:
        yield ON_A_GPU
    yield from ("# Results on a GPU", "")
    where = (
        "on a machine without a GPU: what needs one stands at the end"
        if no_gpu
        else f"on {versions.get('gpu') or 'a GPU'}"
    )
    yield f"Written by `make gpu` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {where}."
    yield ""
    named = [f"{name} {_version(versions[name])}" for name in _KNOWN if name != "gpu" and name in versions]
    yield from (f"Versions: {', '.join(named)}.", "")


def _version(value: Any) -> str:
    return ".".join(map(str, value)) if isinstance(value, list | tuple) else str(value).partition(":")[0]


def _read(options: Options, name: str) -> Any:
    path = options.out / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _timings(options: Options) -> Iterator[str]:
    result = _read(options, "timings.json")
    rows = [row for row in (result or {}).get("rows", []) if "ms" in row]
    if not rows:
        return
    yield from ("## Times of a step", "")
    yield f"A copy reads and writes {result['copy_gb_s']:.0f} GB/s. *Of copy* is what a step has to read and write, at that rate."
    yield "*Against* is the time of the quickest of the others on the same arrays, divided by portopt's."
    for rule in dict.fromkeys(row["rule"] for row in rows):
        yield from ("", f"**{rule}**", "")
        head = ("arrays", "", "step", "of copy", "against", "Python", "kernels", "copies", "waits")
        yield from _table(head, [_timed(row, rows) for row in rows if row["rule"] == rule])
    yield ""


def _timed(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    launched = (str(row["kernels"]), str(row["copies"]), str(row["waits"])) if "kernels" in row else ("", "", "")
    return (
        row["shapes"], row["who"], f"{row['ms']:.3f} ms", f"{row['of_copy']:.0%}", _against(row, rows),
        f"{row['python_us']:.0f} µs", *launched,
    )  # fmt: skip


def _against(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many times as fast a step of portopt is as the quickest of the same library's."""
    if not row["who"].startswith(_PORTOPT):
        return ""
    library = _library_of(row["who"])
    peers = [
        other
        for other in rows
        if not other["who"].startswith(_PORTOPT)
        and (other["rule"], other["shapes"], _library_of(other["who"])) == (row["rule"], row["shapes"], library)
    ]
    if not peers:
        return ""
    best = min(peers, key=lambda other: float(other["ms"]))
    return f"{best['ms'] / row['ms']:.2f}× {best['who']}"


def _library_of(who: str) -> str:
    words = who.lower()
    return "jax" if "jax" in words or "optax" in words else "cupy" if "cupy" in words else "torch"


def _launches(options: Options) -> Iterator[str]:
    rows = _read(options, "launches.json")
    if not rows:
        return
    yield from ("## What a step asks of the driver", "")
    yield "Counted by a driver that records and runs nothing, so that what is timed is what portopt does on the host."
    yield ""
    head = ("step", "tensors", "library", "launches", "uploads", "bytes", "waits", "Python")
    yield from _table(head, [_launched(row) for row in rows])
    yield ""


def _launched(row: Mapping[str, Any]) -> Sequence[str]:
    counts = [str(row[name]) for name in ("tensors", "library", "launches", "uploads", "bytes", "waits")]
    return (row["step"], *counts, f"{row['python_us']:.1f} µs")


def _profile(options: Options) -> Iterator[str]:
    rows = [row for row in _read(options, "profile.json") or [] if "us" in row]
    if not rows:
        return
    yield from ("## Where the time of a step goes on the host", "")
    yield "Microseconds, as medians, each part timed by itself; *cold* is a step after 64 MB were written."
    yield ""
    parts = list(dict.fromkeys(part for row in rows for part in row["us"] if part not in {"step", "look and queue"}))
    head = ("step", "tensors", "caches", "whole", *parts, "driver")
    yield from _table(head, [_profiled(row, parts) for row in rows])
    yield ""


def _profiled(row: Mapping[str, Any], parts: Sequence[str]) -> Sequence[str]:
    us = row["us"]
    times = [f"{us[part]:.1f}" if part in us else "" for part in ("step", *parts)]
    return (row["step"], str(row["tensors"]), row["caches"], *times, f"{sum(row['driver_us'].values()):.1f}")


def _host(summary: Mapping[str, Any]) -> Iterator[str]:
    counts = _of(summary, "host")
    if counts is not None and "passed" in counts:
        yield from ("## The kernels' CUDA C on the host", "")
        yield "Compiled for the host, where its bits are compared with the interpreter's:"
        yield from (f"{counts['passed']} tests passed, {counts['wrong']} failed.", "")


def _bits(summary: Mapping[str, Any]) -> Iterator[str]:
    if (counts := _of(summary, "bits")) is not None:
        yield from ("## Bits", "")
        yield "A step on raw words and many steps on ordinary numbers, every rule and dialect, clipped and not, against NumPy;"
        yield f"{counts['reached']} of {counts['cases']} cases were reached:"
        yield ""
        kinds = [(name, c) for name, c in counts.items() if isinstance(c, Mapping)]
        yield from _table(
            ("", "same", "differ", "failed"), [(n, *(str(c[k]) for k in ("same", "wrong", "error"))) for n, c in kinds]
        )
        yield ""
        if counts["unfinished"]:
            yield from (f"Not finished in their time: {', '.join(counts['unfinished'])}.", "")
    if (counts := _of(summary, "conformance")) is not None:
        yield from ("## Conformance", "", "The suite's quick cases, those that its time sufficed for:", "")
        kinds = [(name, c) for name, c in counts.items() if isinstance(c, Mapping)]
        keys = ("cases", "run", "passed", "failed")
        yield from _table(("", *keys), [(name, *(str(c[key]) for key in keys)) for name, c in kinds])
        yield ""


def _semantics(summary: Mapping[str, Any]) -> Iterator[str]:
    if (cases := _of(summary, "semantics")) is not None:
        yield from ("## Streams, graphs, threads and memory", "")
        yield from _table(("", "found"), [(name, _said(c)) for name, c in cases.items() if isinstance(c, Mapping)])
        yield ""


def _of(summary: Mapping[str, Any], section: str) -> Mapping[str, Any] | None:
    found = summary.get(section)
    return found if isinstance(found, Mapping) else None


def _said(case: Mapping[str, Any]) -> str:
    if "text" in case:
        return _escaped("FAILED: " + last_line(case["text"]))
    found = case.get("found", case.get("skipped", ""))
    if isinstance(found, Mapping) and set(map(str, found.values())) == {"same"}:
        return f"the same bits in {len(found)} cases"
    text = ", ".join(f"{k} {_rounded(v)}" for k, v in found.items()) if isinstance(found, Mapping) else str(found)
    return _escaped(text)


def _escaped(text: str) -> str:
    return text[:300].replace("|", "\\|")


def _rounded(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("differs"), str):
        return f"FAILED: {last_line(value['differs'])}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _not_run(summary: Mapping[str, Any], no_gpu: str | None) -> Iterator[str]:
    lines = [f"{name}: {last_line(text)}" for name, text in summary.get("errors", {}).items()]
    if names := summary.get("not run"):
        lines.append(f"{', '.join(names)}: {no_gpu}")
    skipped = [
        (name, found["skipped"]) for name, found in summary.items() if isinstance(found, Mapping) and "skipped" in found
    ]
    lines += [f"{name}: {reason.removeprefix('NOT RUN: ')}" for name, reason in skipped]
    if lines:
        yield from ("## NOT RUN", "", *(f"- {line}" for line in lines))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
