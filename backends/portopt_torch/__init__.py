"""The PyTorch backend of portopt: tensors on the CPU and on CUDA devices; and portopt's rules as `torch.optim` optimizers."""

from typing import TYPE_CHECKING, Any

from portopt_torch._backend import TorchBackend as TorchBackend
from portopt_torch._backend import backend as backend

if TYPE_CHECKING:
    from portopt_torch._from_torch import from_torch as from_torch
    from portopt_torch._optimizer import TorchOptimizer as TorchOptimizer


def __getattr__(name: str) -> Any:
    # The class derives from torch's, and importing this package must not import torch.
    if name == "TorchOptimizer":
        from portopt_torch._optimizer import TorchOptimizer

        return TorchOptimizer
    if name == "from_torch":
        from portopt_torch._from_torch import from_torch

        return from_torch
    if name == "native":
        from portopt_torch._framework import native

        return native
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
