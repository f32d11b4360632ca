"""Regenerate the committed vectors from the reference, the interpreter on NumPy: the same bytes every time."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path

import portopt
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


def write(folder: Path, experiments: Iterable[tuple[str | None, Experiment]], *, keep: bool = False) -> None:
    """Write the vectors of experiments, each with its dtype, into a folder.

    Args:
        folder: where to.
        experiments: whose results become the vectors.
        keep: whether vectors of others that the folder has stay there; otherwise it then holds nothing else.
    """
    files: dict[str, dict[str, list[str]]] = {}
    for dtype, experiment in experiments:
        lines = files.setdefault(file_of(experiment.key), {})
        if experiment.key not in lines:
            lines[experiment.key] = lines_of(experiment, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        if old.name not in files and not keep:
            old.unlink()
    for name, lines in files.items():
        data = "".join(f"{line}\n" for key in sorted(lines) for line in lines[key]).encode("ascii")
        (folder / name).write_bytes(data)
    written = sorted(path for path in folder.glob("*") if path.name != CHECKSUM_FILE)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in written]
    (folder / CHECKSUM_FILE).write_bytes("".join(sums).encode("ascii"))


def main() -> None:
    """Regenerate the committed vectors."""
    names = [rule.__name__ for rule in portopt.RULES]
    parser = argparse.ArgumentParser(prog="python -m portopt_conformance.vectors", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: the package's own)")
    parser.add_argument(
        "--rule", action="append", choices=names, metavar="NAME", help="only this rule's; may be given more than once"
    )
    arguments = parser.parse_args()
    chosen = [rule for rule in portopt.RULES if rule.__name__ in (arguments.rule or names)]
    write(arguments.out, experiments(chosen if arguments.rule else None), keep=bool(arguments.rule))


if __name__ == "__main__":
    main()
