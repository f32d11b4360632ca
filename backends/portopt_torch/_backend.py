from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from portopt.arithmetic import HOST
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.backend import (
    IN_PLACE,
    INTERPRETED,
    PURE,
    ArrayAPIBackend,
    ArrayInfo,
    Arrays,
    DeviceScalars,
    Leaf,
    MemoryRange,
    Mode,
    Work,
    described,
    is_interpreted,
)
from portopt.imports import imported
from portopt.interrupts import finish
from portopt.kernels import launch
from portopt.kernels import products as gpu_products
from portopt.kernels.captured_step import CudaGraphs
from portopt.kernels.device_arithmetic import DeviceOperations
from portopt.kernels.device_plan import make_device_plan
from portopt.kernels.host import compiler, joined, kernel, memory, norm, readers, segments, threads, totals, trial
from portopt.kernels.host import products as host_products
from portopt.kernels.host.plan import can_plan, make_plan
from portopt.kernels.norm_dependence import GradientNorm
from portopt.program import Program, products
from portopt.program.bins import Bins
from portopt.program.interpreter import StepScalars, interpret
from portopt.program.primitives import Primitives
from portopt.program.reductions import Reductions, of_numbers
from portopt.program.segments import Segment

if TYPE_CHECKING:
    from portopt_torch._cuda import TorchLibrary

COMBINE: ContextVar[Callable[[str, Sequence[Any], Sequence[Any]], Any] | None] = ContextVar(
    "portopt_torch_combine", default=None
)
"""What makes a total of parts, given its name and the arrays that they are of, where other processes have more of them."""


