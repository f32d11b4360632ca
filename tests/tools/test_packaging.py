"""What pyproject.toml and the Makefile promise about installing: extras, and which package of CuPy goes with a driver."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from support.places import ROOT

import portopt
from portopt_cupy import _driver
from portopt_tools.inventory import backend_entry

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def named_extras(requirement: str) -> set[str]:
    match = re.fullmatch(r"portopt\[([\w,-]+)\]", requirement)
    return set(match[1].split(",")) if match else set()


def test_extras_that_the_code_and_other_extras_name_exist() -> None:
    sources = [
        path for folder in ("src", "backends", "conformance", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    named = {
        extra
        for path in sources
        for requirement in re.findall(r"portopt\[[a-z\d,-]+\]", path.read_text(encoding="utf-8"))
        for extra in named_extras(requirement)
    }
    named |= {extra for requirements in EXTRAS.values() for r in requirements for extra in named_extras(r)}
    assert "torch" in named
    assert named <= set(EXTRAS)


def test_all_is_every_extra_for_users_but_cupy() -> None:
    (requirement,) = EXTRAS["all"]
    assert named_extras(requirement) == {name for name in EXTRAS if not re.match("all$|cupy|test$|docs$", name)}


def test_project_urls_are_given() -> None:
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(PROJECT["urls"])
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())


def test_the_demo_installs_what_it_needs_and_not_what_the_tests_need() -> None:
    installed = {}
    for target in ("demo", "venv"):
        command = ["make", "--dry-run", "--what-if=pyproject.toml", target]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        installed[target] = re.findall(r"pip install .*-e '\.\[([\w,-]+)\]'", printed)
    assert installed == {"demo": ["torch,jax,demo,fused"], "venv": ["torch,jax,demo,test"]}


class Driver:
    """Stands for libcuda."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return self.status


@pytest.fixture(autouse=True)
def _ask_the_driver_anew() -> Iterator[None]:
    _driver.driver_version.cache_clear()
    yield
    _driver.driver_version.cache_clear()


@pytest.mark.parametrize(
    ("driver", "command"),
    [
        (Driver(11080), 'pip install "portopt[cupy-cuda12x]"'),
        (Driver(12090), 'pip install "portopt[cupy-cuda12x]"'),
        (Driver(13000), 'pip install "portopt[cupy-cuda13x]"'),
        (Driver(14020), 'pip install "portopt[cupy-cuda13x]"'),
        (Driver(0), 'pip install "portopt[cupy-cuda13x]", or "portopt[cupy-cuda12x]" for CUDA 12'),
        (Driver(13000, status=34), 'pip install "portopt[cupy-cuda13x]", or "portopt[cupy-cuda12x]" for CUDA 12'),
        (object(), 'pip install "portopt[cupy-cuda13x]", or "portopt[cupy-cuda12x]" for CUDA 12'),
    ],
    ids=["11.8", "12.9", "13.0", "14.2", "stub", "error", "no function"],
)
def test_cupy_is_installed_for_the_cuda_of_the_driver(
    driver: object, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driver, "_driver", lambda: driver)
    monkeypatch.setitem(sys.modules, "cupy", None)
    entry = backend_entry("cupy", "portopt_cupy:backend", portopt.get_backend("cupy"))
    assert (entry.version, entry.install_command) == (None, command)


def test_without_a_driver_cupy_is_named_for_each_version_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(_driver, "_driver", fail)
    assert _driver.driver_version() is None
    assert "cupy-cuda13x" in portopt.get_backend("cupy").install_command
    assert "cupy-cuda12x" in portopt.get_backend("cupy").install_command
