"""The page about the house: what it names exists, and no room is missing."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

import pytest
from house import modules
from support.places import ROOT

PAGE = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "assets" / "house.svg").read_text(encoding="utf-8")
NAME = re.compile(r"`(portopt\w*(?:\.\w+)*)`")


def exists(name: str) -> bool:
    """Tell whether there is such a module, or such an attribute of one; a package of a framework is only looked for."""
    module, _, attribute = name.rpartition(".")
    if not module:
        return importlib.util.find_spec(name) is not None
    if not exists(module):
        return False
    try:
        return hasattr(_get(module), attribute) or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # an attribute of what is no package
        return False


def _get(name: str) -> Any:
    """Return a module or an attribute of one that exists."""
    module, _, attribute = name.rpartition(".")
    return (
        getattr(_get(module), attribute, None) or importlib.import_module(name)
        if module
        else importlib.import_module(name)
    )


@pytest.mark.parametrize("name", sorted(set(NAME.findall(PAGE))))
def test_what_the_page_names_exists(name: str) -> None:
    assert exists(name), f"docs/house.md names {name}, which does not exist"


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert exists("portopt.step.do_step")
    assert not exists("portopt.step.do_nothing")
    assert not exists("portopt.no_such_module")
    assert not exists("portopt_no_such_package")


def test_every_room_is_on_the_page() -> None:
    house = modules.read(ROOT, ["src"]).values()
    rooms = {module.room for module in house if not module.room.rpartition(".")[2].startswith("_")}
    tops = {".".join(room.split(".")[:2]) for room in rooms if room.startswith("portopt.")}
    missing = sorted(room for room in tops if f"`{room}" not in PAGE)
    assert not missing, f"docs/house.md lacks {', '.join(missing)}"


def test_the_picture_has_the_wings_that_there_are() -> None:
    names = re.findall(r'class="name"[^>]*>([^<]+)<', PICTURE)
    words = [word for name in names for word in re.findall(r"\w+", name.partition(":")[0])]
    for word in words:
        found = [ROOT / folder / word for folder in ("src", "backends", "conformance", "src/portopt", ".")]
        assert any(path.is_dir() or path.with_suffix(".py").is_file() for path in found), f"there is no wing {word}"
