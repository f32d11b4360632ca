"""The NumPy backend of portopt: arrays of `numpy.ndarray`, bfloat16 through ml_dtypes."""

from portopt_numpy._backend import NumpyBackend as NumpyBackend
from portopt_numpy._backend import backend as backend
