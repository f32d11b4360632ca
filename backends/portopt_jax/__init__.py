"""The JAX backend of portopt: concrete arrays, and tracers inside jit, scan, vmap and grad."""

from portopt_jax._backend import JaxBackend as JaxBackend
from portopt_jax._backend import backend as backend


def __getattr__(name: str) -> object:
    if name == "native":
        from portopt_jax._native import native

        return native
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
