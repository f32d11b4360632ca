"""Turns leave nothing out for good."""

from __future__ import annotations

from support.turns import in_turn, rules_in_turn

import portopt
from portopt_conformance.plan import TURNS


def test_every_rule_has_a_turn_and_each_turn_some_of_the_rules() -> None:
    turns = [rules_in_turn(portopt.RULES, turn) for turn in range(max(TURNS.values()))]
    assert {rule for rules in turns for rule in rules} == set(portopt.RULES)
    assert all(0 < len(rules) < len(portopt.RULES) / 2 for rules in turns)


def test_a_rule_that_is_always_there_comes_once() -> None:
    first = portopt.RULES[0]
    for turn in range(max(TURNS.values())):
        assert rules_in_turn(portopt.RULES, turn, always=(first,)).count(first) == 1


def test_one_of_so_many_is_in_each_turn() -> None:
    assert [in_turn("abcde", turn, 3) for turn in range(4)] == ["ad", "be", "c", "ad"]
