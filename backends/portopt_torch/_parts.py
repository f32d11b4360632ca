"""Steps of parameters of which each process holds a part: reductions over all parts, and products of whole matrices.

What is computed for each element is computed where the element lies. A sum is one of integers over all processes, an extreme
that of all; so the bits are those of one process. For products, operands are gathered, and each process keeps its part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from portopt.backend import Leaf, Work
from portopt.program import Dim, Program
from portopt.program.bins import Bins
from portopt.program.draws import Place
from portopt.program.interpreter import shape_of
from portopt.program.ir import PRODUCTS
from portopt.program.reductions import Axes, Reductions

Dims = tuple[Dim, ...] | None


@dataclass(frozen=True)
class PartPlace(Place):
    """Where the part of a parameter is that this process holds, and how the processes share it.

    Attributes:
        mesh: the processes.
        placements: what each axis of the mesh does.
    """

    is_part: ClassVar[bool] = True

    mesh: Any
    placements: tuple[Any, ...]


def place_of_part(number: int, parameter: Any) -> PartPlace:
    """Return where the part of a DTensor that lies here is in the whole one, which has this number among all parameters."""
    whole, mesh, placements = tuple(parameter.shape), parameter.device_mesh, tuple(parameter.placements)
    shape, offset = compute_local_shape_and_global_offset(whole, mesh, placements)
    return PartPlace(number, tuple(shape), tuple(offset), whole, mesh, placements)


def placements_of(placements: Sequence[Any], dims: Dims) -> tuple[Any, ...]:
    """Return how a slot is shared, given how its parameter is, and which of the parameter's axes it has."""
    if dims is None:
        return tuple(placements)
    axes = [d for d in dims if d != -1]

    def of(placement: Any) -> Any:
        if not placement.is_shard() or placement.dim not in axes:
            return Replicate()
        axis = axes.index(placement.dim)
        if type(placement) is Shard:
            return Shard(axis)
        return type(placement)(axis, split_factor=placement.split_factor)

    return tuple(map(of, placements))


def stored_shape(dims: Dims, whole: tuple[int, ...]) -> tuple[int, ...]:
    """Return the whole shape of a slot as it is kept, given that of the parameter."""
    return whole if dims is None else shape_of(tuple(d for d in dims if d != -1), whole)


