"""The PyTorch backend of portopt: tensors on the CPU and on CUDA devices."""

from portopt_torch._backend import TorchBackend as TorchBackend
from portopt_torch._backend import backend as backend


def __getattr__(name: str) -> object:
    if name == "native":
        from portopt_torch._native import native

        return native
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
