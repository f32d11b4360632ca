"""Reading a checkpoint, and checking that it fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from portopt.arithmetic.dtypes import COMPUTE_DTYPE, slot_dtypes
from portopt.backend import Backend, UnknownBackendError, find_backend, get_backend, known_backend
from portopt.checkpoints import file_format, structure
from portopt.checkpoints.file_format import CheckpointError as CheckpointError
from portopt.checkpoints.file_format import Reader, Tensor
from portopt.checkpoints.saving import slot_name
from portopt.interchange.configuration import find_class
from portopt.optimizer import Optimizer, OptimizerState
from portopt.slot import are_plain, slot_shape, slots_of_shape
from portopt.trees import STANDARD_TREES, Trees


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    device: str | None = None,
    like: Any = None,
    *,
    custom_objects: Mapping[str, type[Optimizer]] | None = None,
) -> tuple[Optimizer, Any, OptimizerState]:
    """Return the optimizer, parameters and state that `save` wrote, as arrays of any backend, bit for bit.

    Args:
        path: the file.
        backend: name of the array library. None: that of `like`, or else the one that the file was saved under.
        device: name of the device, one of those that `portopt backends` lists. None: that of each array of `like`, or else the
            backend's first.
        like: parameters of the saved structure, shapes and dtypes, whose values do not matter. They check the file, and make
            NamedTuples and other classes again; without them, dicts, lists and tuples are made.
        custom_objects: optimizer classes by name, for those that are not given to `portopt.register`.

    Raises:
        CheckpointError: the file is damaged, was not written by `save`, names an unknown backend, or does not fit `like`.
        ValueError: the backend or the device is unknown.
        ImportError: the backend's library, safetensors or ml_dtypes is not installed.
        OSError: the file cannot be read.

    Example:
        >>> import numpy as np, portopt, tempfile
        >>> opt, params = portopt.SGD(), [np.ones(2, np.float32)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     portopt.save(f"{folder}/run.safetensors", opt, params, opt.init(params))
        ...     opt, params, state = portopt.load(f"{folder}/run.safetensors", backend="torch")
        >>> params
        [tensor([1., 1.])]
    """
    file_format.require_libraries()
    with file_format.reading(Path(path)) as file:
        library = _backend(file, backend, like)
        opt = _optimizer(file, custom_objects)
        saved = file.document["params"]
        if like is None:
            trees: Trees = STANDARD_TREES
            like = structure.template(saved, file.error)
        else:
            trees = (_backend_of(like) or library).trees
            difference = structure.explain_difference(saved, structure.describe(trees, like))
            if difference is not None:
                raise file.error(f"like does not have the structure of the saved parameters: {difference}")
        held = _check_tensors(file, opt, trees, like)
        read = _reader(file, library, device)
        params = structure.map_leaves(read, trees, like, name="params")
        slots: dict[str, Any] = {
            name: library.stored_scalar(float.fromhex(file.document["scalars"][name])) for name in opt.scalar_slots
        }
        for name in held:
            slots[name] = structure.map_leaves(read, trees, like, name=slot_name(name))
        return opt, params, OptimizerState(file.document["step"], slots)


def _backend(file: Reader, name: str | None, like: Any) -> Backend:
    if name is None:
        found = _backend_of(like)
        if found is not None:
            return found
    saved = file.document["backend"]
    try:
        # What the file names is not imported: a module of this name could be anything.
        backend = known_backend(saved) if name is None else get_backend(name)
        backend.version()
    except UnknownBackendError as error:
        if name is not None:
            raise
        raise CheckpointError(
            f"{file.path} was saved under {saved!r:.80}; {error}; name one of them as backend="
        ) from None
    except ImportError as error:
        raise ImportError(
            f"{file.path} cannot be loaded as arrays of {backend.name}, which cannot be imported ({error}): "
            f"{backend.install_command}, or name another backend as backend="
        ) from error
    return backend


def _backend_of(like: Any) -> Backend | None:
    leaves, _ = STANDARD_TREES.flatten(like)
    return next((backend for backend in map(find_backend, leaves) if backend is not None), None)


def _optimizer(file: Reader, custom_objects: Mapping[str, type[Optimizer]] | None) -> Optimizer:
    config = file.document["optimizer"]
    try:
        cls = find_class(config, custom_objects)
        # A native optimizer's config names what it is made of, and importing that is what no file may ask for.
        if not issubclass(cls, Optimizer):
            raise TypeError(f"{cls.__name__} is no portopt.Optimizer, and portopt.save writes no other")
        opt: Optimizer = cls.from_config(config["config"])
    except Exception as error:  # whatever a constructor raises for values that nobody has checked
        raise file.error(
            f"the optimizer {config['class_name']!r:.80} cannot be made again: {error!s:.500}; a class of your own is found if "
            "it is given to portopt.register, or to load as custom_objects={name: class}"
        ) from error
    _check_names(file, opt, "scalar slots", file.document["scalars"], opt.scalar_slots)
    return opt


def _check_names(file: Reader, opt: Optimizer, what: str, saved: Iterable[str], expected: Iterable[str]) -> None:
    if set(saved) != set(expected):
        raise file.error(
            f"it has the {what} {sorted(saved)}, but {type(opt).__name__} with its config has {sorted(expected)}: load it "
            "with the class that saved it"
        )


def _check_tensors(file: Reader, opt: Optimizer, trees: Trees, like: Any) -> list[str]:
    """Raise an error unless the file has the tensors of these parameters and their slots, and no other.

    Returns:
        The names of the slots that some parameter has.
    """
    if are_plain(opt):
        _check_names(file, opt, "slots", file.document["slots"], opt.slots)
    expected = set()
    held: set[str] = set()

    def present(name: str) -> Tensor:
        expected.add(name)
        if name not in file.tensors:
            raise file.error(f"the tensor {name!r} is missing")
        return file.tensors[name]

    def check(suffix: str, path: str, leaf: Any) -> None:
        params = f"params{suffix}"
        parameter = present(params)
        if parameter.dtype not in COMPUTE_DTYPE:
            raise file.error(f"the tensor {params!r} is of dtype {parameter.dtype}")
        allowed = slot_dtypes(parameter.dtype)
        for of, shape in _slots_of(file, opt, params, parameter.shape).items():
            held.add(of)
            name = slot_name(of) + suffix
            slot = present(name)
            if slot.shape != shape or slot.dtype not in allowed:
                wanted = "" if shape == parameter.shape else f" of shape {shape}"
                raise file.error(
                    f"the tensor {name!r} has shape {slot.shape} and dtype {slot.dtype}, but {params!r} has shape "
                    f"{parameter.shape} and dtype {parameter.dtype}, whose slots are {' or '.join(allowed)}{wanted}"
                )
        given = _tensor(leaf)
        if given is not None and given != parameter:
            what = "shape" if given.shape != parameter.shape else "dtype"
            raise file.error(
                f"like{path} has {what} {getattr(given, what)}, but params{path} was saved with {what} "
                f"{getattr(parameter, what)}; they must agree"
            )

    structure.map_leaves(check, trees, like)
    further = sorted(set(file.tensors) - expected)
    if further:
        raise file.error(f"the tensor {further[0]!r} belongs to no parameter")
    if not are_plain(opt):
        _check_names(file, opt, "slots", file.document["slots"], held)
    return [name for name in map(str, opt.slots) if name in held or are_plain(opt)]


def _slots_of(file: Reader, opt: Optimizer, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the slots that a parameter has, by their names."""
    try:
        return {slot: slot_shape(opt, slot, shape) for slot in slots_of_shape(opt, shape)}
    except Exception as error:  # whatever a rule's own methods raise for a shape that it never had
        raise file.error(
            f"{type(opt).__name__} has no slots for the tensor {name!r} of shape {shape}: {error}"
        ) from error


def _tensor(leaf: Any) -> Tensor | None:
    if leaf is structure.ANY:
        return None
    backend = find_backend(leaf)
    if backend is not None:
        info = backend.describe(leaf)
        return Tensor(info.shape, info.dtype)
    try:
        return Tensor(tuple(leaf.shape), str(leaf.dtype))
    except AttributeError:
        raise TypeError(f"like must hold arrays, but {leaf!r:.80} of type {type(leaf).__name__} was given") from None


def _reader(file: Reader, backend: Backend, device: str | None) -> Callable[[str, str, Any], Any]:
    default = device

    def read(name: str, path: str, leaf: Any) -> Any:
        nonlocal default
        if name not in file.tensors:
            return None  # a slot that the parameter lacks
        there = device
        if there is None and backend.owns(leaf):
            there = backend.describe(leaf).device
        if there is None:
            there = default = default or _first_device(backend)
        dtype = file.tensors[name].dtype
        with backend.dtype_context(dtype):
            if dtype not in backend.dtypes():
                raise file.error(
                    f"the tensor {name!r} is of dtype {dtype}, which {backend.name} does not have; it has "
                    f"{', '.join(backend.dtypes())}: load it under another backend"
                )
            return backend.from_numpy(file.read(name), there)

    return read


def _first_device(backend: Backend) -> str:
    devices = backend.devices()
    usable = next((name for name, reason in devices.items() if reason is None), None)
    if usable is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in devices.items())
        raise ValueError(f"{backend.name} has no device to load to ({reasons}); name another backend as backend=")
    return usable
