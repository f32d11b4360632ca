"""The PyTorch backend of portopt: tensors on the CPU and on CUDA devices."""

from portopt_torch._backend import TorchBackend as TorchBackend
from portopt_torch._backend import backend as backend
