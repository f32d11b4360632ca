"""Random numbers: the words of Philox4x32-10, the same on every library and for every shard, and what is drawn with them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from support.bits import Array, assert_same_bits
from support.drawing import drawn as drawn_with
from support.libraries import BY_NAME, Library, each_library

from portopt.program.draws import DISTRIBUTIONS, Place, draw, philox, words_at
from portopt.program.primitives import Primitives

ALL_ONES = 2**32 - 1
KEY = 0x0012_3456_789A_BCDE


def primitives(library: Library, dtype: str) -> Primitives:
    backend: Any = library.backend
    found: Primitives = backend.primitives(dtype)
    return found.widened_by(lambda: backend.primitives("float64"))


drawn = functools.partial(drawn_with, key=KEY)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_has_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert tuple(philox(np, counter, key)) == expected
    arrays = philox(np, [np.asarray([word]) for word in counter], [np.asarray(word) for word in key])
    assert tuple(int(word[0]) for word in arrays) == expected


class _Checked(int):
    """An integer that refuses to have more than 63 bits."""

    def _of(self, value: int) -> _Checked:
        assert -(2**63) <= value < 2**63
        return _Checked(value)

    def __add__(self, other: int) -> _Checked:
        return self._of(int(self) + other)

    def __mul__(self, other: int) -> _Checked:
        return self._of(int(self) * other)

    def __xor__(self, other: int) -> _Checked:
        return self._of(int(self) ^ int(other))

    def __and__(self, other: int) -> _Checked:
        return self._of(int(self) & other)

    def __rshift__(self, other: int) -> _Checked:
        return self._of(int(self) >> other)


def test_no_integer_on_the_way_needs_more_than_63_bits() -> None:
    largest = _Checked(ALL_ONES)
    assert all(isinstance(word, _Checked) for word in philox(np, [largest] * 4, [largest] * 2))


@each_library
def test_words_are_the_same_on_every_library(library: Library) -> None:
    place = Place.of(5, (3, 4))
    ops = primitives(library, "float32")
    like = library.arrays(np.zeros((3, 4), np.float32))
    with library.precision("float64"):
        found = [np.asarray(library.numpy(word)) for word in words_at(ops, KEY, 17, 2, place, like)]
    for number, row in enumerate(zip(*(word.ravel().tolist() for word in found), strict=True)):
        assert row == tuple(philox(np, (number, 2 << 16, 5, 17), (KEY & ALL_ONES, KEY >> 32)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@each_library
def test_draws_are_the_same_on_every_library(library: Library, distribution: str) -> None:
    place = Place.of(1, (40, 3))
    for dtype in ("float32", "float64"):
        with library.precision(dtype), np.errstate(all="ignore"):
            like = library.arrays(np.zeros(place.shape, dtype))
            found = library.numpy(draw(primitives(library, dtype), distribution, KEY, 9, 0, place, like))
        assert_same_bits(found, drawn(distribution, place, dtype, step=9), dtype)


@pytest.mark.needs("jax")
def test_draws_are_the_same_inside_scan_and_vmap() -> None:
    import jax
    import jax.numpy as jnp

    place, ops = Place.of(1, (5, 2)), primitives(BY_NAME["jax"], "float32")
    like = jnp.zeros(place.shape)

    def run(words: Any) -> Any:
        def body(step: Any, _: None) -> Any:
            with jax.enable_x64(True):
                key = words[0].astype("int64") | (words[1].astype("int64") << 32)
                counted = step.astype("int64")
            return step + 1, [draw(ops, name, key, counted, 0, place, like) for name in DISTRIBUTIONS]

        return jax.lax.scan(body, jnp.asarray(1, "int32"), None, length=3)[1]

    keys = (KEY, 7)
    with jax.enable_x64(False):
        words = jnp.asarray([[key & ALL_ONES, key >> 32] for key in keys], "uint32")
        found = jax.jit(jax.vmap(run))(words)
    for distribution, numbers in zip(DISTRIBUTIONS, found, strict=True):
        expected = [[drawn(distribution, place, "float32", key=key, step=t) for t in (1, 2, 3)] for key in keys]
        assert_same_bits(np.asarray(numbers), np.asarray(expected), distribution)


def test_a_shard_has_the_numbers_of_its_part() -> None:
    whole = drawn("normal", Place.of(2, (6, 5, 4)))
    shard = drawn("normal", Place(2, (3, 2, 4), (2, 3, 0), (6, 5, 4)))
    assert_same_bits(shard, whole[2:5, 3:5, :])
    assert drawn("normal", Place(2, (0, 5, 4), (6, 0, 0), (6, 5, 4))).shape == (0, 5, 4)
    assert drawn("normal", Place.of(2, ())).shape == ()


def test_elements_beyond_a_word_have_numbers_of_their_own() -> None:
    rows, columns = 2**20, 2**13
    near = drawn("uniform", Place(0, (1, 4), (0, 0), (rows, columns)))
    # The row whose first element has the number 2**32.
    far = drawn("uniform", Place(0, (1, 4), (2**19, 0), (rows, columns)))
    words = philox(np, (0, 1, 0, 1), (KEY & ALL_ONES, KEY >> 32))
    assert far[0, 0] == (words[0] * 2**21 + (words[1] >> 11)) / 2**53
    assert not np.any(near == far)


WORDS_OF_EXTREMES = [
    [np.asarray([word], np.int64) for word in words]
    for words in ((0, 0, 0, 0), (ALL_ONES,) * 4, (ALL_ONES, ALL_ONES, 0, 0), (0, 0, 2**31, 0))
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_uniform_number_is_never_one_and_a_normal_one_never_infinite(dtype: str) -> None:
    ops = primitives(BY_NAME["numpy"], dtype)
    with np.errstate(all="ignore"):
        uniform = [float(DISTRIBUTIONS["uniform"](ops, words)[0]) for words in WORDS_OF_EXTREMES]
        normal = [float(DISTRIBUTIONS["normal"](ops, words)[0]) for words in WORDS_OF_EXTREMES]
    below_one = float(np.nextafter(np.asarray(1, dtype), np.asarray(0, dtype)))
    assert uniform == [0, below_one, below_one, 0]
    # The largest is sqrt(2 log 2**53).
    assert normal[0] == pytest.approx(8.5716, abs=1e-3)
    assert normal[1:] == [pytest.approx(0, abs=1e-15), 0, pytest.approx(-8.5716, abs=1e-3)]


# Statistics, on numbers that are always the same

COUNT = 200_000
MANY = Place.of(0, (COUNT,))


def correlation(a: Array, b: Array) -> float:
    """Return how many standard deviations it is away from that of unrelated numbers."""
    return float(np.corrcoef(a, b)[0, 1] * np.sqrt(len(a)))


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    x = drawn("normal", MANY)
    # Each is divided by its standard deviation.
    assert abs(x.mean()) * np.sqrt(COUNT) < 4
    assert abs(x.var() - 1) * np.sqrt(COUNT / 2) < 4
    assert abs((x**3).mean()) * np.sqrt(COUNT / 15) < 4
    assert abs((x**4).mean() - 3) * np.sqrt(COUNT / 96) < 4
    for bound, share in ((1, 0.31731), (2, 0.04550), (3, 0.00270)):
        assert abs((abs(x) > bound).mean() - share) * np.sqrt(COUNT / (share * (1 - share))) < 4


def test_uniform_numbers_fill_all_parts_equally() -> None:
    x = drawn("uniform", MANY)
    counts = np.bincount((x * 100).astype(int), minlength=100)
    # Chi squared with 99 degrees of freedom is that large once in 10**5 times.
    assert len(counts) == 100
    assert ((counts - COUNT / 100) ** 2).sum() / (COUNT / 100) < 169
    # The lowest bits too.
    assert abs((drawn("uniform", MANY) * 2**53 % 2).mean() - 0.5) * np.sqrt(4 * COUNT) < 4


def test_neighbours_steps_parameters_streams_and_seeds_are_unrelated() -> None:
    x = drawn("normal", MANY)
    others = {
        "step": drawn("normal", MANY, step=2),
        "parameter": drawn("normal", Place.of(1, (COUNT,))),
        "stream": drawn("normal", MANY, stream=1),
        "seed": drawn("normal", MANY, key=KEY + 1),
    }
    assert abs(correlation(x[1:], x[:-1])) < 4
    for name, other in others.items():
        assert abs(correlation(x, other)) < 4, name
        assert not np.any(x == other), name
