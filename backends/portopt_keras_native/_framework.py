"""Keras 3 as one of the frameworks whose optimizers portopt takes, translates and compares with."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from portopt.imports import imported
from portopt.interchange.exchange import NativeArrays
from portopt.interchange.frameworks import NativeFramework, given_too
from portopt_keras_native._native import KerasNative, backend_arrays
from portopt_keras_native._translation import VOCABULARY, KerasTranslator


class KerasFramework(NativeFramework):
    """Keras 3."""

    name = "keras"
    install_command = 'pip install "portopt[keras]"'
    accepts = "a class of keras.optimizers with its arguments, or an instance"

    vocabulary = VOCABULARY
    translator = KerasTranslator()

    @property
    def arrays(self) -> NativeArrays:
        return backend_arrays()

    def owns(self, thing: object) -> bool:
        base = getattr(getattr(imported("keras"), "optimizers", None), "Optimizer", None)
        return base is not None and (isinstance(thing, base) or (isinstance(thing, type) and issubclass(thing, base)))

    def version(self) -> str:
        # Keras may be set up to run on TensorFlow.
        importlib.import_module("portopt_tensorflow.loading").load_triton_first()
        return str(importlib.import_module("keras").__version__)

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> KerasNative:
        if isinstance(thing, type):
            return KerasNative(thing(**arguments))
        if arguments:
            raise given_too(f"{type(thing).__name__} was given as an instance", arguments)
        return KerasNative(thing)

    def from_config(self, config: Mapping[str, Any]) -> KerasNative:
        cls = getattr(importlib.import_module("keras").optimizers, config["optimizer"], None)
        if not (isinstance(cls, type) and self.owns(cls)):
            raise ValueError(f"keras.optimizers has no optimizer {config['optimizer']!r}")
        return KerasNative(cls.from_config(copy.deepcopy(dict(config["arguments"]))))  # type: ignore[attr-defined]  # checked by owns

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.arrays.name != "jax":
            return function
        jitted: Callable[..., Any] = importlib.import_module("jax").jit(function)
        return jitted

    def devices(self) -> Mapping[str, str | None]:
        importlib.import_module("keras")
        return {"cpu": None}

    def load(self, array: Any, device: str) -> Any:
        keras = importlib.import_module("keras")
        with keras.device(device):
            return keras.ops.convert_to_tensor(np.array(array))

    def fetch(self, array: Any) -> Any:
        return np.array(importlib.import_module("keras").ops.convert_to_numpy(array))


native = KerasFramework()
