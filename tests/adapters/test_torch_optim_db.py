"""torch's own list of optimizers and arguments, `optim_db`, through `TorchOptimizer`: see `torch_optim_db.py`."""

from __future__ import annotations

import itertools

import pytest
from support.elsewhere import Elsewhere
from support.places import ROOT
from support.turns import in_turn

from portopt.interchange.matching import translations
from portopt_torch._translation import VOCABULARY

pytestmark = pytest.mark.slow

NAMES = [name for name, of in translations(VOCABULARY).items() if of.counterpart.compared]
CHECKS = (
    *("trajectory", "groups", "missing_gradients", "state_dict", "torchs_state_dict", "there_and_back"),
    *("schedulers", "error_inputs"),
)

NOT_TRANSLATED = {
    "ASGD": "portopt has no such rule",
    "LBFGS": "it needs a closure that evaluates the loss again",
    "Muon": "it takes matrices only, in bfloat16",
    "RAdam": "portopt has no such rule",
    "Rprop": "portopt has no such rule",
    "SparseAdam": "it takes sparse gradients only, which rules refuse",
}
"""What `optim_db` has beside; docs/torch.md says the same."""

NOT_AN_ARGUMENT = "TypeError: {name} got an unknown argument 'foreach'"
OTHERWISE = {
    # These are refused as well, with another type of error.
    "lr as Tensor doesn't work with foreach & not capturable": NOT_AN_ARGUMENT,
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": NOT_AN_ARGUMENT,
    "betas must be either both floats or both Tensors": "TypeError: {name} beta_1 must be a Python number",
}
"""Errors of Adam and AdamW that differ from torch's, and what they are."""


# As many checks as do not go into turns evenly, so that each has optimizers in each turn.
@pytest.mark.parametrize(("name", "check"), in_turn(list(itertools.product(NAMES, CHECKS)), 0, 3))
def test_what_torch_tests_its_optimizers_with_has_torchs_results(name: str, check: str, elsewhere: Elsewhere) -> None:
    outcomes = elsewhere.call("torch_optim_db", "outcomes", name, check)
    differing = OTHERWISE if check == "error_inputs" and name in ("Adam", "AdamW") else {}
    assert outcomes
    for given, outcome in outcomes.items():
        if given in differing:
            assert outcome.startswith(differing[given].format(name=name)), f"{given}: {outcome}"
        else:
            assert outcome == "passed", f"{given}: {outcome}"


def test_every_optimizer_of_torch_is_run_or_has_a_reason_not_to_be(elsewhere: Elsewhere) -> None:
    text = ROOT.joinpath("docs", "torch.md").read_text()
    for name in elsewhere.call("torch_optim_db", "names"):
        assert f"| `{name}` | {'all' if name in NAMES else NOT_TRANSLATED[name]}" in text
