"""Turns leave nothing out for good."""

from __future__ import annotations

import pytest
from support import turns
from support.turns import in_turn, in_turns, rules_in_turn

import portopt
from portopt_conformance.plan import KINDS


@pytest.fixture(params=[0, 2**20 + 2**10 + 3])
def turn_of_the_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be the turn of which the module would read the number."""
    monkeypatch.setattr(turns, "TURN", request.param)
    monkeypatch.setattr(turns, "_PAIRS", request.param // 2**8)
    monkeypatch.setattr(turns, "_ITEMS", request.param // 2**16)


@pytest.mark.usefixtures("turn_of_the_run")
def test_every_rule_has_a_turn_and_each_turn_some_of_the_rules() -> None:
    found = [rules_in_turn(portopt.RULES, turn) for turn in range(len(portopt.RULES))]
    assert {rule for rules in found for rule in rules} == set(portopt.RULES)
    assert all(0 < len(rules) <= len(KINDS) for rules in found)


def test_turns_of_the_run_have_other_rules_and_other_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, pairs = set(), set()
    for turn in range(len(portopt.RULES)):
        monkeypatch.setattr(turns, "TURN", turn)
        monkeypatch.setattr(turns, "_PAIRS", turn)
        rules.update(rules_in_turn(portopt.RULES, 0))
        pairs.update(in_turns("abcde", "xyz"))
    assert rules == set(portopt.RULES)
    assert len(pairs) == 15


def test_a_rule_that_is_always_there_comes_once() -> None:
    first = portopt.RULES[0]
    for turn in range(len(portopt.RULES)):
        assert rules_in_turn(portopt.RULES, turn, always=(first,)).count(first) == 1


def test_one_of_so_many_is_in_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_ITEMS", 0)
    assert [in_turn("abcde", turn, 3) for turn in range(4)] == ["ad", "be", "c", "ad"]
