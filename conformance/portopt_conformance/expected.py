"""Where expected results come from: the committed vectors, or a live run on another backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from portopt_conformance.committed import Vectors
from portopt_conformance.comparison import Difference, checksums, compare, compare_checksums
from portopt_conformance.experiment import Experiment
from portopt_conformance.platform import Platform, reference
from portopt_conformance.words import Words


class Expected(Protocol):
    """Judges results."""

    def difference(self, experiment: Experiment, dtype: str | None, results: Mapping[str, Words]) -> Difference | None:
        """Return how results differ from those expected of an experiment, or None."""


@dataclass(frozen=True)
class Live:
    """Expects what another platform gives, here and now."""

    platform: Platform

    def results(self, experiment: Experiment, dtype: str | None) -> dict[str, Words]:
        with self.platform.active(dtype):
            return experiment.run(self.platform)

    def difference(self, experiment: Experiment, dtype: str | None, results: Mapping[str, Words]) -> Difference | None:
        return compare(results, self.results(experiment, dtype), experiment.inputs())


@dataclass(frozen=True)
class Committed:
    """Expects what the committed vectors say."""

    vectors: Vectors

    def difference(self, experiment: Experiment, dtype: str | None, results: Mapping[str, Words]) -> Difference | None:
        if experiment.literal:
            words = self.vectors.words(experiment.key)
            return compare(results, words, experiment.inputs()) if words else _missing(experiment)
        wanted = self.vectors.checksums(experiment.key)
        if wanted is None:
            return _missing(experiment)
        found = checksums(results)
        if found == wanted:
            return None
        # Checksums only say which block is wrong. The reference, which is installed with portopt, says what was expected there,
        # if it still gives the committed bits itself.
        expected = Live(reference()).results(experiment, dtype)
        if checksums(expected) == wanted:
            exact = compare(results, expected, experiment.inputs())
            if exact is not None:
                return exact
        coarse = compare_checksums(found, wanted, results)
        note = "the reference on NumPy does not give the committed bits here either: the rule's formula, or NumPy, has changed"
        return Difference(coarse.elements, coarse.bits, False, f"{coarse.text}\n{note}")


def _missing(experiment: Experiment) -> Difference:
    return Difference(
        1, 1, False, f"no vectors are committed for {experiment.key}: run python -m portopt_conformance.vectors"
    )
