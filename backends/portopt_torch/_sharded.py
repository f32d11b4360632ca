"""Parameters that several processes hold parts of: the part that lies here, and norms over all parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.imports import imported
from portopt.program.draws import Place
from portopt.program.reductions import PASSES, largest_magnitude, norm_of_sums, scaling, sums_of_parts
from portopt_torch._backend import backend


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
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(whole, parameter.device_mesh, parameter.placements)
    return Place(number, tuple(shape), tuple(offset), whole)


def placed_like(gradient: Any, parameter: Any) -> Any:
    """Return a gradient distributed as its parameter is; tensor parallelism can leave it as a sum yet to be taken."""
    if is_sharded(gradient) and gradient.placements != parameter.placements:
        return gradient.redistribute(placements=parameter.placements)
    return gradient


def like_parameter(local: Any, parameter: Any) -> Any:
    """Return a tensor whose part in this process is `local`, distributed as a parameter is."""
    if not is_sharded(parameter):
        return local
    # Not DTensor.from_local: it would move to the mesh's device what is kept in host memory.
    with torch.no_grad():
        whole: Any = torch.empty_like(parameter, dtype=local.dtype, requires_grad=False)
        whole.to_local().copy_(local)
    return whole


def gradient_norm(gradients: Sequence[Any]) -> Any:
    """Return the norm of all gradients together, the same bits however they are distributed.

    Every process of the gradients' meshes calls it, with its view of the same gradients. Plain tensors are taken to be the same
    in all processes.
    """
    if not any(map(is_sharded, gradients)):
        return backend.gradient_norm(gradients)
    parts: dict[Any, list[Any]] = {}
    for g in gradients:
        mesh = g.device_mesh if is_sharded(g) else None
        held = parts.setdefault(mesh, [])
        if _counts_here(g):
            held.append(local_part(g))
    primitives = backend.primitives("float64")
    count = sum(math.prod(g.shape) for g in gradients)
    with backend.quiet():
        loaded = {
            mesh: [backend.primitives(COMPUTE_DTYPE[backend.dtype_name(g)]).load(g) for g in held]
            for mesh, held in parts.items()
        }
        # Communication libraries disagree on the maximum of a NaN.
        largest, nans = 0.0, 0.0
        for mesh, held in loaded.items():
            magnitude = largest_magnitude(primitives, held)
            is_nan = math.isnan(magnitude)
            most = _over(mesh, [0.0 if is_nan else magnitude, float(is_nan)], "MAX")
            largest, nans = max(largest, most[0]), max(nans, most[1])
        scale = scaling(math.nan if nans else largest, count)
        if scale is None:
            return math.nan if nans else largest
        sums = []
        for mesh, held in loaded.items():
            here = [[0.0] * PASSES, *sums_of_parts(primitives, held, scale)]
            sums.append(_over(mesh, list(map(math.fsum, zip(*here, strict=True))), "SUM"))
    return norm_of_sums(scale, sums)


def _counts_here(gradient: Any) -> bool:
    """Tell whether this process adds its part of a gradient: of equal replicas, the first does."""
    if not is_sharded(gradient):
        return True
    coordinate = gradient.device_mesh.get_coordinate() or []
    return all(i == 0 or not p.is_replicate() for i, p in zip(coordinate, gradient.placements, strict=True))


def _over(mesh: Any, numbers: Sequence[float], operation: str) -> list[float]:
    """Return the maximum or sum of each number over the processes of a mesh."""
    if mesh is None:
        return list(numbers)
    values = torch.tensor(list(numbers), dtype=torch.float64, device=mesh.device_type)
    for dimension in range(mesh.ndim):
        torch.distributed.all_reduce(
            values, getattr(torch.distributed.ReduceOp, operation), group=mesh.get_group(dimension)
        )
    return [float(x) for x in values.tolist()]
