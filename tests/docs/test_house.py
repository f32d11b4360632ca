"""The page about the house: no room is missing, on the page or in the picture."""

from __future__ import annotations

import re

from house import modules
from support.places import ROOT

PAGE = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "assets" / "house.svg").read_text(encoding="utf-8")


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
