"""TensorFlow as one of the frameworks whose optimizers portopt takes, translates and compares with."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from portopt.imports import imported
from portopt.interchange.frameworks import NativeFramework, given_too
from portopt_tensorflow._native import TensorFlowArrays, TensorFlowNative, of_keras_2, of_version_1
from portopt_tensorflow._translation import VERSION_1, TensorFlowTranslator
from portopt_tensorflow.loading import load_triton_first


class TensorFlowFramework(NativeFramework):
    """`tf.compat.v1.train`, and `tf_keras`, where Keras 2 lives on."""

    name = "tensorflow"
    install_command = 'pip install "portopt[tensorflow]"'
    accepts = "a class of tf.compat.v1.train or tf_keras.optimizers with its arguments, or an instance"

    vocabulary = VERSION_1
    translator = TensorFlowTranslator()
    arrays = TensorFlowArrays()

    def owns(self, thing: object) -> bool:
        bases = tuple(self._bases())
        return isinstance(thing, bases) or (isinstance(thing, type) and issubclass(thing, bases))

    def _bases(self) -> Iterable[type]:
        tf = imported("tensorflow")
        if tf is not None:
            yield tf.compat.v1.train.Optimizer
        tf_keras = imported("tf_keras")
        if tf_keras is not None:
            yield tf_keras.optimizers.Optimizer
            yield tf_keras.optimizers.legacy.Optimizer

    def version(self) -> str:
        load_triton_first()
        return str(importlib.import_module("tensorflow").__version__)

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> TensorFlowNative:
        cls = thing if isinstance(thing, type) else type(thing)
        if cls is not thing and arguments:
            raise given_too(f"{cls.__name__} was given as an instance", arguments)
        tf = importlib.import_module("tensorflow")
        if issubclass(cls, tf.compat.v1.train.Optimizer):
            return of_version_1(cls, thing, arguments)
        return of_keras_2(cls, thing if thing is not cls else cls(**arguments))

    def from_config(self, config: Mapping[str, Any]) -> TensorFlowNative:
        name, arguments = config["optimizer"], dict(config["arguments"])
        package, _, path = name.rpartition(".")
        namespaces = {
            "tf.compat.v1.train": lambda: importlib.import_module("tensorflow").compat.v1.train,
            "tf_keras.optimizers": lambda: importlib.import_module("tf_keras").optimizers,
            "tf_keras.optimizers.legacy": lambda: importlib.import_module("tf_keras").optimizers.legacy,
        }
        cls = getattr(namespaces[package](), path, None) if package in namespaces else None
        if not self.owns(cls):
            raise ValueError(f"TensorFlow has no optimizer {name!r}")
        assert isinstance(cls, type)
        return self.adopt(cls, arguments) if package.startswith("tf.") else self.adopt(cls.from_config(arguments), {})  # type: ignore[attr-defined]  # checked by owns

    def devices(self) -> Mapping[str, str | None]:
        importlib.import_module("tensorflow")
        return {"cpu": None}

    def load(self, array: Any, device: str) -> Any:
        tf = importlib.import_module("tensorflow")
        with tf.device(device):
            return tf.constant(array)

    def fetch(self, array: Any) -> Any:
        return np.array(array)


native = TensorFlowFramework()
