"""Parameters that several processes hold parts of: the part that lies here, and totals over all parts."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.imports import imported
from portopt.program import Dim
from portopt.program.bins import NO_SQUARES, NONE, Bins, combined
from portopt.program.draws import Place
from portopt_torch._backend import COMBINE, backend


def is_sharded(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is one process's view of one that several hold."""
    # Importing it takes half a second, and there is no such tensor before somebody does.
    distributed = imported("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def local_part(tensor: Any) -> Any:
    """Return the part of a tensor that lies in this process."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def place_of(number: int, parameter: Any) -> Place:
    """Return where the part of a parameter that lies here is in the whole one, which has this number among all parameters."""
    whole = tuple(parameter.shape)
    if not is_sharded(parameter):
        return Place.of(number, whole)
    place: Place = _parts().place_of_part(number, parameter)
    return place


def placed_like(gradient: Any, parameter: Any) -> Any:
    """Return a gradient distributed as its parameter is; tensor parallelism can leave it as a sum yet to be taken."""
    if is_sharded(gradient) and gradient.placements != parameter.placements:
        return gradient.redistribute(placements=parameter.placements)
    return gradient


def input_part(name: str, given: Any, parameter: Any) -> Any:
    """Return the part of a further input of a parameter that lies in this process.

    Raises:
        TypeError: several processes hold the parameter, and this one alone the input.
        ValueError: the two are of other shapes.
    """
    if not is_sharded(parameter):
        return given
    shape = tuple(parameter.shape)
    if isinstance(given, torch.Tensor) and not is_sharded(given):
        raise TypeError(
            f"{name} of a parameter of shape {shape} that several processes hold is a tensor of this one alone: give a DTensor, "
            "such as torch.distributed.tensor.distribute_tensor(x, p.device_mesh, p.placements)"
        )
    if is_sharded(given) and tuple(given.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, but its parameter has {shape}; they must agree")
    return local_part(placed_like(given, parameter))


def like_parameter(local: Any, parameter: Any, dims: tuple[Dim, ...] | None) -> Any:
    """Return a tensor whose part in this process is `local`, distributed as a parameter is, of whose axes it has some."""
    if not is_sharded(parameter):
        return local
    if dims is not None:
        parts, shape = _parts(), tuple(parameter.shape)
        placements = parts.placements_of(parameter.placements, dims)
        return parts.distributed(local, parameter.device_mesh, placements, parts.stored_shape(dims, shape))
    # Not DTensor.from_local: it would move to the mesh's device what is kept in host memory.
    with torch.no_grad():
        whole: Any = torch.empty_like(parameter, dtype=local.dtype, requires_grad=False)
        whole.to_local().copy_(local)
    return whole


def placement(tensor: Any, dims: tuple[Dim, ...] | None = None) -> Any:
    """Return how a tensor is distributed, or a slot that has some of its axes."""
    if not is_sharded(tensor):
        return "one tensor"
    return tensor.device_mesh, _parts().placements_of(tensor.placements, dims)


def _parts() -> Any:
    return importlib.import_module("portopt_torch._parts")


def gradient_norm(gradients: Sequence[Any]) -> Any:
    """Return the norm of all gradients together, the same bits however they are distributed."""
    return backend.gradient_norm(gradients) if not any(map(is_sharded, gradients)) else total("norm", gradients)


def total(name: str, tensors: Sequence[Any]) -> float:
    """Return a sum, norm or extreme of all tensors together, the same bits however they are distributed.

    Every process of the tensors' meshes calls it, with its view of the same tensors. Plain tensors are taken to be the same in
    all processes.

    Args:
        name: as `Reductions.partial` takes it.
        tensors: of any dtypes; they are loaded into the compute dtype of their own.
    """
    reductions = backend.reductions("float64")
    parts = []
    with backend.quiet():
        for tensor in map(local_part, tensors):
            loaded = backend.primitives(COMPUTE_DTYPE[backend.dtype_name(tensor)]).load(tensor)
            parts.append(reductions.partial(name, loaded))
    return _over_all(name, tensors, parts)


@contextlib.contextmanager
def totals_over(arrays: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Within it, totals that the backend computes over local arrays are over all parts of them, in all processes.

    Args:
        arrays: what the totals may be computed of, each with the parameter that it is distributed as.
    """
    parameter_of = {id(array): parameter for parameter, array in arrays}
    order = {id(parameter): i for i, (parameter, _) in enumerate(arrays)}

    def combine(name: str, given: Sequence[Any], parts: Sequence[Any]) -> float:
        found = [(parameter_of[id(array)], part) for array, part in zip(given, parts, strict=True)]
        # What is computed in which order depends on the shapes of local parts, and so on the process.
        found.sort(key=lambda entry: order[id(entry[0])])
        return _over_all(name, [parameter for parameter, _ in found], [part for _, part in found])

    token = COMBINE.set(combine)
    try:
        yield
    finally:
        COMBINE.reset(token)


def _over_all(name: str, tensors: Sequence[Any], parts: Sequence[Any]) -> float:
    """Return the total of all parts in all processes, given this one's part of each tensor."""
    held: dict[Any, list[Any]] = {}
    for tensor, part in zip(tensors, parts, strict=True):
        here = held.setdefault(tensor.device_mesh if is_sharded(tensor) else None, [])
        if _counts_here(tensor):
            here.append(part)
    reductions = backend.reductions("float64")
    over: list[Any] = []
    for mesh, here in held.items():
        if name in ("sum", "norm"):
            over.append(_bins_over(mesh, combined([NONE if name == "sum" else NO_SQUARES, *here])))
        else:
            over.append(_extreme_over(mesh, reductions.combine(name, here), name))
    return float(reductions.combine(name, over))


def _bins_over(mesh: Any, part: Bins) -> Bins:
    """Return the bins of the parts of all processes of a mesh together."""
    (exponent,) = _over(mesh, [part.exponent], "MAX", torch.int64)
    raised = combined([part, Bins(exponent, (0, 0, 0), 0.0)])
    first, second, third = _over(mesh, raised.sums, "SUM", torch.int64)
    # A sum of infinities and NaN needs no maximum of a NaN, on which communication libraries disagree.
    (special,) = _over(mesh, [part.special], "SUM", torch.float64)
    return Bins(exponent, (first, second, third), special)


def _extreme_over(mesh: Any, part: float, name: str) -> float:
    is_nan = math.isnan(part)
    neutral = math.inf if name == "min" else -math.inf
    (extreme,) = _over(mesh, [neutral if is_nan else part], name.upper(), torch.float64)
    (nans,) = _over(mesh, [int(is_nan)], "MAX", torch.int64)
    return math.nan if nans else extreme


def _counts_here(gradient: Any) -> bool:
    """Tell whether this process adds its part of a gradient: of equal replicas, the first does."""
    if not is_sharded(gradient):
        return True
    coordinate = gradient.device_mesh.get_coordinate() or []
    return all(i == 0 or not p.is_replicate() for i, p in zip(coordinate, gradient.placements, strict=True))


def _over(mesh: Any, numbers: Sequence[float], operation: str, dtype: torch.dtype) -> list[Any]:
    """Return the maximum, minimum or sum of each number over the processes of a mesh."""
    if mesh is None:
        return list(numbers)
    values = torch.tensor(list(numbers), dtype=dtype, device=mesh.device_type)
    for dimension in range(mesh.ndim):
        torch.distributed.all_reduce(
            values, getattr(torch.distributed.ReduceOp, operation), group=mesh.get_group(dimension)
        )
    return list(values.tolist())
