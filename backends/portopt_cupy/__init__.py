"""The CuPy backend of portopt: arrays on CUDA devices."""

from portopt_cupy._backend import CupyBackend as CupyBackend
from portopt_cupy._backend import backend as backend
