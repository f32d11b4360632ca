"""Episodes: the worlds and operations of one seed, one after the other or in threads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from support.threads_at_once import at_once

import portopt
from fuzzing import operations as tree_operations
from fuzzing import torch_operations
from fuzzing.arrays import ARRAYS
from fuzzing.trees import changes
from fuzzing.worlds import Difference, Operations, TorchWorld, World
from portopt_conformance.configurations import SCHEDULES, Configuration, configurations

OPERATIONS: dict[Any, Operations] = {World: tree_operations.OPERATIONS, TorchWorld: torch_operations.OPERATIONS}
OPERATIONS_PER_EPISODE = 30
THREADS = 4


class UserSchedule:
    """A schedule of a user's: a plain function of the number of finished steps."""

    def __call__(self, step: Any) -> Any:
        return 0.1 / (1 + step)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UserSchedule)

    def __hash__(self) -> int:
        return 0


def random_optimizer(rng: random.Random) -> tuple[Configuration, dict[str, Any]]:
    """Return a configuration of a rule and arguments beside its own."""
    configuration = rng.choice(configurations(rng.choice(portopt.RULES)))
    more: dict[str, Any] = {}
    if rng.random() < 0.2:
        more["clipnorm"] = rng.choice((0.1, 1.0, 1e10))
    if rng.random() < 0.2:
        more["learning_rate"] = rng.choice([*SCHEDULES.values(), UserSchedule()])
    return configuration, more


class Episode:
    """One seed's worlds and operations.

    Args:
        seed: decides about everything.
        libraries: names of the libraries whose arrays may be used.
    """

    def __init__(self, seed: int, libraries: Sequence[str] = ("numpy", "torch")) -> None:
        rng = random.Random(seed)
        self.seed, self._rng = seed, rng
        self.arrays = ARRAYS[rng.choice(libraries)]
        self.configuration, self.more = random_optimizer(rng)
        self._kind: Any = TorchWorld if self.arrays.name == "torch" and rng.random() < 0.4 else World
        self.is_threaded = rng.random() < 0.15
        self.is_large = rng.random() < 0.03
        self.trail: list[str] = []

    def __str__(self) -> str:
        rule = f"{self.configuration.rule.__name__}/{self.configuration.name} {self.more or ''}"
        where = f"{self.arrays.name}, {self._kind.__name__}{' in threads' if self.is_threaded else ''}"
        return f"episode {self.seed}: {rule} on {where}"

    def _pairs(self, count: int) -> list[tuple[Any, Any]]:
        optimizer = self.configuration.optimizer(**self.more)
        pairs = []
        for _ in range(count):
            seed = self._rng.getrandbits(64)
            # The model's optimizer is one of its own, so that it has no plans of others.
            pairs.append(
                (
                    self._kind(optimizer, self.arrays, random.Random(seed), large=self.is_large),
                    self._kind(optimizer.replace(), self.arrays, random.Random(seed), large=self.is_large),
                )
            )
        return pairs

    def _operations(self, count: int) -> list[tuple[str, int]]:
        names, weights = zip(*((name, weight) for name, (_, weight) in OPERATIONS[self._kind].items()), strict=True)
        return [(name, self._rng.getrandbits(64)) for name in self._rng.choices(names, weights, k=count)]

    def run(self) -> int:
        """Run all operations; return how many there were.

        Raises:
            Difference: the two worlds differ.
        """
        try:
            with np.errstate(all="ignore"):
                return self._run_in_threads() if self.is_threaded else self._run_in_turns()
        except Difference as difference:
            last = "\n  ".join(self.trail[-12:])
            raise Difference(f"{self}\n  {last}\n{difference}") from None

    def _run_in_turns(self) -> int:
        pairs = self._pairs(self._rng.choice((1, 1, 1, 2, 3)))
        operations = self._operations(4 if self.is_large else OPERATIONS_PER_EPISODE)
        for name, seed in operations:
            real, model = self._rng.choice(pairs)
            self._compare(real, model, [(name, seed)], [self._do(real, name, seed)])
        return len(operations)

    def _run_in_threads(self) -> int:
        pairs = self._pairs(THREADS)
        plans = [self._operations(4 if self.is_large else OPERATIONS_PER_EPISODE) for _ in pairs]
        outcomes: list[list[str]] = [[] for _ in pairs]

        def work(i: int) -> None:
            with np.errstate(all="ignore"):
                for name, seed in plans[i]:
                    outcomes[i].append(self._do(pairs[i][0], name, seed))

        at_once(work, len(pairs))
        for (real, model), operations, found in zip(pairs, plans, outcomes, strict=True):
            self._compare(real, model, operations, found)
        return sum(map(len, plans))

    def _do(self, world: Any, name: str, seed: int) -> str:
        if world.refused > 2:
            # Something is wrong with the arrays for good; most operations would say no more than that.
            world.begin_anew(random.Random(seed))
        return OPERATIONS[self._kind][name][0](world, random.Random(seed))

    def _compare(self, real: Any, model: Any, operations: Sequence[tuple[str, int]], found: Sequence[str]) -> None:
        for (name, seed), outcome in zip(operations, found, strict=True):
            self.trail.append(f"{name}({seed}) -> {outcome or 'done'}")
            with portopt.interpreted():
                expected = self._do(model, name, seed)
            if outcome != expected:
                raise Difference(f"{name} ended with {outcome!r}, expected {expected!r}")
        a, b = real.fingerprint(), model.fingerprint()
        if a.keys() != b.keys() or a != b:
            raise Difference(f"after {operations[-1][0]} the worlds differ in {changes(b, a) or 'their arrays'}")
