"""`save` and `load`: what was saved comes back on every backend, bit for bit, and what does not fit is refused."""

from __future__ import annotations

import collections
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bits import assert_same_bits, ordinary, random_words
from support.libraries import BY_NAME, LIBRARIES, Library, each_library

import portopt
from portopt import files
from portopt.checkpoints import file_format, loading

DTYPES = ("float16", "bfloat16", "float32", "float64")
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


def has(library: Library, dtype: str) -> bool:
    with library.precision(dtype):
        return dtype in library.backend.dtypes()


def leaves(library: Library, tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree, as NumPy arrays, by their paths."""
    found, _ = library.backend.trees.flatten(tree)
    paths = library.backend.trees.paths(tree)
    return {p: None if x is None else library.backend.to_numpy(x) for p, x in zip(paths, found, strict=True)}


def assert_same_trees(actual: Any, expected: Any, library: Library, expected_library: Library | None = None) -> None:
    found, wanted = leaves(library, actual), leaves(expected_library or library, expected)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        if array is None:
            assert found[name] is None
        else:
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes(), name


def trees_of(library: Library, dtype: str) -> Any:
    arrays = {
        "matrix": ordinary((3, 4), dtype, 1),
        "layers": [{"kernel": random_words((5, 3), dtype, 2), "bias": None}, (ordinary((), dtype, 3), [])],
        "empty": np.zeros((0, 2), ordinary((), dtype, 0).dtype),
    }
    return library.arrays(arrays)


@each_dtype
@pytest.mark.parametrize("target", LIBRARIES, ids=str)
@each_library
def test_every_library_loads_what_every_library_saved(
    library: Library, target: Library, dtype: str, path: Path
) -> None:
    optimizer = portopt.Nadam(clipnorm=1.0)
    if not has(library, dtype):
        assert library.name in ("array_api_strict", "cupy")
        return
    with library.precision(dtype):
        params = trees_of(library, dtype)
        slot_dtype = "float64" if dtype == "float64" else "float32"
        stored = library.backend.stored_scalar(1 / 3)
        slots = {"m_schedule": stored, "m": trees_of(library, slot_dtype), "v": trees_of(library, slot_dtype)}
        state = portopt.OptimizerState(7, slots)
        portopt.save(path, optimizer, params, state)
    if not has(target, dtype):
        with pytest.raises(
            portopt.CheckpointError, match=f"of dtype {dtype}, which {target.name} does not have; it has float"
        ):
            portopt.load(path, backend=target.name)
        return
    loaded, new_params, new_state = portopt.load(path, backend=target.name)
    assert loaded == optimizer
    assert new_state.step == 7
    assert_same_trees(new_params, params, target, library)
    for slot in optimizer.slots:
        assert_same_trees(new_state.slots[slot], state.slots[slot], target, library)
    assert list(new_state.slots) == list(state.slots)
    assert target.backend.scalar(new_state.slots["m_schedule"]) == 1 / 3


RUNS = [
    (portopt.Adam(learning_rate=0.01, clipnorm=1.0, amsgrad=True), "float32", None),
    (portopt.Nadam(clipvalue=0.5), "bfloat16", "bfloat16"),
    (portopt.SGD(portopt.schedules.ExponentialDecay(0.1, 0.9, 10), momentum=0.9, nesterov=True), "float64", None),
    (portopt.RMSprop(decay=0.01), "float16", None),
]


@pytest.mark.parametrize(("optimizer", "dtype", "slot_dtype"), RUNS, ids=["adam", "nadam", "sgd", "rmsprop"])
def test_a_run_goes_on_under_other_libraries_as_if_nothing_had_happened(
    optimizer: portopt.Optimizer, dtype: str, slot_dtype: str | None, path: Path
) -> None:
    first = {"w": ordinary((4, 3), dtype, 0), "layers": [ordinary((5,), dtype, 1), ordinary((), dtype, 2)]}
    gradients = [
        {
            "w": ordinary((4, 3), dtype, 3 * i),
            "layers": [ordinary((5,), dtype, 3 * i + 1), ordinary((), dtype, 3 * i + 2)],
        }
        for i in range(1, 101)
    ]

    def run(library: str, begin: int, end: int, params: Any, state: Any) -> tuple[Any, Any]:
        with BY_NAME[library].precision(dtype):
            for gradient in gradients[begin:end]:
                params, state = optimizer.apply(params, BY_NAME[library].arrays(gradient), state)
        return params, state

    torch_library = BY_NAME["torch"]
    params = torch_library.arrays(first)
    expected, expected_state = run("torch", 0, 100, params, optimizer.init(params, slot_dtype=slot_dtype))

    params, state = run("torch", 0, 50, params, optimizer.init(params, slot_dtype=slot_dtype))
    portopt.save(path, optimizer, params, state)
    optimizer, params, state = portopt.load(path, backend="jax")
    params, state = run("jax", 50, 75, params, state)
    portopt.save(path, optimizer, params, state)
    optimizer, params, state = portopt.load(path, backend="numpy")
    params, state = run("numpy", 75, 100, params, state)

    assert state.step == expected_state.step == 100
    assert_same_trees(params, expected, BY_NAME["numpy"], torch_library)
    for slot in optimizer.slots:
        assert_same_trees(state.slots[slot], expected_state.slots[slot], BY_NAME["numpy"], torch_library)
    for slot in optimizer.scalar_slots:
        assert state.slots[slot] == expected_state.slots[slot]


def start(params: Any, optimizer: portopt.Optimizer | None = None) -> tuple[portopt.Optimizer, Any, Any]:
    optimizer = optimizer or portopt.SGD()
    return optimizer, params, optimizer.init(params)


class TestDefaults:
    @each_library
    def test_the_backend_is_the_one_saved_under(self, library: Library, path: Path) -> None:
        portopt.save(path, *start(library.arrays({"w": np.ones(2, np.float32)})))
        _, params, _ = portopt.load(path)
        assert library.backend.owns(params["w"])

    def test_the_backend_and_the_devices_are_those_of_like(self, path: Path) -> None:
        portopt.save(path, *start({"w": np.ones(2, np.float32), "b": None}))
        _, params, state = portopt.load(path, like={"w": torch.zeros(2), "b": None})
        assert params["w"].device == state.slots["moment"]["w"].device == torch.device("cpu")
        assert params["b"] is state.slots["moment"]["b"] is None
        device = jax.devices()[0]
        _, params, _ = portopt.load(path, like={"w": jax.device_put(np.zeros(2, np.float32), device), "b": None})
        assert params["w"].devices() == {device}

    def test_another_library_may_be_named_beside_like(self, path: Path) -> None:
        portopt.save(path, *start({"w": np.ones(2, np.float32)}))
        _, params, _ = portopt.load(path, "numpy", like={"w": torch.zeros(2)})
        assert type(params["w"]) is np.ndarray

    def test_float64_needs_no_setting_of_jax(self, path: Path) -> None:
        portopt.save(path, *start({"w": np.full(2, 0.1)}))
        with jax.enable_x64(False):
            optimizer, params, state = portopt.load(path, "jax")
            params, _ = optimizer.apply(params, params, state)
        assert_same_bits(params["w"], np.full(2, 0.1) + -(0.01 * np.full(2, 0.1)))

    def test_a_library_without_a_device_is_an_error(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        portopt.save(path, *start(np.ones(2)))
        monkeypatch.setattr(
            portopt.get_backend("numpy"), "devices", lambda: {"cuda": "no CUDA device was found"}, raising=False
        )
        with pytest.raises(
            ValueError, match=r"numpy has no device to load to .cuda: no CUDA device was found.; name another"
        ):
            portopt.load(path)

    def test_an_unknown_device_is_an_error(self, path: Path) -> None:
        portopt.save(path, *start(np.ones(2)))
        with pytest.raises(ValueError, match="numpy has no device 'gpu7'"):
            portopt.load(path, device="gpu7")

    def test_an_unknown_backend_is_an_error(self, path: Path) -> None:
        portopt.save(path, *start(np.ones(2)))
        with pytest.raises(ValueError, match="no backend is named 'nampy'; installed are"):
            portopt.load(path, "nampy")


class Layer(NamedTuple):
    kernel: Any
    bias: Any = None


@jax.tree_util.register_dataclass
@dataclass
class Model:
    layer: Any
    scale: Any


keys = st.one_of(st.text(max_size=4), st.text("/%[]0a\ud800\x00é", max_size=3), st.integers(-12, 12))


class TestStructure:
    @settings(max_examples=60)
    @given(st.dictionaries(keys, st.dictionaries(keys, st.integers(0, 99), max_size=3), min_size=1, max_size=6))
    def test_keys_may_have_any_characters(self, tmp_path_factory: pytest.TempPathFactory, numbers: Any) -> None:
        path = tmp_path_factory.mktemp("keys") / "file"
        params = {key: {k: np.asarray(float(n)) for k, n in inner.items()} for key, inner in numbers.items()}
        portopt.save(path, *start([np.zeros(1), params]))
        _, loaded, state = portopt.load(path)
        for tree in (loaded[1], portopt.load(path, like=[np.zeros(1), params])[1][1]):
            assert list(tree) == list(params)
            assert {key: {k: float(x) for k, x in inner.items()} for key, inner in tree.items()} == numbers
        assert list(state.slots["moment"][1]) == list(params)

    def test_names_in_the_file_are_readable(self, path: Path) -> None:
        params = {
            "encoder": [{"kernel": np.ones(2)}, np.ones(1)],
            3: (np.ones(1),),
            "a/b%[": np.ones(1),
            "[3]": np.ones(1),
        }
        portopt.save(path, *start({"ü": params}))
        with safetensors.safe_open(path, framework="np") as file:
            names = set(file.keys())
        expected = {"encoder/0/kernel", "encoder/1", "[3]/0", "a%2Fb%25[", "%5B3]"}
        assert names == {f"{head}/ü/{name}" for head in ("params", "slots/moment") for name in expected}

    def test_one_array_is_a_tree(self, path: Path) -> None:
        portopt.save(path, *start(np.ones(2)))
        assert_same_bits(portopt.load(path)[1], np.ones(2))

    def test_arrays_of_any_layout_are_saved(self, path: Path) -> None:
        array = np.arange(24.0).reshape(4, 6)
        portopt.save(path, *start([array.T, array[::2, ::-1], np.float32(2)]))
        for loaded, expected in zip(portopt.load(path)[1], [array.T, array[::2, ::-1], np.float32(2)], strict=True):
            assert_same_bits(loaded, expected)
        tensor = torch.arange(24.0).reshape(4, 6).requires_grad_()
        portopt.save(path, *start([tensor.T[1:]]))
        assert_same_bits(portopt.load(path, "numpy")[1][0], tensor.detach().numpy().T[1:])

    def test_a_namedtuple_comes_back_with_like(self, path: Path) -> None:
        params = {"layer": Layer(torch.ones(2))}
        portopt.save(path, *start(params))
        _, loaded, state = portopt.load(path, like=params)
        assert type(loaded["layer"]) is type(state.slots["moment"]["layer"]) is Layer
        assert torch.equal(loaded["layer"].kernel, torch.ones(2))
        with pytest.raises(
            portopt.CheckpointError,
            match=re.escape(
                f'{path}: params["layer"] was saved as Layer, which only its class can make again: give load'
            ),
        ):
            portopt.load(path)

    def test_a_registered_class_of_jax_comes_back_with_like(self, path: Path) -> None:
        params = Model({"w": jax.numpy.ones(2)}, (jax.numpy.zeros(()), None))
        portopt.save(path, *start(params))
        shapes = jax.eval_shape(lambda: Model({"w": jax.numpy.ones(2)}, (jax.numpy.zeros(()), None)))
        for like in (params, shapes):
            _, loaded, state = portopt.load(path, like=like)
            assert isinstance(loaded, Model)
            assert isinstance(state.slots["moment"], Model)
            assert_same_trees(loaded, params, BY_NAME["jax"])
        with safetensors.safe_open(path, framework="np") as file:
            assert {'params/.layer["w"]', "params/.scale[0]"} < set(file.keys())

    def test_an_ordered_dict_comes_back_with_like(self, path: Path) -> None:
        params = collections.OrderedDict(b=np.ones(1), a=np.zeros(2))
        portopt.save(path, *start(params))
        loaded = portopt.load(path, like=params)[1]
        assert type(loaded) is collections.OrderedDict
        assert list(loaded) == ["b", "a"]
        assert_same_bits(loaded["a"], np.zeros(2))

    def test_a_key_that_is_neither_text_nor_an_integer_is_refused(self, path: Path) -> None:
        with pytest.raises(
            TypeError, match=re.escape("params[0] has the key 1.5 of type float; in a checkpoint, keys must be of")
        ):
            portopt.save(path, *start([{1.5: np.ones(1)}]))
        assert not path.exists()


class TestLike:
    SAVED: Mapping[str, Any] = {
        "a": np.ones((2, 3), np.float32),
        "b": [np.ones(1, np.float32), None],
        "c": Layer(np.ones(4)),
    }

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"a": np.ones((3, 2), np.float32)},
                'like["a"] has shape (3, 2), but params["a"] was saved with shape (2, 3)',
            ),
            ({"a": np.ones((2, 3))}, 'like["a"] has dtype float64, but params["a"] was saved with dtype float32'),
            ({"a": None}, 'params["a"] is an array in the file, but like["a"] is None'),
            ({"b": [None, None]}, 'params["b"][0] is an array in the file, but like["b"][0] is None'),
            ({"b": (np.ones(1, np.float32), None)}, 'params["b"] is a list in the file, but like["b"] is a tuple'),
            ({"b": [np.ones(1, np.float32)]}, 'params["b"][1] is in the file, but like["b"][1] is missing'),
            ({"c": [np.ones(4)]}, 'params["c"] is of class Layer in the file, but like["c"] is a list'),
            (
                {"c": Layer(np.ones(5))},
                'like["c"].kernel has shape (5,), but params["c"].kernel was saved with shape (4,)',
            ),
            ({"d": np.ones(1)}, 'like["d"] was given, but params["d"] is not in the file'),
        ],
    )
    def test_what_differs_is_named(self, change: Mapping[str, Any], message: str, path: Path) -> None:
        portopt.save(path, *start(dict(self.SAVED)))
        with pytest.raises(portopt.CheckpointError, match=re.escape(message)) as error:
            portopt.load(path, like={**self.SAVED, **change})
        assert str(path) in str(error.value)

    def test_a_missing_key_is_named(self, path: Path) -> None:
        portopt.save(path, *start(dict(self.SAVED)))
        with pytest.raises(
            portopt.CheckpointError, match=re.escape('params["c"] is in the file, but like["c"] is missing')
        ):
            portopt.load(path, like={"a": self.SAVED["a"], "b": self.SAVED["b"]})

    def test_the_order_of_keys_does_not_matter(self, path: Path) -> None:
        portopt.save(path, *start({"a": np.ones(1), "b": np.zeros(2)}))
        loaded = portopt.load(path, like={"b": np.ones(2), "a": np.ones(1)})[1]
        assert list(loaded) == ["b", "a"]
        assert_same_bits(loaded["b"], np.zeros(2))

    def test_it_must_hold_arrays(self, path: Path) -> None:
        portopt.save(path, *start({"a": np.ones(1)}))
        with pytest.raises(TypeError, match="like must hold arrays, but 'x' of type str was given"):
            portopt.load(path, like={"a": "x"})


class Halving(portopt.Optimizer):
    """A rule that is not registered."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - 0.5 * g, {}


def other_halving(**attributes: Any) -> type[portopt.Optimizer]:
    return type("Halving", (Halving,), attributes)


class TestOptimizer:
    def test_a_schedule_comes_back(self, path: Path) -> None:
        optimizer = portopt.Adam(portopt.schedules.PiecewiseConstant((10, 20), (0.1, 0.01, 0.001)))
        portopt.save(path, *start(np.ones(1), optimizer))
        assert portopt.load(path)[0] == optimizer

    def test_a_schedule_without_a_config_is_refused_and_the_old_file_stays(self, path: Path) -> None:
        portopt.save(path, *start(np.ones(1)))
        before = path.read_bytes()
        with pytest.raises(ValueError, match="cannot be put into a config"):
            portopt.save(path, *start(np.ones(1), portopt.SGD(lambda step: 0.1)))
        assert path.read_bytes() == before

    def test_a_class_of_the_user_is_given_to_load(self, path: Path) -> None:
        portopt.save(path, *start(np.ones(1), Halving()))
        loaded, _, _ = portopt.load(path, custom_objects={"Halving": Halving})
        assert loaded == Halving()
        with pytest.raises(
            portopt.CheckpointError,
            match=r"the optimizer 'Halving' cannot be made again: unknown optimizer: 'Halving'.*to portopt\.register, or to load",
        ):
            portopt.load(path)

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            (
                {"slots": ("m",)},
                r"it has the slots \[\], but Halving with its config has \['m'\]: load it with the class",
            ),
            ({"scalar_slots": {"s": 1.0}}, r"it has the scalar slots \[\], but Halving with its config has \['s'\]"),
        ],
    )
    def test_a_class_that_has_other_slots_by_now_is_refused(
        self, attributes: Mapping[str, Any], message: str, path: Path
    ) -> None:
        portopt.save(path, *start(np.ones(1), Halving()))
        with pytest.raises(portopt.CheckpointError, match=message):
            portopt.load(path, custom_objects={"Halving": other_halving(**attributes)})

    def test_a_config_that_json_cannot_hold_is_refused(self, path: Path) -> None:
        optimizer = other_halving(get_config=lambda self: {"set": {1}})()
        with pytest.raises(
            TypeError, match=r"the config of Halving cannot be saved as JSON .*its values must be numbers"
        ):
            portopt.save(path, *start(np.ones(1), optimizer))

    def test_only_an_optimizer_can_be_saved(self, path: Path) -> None:
        with pytest.raises(TypeError, match=r"opt must be a portopt\.Optimizer, but str was given"):
            portopt.save(path, "adam", np.ones(1), portopt.SGD().init(np.ones(1)))  # type: ignore[arg-type]  # what is tested

    @pytest.mark.parametrize("value", [0.1, float("inf"), float("nan"), -0.0, 5e-324])
    def test_scalars_of_the_state_are_exact(self, value: float, path: Path) -> None:
        optimizer, params, state = start(np.ones(1), portopt.Nadam())
        portopt.save(path, optimizer, params, state._replace(slots={**state.slots, "m_schedule": value}))
        loaded = portopt.load(path)[2].slots["m_schedule"]
        assert np.float64(loaded).tobytes() == np.float64(value).tobytes()

    def test_a_state_that_does_not_fit_is_refused(self, path: Path) -> None:
        optimizer, _, state = start({"a": np.ones(1)}, portopt.Adam())
        with pytest.raises(ValueError, match="has no counterpart"):
            portopt.save(path, optimizer, {"b": np.ones(1)}, state)
        with pytest.raises(ValueError, match="has shape"):
            portopt.save(path, optimizer, {"a": np.ones(2)}, state)
        with pytest.raises(ValueError, match="state has the slots"):
            portopt.save(path, portopt.SGD(), {"a": np.ones(1)}, state)
        assert not path.exists()

    def test_traced_arrays_are_refused(self, path: Path) -> None:
        def step(w: Any) -> Any:
            portopt.save(path, *start([w]))
            return w

        with pytest.raises(
            TypeError, match=re.escape("params[0] is a traced array, which has no values yet: call save outside")
        ):
            jax.jit(step)(jax.numpy.ones(2))


