"""Turns leave nothing out for good."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
from support import turns
from support.turns import in_turn, in_turns, rules_in_turn

import portopt
from portopt_conformance.plan import KINDS


@pytest.mark.parametrize("turn_of_the_run", ["0", str(2**20 + 2**10 + 3)])
def test_every_rule_has_a_turn_and_each_turn_some_of_the_rules(
    turn_of_the_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN", turn_of_the_run)
    found = [rules_in_turn(portopt.RULES, turn) for turn in range(len(portopt.RULES))]
    assert {rule for rules in found for rule in rules} == set(portopt.RULES)
    assert all(0 < len(rules) <= len(KINDS) for rules in found)


@pytest.mark.parametrize(
    ("choose", "every"),
    [
        (lambda: rules_in_turn(portopt.RULES, 0), portopt.RULES),
        (lambda: in_turns("ab", "xyz"), [(a, x) for a in "ab" for x in "xyz"]),
        (lambda: in_turn("abcde", 0, 3), "abcde"),
    ],
    ids=["rules", "pairs", "items"],
)
def test_runs_choose_others(
    choose: Callable[[], Collection[object]], every: Collection[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[object] = set()
    for turn in range(len(portopt.RULES)):
        monkeypatch.setattr(turns, "TURN", str(turn))
        assert len(choose()) < len(every)
        found.update(choose())
    assert found == set(every)


def test_what_is_chosen_in_two_ways_meets_in_all_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    met: set[tuple[str, str]] = set()
    for turn in range(0, 2**28, 2**28 // 89):
        monkeypatch.setattr(turns, "TURN", str(turn))
        met.update(in_turns(in_turn("abcdef", 0, 3), "xyz"))
    assert len(met) == 18


def test_in_a_run_of_all_nobody_waits_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", turns.ALL)
    assert rules_in_turn(portopt.RULES, 3) == list(portopt.RULES)
    assert len(in_turns("abcde", "xyz")) == 15
    assert in_turn("abcde", 1, 3) == "abcde"


def test_a_rule_that_is_always_there_comes_once() -> None:
    first = portopt.RULES[0]
    for turn in range(len(portopt.RULES)):
        assert rules_in_turn(portopt.RULES, turn, always=(first,)).count(first) == 1


def test_one_of_so_many_is_in_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", "0")
    assert [in_turn("abcde", turn, 3) for turn in range(4)] == ["ad", "be", "c", "ad"]
