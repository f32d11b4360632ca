"""The cache of compiled kernels: an entry that is not whole, right and one's own is compiled again, never trusted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.processes import import_path, side_by_side

import portopt
from portopt.kernels import cache
from portopt.kernels.host import compiler
from portopt.kernels.key import KernelKey

KEY = {"source": "def kernel", "cpu": "some"}
CODE = bytes(range(100))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PORTOPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(directory: Path) -> Path:
    cache.store(KEY, CODE)
    (entry,) = directory.iterdir()
    assert cache.load(KEY) == CODE
    return entry


class TestEntry:
    def test_only_the_user_can_read_it(self, directory: Path) -> None:
        assert stored(directory).stat().st_mode & 0o077 == 0
        assert directory.stat().st_mode & 0o077 == 0

    def test_cut_anywhere_it_is_not_believed(self, directory: Path) -> None:
        entry = stored(directory)
        whole = entry.read_bytes()
        for length in range(len(whole)):
            entry.write_bytes(whole[:length])
            assert cache.load(KEY) is None, length

    def test_with_any_byte_changed_it_is_not_believed(self, directory: Path) -> None:
        entry = stored(directory)
        whole = entry.read_bytes()
        for position in range(len(whole)):
            for bits in (0x01, 0x80, 0xFF):
                damaged = bytearray(whole)
                damaged[position] ^= bits
                entry.write_bytes(damaged)
                assert cache.load(KEY) is None, position

    def test_with_bytes_after_its_end_it_is_not_believed(self, directory: Path) -> None:
        entry = stored(directory)
        entry.write_bytes(entry.read_bytes() + b"\0")
        assert cache.load(KEY) is None

    def test_of_another_key_it_is_not_believed(self, directory: Path) -> None:
        """As if the hashes in two names of files were the same."""
        entry = stored(directory)
        other = {**KEY, "cpu": "another"}
        cache.store(other, b"other code")
        (theirs,) = set(directory.iterdir()) - {entry}
        entry.replace(theirs)
        assert cache.load(other) is None

    @pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner here")
    def test_of_another_user_it_is_not_believed(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stored(directory)
        somebody = os.geteuid() + 1
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: somebody)
            with pytest.warns(
                RuntimeWarning, match=r"not kept in .*cache, which belongs to another user, because what is"
            ):
                assert cache.load(KEY) is None
            cache.store({**KEY, "cpu": "another"}, CODE)
        assert len(list(directory.iterdir())) == 1

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
    def test_that_others_may_write_it_is_not_believed(self, directory: Path, mode: int) -> None:
        entry = stored(directory)
        entry.chmod(mode)
        assert cache.load(KEY) is None
        cache.store(KEY, CODE)
        assert entry.stat().st_mode & 0o777 == 0o600
        assert cache.load(KEY) == CODE

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
    def test_in_a_directory_that_others_may_write_it_is_not_believed(self, directory: Path, mode: int) -> None:
        stored(directory)
        directory.chmod(mode)
        with pytest.warns(RuntimeWarning, match="may be written by others, because what is there is run: each process"):
            assert cache.load(KEY) is None
        cache.store({**KEY, "cpu": "another"}, CODE)
        assert len(list(directory.iterdir())) == 1

    def test_through_a_symbolic_link_it_is_not_believed(self, directory: Path, tmp_path: Path) -> None:
        entry = stored(directory)
        elsewhere = entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(elsewhere)
        assert cache.load(KEY) is None
        elsewhere.write_bytes(b"of somebody")
        cache.store(KEY, CODE)
        assert (entry.is_symlink(), elsewhere.read_bytes()) == (False, b"of somebody")
        assert cache.load(KEY) == CODE

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
    def test_a_pipe_in_its_place_is_replaced_and_not_waited_for(self, directory: Path) -> None:
        entry = stored(directory)
        entry.unlink()
        os.mkfifo(entry, 0o600)
        assert cache.load(KEY) is None
        cache.store(KEY, CODE)
        assert cache.load(KEY) == CODE

    def test_a_directory_in_its_place_is_no_error(self, directory: Path) -> None:
        entry = stored(directory)
        entry.unlink()
        entry.mkdir()
        assert cache.load(KEY) is None
        cache.store(KEY, CODE)
        assert list(directory.iterdir()) == [entry]

    def test_a_damaged_one_is_replaced(self, directory: Path) -> None:
        entry = stored(directory)
        entry.write_bytes(b"damaged")
        cache.store(KEY, CODE)
        assert cache.load(KEY) == CODE
        assert list(directory.iterdir()) == [entry]


def test_a_directory_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("a file")
    monkeypatch.setenv("PORTOPT_CACHE_DIR", str(in_the_way / "cache"))
    cache.store(KEY, CODE)
    assert cache.load(KEY) is None


def test_a_directory_that_cannot_be_written_is_no_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise PermissionError("read-only file system")

    directory.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        cache.store(KEY, CODE)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_takes_no_more_is_no_error(directory: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        cache.store(KEY, CODE)
    assert list(directory.iterdir()) == []
    assert cache.load(KEY) is None


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PORTOPT_CACHE_DIR", "~/kernels")
    assert cache.cache_directory() == tmp_path / "kernels"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="other systems have other places")
def test_the_default_is_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting, expected in ((str(tmp_path / "x"), "x/portopt"), ("", ".cache/portopt"), ("y", ".cache/portopt")):
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
        assert cache.cache_directory() == tmp_path / expected


def test_an_empty_setting_switches_the_cache_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOPT_CACHE_DIR", "")
    assert cache.cache_directory() is None
    cache.store(KEY, CODE)
    assert cache.load(KEY) is None


@pytest.mark.needs("numba")
def test_a_kernel_is_compiled_again_exactly_if_its_entry_is_damaged(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    original = compiler._compile

    def counting(source: str, prototype: str) -> bytes:
        compiled.append(prototype)
        return original(source, prototype)

    monkeypatch.setattr(compiler, "_compile", counting)
    dtypes = (("p", "float32"), ("g", "float32"), ("moment", "float32"))

    def compile_once() -> int:
        before = len(compiled)
        compiler.compile_kernel(portopt.SGD().program(), KernelKey(dtypes, True, compiler.default_flush()))
        return len(compiled) - before

    assert [compile_once(), compile_once()] == [1, 0]
    (entry,) = directory.iterdir()
    damaged = bytearray(entry.read_bytes())
    damaged[-1] ^= 1
    entry.write_bytes(damaged)
    assert [compile_once(), compile_once()] == [1, 0]


STEP = """
import hashlib, numpy as np, portopt
opt, w = portopt.Adam(), np.linspace(-1, 1, 1000)
w, state = opt.apply(w, w, opt.init(w))
print(hashlib.sha256(w.tobytes()).hexdigest())
"""


@pytest.mark.needs("numba")
@pytest.mark.parametrize("setting", [None, "~/kernels"])
def test_without_a_home_directory_steps_are_compiled_and_not_kept(setting: str | None, tmp_path: Path) -> None:
    """As in a container that runs as a user without a name."""
    nobody = "import os, pwd, sys\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\nos.environ.pop('HOME', None)\n"
    without = ("HOME", "XDG_CACHE_HOME", "PORTOPT_CACHE_DIR", "USER", "LOGNAME")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment |= import_path()
    if setting is not None:
        environment["PORTOPT_CACHE_DIR"] = setting
    code = nobody + STEP + "from portopt.kernels.cache import cache_directory\nprint(cache_directory())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == ["None"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("numba")
def test_processes_may_share_the_directory_at_once(directory: Path) -> None:
    processes = side_by_side([[sys.executable, "-c", STEP]] * 3, [import_path()] * 3)
    assert [process.returncode for process in processes] == [0, 0, 0], [process.stderr for process in processes]
    with portopt.interpreted():
        w = np.linspace(-1, 1, 1000)
        w, _ = portopt.Adam().apply(w, w, portopt.Adam().init(w))
    assert [process.stdout.strip() for process in processes] == [hashlib.sha256(w.tobytes()).hexdigest()] * 3
    entries = list(directory.iterdir())
    assert entries
    assert {entry.suffix for entry in entries} == {".kernel"}
    for entry in entries:
        content = entry.read_bytes()
        length = int.from_bytes(content[17:25], "little")
        assert cache.load(json.loads(content[25 : 25 + length])) is not None


@pytest.mark.needs("numba")
def test_kernels_are_compiled_again_for_other_functions_that_they_call(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = compiler._environment()
    assert compiler._digest_of_functions() == key["functions"]
    for module in Path(compiler.__file__).parent.glob("*.py"):
        (tmp_path / module.name).write_bytes(module.read_bytes())
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "compiler.py"))
    assert compiler._digest_of_functions() == key["functions"]
    for name in (
        *("support", "block_support", "llvm_support", "product_support", "reduction_support", "target_support"),
        *("translation_support", "vector_support"),
    ):
        with (tmp_path / f"{name}.py").open("a") as module_file:
            module_file.write("\n")
        changed = {**key, "functions": compiler._digest_of_functions()}
        cache.store(key, CODE)
        assert cache.load(key) == CODE
        assert cache.load(changed) is None
        key = changed