class TestFile:
    def test_the_same_run_gives_the_same_bytes(self, path: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            portopt.save(tmp_path / name, *start({"w": np.ones(3), "b": np.zeros((2, 2), np.float32)}, portopt.Adam()))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_the_umask_decides_who_may_read_it(self, path: Path) -> None:
        before = os.umask(0o027)
        try:
            portopt.save(str(path), *start(np.ones(1)))
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666])
    def test_who_may_read_it_stays_as_it_was(self, mode: int, path: Path) -> None:
        portopt.save(path, *start(np.ones(1)))
        path.chmod(mode)
        before = os.umask(0o027)
        try:
            portopt.save(path, *start(np.ones(2)))
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert portopt.load(path)[1].shape == (2,)

    def test_nobody_else_can_read_it_before_it_is_in_its_place(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import safetensors.numpy

        modes = []
        original = safetensors.numpy.save_file

        def save_file(tensors: Any, file: Path, **options: Any) -> None:
            modes.append(stat.S_IMODE(file.stat().st_mode))
            original(tensors, file, **options)
            modes.append(stat.S_IMODE(file.stat().st_mode))

        monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
        portopt.save(path, *start(np.ones(1)))
        assert modes == [0o600, 0o600]

    def test_who_may_read_it_through_a_symbolic_link_stays_as_it_was(self, path: Path, tmp_path: Path) -> None:
        target = tmp_path / "target"
        portopt.save(target, *start(np.ones(1)))
        target.chmod(0o600)
        path.symlink_to(target)
        portopt.save(path, *start(np.ones(1)))
        assert path.is_symlink()
        assert stat.S_IMODE(target.stat().st_mode) == 0o600

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to others")
    def test_whose_it_is_stays_as_it_was(self, path: Path) -> None:
        portopt.save(path, *start(np.ones(1)))
        os.chown(path, 12345, 23456)
        path.chmod(0o640)
        portopt.save(path, *start(np.ones(1)))
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o640)

    def test_a_group_that_cannot_be_kept_loses_its_rights(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: Any) -> None:
            raise PermissionError("not the owner's to give")

        portopt.save(path, *start(np.ones(1)))
        path.chmod(0o664)
        old = path.stat()
        monkeypatch.setattr(os, "chown", refuse)
        changed = os.stat_result((*old[:5], old.st_gid + 1, *old[6:]))
        monkeypatch.setattr(files, "_existing", lambda path: changed)
        portopt.save(path, *start(np.ones(1)))
        assert stat.S_IMODE(path.stat().st_mode) == 0o604

    def test_a_file_that_may_not_be_written_is_not_replaced(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        portopt.save(path, *start(np.ones(1)))
        path.chmod(0o444)
        # As it is for everybody but root.
        monkeypatch.setattr(os, "access", lambda file, mode: not mode & os.W_OK)
        with pytest.raises(PermissionError, match="the file is there and may not be written"):
            portopt.save(path, *start(np.ones(2)))
        assert portopt.load(path)[1].shape == (1,)
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
    def test_what_is_no_file_is_not_replaced(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(OSError, match="what is there is no regular file, so a file cannot replace it"):
            portopt.save(path, *start(np.ones(1)))
        assert stat.S_ISFIFO(path.stat().st_mode)
        assert list(path.parent.iterdir()) == [path]

    def test_a_symbolic_link_to_itself_is_an_error(self, path: Path) -> None:
        path.symlink_to(path)
        with pytest.raises(OSError, match=r"(?i)symlink loop|symbolic links"):
            portopt.save(path, *start(np.ones(1)))

    def test_a_symbolic_link_stays_one(self, path: Path, tmp_path: Path) -> None:
        target = tmp_path / "elsewhere" / "file"
        target.parent.mkdir()
        path.symlink_to(target)
        portopt.save(path, *start(np.ones(1)))
        assert path.is_symlink()
        assert portopt.load(target)[2].step == 0

    def test_a_missing_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no directory .*missing; make it first"):
            portopt.save(tmp_path / "missing" / "file", *start(np.ones(1)))

    def test_a_directory_in_the_way_is_an_error_that_leaves_nothing(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(OSError, match="directory"):
            portopt.save(path, *start(np.ones(1)))
        assert list(path.parent.iterdir()) == [path]

    def test_a_missing_file_is_an_error(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            portopt.load(path)

    @pytest.mark.parametrize(("module", "name"), [("safetensors.numpy", "safetensors"), ("ml_dtypes", "ml_dtypes")])
    def test_a_missing_library_is_named_with_the_command(
        self, module: str, name: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        portopt.save(path, *start(np.ones(1)))
        monkeypatch.setitem(sys.modules, module, None)
        message = re.escape(f'checkpoints need {name}, which is not installed: pip install "portopt[checkpoints]"')
        with pytest.raises(ModuleNotFoundError, match=message):
            portopt.save(path, *start(np.ones(1)))
        with pytest.raises(ModuleNotFoundError, match=message):
            portopt.load(path)

    def test_a_library_that_writes_headers_otherwise_is_noticed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(file_format, "_PREFIX", b"{ ")
        with pytest.raises(RuntimeError, match="writes its header in another way than portopt reads it"):
            portopt.save(path, *start(np.ones(1)))
        assert not list(path.parent.iterdir())


def rewrite(path: Path, tensors: Mapping[str, Any] | None = None, **changes: Any) -> None:
    """Write a checkpoint anew, with checksums that are right, after changing parts of it. None removes one."""
    with file_format.reading(path) as file:
        document = {
            k: v for k, v in {**file.document, **changes}.items() if v is not None and k not in ("checksum", "digests")
        }
        arrays = {**{name: file.read(name) for name in file.tensors}, **(tensors or {})}
    file_format.write(path, document, {name: array for name, array in arrays.items() if array is not None})


class TestContent:
    """Files with the right checksums that another program, or another version of portopt, may have written."""

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"params/w": None}, "the tensor 'params/w' is missing"),
            ({"slots/moment/w": None}, "the tensor 'slots/moment/w' is missing"),
            ({"params/x": np.ones(1)}, "the tensor 'params/x' belongs to no parameter"),
            (
                {"params/w": np.ones(2, np.int32)},
                "the tensor 'params/w' is of dtype I32; allowed are F16, BF16, F32, F64",
            ),
            (
                {"params/w": np.ones(3)},
                r"'slots/moment/w' has shape \(2,\) and dtype float64, but 'params/w' has shape \(3,\)",
            ),
            ({"params/w": np.ones(2, np.float32)}, "dtype float32, whose slots are float32 or float16 or bfloat16"),
        ],
    )
    def test_tensors_that_do_not_fit_each_other(self, tensors: Mapping[str, Any], message: str, path: Path) -> None:
        portopt.save(path, *start({"w": np.ones(2)}))
        rewrite(path, tensors)
        with pytest.raises(portopt.CheckpointError, match=message):
            portopt.load(path)

    def test_another_format_version(self, path: Path) -> None:
        portopt.save(path, *start({"w": np.ones(2)}))
        rewrite(path, version=2)
        with pytest.raises(
            portopt.CheckpointError, match="has format version 2, but this portopt reads version 1: load it with"
        ):
            portopt.load(path)

    def test_a_missing_entry(self, path: Path) -> None:
        portopt.save(path, *start({"w": np.ones(2)}))
        rewrite(path, step=None)
        with pytest.raises(
            portopt.CheckpointError, match="lacks the entry 'step' in its metadata: it was not written by portopt"
        ):
            portopt.load(path)

    def test_an_unknown_backend(self, path: Path) -> None:
        portopt.save(path, *start({"w": np.ones(2)}))
        rewrite(path, backend="no_such_library")
        with pytest.raises(
            ValueError, match=r"was saved under 'no_such_library'; no backend is named .*; name one of them as"
        ):
            portopt.load(path)
        assert portopt.load(path, "numpy")[2].step == 0

    def test_a_backend_whose_library_cannot_be_imported(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken:
            name = "broken"
            install_command = "pip install broken"

            def version(self) -> str:
                raise ImportError("no module named broken")

        portopt.save(path, *start({"w": np.ones(2)}))
        monkeypatch.setattr(loading, "known_backend", lambda name: Broken())
        with pytest.raises(
            ImportError,
            match=r"cannot be loaded as arrays of broken, which cannot be imported .*: pip install broken, or name",
        ):
            portopt.load(path)

    def test_a_file_of_another_program(self, path: Path) -> None:
        import safetensors.numpy

        safetensors.numpy.save_file({"w": np.ones(2)}, path, metadata={"x": json.dumps({})})
        with pytest.raises(
            portopt.CheckpointError, match="is no checkpoint of portopt, or its first bytes are damaged"
        ):
            portopt.load(path)
