"""optax as one of the frameworks whose optimizers portopt takes, translates and compares with."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from portopt.imports import imported
from portopt.interchange.frameworks import NativeFramework, given_too
from portopt_jax._backend import backend
from portopt_jax._native import JaxArrays, OptaxNative, name_of, named
from portopt_jax._translation import VOCABULARY, OptaxTranslator


class OptaxFramework(NativeFramework):
    """optax."""

    name = "optax"
    install_command = 'pip install "portopt[jax,optax]"'
    accepts = "an optax transformation, or a function of optax with its arguments"

    vocabulary = VOCABULARY
    translator = OptaxTranslator()
    arrays = JaxArrays()
    backend = backend

    def owns(self, thing: object) -> bool:
        optax = imported("optax")
        if optax is None:
            return False
        if isinstance(thing, optax.GradientTransformation):
            return True
        function = thing.func if isinstance(thing, functools.partial) else thing
        return inspect.isfunction(function) and function.__module__.partition(".")[0] == "optax"

    def version(self) -> str:
        importlib.import_module("jax")
        return str(importlib.import_module("optax").__version__)

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> OptaxNative:
        optax = importlib.import_module("optax")
        if isinstance(thing, optax.GradientTransformation):
            if arguments:
                raise given_too("an optax transformation was given", arguments, "give the function that makes it")
            return OptaxNative(thing, None, {})
        made = thing(**arguments)
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(f"optax.{name_of(thing)} makes {type(made).__name__}, which is no gradient transformation")
        return OptaxNative(made, thing, dict(arguments))

    def from_config(self, config: Mapping[str, Any]) -> OptaxNative:
        factory = named(config["optimizer"])
        if not self.owns(factory):
            raise ValueError(f"optax has no function {config['optimizer']!r}")
        return self.adopt(factory, dict(config["arguments"]))

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        jitted: Callable[..., Any] = importlib.import_module("jax").jit(function)
        return jitted


native = OptaxFramework()
