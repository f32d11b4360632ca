"""Use portopt as a person would who has just installed the wheel into an empty environment.

Run it with that environment's Python, from a folder outside the repository.
"""

import argparse
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import portopt

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "backends", "conformance")
"""The repository's folders of packages that are installed."""
LAYERS = ("--layer", "0", "--layer", "1", "--layer", "2")
"""What of the conformance suite is run: there each rule reads its vectors, which the wheel must have."""


def check_installed_files() -> None:
    packages = [file.parent.name for folder in FOLDERS for file in sorted((ROOT / folder).glob("portopt*/__init__.py"))]
    for name in packages:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise SystemExit(f"the wheel lacks the package {name}")
        folder = Path(spec.origin).parent
        if not folder.is_relative_to(sys.prefix):
            raise SystemExit(f"{name} came from {folder}, not from the wheel in {sys.prefix}")
        if not (folder / "py.typed").is_file():
            raise SystemExit(f"{name} was installed without its py.typed")


def check_entry_points() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    for group, wanted in declared.items():
        found = {entry_point.name: entry_point.value for entry_point in entry_points(group=group)}
        if found != wanted:
            raise SystemExit(f"the wheel's entry points of {group} are {found}, but pyproject.toml has {wanted}")


def check_three_adam_steps() -> None:
    optimizer = portopt.Adam(learning_rate=0.1)
    start = np.asarray([1.0, -2.0, 3.0], dtype=np.float32)
    params = start
    state = optimizer.init(params)
    for _ in range(3):
        params, state = optimizer.apply(params, 2 * params, state)

    # Each of Adam's first steps moves a parameter by nearly the learning rate.
    if params.dtype != np.float32 or not np.allclose(params, [0.7, -1.7, 2.7], atol=0.01):
        raise SystemExit(f"three Adam steps from {start} gave {params!r}")
    if state.step != 3:
        raise SystemExit(f"three Adam steps were counted as {state.step}")
    if not np.array_equal(start, [1.0, -2.0, 3.0]):
        raise SystemExit(f"apply changed its input to {start}")


def run_command(*arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("portopt")), *arguments]
    print("$", "portopt", *arguments, flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", required=True, help="where the conformance suite writes counts")
    arguments = parser.parse_args()

    check_installed_files()
    check_entry_points()
    check_three_adam_steps()
    run_command("--help")
    run_command("backends")
    run_command("show", "adam", "--target", "program")
    run_command("conform", "--backend", "numpy", "--quick", *LAYERS, "--json", arguments.json)


if __name__ == "__main__":
    main()
