"""The inputs of a planned step's kernels, and what the step's own call computes of them: learning rates of schedules, totals.

Inputs are in memory that belongs to one step. Before them is a word that says where it is written what is to be computed yet, and
behind them is what that needs. None of it is Python's, so the look that precedes the kernels comes after all that is.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from portopt.hyperparameters import Range
from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function
from portopt.kernels.host.kernel import Before, Inputs
from portopt.kernels.host.planned_totals import TOTAL_WORDS, TOTALS, PlannedNorm, PlannedTotal
from portopt.kernels.host.scalar_script import RUN_SCRIPT, ScalarScript
from portopt.kernels.rates import ARE_ALLOWED

HEAD = 8
"""Bytes before the inputs: the address of the words that say what is to be computed; 0 if nothing is."""

_SOURCE = f'''"""What a planned step computes of its kernels' inputs."""


{RUN_SCRIPT}

{TOTALS}

def kernel(given, table, inputs, step, with_totals):
    """Compute learning rates, and totals; raise an error, having written no array, if a rate is not allowed."""
    unused = first_argument()
    words = pointer_to_int64(given)
    numbers = pointer_to_float64(inputs)
    if words[2] != 0:
        numbers[words[3]] = numpy_float64(step)
        run_script(pointer_to_int64(words[1]), words[2], numbers)
        if numbers[words[4]] == 0.0:
            fail()
            return
        rates = pointer_to_int64(words[5])
        for k in range(words[6]):
            numbers[rates[2 * k]] = numbers[rates[2 * k + 1]]
    if with_totals != 0:
        for k in range(words[8]):
            put_total(words[7] + {8 * TOTAL_WORDS} * k, unused, table, inputs, step)
'''


@functools.cache
def _compiled() -> int:
    return threads.address_of(compile_function(_SOURCE, "numbers"))


class StepInputs:
    """What the kernels of a step are given, as far as it is the same in all steps, and what is computed of it.

    Args:
        inputs: where the kernels' inputs are.
        values: of the inputs; of those that are computed, any.
        rates: a script that computes the learning rates that are schedules, with numbers of its own from `inputs.length` on.
        totals: what computes those over all arrays, by the names of the inputs, each after those that it needs.
        outputs: the names of the scalars of the state that the kernels compute.
        state: the names of all scalars of the state.
        given: names under which numbers are given for a step that may change, and of each the input and what it may be.

    Attributes:
        constant: the memory of all steps, if nothing changes and nothing is written into it.
        given: where each of the numbers goes that may change, and what it may be, by the name under which it is given.
        before: what threads do before the kernels.
    """

    def __init__(
        self,
        inputs: Inputs,
        values: Sequence[float],
        rates: ScalarScript | None,
        totals: Mapping[str, PlannedNorm | PlannedTotal],
        outputs: Sequence[str],
        state: Sequence[str],
        given: Mapping[str, tuple[str, Range]],
    ) -> None:
        first = 1 + inputs.places[0][1] // 8
        self._outputs, self._outputs_at = outputs, slice(first, first + len(outputs))
        self._state = [(name, [1 + k for k in inputs.numbers_of(name)]) for name in state]
        self.given = {n: ([1 + k for k in inputs.numbers_of(own)], allowed) for n, (own, allowed) in given.items()}
        self._values = array("d", (0.0, *values))
        self.constant: array[float] | None = None
        self._totals: list[tuple[PlannedNorm | PlannedTotal, int, array[int]]] = []
        self.before = Before((), self._passes)
        if rates is None and not totals:
            self.constant = None if outputs else self._values
            return
        words = array("q", bytes(8 * 9))
        words[0] = _compiled()
        self._keep_alive: list[Any] = [words, rates]
        if rates is not None and len(rates) > 0:
            self._values.extend(rates.constants)
            computed = [name for name in rates.places if name not in ("t", ARE_ALLOWED)]
            moves = array(
                "q", [k for n in computed for place in inputs.numbers_of(n) for k in (place, rates.places[n])]
            )
            words[1], words[2] = rates.words.buffer_info()[0], len(rates)
            words[3], words[4] = rates.places["t"], rates.places[ARE_ALLOWED]
            words[5], words[6] = moves.buffer_info()[0], len(moves) // 2
            self._keep_alive.append(moves)
        of_totals = array("q")
        for name, total in totals.items():
            memory, places = 8 * (len(self._values) - 1), array("q", inputs.numbers_of(name))
            of_totals.extend(total.words(memory, places))
            self._values.frombytes(total.memory.tobytes())
            self._totals.append((total, memory, places))
        self.before = Before(tuple((id(total), memory) for total, memory, _ in self._totals), self._passes)
        words[7], words[8] = of_totals.buffer_info()[0], len(totals)
        self._keep_alive.append(of_totals)
        with memoryview(self._values) as numbers, numbers.cast("B") as octets, octets.cast("q") as whole:
            whole[0] = words.buffer_info()[0]

    def of_step(self, slots: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> array[float] | None:
        """Return the memory of a step; None if a number is no Python float or not allowed, so that Python has to look at it.

        Args:
            slots: of the state.
            given: numbers for the step, under the names of `given`; None for those with which this was made.
        """
        values = self._values[:]
        for name, places in self._state:
            value = slots.get(name)
            if type(value) is not float:
                return None
            for place in places:
                values[place] = value
        if given is not None:
            for name, (places, allowed) in self.given.items():
                value = given[name]
                if type(value) is not float or value not in allowed:
                    return None
                for place in places:
                    values[place] = value
        return values

    def first(self) -> array[float]:
        """Return the memory of the step whose values were given."""
        return self.constant or self._values[:]

    def outputs(self, values: array[float]) -> dict[str, float]:
        """Return the new scalars of the state that the kernels have left in a step's memory."""
        return dict(zip(self._outputs, values[self._outputs_at], strict=True))

    def _passes(self) -> list[threads.Pass]:
        return [one for total, memory, places in self._totals for one in total.passes(memory, places)]
