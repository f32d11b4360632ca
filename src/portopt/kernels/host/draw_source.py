"""Source of the functions with which generated kernels draw random numbers: what `portopt.program.draws` defines.

Words of 32 bits are integers of 64 bits, whose products wrap: the upper word of one is right whatever its sign.
"""

from __future__ import annotations

import math
from collections.abc import Container

from portopt.kernels.writer import Language
from portopt.program.draws import KEY_STEPS, MOST_UNIFORM, MULTIPLIERS, ROUNDS

_WORDS = f'''

def words_of(key, step, stream, number, element):
    """Return four random words, given the key, the step, and the number of draw, parameter and element."""
    word_0 = element & 0xFFFFFFFF
    word_1 = (element >> 32) | (stream << 16)
    word_2 = number
    word_3 = step & 0xFFFFFFFF
    key_0 = key & 0xFFFFFFFF
    key_1 = (key >> 32) & 0xFFFFFFFF
    for _ in range({ROUNDS}):
        first = word_0 * {MULTIPLIERS[0]}
        second = word_2 * {MULTIPLIERS[1]}
        word_0 = ((second >> 32) & 0xFFFFFFFF) ^ word_1 ^ key_0
        word_1 = second & 0xFFFFFFFF
        word_2 = ((first >> 32) & 0xFFFFFFFF) ^ word_3 ^ key_1
        word_3 = first & 0xFFFFFFFF
        key_0 = (key_0 + {KEY_STEPS[0]}) & 0xFFFFFFFF
        key_1 = (key_1 + {KEY_STEPS[1]}) & 0xFFFFFFFF
    return word_0, word_1, word_2, word_3


def fraction_of(bits):
    """Return a number in [0, 1], given 53 bits of it or 2**53."""
    return float(bits) * 2.0**-53
'''

_UNIFORM = '''

def draw_uniform(key, step, stream, number, element):
    """Return a number in [0, 1)."""
    word_0, word_1, word_2, word_3 = words_of(key, step, stream, number, element)
    return fraction_of(min((word_0 << 21) | (word_1 >> 11), {most}))
'''

_NORMAL = '''

def draw_normal(key, step, stream, number, element):
    """Return a number that is normally distributed."""
    word_0, word_1, word_2, word_3 = words_of(key, step, stream, number, element)
    length = fraction_of(((word_0 << 21) | (word_1 >> 11)) + 1)
    angle = fraction_of((word_2 << 21) | (word_3 >> 11))
    radius = sqrt({twice})
    return {product}
'''


def drawing_functions_source(names: Container[str], real: str, language: Language) -> str:
    """Return the source of the functions that the draws of a program need, which give a float64 each.

    Those of normally distributed numbers call `log_of_float64` and `cos_of_float64`.

    Args:
        names: of the program's operations.
        real: the compute dtype.
        language: the kernel's.
    """
    text, product = "", language.scalars["multiply"]
    if "draw_uniform" in names:
        text += _UNIFORM.format(most=MOST_UNIFORM[real])
    if "draw_normal" in names:
        turned = f"cos_of_float64({product.format('angle', repr(2 * math.pi))})"
        text += _NORMAL.format(
            twice=product.format("log_of_float64(length)", "-2.0"), product=product.format("radius", turned)
        )
    return _WORDS + text if text else ""
