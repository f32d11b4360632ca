"""The JAX backend of portopt: concrete arrays, and tracers inside jit, scan, vmap and grad."""

from portopt_jax._backend import JaxBackend as JaxBackend
from portopt_jax._backend import backend as backend
