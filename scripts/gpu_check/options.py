"""The command line of the check."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECTIONS = ("versions", "launches", "profile", "host", "operations", "timings", "semantics", "bits", "conformance")
WITHOUT_A_GPU = ("versions", "launches", "profile", "host")
"""Sections that need none."""
BACKENDS = ("cupy", "torch", "jax")


@dataclass(frozen=True)
class Options:
    """What to check, and how long.

    Attributes:
        out: folder for the results.
        page: the page of the documentation to write, if any.
        device: `"cuda"`, or `"cpu"` to try the check itself.
        budget: seconds for all sections together.
        sections: their names.
        backends: names of the backends.
        layers: layers of the conformance suite.
        only: parts of the names of cases; empty for all.
        words: elements of an array whose bits are compared.
        steps: steps of a run whose bits are compared.
        jobs: processes at a time.
        small: use tiny shapes.
        worker: name of the worker that this process is, or empty.
        argument: what the worker is given.
        start: when the check began, on the monotonic clock.
    """

    out: Path
    page: Path | None
    device: str
    budget: float
    sections: tuple[str, ...]
    backends: tuple[str, ...]
    layers: tuple[int, ...]
    only: tuple[str, ...]
    words: int
    steps: int
    jobs: int
    small: bool
    worker: str
    argument: Any
    start: float

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is checked."""
        return self.device == "cuda"

    def left(self) -> float:
        """Return how many seconds of the budget are left."""
        return self.budget - (time.monotonic() - self.start)

    def chosen(self, name: str) -> bool:
        """Tell whether a case of this name is to be run."""
        return not self.only or any(part in name for part in self.only)

    def command(self) -> list[str]:
        """Return the options that a worker needs too."""
        listed = {
            "out": self.out,
            "device": self.device,
            "backends": ",".join(self.backends),
            "only": ",".join(self.only),
            "words": self.words,
            "steps": self.steps,
        }
        return [f"--{name}={value}" for name, value in listed.items()] + ["--small"] * self.small


def from_command_line(arguments: Sequence[str]) -> Options:
    """Return the options that the command line gives."""
    parser = argparse.ArgumentParser(prog="check_gpu.py", description="Check portopt on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder for the results")
    parser.add_argument("--page", type=Path, help="page of the documentation to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the check itself")
    parser.add_argument("--budget", type=float, default=340, help="seconds for all sections together")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="of " + ", ".join(SECTIONS))
    parser.add_argument("--backends", default=",".join(BACKENDS), help="of " + ", ".join(BACKENDS))
    parser.add_argument("--layers", default="0,1,2,3,4,5", help="of the conformance suite")
    parser.add_argument("--only", default="", help="cases whose name contains one of these parts, with commas between")
    parser.add_argument("--words", type=int, default=1_000_000, help="elements whose bits are compared")
    parser.add_argument("--steps", type=int, default=50, help="steps of a run whose bits are compared")
    parser.add_argument("--jobs", type=int, default=14, help="processes at a time")
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="{}", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)

    def listed(text: str) -> tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)

    for name, known in (("sections", SECTIONS), ("backends", BACKENDS)):
        unknown = set(listed(getattr(given, name))) - set(known)
        if unknown:
            parser.error(f"--{name} has {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    return Options(
        out=out,
        page=given.page and given.page.resolve(),
        device=given.device,
        budget=given.budget,
        # In the order in which they are run.
        sections=tuple(name for name in SECTIONS if name in listed(given.sections)),
        backends=listed(given.backends),
        layers=tuple(map(int, listed(given.layers))),
        only=listed(given.only),
        words=given.words,
        steps=given.steps,
        jobs=given.jobs,
        small=given.small,
        worker=given.worker,
        argument=json.loads(given.argument),
        start=time.monotonic(),
    )
