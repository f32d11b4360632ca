"""Writing a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from portopt._version import __version__
from portopt.backend import Backend
from portopt.checkpoints import file_format, structure
from portopt.interchange.configuration import serialize
from portopt.optimizer import Optimizer, OptimizerState
from portopt.step import check_state


def save(path: str | os.PathLike[str], opt: Optimizer, params: Any, state: OptimizerState) -> None:
    """Write optimizer, parameters and state to one safetensors file, from which any backend can go on.

    The file is replaced in one step: a crash at any moment leaves the old one or the new one. The new one has the permissions
    of the old one.

    Args:
        path: the file, in an existing directory.
        opt: the optimizer; its config is saved.
        params: the parameters, of any structure and supported dtype. Keys of dicts must be of type str or int.
        state: what `init` or the last step returned.

    Raises:
        TypeError: a value of the config, or a key, cannot be saved; the arrays are traced ones of JAX.
        ValueError: the state does not fit the parameters, the learning rate is a schedule without a config, or the parameters
            are nested more than 100 levels deep.
        OSError: the file cannot be written, or what is at `path` is no file.
        ModuleNotFoundError: safetensors or ml_dtypes is not installed.

    Example:
        >>> import numpy as np, portopt, tempfile
        >>> opt, params = portopt.Adam(), {"w": np.ones(3)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     portopt.save(f"{folder}/run.safetensors", opt, params, opt.init(params))
        ...     opt, params, state = portopt.load(f"{folder}/run.safetensors")
        >>> params, state.step
        ({'w': array([1., 1., 1.])}, 0)
    """
    file_format.require_libraries()
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt must be a portopt.Optimizer, but {type(opt).__name__} was given")
    state = opt.from_capturable(state)
    backend, step = check_state(opt, params, state)
    document = {
        "portopt": __version__,
        "backend": backend.name,
        "optimizer": _config(opt),
        "step": step,
        # As hexadecimal text, in which infinities and NaN have a place too.
        "scalars": {name: float(backend.scalar(state.slots[name])).hex() for name in opt.scalar_slots},
        "slots": [name for name in map(str, opt.slots) if name in state.slots],
        "params": structure.describe(backend.trees, params),
    }
    tensors: dict[str, Any] = {}
    trees = {"params": params, **{slot_name(slot): state.slots[slot] for slot in document["slots"]}}
    for name, tree in trees.items():

        def collect(name: str, path: str, array: Any) -> None:
            tensors[name] = _to_numpy(backend, array, path)

        structure.map_leaves(collect, backend.trees, tree, name=name)
    file_format.write(Path(path), document, tensors)


def slot_name(slot: str) -> str:
    """Return what the names of a slot's arrays begin with."""
    return f"slots/{slot}"


def _config(opt: Optimizer) -> dict[str, Any]:
    config = serialize(opt)
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the config of {type(opt).__name__} cannot be saved as JSON ({error}): {config!r}; its values must be numbers, "
            "strings, booleans, None, and lists and dicts of them"
        ) from None
    return config


def _to_numpy(backend: Backend, array: Any, path: str) -> Any:
    if backend.describe(array).device is None:
        raise TypeError(f"params{path} is a traced array, which has no values yet: call save outside of jit")
    return np.array(backend.to_numpy(array), order="C", copy=None)
