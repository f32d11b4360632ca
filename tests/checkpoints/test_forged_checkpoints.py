"""Files of any content with the right checksums: `load` imports nothing for them, and raises one kind of error."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import portopt
from portopt.checkpoints import file_format
from portopt.checkpoints.structure import DEEPEST

LENGTH, DIGEST_START = 8, len(file_format._PREFIX) + 8


def sealed(head: bytes, data: bytes) -> bytes:
    """Return a file of a header and data, with the header's checksum put in."""
    whole = bytearray(len(head).to_bytes(LENGTH, "little") + head)
    whole[DIGEST_START : DIGEST_START + 64] = b"0" * 64
    whole[DIGEST_START : DIGEST_START + 64] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole) + data


def opened(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return a file's document, what its header says about tensors, and its data."""
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    header = json.loads(content[LENGTH:end])
    return json.loads(header.pop("__metadata__")["portopt"]), header, content[end:]


def closed(document: dict[str, Any], header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps({"__metadata__": {"portopt": json.dumps(document)}, **header}, separators=(",", ":"))
    return sealed(text.encode(), data)


def files(folder: Path) -> Iterator[bytes]:
    """Yield checkpoints that have, together, all that a checkpoint can have."""
    schedule = portopt.schedules.PiecewiseConstant((10, 20), (0.1, 0.01, 0.001))
    half = np.ones((2, 3), ml_dtypes.bfloat16)
    params = {"a": [np.ones(2), (np.zeros((0, 4), np.float32), None)], 3: half, "b": np.ones((), np.float16)}
    for optimizer in (portopt.Nadam(schedule, clipnorm=1.0), portopt.SGD(0.5, momentum=0.9)):
        portopt.save(folder / "file", optimizer, params, optimizer.init(params))
        yield (folder / "file").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return list(files(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forged") / "file"


def refused_or_right(path: Path, content: bytes) -> None:
    """Load a file; it is refused with a `CheckpointError`, or what comes back can be stepped and saved."""
    path.write_bytes(content)
    try:
        optimizer, params, state = portopt.load(path)
    except portopt.CheckpointError:
        return
    assert type(state.step) is int
    portopt.save(path, optimizer, params, state)
    assert portopt.load(path)[2].step == state.step


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# One value at a time ----------------------------------------------------------------------------------------------------


def deep(levels: int, kind: str = "list") -> Any:
    node: Any = "array"
    for _ in range(levels):
        node = {"dict": [["k", node]]} if kind == "dict" else {kind: [node]}
    return node


FORGED: list[tuple[str, Any, str]] = [
    (
        "step",
        None,
        "the entry 'step' of its metadata must be the number of finished steps, at most 2147483647, but is None",
    ),
    ("step", 2**31, "the number of finished steps, at most 2147483647, but is 2147483648"),
    ("step", True, "the entry 'step'"),
    ("step", -1, "the entry 'step'"),
    ("step", 10**400, "the entry 'step'"),
    ("step", 10**5000, "metadata is no JSON that portopt writes: Exceeds the limit"),
    ("step", 1.0, "the entry 'step'"),
    ("step", "1", "the entry 'step'"),
    ("version", True, "has format version True, but this portopt reads version 1"),
    ("version", [1], "has format version"),
    ("backend", None, "the entry 'backend' of its metadata must be a name"),
    ("backend", ["numpy"], "the entry 'backend'"),
    ("backend", "", "was saved under ''; no backend is named"),
    ("optimizer", None, "the entry 'optimizer' of its metadata must be an object with class_name and config"),
    ("optimizer", {"class_name": "SGD"}, "the entry 'optimizer'"),
    ("optimizer", {"class_name": 3, "config": {}}, "the entry 'optimizer'"),
    ("optimizer", {"class_name": "SGD", "config": []}, "the entry 'optimizer'"),
    ("optimizer", {"class_name": "SGD", "config": {"learning_rate": 10**400}}, "the optimizer 'SGD' cannot be made"),
    ("optimizer", {"class_name": "SGD", "config": {"learning_rate": {}}}, "the optimizer 'SGD' cannot be made"),
    (
        "optimizer",
        {"class_name": "SGD", "config": {"learning_rate": {"class_name": [], "config": {}}}},
        "the optimizer 'SGD' cannot be made",
    ),
    (
        "optimizer",
        {"class_name": "SGD", "config": {"learning_rate": {"class_name": "PiecewiseConstant", "config": 3}}},
        "the optimizer 'SGD' cannot be made",
    ),
    ("scalars", None, "the entry 'scalars' of its metadata must be hexadecimal floats by name"),
    ("scalars", {"m_schedule": 1.0}, "the entry 'scalars'"),
    ("scalars", {"m_schedule": "1x"}, "the entry 'scalars'"),
    ("scalars", {"m_schedule": "0x1p99999"}, "the entry 'scalars'"),
    ("slots", None, "the entry 'slots' of its metadata must be a list of different names"),
    ("slots", ["moment", "moment"], "the entry 'slots'"),
    ("slots", [[]], "the entry 'slots'"),
    ("digests", None, "the entry 'digests' of its metadata must be one checksum for each tensor"),
    ("digests", {}, "the entry 'digests'"),
    ("params", 3, "params is described as 3, which is no structure that portopt.save writes"),
    ("params", {}, "params is described as"),
    ("params", [], "params is described as"),
    ("params", {"list": "array"}, "params is described as"),
    ("params", {"set": []}, "params is described as"),
    ("params", {"dict": [["a"]]}, "params is described as"),
    ("params", {"dict": [[None, "array"]]}, "params is described as"),
    ("params", {"dict": [[True, "array"]]}, "params is described as"),
    ("params", {"dict": [[[], "array"]]}, "params is described as"),
    ("params", {"dict": [["a", "array"], ["a", "array"]]}, "params has the key 'a' twice"),
    ("params", {"class": "X"}, "params is described as"),
    ("params", {"class": "X", "parts": [[3, "array"]]}, "params is described as"),
    ("params", {"class": 3, "parts": []}, "params is described as"),
    ("params", {"list": [{"tuple": [5]}]}, "params[0][0] is described as 5"),
    ("params", deep(DEEPEST + 1), f"is nested more than {DEEPEST} levels deep"),
    ("params", deep(DEEPEST + 1, "dict"), f"is nested more than {DEEPEST} levels deep"),
    ("params", deep(400, "tuple"), "is nested"),
    ("params", deep(DEEPEST), "the tensor 'params/0/0"),
]


@pytest.mark.parametrize(("entry", "value", "message"), FORGED, ids=[f"{e}-{i}" for i, (e, _, _) in enumerate(FORGED)])
def test_a_value_of_the_wrong_kind_is_named(
    entry: str, value: Any, message: str, whole: list[bytes], path: Path
) -> None:
    document, header, data = opened(whole[1])
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        content = closed({**document, entry: value}, header, data)
    finally:
        sys.set_int_max_str_digits(limit)
    with pytest.raises(portopt.CheckpointError) as error:
        portopt.load(written(path, content))
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert len(str(error.value)) < 2000


ENTRIES: list[tuple[dict[str, Any] | None, str]] = [
    (None, "must be described by dtype, shape and data_offsets"),
    ({"data_offsets": None}, "must be described by"),
    ({"more": 1}, "must be described by"),
    ({"dtype": ["F64"]}, "is of dtype ['F64']; allowed are F16, BF16, F32, F64"),
    ({"shape": "2"}, "has the shape '2', but a shape is a list of at most 64 sizes"),
    ({"shape": [True, 2]}, "has the shape [True, 2]"),
    ({"shape": [-2]}, "has the shape [-2]"),
    ({"shape": [2.0]}, "has the shape [2.0]"),
    ({"shape": [1] * 65}, "has the shape [1, 1"),
    ({"shape": [0, 2**62, 2**62]}, "which is too large for an array"),
    ({"shape": [2**70]}, "has the shape"),
    ({"shape": [2**40, 2**10]}, "bytes where its shape and dtype need"),
    ({"shape": [3]}, "has 16 bytes where its shape and dtype need 24"),
    ({"data_offsets": {}}, "has the data_offsets {}, but they are two numbers of bytes"),
    ({"data_offsets": [0]}, "has the data_offsets [0]"),
    ({"data_offsets": [16, 0]}, "has -16 bytes where"),
    ({"data_offsets": [-16, 0]}, "has the data_offsets [-16, 0]"),
    ({"data_offsets": [8, 24]}, "begins at byte"),
]


@pytest.mark.parametrize(("change", "message"), ENTRIES, ids=range(len(ENTRIES)))
def test_what_the_header_says_about_a_tensor_is_checked(
    change: Any, message: str, whole: list[bytes], path: Path
) -> None:
    document, header, data = opened(whole[1])
    name = "params/a/0"
    assert header[name]["shape"] == [2]
    header[name] = change and {k: v for k, v in {**header[name], **change}.items() if v is not None}
    with pytest.raises(portopt.CheckpointError) as error:
        portopt.load(written(path, closed(document, header, data)))
    assert message in str(error.value)


def test_a_key_that_is_there_twice_is_refused(whole: list[bytes], path: Path) -> None:
    for word, twice in (
        (b'\\"step\\": 0', b'\\"step\\": 0, \\"step\\": 7'),
        (b'"params/b":', b'"params/b":0,"params/b":'),
    ):
        end = LENGTH + int.from_bytes(whole[0][:LENGTH], "little")
        head = whole[0][LENGTH:end]
        assert head.count(word) == 1
        with pytest.raises(portopt.CheckpointError, match="is there twice"):
            portopt.load(written(path, sealed(head.replace(word, twice), whole[0][end:])))


def test_json_that_is_nested_without_end_is_refused(whole: list[bytes], path: Path) -> None:
    document, header, data = opened(whole[0])
    text = json.dumps(document)[:-1] + ', "more": ' + "[" * 200_000 + "]" * 200_000 + "}"
    head = json.dumps({"__metadata__": {"portopt": text}, **header}, separators=(",", ":")).encode()
    with pytest.raises(portopt.CheckpointError, match="metadata is nested too deeply"):
        portopt.load(written(path, sealed(head, data)))


def test_a_header_longer_than_any_reader_takes_is_refused_before_it_is_read(path: Path) -> None:
    length = file_format._LONGEST_HEADER + 1
    with path.open("wb") as file:
        file.write(length.to_bytes(LENGTH, "little") + file_format._PREFIX)
        file.truncate(LENGTH + length)  # of holes, which take no space
    with pytest.raises(portopt.CheckpointError, match=f"its header has {length} bytes, and at most"):
        portopt.load(path)
    path.unlink()


def test_a_header_that_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_format, "_LONGEST_HEADER", 100)
    optimizer = portopt.SGD()
    with pytest.raises(ValueError, match=r"names and structure of the parameters take .* give them shorter names"):
        portopt.save(tmp_path / "file", optimizer, np.ones(1), optimizer.init(np.ones(1)))
    assert not list(tmp_path.iterdir())


def test_parameters_nested_deeper_than_can_be_loaded_are_not_saved(tmp_path: Path) -> None:
    optimizer = portopt.SGD()

    def nested(levels: int) -> Any:
        tree: Any = np.ones(1)
        for _ in range(levels):
            tree = [tree]
        return tree

    path, params = tmp_path / "file", nested(DEEPEST)
    portopt.save(path, optimizer, params, optimizer.init(params))
    assert portopt.load(path)[2].step == portopt.load(path, like=params)[2].step == 0
    params = nested(DEEPEST + 1)
    with pytest.raises(ValueError, match=f"is nested more than {DEEPEST} levels deep, which a checkpoint cannot hold"):
        portopt.save(path, optimizer, params, optimizer.init(params))


# Nothing is imported or made for a name ---------------------------------------------------------------------------------


def test_a_module_that_the_file_names_is_not_imported(
    whole: list[bytes], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('the planted module ran')\n")
    (tmp_path / "planted_package").mkdir()
    (tmp_path / "planted_package" / "__init__.py").write_text("raise SystemExit('the planted module ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    document, header, data = opened(whole[0])
    for name in ("planted", "planted_package", "planted_package.inner"):
        written(path, closed({**document, "backend": name}, header, data))
        with pytest.raises(
            portopt.CheckpointError, match=f"was saved under '{name}'; no backend is named .*; name one of"
        ):
            portopt.load(path)
        assert name not in sys.modules
        assert portopt.load(path, "numpy")[2].step == 0


def test_an_imported_module_is_no_backend_for_its_name(whole: list[bytes], path: Path) -> None:
    document, header, data = opened(whole[0])
    for name in ("math", "os.path", "portopt", "numpy.linalg"):
        written(path, closed({**document, "backend": name}, header, data))
        with pytest.raises(portopt.CheckpointError, match="no backend is named"):
            portopt.load(path)


@pytest.mark.parametrize("name", ["NativeOptimizer", "nativeoptimizer", "TFOptimizer"])
def test_a_native_optimizer_is_not_made_for_a_file(
    name: str, whole: list[bytes], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Any:
        raise SystemExit(f"{name} was imported")

    monkeypatch.setattr("portopt.interchange.native.get_framework", refuse)
    document, header, data = opened(whole[0])
    config = {"framework": "torch", "optimizer": "SGD", "arguments": {"lr": 0.1}}
    written(path, closed({**document, "optimizer": {"class_name": name, "config": config}}, header, data))
    with pytest.raises(portopt.CheckpointError, match=r"is no portopt\.Optimizer, and portopt.save writes no other"):
        portopt.load(path)


# Anything anywhere ------------------------------------------------------------------------------------------------------

words = st.sampled_from(
    [
        "",
        "array",
        "list",
        "tuple",
        "dict",
        "class",
        "parts",
        "F32",
        "float32",
        "SGD",
        "Nadam",
        "moment",
        "params/b",
        "0x1p3",
    ]
)
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63, 2**64, 10**400, -(10**400)]),
    st.floats(),
    st.integers(-3, 70),
)
values: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(
        *(st.none(), st.booleans(), numbers, words, st.text(max_size=5)),
        st.lists(values, max_size=4),
        st.dictionaries(st.one_of(words, st.text(max_size=3)), values, max_size=3),
    )
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a JSON value with each of its keys."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_refused_or_right(whole: list[bytes], path: Path, data: st.DataObject) -> None:
    document, header, content = copy.deepcopy(opened(data.draw(st.sampled_from(whole))))
    for _ in range(data.draw(st.integers(1, 3))):
        found = list(places([document, header]))[2:]
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        match data.draw(st.sampled_from(["replace", "remove", "add", "wrap"])):
            case "replace":
                container[key] = data.draw(values)
            case "remove":
                del container[key]
            case "add" if isinstance(container, list):
                container.append(data.draw(st.one_of(st.just(copy.deepcopy(container[key])), values)))
            case "add":
                container[data.draw(words)] = copy.deepcopy(container[key])
            case _:
                container[key] = {data.draw(words): [container[key]]}
    document = {"checksum": "0" * 64, **{k: v for k, v in document.items() if k != "checksum"}}
    refused_or_right(path, closed(document, header, content))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_bytes_in_the_header_are_refused_or_right(whole: list[bytes], path: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(whole))
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    head = bytearray(content[LENGTH:end])
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(DIGEST_START + 64 - LENGTH, len(head)))
        stretch = data.draw(st.integers(0, 4))
        replacement = st.one_of(st.binary(max_size=4), st.text('{}[]",:\\0129-.eE', max_size=4).map(str.encode))
        head[begin : begin + stretch] = data.draw(replacement)
    refused_or_right(path, sealed(bytes(head), content[end:]))


# One file ---------------------------------------------------------------------------------------------------------------


def replaced_between_calls(path: Path, other: bytes) -> Callable[..., Any]:
    """Return an `open` that lets a writer replace the file after each time that it is opened."""
    original = Path.open

    def open_and_replace(self: Path, *arguments: Any, **options: Any) -> Any:
        file = original(self, *arguments, **options)
        if self == path:
            beside = path.with_name("beside")
            with original(beside, "wb") as new:
                new.write(other)
            beside.replace(path)
        return file

    return open_and_replace


def test_a_file_replaced_while_it_is_loaded_is_loaded_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, optimizer = tmp_path / "run", portopt.SGD()
    for step, size in ((5, 3), (6, 4000)):
        params = {"w": np.full(size, float(step))}
        portopt.save(path.with_name(str(step)), optimizer, params, optimizer.init(params)._replace(step=step))
    path.write_bytes((tmp_path / "5").read_bytes())
    monkeypatch.setattr(Path, "open", replaced_between_calls(path, (tmp_path / "6").read_bytes()))
    _, params, state = portopt.load(path)
    assert (state.step, params["w"].tolist()) == (5, [5.0] * 3)
    _, params, state = portopt.load(path)
    assert (state.step, params["w"].tolist()) == (6, [6.0] * 4000)


def test_a_reader_beside_a_writer_finds_whole_files_only(tmp_path: Path) -> None:
    path, optimizer = tmp_path / "run", portopt.SGD()
    contents = []
    for step in range(2):
        params = {"w": np.full(1 + 5000 * step, float(step))}
        portopt.save(path, optimizer, params, optimizer.init(params)._replace(step=step))
        contents.append(path.read_bytes())
    stop = threading.Event()

    def write() -> None:
        for i in range(10**9):
            if stop.is_set():
                return
            beside = path.with_name("beside")
            beside.write_bytes(contents[i % 2])
            beside.replace(path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            _, params, state = portopt.load(path)
            assert params["w"].shape == (1 + 5000 * state.step,)
    finally:
        stop.set()
        writer.join()
