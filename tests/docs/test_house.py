"""The page about the house: no room is missing, on the page or in the picture."""

from __future__ import annotations

import itertools
import re
import tomllib

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


def floor_of() -> dict[str, int]:
    """Map what the contracts of imports name to its floor, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    library, wings = ([layer.split(" | ") for layer in contract["layers"]] for contract in contracts[:2])
    return {name: floor for floor, layer in enumerate([*wings, *library]) for name in layer}


def test_the_picture_is_that_of_the_contract() -> None:
    floors = floor_of()
    names = re.findall(r'class="name">([^<]+)<', PICTURE)
    stacked = [[floors[word] for word in re.findall(r"\w+", name)] for name in names]
    # One storey of the picture may hold several floors; none of them is above one of the storey before.
    assert all(max(above) <= min(below) for above, below in itertools.pairwise(stacked))
    assert {"portopt", "rules", "kernels", "portopt_tools"} <= {
        word for name in names for word in re.findall(r"\w+", name)
    }
