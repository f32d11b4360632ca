"""Which runs a comparison has: every chosen backend, on every chosen device, in every mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from portopt.backend import backends, get_backend
from portopt.optimizer import Optimizer
from portopt_tools.compare.other_optimizers import other_runner
from portopt_tools.compare.runners import BackendRunner, Runner
from portopt_tools.errors import UnusableArgumentsError
from portopt_tools.inventory import BackendEntry, find_entry, installed_backends

_FIRST = "numpy"
"""The backend whose first run is the reference unless backends are named: it is always installed, and needs no device."""


@dataclass(frozen=True)
class NotRun:
    """A backend, or one of its devices, that was not named and cannot be used."""

    backend: str
    reason: str


def select_runs(
    optimizer: Optimizer, dtype: str, names: Sequence[str], devices: Sequence[str], against: Sequence[str]
) -> tuple[list[Runner], list[NotRun]]:
    """Return the runs, the reference first, and what is left out.

    Args:
        optimizer: what all runs compute.
        dtype: the dtype of the parameters.
        names: backends; none means all that are usable.
        devices: devices; none means each backend's first.
        against: names of frameworks.

    Raises:
        UnusableArgumentsError: something that was named cannot be used, or there is nothing to compare.
    """
    _check_providers()
    runners: list[Runner] = []
    left_out: list[NotRun] = []
    served: set[str] = set()
    for entry in [find_entry(name) for name in dict.fromkeys(names)] or _all():
        why = entry.why_unusable(dtype)
        if why is not None:
            reason = entry.with_remedy(why)
            if names:
                raise UnusableArgumentsError(f"the backend {entry.name!r} was named, but {reason}")
            left_out.append(NotRun(entry.name, reason))
            continue
        chosen = [(device, _match(entry, device)) for device in devices] or [("", entry.usable_devices[0])]
        if names and not any(device for _, device in chosen):
            raise UnusableArgumentsError(
                f"the backend {entry.name!r} was named, but {_no_device(entry, ' or '.join(devices))}"
            )
        backend = get_backend(entry.name)
        for asked, device in chosen:
            if device is None:
                left_out.append(NotRun(entry.name, _no_device(entry, asked)))
                continue
            served.add(asked)
            # A mode with `run` takes many steps at once, from gradients that are known before; training has each
            # gradient only after the step before it.
            modes = [mode for mode in backend.modes.values() if mode.run is None]
            runners += [BackendRunner(backend, device, mode, optimizer, dtype) for mode in modes]
    for device in devices:
        if device not in served:
            raise UnusableArgumentsError(
                f"no backend has the device {device!r}: `portopt backends` lists backends and their devices"
            )
    if len(runners) < 2:
        raise UnusableArgumentsError(
            f"there is nothing to compare: only {runners[0].backend} {runners[0].mode} would run; name another backend"
            if runners
            else f"no installed backend can train {dtype} parameters: `portopt backends` says what is missing"
        )
    return [*runners, *(other_runner(name, optimizer, devices, dtype) for name in dict.fromkeys(against))], left_out


def _check_providers() -> None:
    try:
        backends()
    except ValueError as error:
        raise UnusableArgumentsError(str(error)) from error


def _all() -> list[BackendEntry]:
    return sorted(installed_backends(), key=lambda entry: (entry.name != _FIRST, entry.name))


def _match(entry: BackendEntry, asked: str) -> str | None:
    for device in entry.usable_devices:
        if device == asked or device.partition(":")[0] == asked:
            return device
    return None


def _no_device(entry: BackendEntry, asked: str) -> str:
    reason = next((r for name, r in entry.devices.items() if r is not None and name.partition(":")[0] == asked), None)
    usable = f"it has {', '.join(entry.usable_devices)}"
    return (
        f"it has no usable device {asked!r}: {reason}; {usable}" if reason else f"it has no device {asked!r}; {usable}"
    )
