"""What is installed: every backend that an entry point names, and the packages that add to them."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import portopt
from portopt.backend import ENTRY_POINT_GROUP, Backend, UnknownBackendError, get_backend
from portopt_tools.errors import UnusableArgumentsError


@dataclass(frozen=True)
class BackendEntry:
    """What `portopt backends` says of one backend.

    Attributes:
        name: the name of the entry point.
        provider: what the entry point refers to, as `module:attribute`.
        version: the library's version, None where it cannot be imported.
        devices: each device's name to None if it can be used, else to the reason why not.
        dtypes: the parameter dtypes that the library has.
        modes: the ways to execute steps.
        problem: why the backend cannot be used, None where it can.
        install_command: the command that installs the library, None where the backend itself cannot be loaded.
    """

    name: str
    provider: str
    version: str | None = None
    devices: Mapping[str, str | None] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    problem: str | None = None
    install_command: str | None = None

    @property
    def usable_devices(self) -> tuple[str, ...]:
        """The names of the devices that can be used."""
        return tuple(name for name, reason in self.devices.items() if reason is None)

    def why_unusable(self, dtype: str) -> str | None:
        """Return why the backend cannot update parameters of a dtype; None if it can."""
        if self.problem is not None:
            return f"it cannot be used: {self.problem}"
        if not self.usable_devices:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.devices.items())
            return f"none of its devices can be used ({reasons or 'it has none'})"
        return None if dtype in self.dtypes else f"it has no {dtype}, only {', '.join(self.dtypes)}"

    def with_remedy(self, reason: str) -> str:
        """Return why the backend cannot be used, with the command that changes it where there is one."""
        return f"{reason}: {self.install_command}" if self.problem and self.install_command else reason


def installed_backends() -> list[BackendEntry]:
    """Return one entry for each entry point, whether or not its backend or its library can be loaded."""
    entries = sorted({(e.name, e.value): e for e in metadata.entry_points(group=ENTRY_POINT_GROUP)}.items())
    providers = Counter(name for (name, _), _ in entries)
    return [
        _entry_of(entry)
        if providers[name] == 1
        else BackendEntry(name, value, problem="several packages provide a backend of this name; uninstall all but one")
        for (name, value), entry in entries
    ]


def find_entry(name: str) -> BackendEntry:
    """Return the entry of a backend, or of an array API library without one of its own, which is known by its name.

    Raises:
        UnusableArgumentsError: there is neither.
    """
    for entry in installed_backends():
        if entry.name == name:
            return entry
    try:
        backend = get_backend(name)
    except UnknownBackendError as error:
        raise UnusableArgumentsError(f"{error}, and the name of any importable array API library will do") from None
    return backend_entry(name, name, backend)


def _entry_of(entry: metadata.EntryPoint) -> BackendEntry:
    # Whatever a foreign package raises belongs in its row: the list is what one looks at when something is broken.
    try:
        backend = entry.load()
    except Exception as error:
        return BackendEntry(entry.name, entry.value, problem=f"the backend cannot be loaded: {_explain(error)}")
    return backend_entry(entry.name, entry.value, backend)


def backend_entry(name: str, provider: str, backend: Backend) -> BackendEntry:
    """Return what one backend says of itself."""
    install_command = getattr(backend, "install_command", None)
    try:
        version = backend.version()
    except ImportError as error:
        return BackendEntry(name, provider, problem=f"not installed ({error})", install_command=install_command)
    except Exception as error:
        problem = f"the library cannot be loaded: {_explain(error)}"
        return BackendEntry(name, provider, problem=problem, install_command=install_command)
    facts: dict[str, Any] = {"version": version, "install_command": install_command}
    try:
        facts["modes"] = tuple(backend.modes)
        facts["dtypes"] = tuple(backend.dtypes())
        facts["devices"] = dict(backend.devices())
    except Exception as error:
        facts["problem"] = f"the library does not work: {_explain(error)}"
    return BackendEntry(name, provider, **facts)


def _explain(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class HelperPackage:
    """A package that adds to a backend or to the command line."""

    name: str
    purpose: str
    install_command: str

    @property
    def version(self) -> str | None:
        """The installed version, None where there is none."""
        return _version(self.name)


HELPER_PACKAGES = (
    HelperPackage("ml_dtypes", "bfloat16 on NumPy, and in `portopt compare`", "pip install ml_dtypes"),
    HelperPackage("numba", "fused kernels on the CPU", 'pip install "portopt[fused]"'),
    HelperPackage("scikit-learn", "the data of `portopt compare`", 'pip install "portopt[demo]"'),
    HelperPackage("matplotlib", "the curves in the report of `portopt compare`", 'pip install "portopt[demo]"'),
)


def as_json(backends: list[BackendEntry]) -> dict[str, Any]:
    """Return the inventory as values that JSON can hold."""
    helpers = [{**asdict(helper), "version": helper.version} for helper in HELPER_PACKAGES]
    return {"schema_version": 1, "backends": [asdict(entry) for entry in backends], "helper_packages": helpers}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of portopt, Python and these packages, of which some may not be installed."""
    found = {
        "portopt": portopt.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    return found | {name: _version(name) or "not installed" for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