def distributed(local: Any, mesh: Any, placements: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Return a tensor of which this process holds `local`."""
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides)


def needs_whole(program: Program) -> bool:
    """Tell whether a program combines elements otherwise than by reductions."""
    return any(op.name in PRODUCTS or any(isinstance(d, str) for d in op.dims or ()) for op in program.ops)


def gathered(program: Program, leaf: Leaf) -> Leaf:
    """Return a parameter's arrays with all elements."""
    place: Any = leaf.place
    whole = {}
    for name, local in leaf.items():
        dims = _dims_of(program, name)
        shape = stored_shape(dims, place.whole)
        whole[name] = distributed(local, place.mesh, placements_of(place.placements, dims), shape).full_tensor()
    infos = {name: info._replace(shape=tuple(whole[name].shape)) for name, info in leaf.infos.items()}
    return Leaf(whole, infos, leaf.number, Place.of(place.number, place.whole))


def part_of(program: Program, leaf: Leaf, name: str, whole: Any) -> Any:
    """Return this process's part of a new array of a parameter."""
    place: Any = leaf.place
    placements = placements_of(place.placements, _dims_of(program, name))
    shape, offset = compute_local_shape_and_global_offset(tuple(whole.shape), place.mesh, placements)
    return whole[tuple(slice(first, first + n) for first, n in zip(offset, shape, strict=True))].clone()


def _dims_of(program: Program, name: str) -> Dims:
    # A slot of a shape of its own, which is whole everywhere, may be replaced by products that have axes of the parameter.
    read = next((op for op in program.ops if op.reads == name), None)
    if read is None and name in program.array_outputs:
        read = program.ops[program.array_outputs[name]]
    return None if read is None else read.dims


def update_whole(backend: Any, work: Work) -> list[dict[str, Any]]:
    """Return new arrays of the parts here, computed from whole arrays in each process."""
    results = []
    for leaf in work.parameters:
        assert isinstance(leaf, Leaf)
        if leaf.is_part:
            whole = Work(work.program, work.scalars, [gathered(work.program, leaf)])
            [new] = backend.update([whole], in_place=False)
            results.append({name: part_of(work.program, leaf, name, of) for name, of in new.items()})
        else:
            results += backend.update([Work(work.program, work.scalars, [leaf])], in_place=False)
    return results


class PartReductions(Reductions):
    """Reductions of arrays of which each process holds a part; each process calls them at the same time.

    Attributes:
        place: of the parameter.
        dims: which axes of the parameter the reduced array has; None: the parameter's own.
    """

    place: PartPlace
    dims: Dims = None

    @classmethod
    def over(cls, reductions: Reductions, place: PartPlace) -> PartReductions:
        """Return reductions by the same operations over all parts."""
        own = cls.__new__(cls)
        own.__dict__.update(reductions.__dict__)
        own.place = place
        return own

    def of(self, dims: Dims) -> Reductions:
        own = copy.copy(self)
        own.dims = dims
        return own

    def sum(self, x: Any, axes: Axes) -> Any:
        return super().sum(self._filled(x, axes, 0.0), axes)

    def mean(self, x: Any, axes: Axes) -> Any:
        count = math.prod(self._length(x, axis) for axis in _all(x, axes))
        if axes is None:
            return self._divided_whole(self.sum(x, None), count)
        return self._narrow(self._divided(self.wide_sum(x, axes), count))

    def wide_sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        return super().wide_sum(self._filled(x, axes, 0.0), axes)

    def norm(self, x: Any, axes: Axes) -> Any:
        return super().norm(self._filled(x, axes, 0.0), axes)

    def max(self, x: Any, axes: Axes) -> Any:
        return self._extreme_over(super().max(self._filled(x, axes, -math.inf), axes), x, axes, -math.inf, "MAX")

    def min(self, x: Any, axes: Axes) -> Any:
        return self._extreme_over(super().min(self._filled(x, axes, math.inf), axes), x, axes, math.inf, "MIN")

    def any(self, x: Any, axes: Axes) -> Any:
        return self._mask_over(super().any(self._filled(x, axes, False), axes), x, axes, "MAX")

    def all(self, x: Any, axes: Axes) -> Any:
        return self._mask_over(super().all(self._filled(x, axes, True), axes), x, axes, "MIN")

    def count(self, x: Any, axes: Axes) -> Any:
        mask = x != 0 if x.dtype is not torch.bool else x
        counted = mask.sum(dim=_all(x, axes), keepdim=True, dtype=torch.int64) if x.ndim else mask.to(torch.int64)
        counted = self._over(counted, x, axes, "SUM")
        return int(counted) if axes is None else self._narrow(counted.to(torch.float64))

    def partial(self, name: str, *xs: Any) -> Any:
        neutral = {"max": -math.inf, "min": math.inf}.get(name, 0.0)
        return super().partial(name, *(self._filled(x, None, neutral) for x in xs))

    def _squares(self, x: Any) -> Bins | None:
        return None

    def _split(self, x: Any, axes: tuple[int, ...], *, squared: bool) -> Any:
        split = super()._split(x, axes, squared=squared)
        largest, special = (
            self._over(of, x, axes, how) for of, how in ((split.largest, "MAX"), (split.special, "SUM"))
        )
        return split._replace(largest=largest, special=special)

    def _binned(self, x: Any, axes: tuple[int, ...], scaling: Any, *, squared: bool) -> list[Any]:
        sums = super()._binned(x, axes, scaling, squared=squared)
        return list(self._over(torch.stack(sums), x, axes, "SUM"))

    def _extreme_over(self, found: Any, x: Any, axes: Axes, neutral: float, how: str) -> Any:
        # Communication libraries disagree on the extreme of a NaN.
        value = torch.as_tensor(found, dtype=None if axes is not None else torch.float64, device=x.device)
        nan = self._over(torch.isnan(value).to(torch.int64), x, axes, "MAX") != 0
        value = self._over(torch.where(torch.isnan(value), neutral, value), x, axes, how)
        value = torch.where(nan, math.nan, value)
        return value if axes is not None else float(value)

    def _mask_over(self, found: Any, x: Any, axes: Axes, how: str) -> Any:
        value = self._over(torch.as_tensor(found, device=x.device).to(torch.int64), x, axes, how) != 0
        return value if axes is not None else bool(value)

    def _over(self, value: Any, x: Any, axes: Axes, how: str) -> Any:
        """Return a reduced array, reduced over the processes that share the axes as well."""
        axes_of_mesh = self._axes_of_mesh(x, axes)
        if not axes_of_mesh or not value.numel():
            return value
        everywhere = value.to(self.place.mesh.device_type, copy=True).contiguous()
        for axis in axes_of_mesh:
            operation = getattr(torch.distributed.ReduceOp, how)
            torch.distributed.all_reduce(everywhere, operation, group=self.place.mesh.get_group(axis))
        return everywhere.to(value.device)

    def _axes_of_mesh(self, x: Any, axes: Axes) -> list[int]:
        """Return the axes of the mesh whose processes share an axis of an array that is reduced."""
        reduced = {self._axis(axis) for axis in _all(x, axes)}
        return [i for i, p in enumerate(self.place.placements) if p.is_shard() and p.dim in reduced]

    def _axis(self, axis: int) -> Dim:
        """Return the axis of the parameter that an axis of an array is; -1 for none."""
        return axis if self.dims is None else self.dims[axis]

    def _length(self, x: Any, axis: int) -> int:
        """Return how long an axis of an array is over all processes."""
        of = self._axis(axis)
        return self.place.whole[of] if isinstance(of, int) and of >= 0 else int(x.shape[axis])

    def _filled(self, x: Any, axes: Axes, neutral: Any) -> Any:
        """Return an array with an element that changes nothing where this process has none of an axis that is reduced.

        It takes part in what the processes do together all the same.
        """
        empty = [axis for axis in _all(x, axes) if not x.shape[axis]]
        if not empty or not self._axes_of_mesh(x, axes):
            return x
        return x.new_full([1 if axis in empty else n for axis, n in enumerate(x.shape)], neutral)


def _all(x: Any, axes: Axes) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axes is None else tuple(axes)
