"""What is compared with NumPy: a backend and one of its devices."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, NamedTuple

import portopt
from gpu_check.options import Options


class Target(NamedTuple):
    """A backend on a device.

    Attributes:
        backend: a backend of portopt.
        device: the name of one of its devices.
    """

    backend: Any
    device: str


def torch_device(options: Options) -> str:
    """Return torch's name of the device."""
    return "cuda:0" if options.on_gpu else "cpu"


def targets(options: Options) -> dict[str, Target]:
    """Return what is compared with NumPy, by the name of its backend; on the CPU, NumPy plays CuPy's part."""
    found = {}
    for name in options.backends:
        if name == "cupy" and not options.on_gpu:
            found[name] = Target(portopt.get_backend("numpy"), "cpu")
            continue
        backend: Any = portopt.get_backend(name)
        usable = [device for device, reason in backend.devices().items() if reason is None]
        wanted = "cuda" if options.on_gpu else "cpu"
        found[name] = Target(backend, next(device for device in usable if device.startswith(wanted)))
    return found


def why_no_gpu() -> str | None:
    """Return why no library has a GPU; None if one has."""
    reasons = []
    for name in ("torch", "cupy", "jax"):
        try:
            backend: Any = portopt.get_backend(name)
            devices = backend.devices()
        except Exception as error:
            reasons.append(f"{name}: {type(error).__name__}")
            continue
        if any(device.startswith("cuda") and reason is None for device, reason in devices.items()):
            return None
        reasons.append(f"{name}: {next((reason for reason in devices.values() if reason), 'has only the CPU')}")
    return "no library has a CUDA device (" + "; ".join(reasons) + ")"


def synchronize(options: Options) -> None:
    """Wait for all that was started on the GPU."""
    if options.on_gpu:
        with contextlib.suppress(ImportError):
            importlib.import_module("torch").cuda.synchronize()
        with contextlib.suppress(ImportError):
            importlib.import_module("cupy").cuda.Device(0).synchronize()
