"""Each case of the conformance suite as a test; `conftest.py` has the options."""

from portopt_conformance import Case


def test_conformance(case: Case) -> None:
    outcome = case.run()
    assert outcome.passed, f"{case.id}\n{outcome.text}"