class TorchBackend(ArrayAPIBackend):
    """Dense tensors. Steps are not recorded by autograd; changes in place are seen by its version counter."""

    modes: Mapping[str, Mode] = {mode.name: mode for mode in (PURE, IN_PLACE, INTERPRETED)}

    def __init__(self) -> None:
        super().__init__(
            "torch",
            lambda: importlib.import_module("array_api_compat.torch"),
            install_command='pip install "portopt[torch]"',
        )
        self.graphs: CudaGraphs = CudaGraphs(
            self,
            lambda: self._library,
            lambda tensor: self._runs_kernels(tensor),
            lambda tensors: self._is_captured(tensors),
            lambda target, value: target.fill_(value),
            _OnDevice,
            lambda tensor: self._reader([tensor]),
            _increment_version,
        )

    @property
    def _torch(self) -> Any:
        # Finding it among the imported modules takes a tenth of the time.
        return imported("torch") or importlib.import_module("torch")

    def owns(self, leaf: object) -> bool:
        torch = imported("torch")
        return torch is not None and isinstance(leaf, torch.Tensor)

    def version(self) -> str:
        return str(self._torch.__version__)

    def devices(self) -> Mapping[str, str | None]:
        torch = self._torch
        if torch.cuda.is_available():
            return {"cpu": None, **{f"cuda:{i}": None for i in range(torch.cuda.device_count())}}
        built = torch.version.cuda is not None
        reason = "no CUDA device was found" if built else f"torch {torch.__version__} was built without CUDA"
        return {"cpu": None, "cuda": reason}

    def describe(self, array: Any) -> ArrayInfo:
        if array.layout is not self._torch.strided:
            raise TypeError(
                f"tensors of layout {array.layout} are not supported: a rule updates every element; convert with to_dense()"
            )
        if (reason := _why_without_elements(array)) is not None:
            raise TypeError(reason)
        return ArrayInfo(tuple(array.shape), self.dtype_name(array), _text(array.device))

    def dtype_name(self, array: Any) -> str:
        return _text(array.dtype).removeprefix("torch.")

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        return self._empty(like.shape if shape is None else shape, self.dtype(dtype), like.device).fill_(value)

    def _empty(self, shape: Any, dtype: Any, device: Any) -> Any:
        tensor = self._torch.empty(shape, dtype=dtype, device=device)
        if tensor.is_cpu:
            memory.use_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
        return tensor

    def to_numpy(self, array: Any) -> Any:
        torch = self._torch
        on_host = array.detach().to("cpu", copy=True).contiguous()
        if on_host.dtype is torch.bfloat16:
            return on_host.view(torch.int16).numpy().view(importlib.import_module("ml_dtypes").bfloat16)
        return on_host.numpy()

    def from_numpy(self, array: Any, device: str | None) -> Any:
        torch = self._torch
        known = self.devices()
        reason = known.get(str(device), known.get(f"{device}:0", f"it has {', '.join(known)}"))
        if reason is not None:
            raise ValueError(f"torch cannot use the device {device!r}: {reason}")
        # Not `from_numpy`, whose tensors can never be resized.
        if array.dtype.name not in COMPUTE_DTYPE:
            return torch.tensor(array).to(device)
        tensor = self._empty(array.shape, self.dtype(array.dtype.name), "cpu")
        _bits(tensor)[...] = np.array(array, order="C", copy=None).view(f"i{array.dtype.itemsize}")
        return tensor.to(device)

    def primitives(self, compute_dtype: str) -> Primitives:
        overrides: dict[str, Callable[..., Any]] = {
            "sqrt": self._sqrt,
            "multiply_matrices": self._multiply_matrices,
            "multiply_by_transpose": self._multiply_by_transpose,
        }
        primitives = Primitives(self.xp, self.dtype(compute_dtype), compute_dtype, overrides)
        if not is_interpreted():
            primitives.fused = functools.partial(self._fused, primitives)
            primitives.squares = self._squares
            primitives.sliced = functools.partial(self._sliced, primitives)
            primitives.rescaled = functools.partial(self._rescaled, primitives)
            primitives.gram = functools.partial(self._gram, primitives)
            if compute_dtype == "float32":
                primitives.joined = self._joined
        return primitives

    def _fused(
        self, primitives: Primitives, program: Program, arrays: Sequence[Any], scalars: Sequence[float]
    ) -> list[Any]:
        compute = primitives.compute_dtype
        if self._runs_kernels(arrays[0]):
            return launch.segment(self._library, program, compute, arrays, scalars)
        if arrays[0].device.type != "cpu" or not compiler.available():
            values = StepScalars(program, HOST, {f"s{k}": value for k, value in enumerate(scalars)})
            rounded = self.rounded_scalars(program, values, compute, arrays[0])
            return list(interpret(program, primitives, {f"x{k}": x for k, x in enumerate(arrays)}, rounded).values())
        names = [self.dtype_name(x) for x in arrays]
        # Of bfloat16, NumPy has no name, and kernels want the bits.
        found = segments.run(program, compute, [_bits(x) for x in arrays], names, scalars)
        return [self._torch.from_numpy(result) for result in found]

    def _joined(
        self, segment: Segment, arrays: Sequence[Any], scalars: Sequence[float]
    ) -> list[tuple[Any, Mapping[int, Any]]] | None:
        if not compiler.available() or not all(map(self._is_in_memory, arrays)):
            return None
        if (found := joined.run(segment, [*map(_in_numpy, arrays)], scalars)) is None:
            return None
        return [
            (
                array if isinstance(array, products.Sliced) else self._torch.from_numpy(array),
                {axis: functools.partial(self._in_torch, slices) for axis, slices in of.items()},
            )
            for array, of in found
        ]

    def _is_in_memory(self, x: Any) -> bool:
        """Tell whether NumPy can see an array, or a product, of float32 numbers."""
        if isinstance(x, products.Unscaled):
            return bool(x.integers[0].device.type == "cpu")
        return bool(x.device.type == "cpu" and x.dtype == self._torch.float32)

    def _in_torch(self, slices: Callable[[], products.Slices]) -> products.Slices:
        found = slices()
        return found._replace(
            integers=tuple(map(self._torch.from_numpy, found.integers)), factor=self._torch.from_numpy(found.factor)
        )

    def _squares(self, x: Any) -> Bins | None:
        if self._runs_kernels(x):
            return launch.squares(self._library, x)
        if x.device.type != "cpu" or not compiler.available():
            return None
        return norm.squares_of_arrays([_bits(x)], [self.dtype_name(x)])

    def _sliced(self, primitives: Primitives, x: Any, axis: int) -> products.Slices:
        if self._runs_kernels(x):
            return gpu_products.slices(self._library, self.xp, primitives.compute_dtype, x, axis)
        if not self._slices_on_host(primitives, x):
            return products.slices(primitives.wide, x, axis, x.shape[axis], primitives.compute_dtype)
        return self._in_torch(functools.partial(host_products.slices, _memory(x, np.dtype(np.float32)), axis))

    def _rescaled(
        self, primitives: Primitives, integers: Sequence[Any], left: products.Slices, right: products.Slices
    ) -> Any:
        if self._runs_kernels(left.factor):
            return gpu_products.rescaled(self._library, self.xp, primitives.compute_dtype, integers, left, right)
        if not self._slices_on_host(primitives, left.factor):
            return products.rescaled(primitives, primitives.wide, integers, left, right)
        left, right = (s._replace(factor=s.factor.numpy()) for s in (left, right))
        return self._torch.from_numpy(host_products.rescaled([n.numpy() for n in integers], left, right))

    def _gram(self, primitives: Primitives, left: products.Slices) -> Any:
        if not self._slices_on_host(primitives, left.factor):
            return None
        lower = self._products.lower_half(left.integers[0]).numpy()
        return self._torch.from_numpy(host_products.rescaled_gram(lower, left._replace(factor=left.factor.numpy())))

    def _multiply_matrices(self, a: Any, b: Any) -> Any:
        return self._products.multiply_matrices(a, b)

    def _multiply_by_transpose(self, a: Any) -> Any:
        return self._products.multiply_by_transpose(a)

    @property
    def _products(self) -> Any:
        return importlib.import_module("portopt_torch._products")

    def _slices_on_host(self, primitives: Primitives, x: Any) -> bool:
        return bool(x.device.type == "cpu" and primitives.compute_dtype == "float32" and compiler.available())

    def _sqrt(self, x: Any) -> Any:
        """Take the root with NumPy on the shared memory: torch's own on the CPU is not correctly rounded."""
        if x.device.type != "cpu":
            return self._torch.sqrt(x)
        result = self._torch.empty(x.shape, dtype=x.dtype)
        np.sqrt(_memory(x, np.dtype(self.dtype_name(x))), out=_memory(result, np.dtype(self.dtype_name(x))))
        return result

    def quiet(self) -> Any:
        stack = contextlib.ExitStack()
        stack.enter_context(super().quiet())
        stack.enter_context(self._torch.no_grad())
        return stack

    def stored(self, value: Any, like: Any) -> Any:
        return value.broadcast_to(like.shape).to(like.dtype, copy=True).contiguous()

    def assignable(self, value: Any, like: Any) -> Any:
        return value

    def copied(self, array: Any, dtype: str) -> Any:
        with self.quiet():
            return super().copied(array.detach().resolve_neg(), dtype)

    def total(self, name: str, works: Sequence[Work]) -> Any:
        parameters = [arrays["p"] for work in works for arrays in work.parameters]
        combine = COMBINE.get()
        # What lacks an axis is the same in the processes that share it.
        if combine is None or any(work.program.ops[work.program.array_outputs["x"]].dims is not None for work in works):
            detached = self._detached(works)
            return self._total_by_kernels(name, detached) if combine is None else super().total(name, detached)
        here = self.parts_of_total(name, self._detached(works), self.reductions_here)
        return combine(name.removeprefix("total_"), parameters, here)

    def _total_by_kernels(self, name: str, works: Sequence[Work]) -> Any:
        reduction = name.removeprefix("total_")
        on_host = all(arrays["p"].is_cpu for work in works for arrays in work.parameters)
        if not is_interpreted() and all(map(_is_local, works)) and self._all_run_kernels(works):
            found = launch.total(self._library, reduction, works)
            if found is not None:
                return found
        fits = on_host and all(totals.can_run(reduction, work) and _is_local(work) for work in works)
        if is_interpreted() or not compiler.available() or not fits:
            return super().total(name, works)
        jobs = [
            kernel.Job(
                program,
                scalars,  # type: ignore[arg-type]  # a step's scalars
                [leaf.dtypes for leaf in described(self, parameters)],
                [{name: _known_bits(tensor) for name, tensor in arrays.items()} for arrays in parameters],
                None,
            )
            for program, scalars, parameters in works
        ]
        with threads.by(_team().working_team):
            return totals.total_of(reduction, jobs)

    def _detached(self, works: Sequence[Work]) -> list[Work]:
        # The imaginary part of a conjugate is a view that torch negates when it is read.
        return [
            Work(
                program,
                scalars,
                [
                    leaf.like({name: tensor.detach().resolve_neg() for name, tensor in leaf.items()})
                    for leaf in described(self, parameters)
                ],
            )
            for program, scalars, parameters in works
        ]

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        parameters = [arrays for work in works for arrays in work.parameters]
        all_detached = self._detached(works)
        if not all(map(_is_local, all_detached)):
            return self._update_parts(all_detached, works, in_place=in_place)
        if self._are_on_both(arrays["p"] for arrays in parameters):
            return self._update_on_both(works, in_place=in_place)
        scalars = all_detached[0].scalars
        results: list[dict[str, Any]] | None = None
        if isinstance(scalars, StepScalars) and not is_interpreted():
            if self._all_run_kernels(all_detached):
                repeated = isinstance(scalars, DeviceScalars)
                interpreted = self.graphs.results if repeated else functools.partial(super().update, in_place=False)
                results = launch.update(self._library, all_detached, interpreted, in_place=in_place)
                if in_place and results is not None:
                    written = [tensor for outputs in results for tensor in outputs.values()]
                    self._torch.autograd.graph.increment_version(written)
            elif (
                compiler.available()
                and all(arrays["p"].is_cpu for arrays in parameters)
                and any(map(self._runs_on_host, works))
            ):
                results = self._update_on_host(all_detached, in_place=in_place)
        if results is None and isinstance(scalars, DeviceScalars):
            results = self.graphs.update(all_detached, in_place=in_place)
        if results is None:
            with memory.reused(), threads.by(_team().team):
                results = super().update(all_detached, in_place=in_place)
        if in_place:
            return [{n: arrays[n] for n in outputs} for arrays, outputs in zip(parameters, results, strict=True)]
        for arrays, outputs in zip(parameters, results, strict=True):
            outputs["p"].requires_grad_(arrays["p"].requires_grad)
        return results

    def _are_on_both(self, tensors: Iterable[Any]) -> bool:
        """Tell whether some tensors are on devices that have kernels, and all others in host memory."""
        apart = {(self._runs_kernels(tensor), tensor.is_cpu) for tensor in tensors}
        return len({on_device for on_device, _ in apart}) > 1 and all(one or other for one, other in apart)

    def _update_on_both(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        """Do the parts of works that are on devices, which the host does not wait for, and then its own."""
        results: list[dict[str, Any]] = [{} for work in works for _ in work.parameters]
        for on_device in (True, False):
            places, parts, number = list[int](), list[Work](), 0
            for work in works:
                chosen = [k for k, a in enumerate(work.parameters) if self._runs_kernels(a["p"]) is on_device]
                places += [number + k for k in chosen]
                number += len(work.parameters)
                if chosen:
                    parts.append(work._replace(parameters=[work.parameters[k] for k in chosen]))
            for place, new in zip(places, self.update(parts, in_place=in_place), strict=True):
                results[place] = new
        return results

    def _update_parts(self, detached: Sequence[Work], works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        """Do what `update` does where other processes hold other elements that a result depends on."""
        results: list[dict[str, Any]] = []
        for work in detached:
            if _is_local(work):
                results += self.update([work], in_place=False)
            elif self._parts.needs_whole(work.program):
                results += self._parts.update_whole(self, work)
            else:
                results += super().update([work], in_place=False)
        if not in_place:
            return results
        parameters = [arrays for work in works for arrays in work.parameters]
        outputs = [{n: arrays[n] for n in new} for arrays, new in zip(parameters, results, strict=True)]
        with self.quiet():
            self.assign_all(
                [tensor for of in outputs for tensor in of.values()],
                [tensor for new in results for tensor in new.values()],
            )
        return outputs

    def reductions_of(self, leaf: Leaf) -> Reductions:
        reductions = super().reductions_of(leaf)
        return self._parts.PartReductions.over(reductions, leaf.place) if leaf.is_part else reductions

    @property
    def _parts(self) -> Any:
        return importlib.import_module("portopt_torch._parts")

    def _is_captured(self, tensors: Iterable[Any]) -> bool:
        """Tell whether the work of one of the devices of tensors is being captured in a CUDA graph."""
        cuda = self._torch.cuda
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            with cuda.device(device):
                if cuda.is_current_stream_capturing():
                    return True
        return False

    @property
    def _library(self) -> TorchLibrary:
        found: TorchLibrary = importlib.import_module("portopt_torch._cuda").LIBRARY
        return found

    def _runs_kernels(self, tensor: Any) -> bool:
        """Tell whether a tensor is on a GPU that CUDA C is compiled for; ROCm's, which torch calls CUDA too, are not."""
        return bool(tensor.is_cuda and self._torch.version.hip is None)

    def _all_run_kernels(self, works: Sequence[Work]) -> bool:
        return all(self._runs_kernels(arrays["p"]) for work in works for arrays in work.parameters)

    def why_not_fused(self, program: Program, parameters: Sequence[Arrays]) -> str | None:
        tensors = [arrays["p"] for arrays in parameters]
        if self._are_on_both(tensors):
            parts = [[a for a in parameters if self._runs_kernels(a["p"]) is on] for on in (True, False)]
            return next((reason for part in parts if (reason := self.why_not_fused(program, part)) is not None), None)
        if all(map(self._runs_kernels, tensors)):
            if is_interpreted():
                return "it is inside portopt.interpreted(), which switches the kernels off"
            return None if launch.can_run(program) else "no kernel holds all of the program"
        if not all(tensor.is_cpu for tensor in tensors):
            return "there are kernels for tensors in host memory and on CUDA devices only"
        return kernel.why_not_fused(program, described(self, parameters))

    def _runs_on_host(self, work: Work) -> bool:
        """Tell whether a kernel for host memory can do a work."""
        return kernel.why_not_fused(work.program, described(self, work.parameters)) is None

    def _update_on_host(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        """Run the fused kernels on the tensors' own memory."""
        others = [work for work in works if not self._runs_on_host(work)]
        interpreted: Iterator[dict[str, Any]] = iter(())
        if others:
            with memory.reused(), threads.by(_team().team):
                interpreted = iter(self.results(others, in_place=in_place))
        jobs: list[kernel.Job] = []
        results: list[dict[str, Any]] = []
        written: list[Any] = []
        copies: list[Callable[[], object]] = []
        for program, scalars, parameters in works:
            old = [{name: arrays[name] for name in program.array_outputs} for arrays in parameters]
            if self._runs_on_host(Work(program, scalars, parameters)):
                leaves = described(self, parameters)
                dtypes = [leaf.dtypes for leaf in leaves]
                places = kernel.places_of(leaves) or () if kernel.draws(program) else ()
                inputs = [{name: _known_bits(tensor) for name, tensor in arrays.items()} for arrays in parameters]
                new = old
                if in_place:
                    written += [tensor for tensors in old for tensor in tensors.values()]
                else:
                    new = [{n: self._empty(t.shape, t.dtype, "cpu") for n, t in tensors.items()} for tensors in old]
                outputs = None if in_place else [{n: _new_bits(t) for n, t in tensors.items()} for tensors in new]
                jobs.append(kernel.Job(program, scalars, dtypes, inputs, outputs, places))  # type: ignore[arg-type]  # a step's scalars
            else:
                new = [next(interpreted) for _ in parameters]
                if in_place:
                    for targets, values in zip(old, new, strict=True):
                        copies += [
                            functools.partial(self._torch.Tensor.copy_, targets[n], v) for n, v in values.items()
                        ]
            results += old if in_place else new
        if written:
            copies.append(functools.partial(_increment_version(), written))
        with threads.by(_team().working_team):
            kernel.update(jobs, copies)
        return results

    def plan(
        self,
        programs: Sequence[Program],
        trees: Any,
        parameters: Sequence[Arrays],
        *,
        in_place: bool = True,
        same_arrays: bool = True,
    ) -> Any:
        tensors = [arrays["p"] for arrays in parameters]
        on_device = all(map(self._runs_kernels, tensors))
        if is_interpreted() or not compiler.available():
            return "not all of the step is done by kernels"
        if not tensors:
            return "no parameter has a gradient"
        if not on_device and (self._are_on_both(tensors) or not all(tensor.is_cpu for tensor in tensors)):
            return "only steps on tensors that are all in host memory, or all on CUDA devices, are planned"
        if not on_device and not can_plan(programs):
            return "not all of the step is done by kernels"
        leaves = described(self, parameters)
        if any(leaf.is_part for leaf in leaves) and not all(p.is_elementwise for p in programs):
            return "results depend on what other processes hold of the parameters"
        if isinstance(reader := self._reader(tensors), str):
            return reader
        if on_device:
            given = self._library, self, programs, trees, leaves, reader, _increment_version()
            return make_device_plan(*given, in_place=in_place, same_arrays=same_arrays)
        return make_plan(
            self, programs, trees, leaves, reader, _increment_version(), in_place=in_place, same_arrays=same_arrays
        )

    def _reader(self, tensors: Sequence[Any]) -> readers.ArrayReader | str:
        library = self._library
        found = {number: reader_on(library.place(number)) for number in dict.fromkeys(map(library.device, tensors))}
        known = {number: reader for number, reader in found.items() if reader is not None}
        if len(known) < len(found):
            return "this torch (before 2.10) has no functions in C that say where a tensor lies (DLPack's exchange API)"
        return readers.reader_over(known, library.device)

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        detached = [g.detach().resolve_neg() for g in gradients]
        combine = COMBINE.get()
        if combine is not None:
            with self.quiet():
                loaded = [self.primitives(COMPUTE_DTYPE[self.dtype_name(g)]).load(g) for g in detached]
                parts = [self.reductions("float64").partial("norm", g) for g in loaded]
            return combine("norm", gradients, parts)
        compute = super().gradient_norm
        if not is_interpreted() and all(map(self._runs_kernels, detached)):
            on_device = launch.gradient_norm(self._library, detached)
            if on_device is not None:
                return on_device
        mixed = self._are_on_both(detached)
        if not is_interpreted() and compiler.available() and not mixed and all(g.is_cpu for g in detached):
            with threads.by(_team().working_team):
                return norm.norm_of_arrays([_bits(g) for g in detached], [self.dtype_name(g) for g in detached])
        if not is_interpreted() and compiler.available() and mixed:
            on_device = launch.gradient_norm(self._library, list(filter(self._runs_kernels, detached)))
            on_host = [g for g in detached if not self._runs_kernels(g)]
            with threads.by(_team().working_team):
                here = norm.squares_of_arrays([_bits(g) for g in on_host], [self.dtype_name(g) for g in on_host])
            if on_device is not None:
                return of_numbers("norm", [on_device.squares, here])
        return compute(detached)

    def scalar(self, value: Any) -> Any:
        if isinstance(value, GradientNorm):
            return value
        return super().scalar(value.detach() if self.owns(value) else value)

    def assign(self, target: Any, value: Any) -> None:
        target.copy_(value)

    def assign_all(self, targets: Sequence[Any], values: Sequence[Any]) -> None:
        finish([functools.partial(self._torch.Tensor.copy_, t, v) for t, v in zip(targets, values, strict=True)])

    def why_read_only(self, array: Any) -> str | None:
        if array.numel() and any(stride == 0 and n > 1 for stride, n in zip(array.stride(), array.shape, strict=True)):
            return "is an expanded tensor whose elements share memory"
        if array.is_neg():
            return "is a view that torch negates when it is read"
        return None

    def memory_range(self, array: Any) -> MemoryRange:
        if array.numel() == 0:
            return MemoryRange(str(array.device), 0, 0)
        last = sum((n - 1) * stride for n, stride in zip(array.shape, array.stride(), strict=True))
        start = array.data_ptr()
        return MemoryRange(str(array.device), start, start + (last + 1) * array.element_size())

    def share_memory(self, a: Any, b: Any) -> bool:
        if a.device.type != "cpu":
            return True
        return bool(np.shares_memory(_bits(a), _bits(b)))


def _is_local(work: Work) -> bool:
    """Tell whether no result depends on elements that other processes hold."""
    return work.program.is_elementwise or not any(getattr(leaf, "is_part", False) for leaf in work.parameters)


@functools.cache
def _increment_version() -> Any:
    """Return what tells autograd that tensors were written; a function in C, so that no interrupt keeps it from running."""
    torch = sys.modules["torch"]
    by_list = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")  # older ones may take one tensor only
    return torch._C._increment_version if by_list else torch.autograd.graph.increment_version


@functools.cache
def reader_on(device: str) -> readers.ArrayReader | None:
    """Return how the compiled look reads tensors on a device; None where torch (before 2.10) has no DLPack exchange API."""
    torch, memory = sys.modules["torch"], _layout()
    layout = memory.find_layout()
    if layout is None:
        return None
    function = readers.exchange_function(torch.Tensor)
    if not function:
        return None
    kinds, place = (torch.Tensor, torch.nn.Parameter), torch.device(device)
    on_host = place.type == "cpu"
    found = layout if on_host else memory.on_device(layout, place)
    reader = readers.ArrayReader(
        function,
        lambda tensor: readers.exchange_dtype(backend.dtype_name(tensor)),
        lambda tensor: int(tensor.data_ptr()),
        kinds,
        lambda tensor: type(tensor) in kinds and tensor.device == place and _is_dense(tensor),
        functools.partial(_dense, place),
        functools.partial(_maker, place),
        _finished,
        found,
        _team().working_team,
        readers.HOST if on_host else readers.cuda_device(place.index),
        memory.find_alike(layout),
        memory.find_versions(),
        memory.find_gradient_fields(),
    )

    def zeros(*shape: int, **options: Any) -> Any:
        return torch.zeros(shape, device=place, **options)

    def wrong(like: Any) -> list[Any]:
        without_memory = zeros(3, 4)
        without_memory.untyped_storage().resize_(0)
        return [
            torch._neg_view(zeros(3, 4)),
            torch._efficientzerotensor((3, 4), device=place),
            torch._to_functional_tensor(zeros(3, 4)),
            without_memory,
            zeros(4, 3),
            zeros(3, 4, dtype=torch.int32),
            zeros(6, 4)[::2],
            zeros(4, 3).T,
            zeros(3, 4).to_sparse(),
            torch.zeros(3, 4, device="meta"),
            *([] if on_host else [torch.zeros(3, 4, device="cpu")]),
        ]

    make = functools.partial(torch.tensor, device=place)
    try:
        works = memory.elsewhere(lambda: trial.works(reader, make, wrong))
    except RuntimeError:
        if on_host:
            raise
        # A device without room for the trial, or a build of torch whose tensors on it are not like those of the host.
        return None
    return reader if works else None


def _team() -> Any:
    return importlib.import_module("portopt_torch._team")


def _is_dense(tensor: Any) -> bool:
    return bool(tensor.layout is sys.modules["torch"].strided and tensor.is_contiguous() and not tensor.is_neg())


def _dense(device: Any, gradient: Any) -> Any:
    """Return a contiguous tensor with the elements of a gradient; itself if it is one, or has no elements in memory there."""
    torch = sys.modules["torch"]
    if type(gradient) not in (torch.Tensor, torch.nn.Parameter) or gradient.device != device:
        return gradient
    if gradient.layout is not torch.strided or _why_without_elements(gradient) is not None or _is_dense(gradient):
        return gradient
    return gradient.detach().resolve_neg().contiguous()


def _maker(device: Any, tensors: Sequence[Any]) -> Callable[[], list[Any]]:
    """Return what makes new contiguous tensors like given ones on a device."""
    known: dict[Any, Any] = {}
    models = []
    for t in tensors:
        kind = tuple(t.shape), t.dtype
        models.append(known.get(kind) if kind in known else known.setdefault(kind, _model(*kind, device)))
    make = _made_like(device, models)
    if device.type != "cpu":
        return make
    large = [k for k, t in enumerate(tensors) if memory.is_large(t.numel() * t.element_size())]

    def new() -> list[Any]:
        found = make()
        for k in large:
            memory.use_huge_pages(found[k].data_ptr(), found[k].numel() * found[k].element_size())
        return found

    return new


def _made_like(device: Any, models: Sequence[Any]) -> Callable[[], list[Any]]:
    """Return what makes a tensor like each of some.

    One allocation for all, of which each is a view, would not be faster: most of the time goes to the tensors' objects. And as
    views they would count their writes together, and keep, save and share the memory of all.
    """
    torch = sys.modules["torch"]
    # What torch's compiled code allocates with: it asks neither autograd nor any mode.
    make = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if make is None:
        return lambda: list(map(torch.empty_like, models))
    layouts = list[Any](zip(*[(tuple(m.shape), _stride(tuple(m.shape)), m.dtype) for m in models], strict=True))
    exchange = (lambda index: None) if device.index is None else torch.cuda._exchange_device

    def new() -> list[Any]:
        if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
            return list(map(torch.empty_like, models))
        current = exchange(device.index)
        try:
            return list(map(make, *layouts))
        finally:
            exchange(current)

    return new


def _stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides that torch gives a new tensor."""
    return tuple(sys.modules["torch"].empty(shape, device="meta").stride())


def _model(shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
    """Return a tensor that a new one may be made like, with no memory of its own if that can be."""
    torch = sys.modules["torch"]
    small = torch.empty((), dtype=dtype, device=device).expand(shape)
    whole = torch.empty(shape, dtype=dtype, device="meta")
    made = torch.empty_like(torch.empty((), dtype=dtype, device="meta").expand(shape))
    return small if made.stride() == whole.stride() else torch.empty(shape, dtype=dtype, device=device)


def _finished(before: Sequence[Any], after: Sequence[Any]) -> None:
    """Let autograd record what is done with new parameters as it did with those before."""
    for old, new in zip(before, after, strict=True):
        if old.requires_grad:
            new.requires_grad_()


@functools.cache
def _layout() -> Any:
    return importlib.import_module("portopt_torch._layout")


@functools.cache
def _text(thing: Any) -> str:
    """Return the text of a dtype or device; torch writes it anew each time."""
    return str(thing)


_INTEGERS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}


def _bits(tensor: Any) -> Any:
    """Return a NumPy view of a tensor on the CPU that shows its elements as integers of their size."""
    return _memory(tensor, _INTEGERS[tensor.itemsize])


def _in_numpy(x: Any) -> Any:
    """Return a float32 tensor, or a product of such, as one of NumPy's arrays on the same memory."""
    if not isinstance(x, products.Unscaled):
        return _memory(x, np.dtype(np.float32))
    left, right = (slices._replace(factor=slices.factor.numpy()) for slices in (x.left, x.right))
    return products.Unscaled(x.primitives, x.wide, [n.numpy() for n in x.integers], left, right)


def _known_bits(tensor: Any) -> Any:
    """Return what `_bits` does of a tensor that was looked at before: only its storage can have changed since."""
    return _new_bits(tensor) if _is_whole(tensor) else _bits(tensor)


def _new_bits(tensor: Any) -> Any:
    """Return what `_bits` does of a contiguous tensor that was just made."""
    return _view(tensor, _INTEGERS[tensor.itemsize])


class _Memory:
    """A tensor's memory as NumPy reads it. `Tensor.numpy()` would keep the tensor from ever being resized again."""

    def __init__(self, tensor: Any, dtype: np.dtype[Any]) -> None:
        self.tensor = tensor  # the view keeps this object alive, and so the memory
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": dtype.str,
            "data": (tensor.data_ptr(), False),
            "strides": None if tensor.is_contiguous() else tuple(n * dtype.itemsize for n in tensor.stride()),
        }


def _memory(tensor: Any, dtype: np.dtype[Any]) -> Any:
    """Return a view of a tensor's own memory, its elements as a dtype of their size."""
    if (reason := _why_without_elements(tensor)) is not None:
        raise TypeError(reason)
    return _view(tensor, dtype)


def _view(tensor: Any, dtype: np.dtype[Any]) -> Any:
    return np.asarray(_Memory(tensor, dtype)) if tensor.numel() else np.empty(tuple(tensor.shape), dtype)


def _is_whole(tensor: Any) -> bool:
    """Tell whether a tensor is contiguous and lies in its storage."""
    if not tensor.is_contiguous():
        return False
    needed: int = (tensor.storage_offset() + tensor.numel()) * tensor.itemsize
    return needed <= int(tensor.untyped_storage().nbytes())


def _why_without_elements(tensor: Any) -> str | None:
    """Return why the memory of a tensor does not hold its elements; None if it does, but for their signs."""
    torch, layout = sys.modules["torch"], _layout()
    # Almost all are plain tensors in the host's memory, contiguous, and this is called for each array of a step.
    mask, expected = layout.plain_keys()
    if layout.dispatch_keys(tensor) & mask == expected and _is_whole(tensor):
        return None
    if torch._is_zerotensor(tensor):
        return "tensors of zeros without memory (torch._efficientzerotensor) are not supported; convert with clone()"
    if torch._is_functional_tensor(tensor):
        return "functionalized tensors are not supported: they are recorded, not computed; step outside of functionalization"
    if tensor.device.type != "cpu":
        return None
    if layout.dispatch_keys(tensor.resolve_neg()) & mask != expected:
        return (
            f"tensors of type {type(tensor).__name__} with {torch._C._dispatch_keys(tensor)} are not supported: they have no "
            "memory of their own with their elements; give plain tensors, outside of torch.func's transformations and of modes"
        )
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size() if tensor.numel() else 0
    if needed > (held := tensor.untyped_storage().nbytes()):
        return f"its elements need {needed} bytes, but its storage was resized to {held}; resize it back, or make a new tensor"
    return None


class _OnDevice(DeviceOperations, TorchBackend):
    """Torch where the host waits for no scalar."""


backend = TorchBackend()
"""The one that the entry point in `portopt.backends` names."""
