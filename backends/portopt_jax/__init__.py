"""The JAX backend of portopt: concrete arrays, and tracers inside jit, scan, vmap and grad; and its optimizers for optax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from portopt.imports import imported
from portopt.optimizer import OptimizerState
from portopt_jax._backend import JaxBackend as JaxBackend
from portopt_jax._backend import backend as backend
from portopt_jax._backend import register_for_export as _register_for_export

if imported("jax") is not None:
    # A process that only calls exported functions uses nothing else of this package.
    _register_for_export(OptimizerState)

if TYPE_CHECKING:
    from portopt_jax._optax import PortoptState as PortoptState
    from portopt_jax._optax import optax_factory as optax_factory
    from portopt_jax._optax import step as step
    from portopt_jax._optax import to_optax as to_optax
else:
    _OPTAX = frozenset({"PortoptState", "optax_factory", "step", "to_optax"})

    def __getattr__(name: str) -> Any:
        if name == "native":
            return importlib.import_module("portopt_jax._framework").native
        if name not in _OPTAX:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module("portopt_jax._optax"), name)
        except ModuleNotFoundError as error:
            if error.name not in ("optax", "jax"):
                raise
            raise ImportError(f'portopt_jax.{name} needs {error.name}: pip install "portopt[jax,optax]"') from error
