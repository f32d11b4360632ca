"""Regenerate the committed vectors from the reference, the interpreter on NumPy: the same bytes every time."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path

from portopt_conformance.committed import CHECKSUM_FILE, FOLDER, file_of
from portopt_conformance.comparison import checksums
from portopt_conformance.experiment import Experiment
from portopt_conformance.plan import experiments
from portopt_conformance.platform import reference
from portopt_conformance.words import canonical, format_of


def lines_of(experiment: Experiment, dtype: str | None) -> list[str]:
    """Return the lines of an experiment, from the reference."""
    platform = reference()
    with platform.active(dtype):
        results = experiment.run(platform)
    if not experiment.literal:
        return [f"checksums {experiment.key} {''.join(checksums(results))}"]
    lines = []
    for name, array in sorted(results.items()):
        form = format_of(array)
        words = " ".join(f"{int(w):0{form.bits // 4}x}" for w in canonical(array))
        lines.append(f"words {experiment.key} {name} {form.name} {words}")
    return lines


def write(folder: Path, experiments: Iterable[tuple[str | None, Experiment]]) -> None:
    """Write the vectors of experiments, each with its dtype, into a folder that then holds nothing else."""
    files: dict[str, dict[str, list[str]]] = {}
    for dtype, experiment in experiments:
        lines = files.setdefault(file_of(experiment.key), {})
        if experiment.key not in lines:
            lines[experiment.key] = lines_of(experiment, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        if old.name not in files:
            old.unlink()
    sums = []
    for name, lines in sorted(files.items()):
        data = "".join(f"{line}\n" for key in sorted(lines) for line in lines[key]).encode("ascii")
        (folder / name).write_bytes(data)
        sums.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    (folder / CHECKSUM_FILE).write_bytes("".join(sums).encode("ascii"))


def main() -> None:
    """Regenerate the committed vectors."""
    parser = argparse.ArgumentParser(prog="python -m portopt_conformance.vectors", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: the package's own)")
    write(parser.parse_args().out, experiments())


if __name__ == "__main__":
    main()
