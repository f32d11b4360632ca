"""What `make lint` says of private names of one module in another."""

from __future__ import annotations

from pathlib import Path

import check_private_names
import pytest


@pytest.mark.parametrize(
    ("importer", "line", "found"),
    [
        ("wing/room.py", "from wing.other import _hidden", "wing.other._hidden is private"),
        ("wing/room.py", "def f():\n    from wing.other import shown, _hidden", "wing.other._hidden is private"),
        ("wing/room.py", "from wing.other import shown, __version__", None),
        ("wing/room.py", "from wing import _private", None),
        ("wing/room.py", "from wing._private import shown", None),
        ("house/room.py", "from wing import _private", "wing._private is private"),
        ("house/room.py", "from wing._private import shown", "wing._private is private"),
        ("house/room.py", "import importlib\nimportlib.import_module('wing._private')", "wing._private is private"),
    ],
)
def test_private_names_are_found(
    importer: str, line: str, found: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("wing/other.py", "wing/_private.py", "house/__init__.py"):
        tmp_path.joinpath(name).parent.mkdir(exist_ok=True)
        tmp_path.joinpath(name).touch()
    tmp_path.joinpath(importer).write_text(line)
    assert check_private_names.main([str(tmp_path)]) == (found is not None)
    assert (found or "no module imports a private name of another") in capsys.readouterr().out
