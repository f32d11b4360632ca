"""Makes the classes known to Keras when Keras is imported, and no sooner: portopt loads this package where Keras is not used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def classes() -> Mapping[str, Any]:
    """Return what this package has for Keras, by name, registered; imports Keras."""
    optimizer = importlib.import_module("portopt_keras._optimizer").KerasOptimizer
    return {"KerasOptimizer": optimizer, **importlib.import_module("portopt_keras._rules").CLASSES}


def with_keras() -> None:
    """Register the classes now if Keras is imported, else right after it is."""
    if "keras" in sys.modules:
        classes()
    else:
        sys.meta_path.insert(0, _AfterKeras())


class _AfterKeras(MetaPathFinder):
    """Finds Keras as the others would, once, and has the classes registered at the end of its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                classes()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # of this one loader
        return spec
