"""A sample backend: portopt on the arrays of `portopt_tiny.arrays`, a small array library of its own."""

from ._backend import TinyBackend as TinyBackend
from ._backend import backend as backend
