"""Running portopt from a checkout, in this process and in those that it starts."""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from pathlib import Path

from gpu_check.options import Options

ROOT = Path(__file__).resolve().parents[2]
_SITE = "PORTOPT_CHECK_SITE"


def make_importable(options: Options) -> None:
    """Put the checkout's packages and entry points onto the path, and what libraries keep on disk into a folder of the check.

    Args:
        options: with `--device cpu`, JAX is kept from looking for a GPU.
    """
    if _SITE not in os.environ:
        # The folder stays when the check ends: a process that was stopped may still be using it.
        os.environ[_SITE] = tempfile.mkdtemp(prefix="portopt_check_")
    site = Path(os.environ[_SITE])
    _write_entry_points(site)
    paths = [str(ROOT / name) for name in ("src", "backends", "conformance")] + [str(site)]
    sys.path[:0] = paths
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths + known)
    # Many processes share the GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for variable in ("PORTOPT_CACHE_DIR", "CUPY_CACHE_DIR"):
        os.environ.setdefault(variable, str(site / variable.partition("_")[0].lower()))
    if not options.on_gpu:
        os.environ["JAX_PLATFORMS"] = "cpu"


def _write_entry_points(site: Path) -> None:
    """Declare what pyproject.toml does, as an installed package would."""
    declared = site / "portopt-0.dist-info"
    if declared.exists():
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()), ""]
    declared.mkdir(parents=True)
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: portopt\nVersion: 0\n", encoding="utf-8")
    (declared / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
