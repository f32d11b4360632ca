"""Damaged checkpoints are refused, and a writer that stops anywhere leaves the old checkpoint or the new one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.elsewhere import Elsewhere

import portopt
from portopt.files import replacing

REASONS = re.compile(
    r"is damaged: its header does not have its checksum|is damaged: the data of the tensor '(params|slots/moment)/w' does not|"
    r"is cut short|is no checkpoint of portopt, or its first bytes are damaged|goes on after its end"
)


def content(folder: Path, size: int) -> bytes:
    path = folder / "whole"
    params = {"w": np.arange(size, dtype=np.float32)}
    optimizer = portopt.SGD()
    portopt.save(path, optimizer, params, optimizer.init(params))
    return path.read_bytes()


def assert_refused(path: Path, damaged: bytes) -> str:
    path.write_bytes(damaged)
    with pytest.raises(portopt.CheckpointError) as error:
        portopt.load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert REASONS.search(message), message
    return message


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = content(tmp_path, 3)
    messages = [assert_refused(tmp_path / "cut", whole[:length]) for length in range(len(whole))]
    assert all("is cut short" in message for message in messages)


def test_any_changed_byte_is_refused(tmp_path: Path) -> None:
    whole = content(tmp_path, 1)
    for position in range(len(whole)):
        for bits in (0x01, 0x20, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= bits
            assert_refused(tmp_path / "damaged", bytes(damaged))


def test_the_damaged_tensor_is_named(tmp_path: Path) -> None:
    whole = content(tmp_path, 3)
    for offset, name in ((-1, "slots/moment/w"), (-13, "params/w")):
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        message = assert_refused(tmp_path / "damaged", bytes(damaged))
        assert f"the data of the tensor '{name}' does not have its checksum; load another checkpoint" in message


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("large")
    return folder / "damaged", content(folder, 1000)


@settings(max_examples=300)
@given(st.data())
def test_any_replaced_stretch_is_refused(large: tuple[Path, bytes], data: st.DataObject) -> None:
    path, whole = large
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, min(len(whole), begin + 200)))
    replacement = data.draw(st.binary(max_size=100))
    damaged = whole[:begin] + replacement + whole[end:]
    if damaged != whole:
        assert_refused(path, damaged)


@pytest.fixture(scope="module")
def killed(elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return elsewhere.call_alone("killed_writers", "killed", tmp_path_factory.mktemp("killed"))


def test_a_writer_killed_at_any_line_leaves_the_old_or_the_new_checkpoint(killed: list[dict[str, Any]]) -> None:
    lines = [entry for entry in killed if entry["what"].startswith("line")]
    assert {entry["how"] for entry in lines[:-1]} == {"SIGKILL"}
    assert lines[-1]["how"] == "done"
    steps = [entry["step"] for entry in lines]
    assert steps == sorted(steps)
    # It died before and after the replacement, which has two flushes beside it.
    assert steps.count(0) > 20
    assert steps.count(1) > 5


def test_a_writer_killed_in_the_middle_of_the_file_leaves_the_old_checkpoint(killed: list[dict[str, Any]]) -> None:
    entry = next(entry for entry in killed if entry["what"] == "half written")
    assert (entry["how"], entry["step"], entry["left"]) == ("SIGKILL", 0, 1)


def test_a_full_disk_is_an_error_that_leaves_the_old_checkpoint_and_nothing_else(killed: list[dict[str, Any]]) -> None:
    entry = next(entry for entry in killed if entry["what"] == "disk full")
    assert (entry["how"], entry["step"], entry["left"]) == ("refused", 0, 0)


def test_the_file_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(handle: int) -> None:
        done.append(("flush", os.fstat(handle).st_ino))
        fsync(handle)

    def recording_replace(self: Path, target: Path) -> Path:
        done.append(("replace", self.stat().st_ino))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", recording_fsync)
        patch.setattr(Path, "replace", recording_replace)
        with replacing(tmp_path / "file", durable=True) as temporary:
            temporary.write_text("new")
            file, directory = temporary.stat().st_ino, tmp_path.stat().st_ino
    assert done == [("flush", file), ("replace", file), ("flush", directory)]


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path, durable=False) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
