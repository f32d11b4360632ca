"""`torch.optim` as one of the frameworks whose optimizers portopt takes, translates and compares with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from portopt.imports import imported
from portopt.interchange.frameworks import NativeFramework, given_too
from portopt_torch._backend import backend
from portopt_torch._native import TorchArrays, TorchNative, hyperparameters_of, path_of
from portopt_torch._translation import VOCABULARY, TorchTranslator


class TorchFramework(NativeFramework):
    """`torch.optim`."""

    name = "torch"
    install_command = backend.install_command
    accepts = "a class of torch.optim with its arguments, or an instance"

    vocabulary = VOCABULARY
    translator = TorchTranslator()
    arrays = TorchArrays()
    backend = backend

    def owns(self, thing: object) -> bool:
        torch = imported("torch")
        if torch is None:
            return False
        return isinstance(thing, torch.optim.Optimizer) or (
            isinstance(thing, type) and issubclass(thing, torch.optim.Optimizer)
        )

    def version(self) -> str:
        return backend.version()

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> TorchNative:
        if isinstance(thing, type):
            return TorchNative(thing, dict(arguments))
        if arguments:
            raise given_too(f"{path_of(type(thing))} was given as an instance", arguments)
        return TorchNative(type(thing), hyperparameters_of(thing))

    def from_config(self, config: Mapping[str, Any]) -> TorchNative:
        torch = importlib.import_module("torch")
        cls = getattr(torch.optim, config["optimizer"], None)
        if not self.owns(cls):
            raise ValueError(f"torch.optim has no optimizer {config['optimizer']!r}")
        return TorchNative(cls, {k: tuple(v) if isinstance(v, list) else v for k, v in config["arguments"].items()})


native = TorchFramework()
