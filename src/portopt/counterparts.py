"""What optimizers of other frameworks have in common with a rule: a fact that the rule's class states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Epsilon = Literal[
    "", "beside the root", "under the root", "beside the corrected root", "beside the norm", "in the maximum"
]
"""Where a formula has epsilon. A corrected root is that of a running mean that is corrected for its start at zero."""


@dataclass(frozen=True)
class Counterpart:
    """An optimizer of another framework that has a rule's formula, in the dialect of that framework if the rule has dialects.

    A rule lists its counterparts in its class, as `counterparts`: it is translated to and from them, and compared with them.
    A hyperparameter is an argument under the rule's own name, unless an alias of the dialect, the framework's package (such as
    `lr` for all of `torch.optim`) or `names` says otherwise.

    Attributes:
        name: how users of the framework call it, such as `"torch.optim.AdamW"`.
        slots: slot of the rule to the last part, or parts, of the name that it has there; `"-trace"` for one of other sign. Two
            slots of which no parameter has both may be one there.
        placeholders: slots that something stands for there also where a parameter has none here, and means nothing.
        keeps_axes: whether slots that lack axes of the parameter have them there, of length one.
        unread: slots of the rule that it does not keep, since with what it implies no step reads them.
        begins: a truth in its state, in place of the number of steps: that it has made none yet.
        next_step: a number in its state that is one more than that of finished steps.
        names: hyperparameter of the rule to the argument there.
        inner: of a rule made of rules, the name of each to an optimizer like the one there. Hyperparameters of it that are
            arguments are among `names`, such as `"inner.beta_2"`; all others must be as in this optimizer.
        fixed: hyperparameters of the rule that always have one value there, and are no arguments.
        lacks: hyperparameters of the rule that are no arguments there; they must have their defaults.
        none: hyperparameters that are None there where their feature is off.
        ignored: arguments that do not change what is computed.
        given: arguments that are none of the rule's, and what it is made with; of one that exists, the state shows what they did.
        counts: whether its state has the number of steps.
        translated: whether one can become the other. Otherwise it is compared only: its state is of another form, or one of its
            arguments is none of the rule's.
        compared: whether it takes parameters of any shape, so that rules are compared with it.
        exact: whether it has the formula. One that has not is compared, but nothing is translated.
        differs: why it has not, for the error that says so.
        near: hyperparameters of the rule in the framework's dialect that make it nearest to the rule's default dialect; with
            these it is compared with that.
        epsilon: where epsilon stands, with `near`; empty where there is none. What has it elsewhere is another formula.
        needs: option of the rule to the hyperparameter without which the option means nothing, and is refused there.

    Example:
        >>> import portopt
        >>> from portopt.counterparts import Counterpart
        >>> class PlainDescent(portopt.Optimizer):
        ...     counterparts = (Counterpart("torch.optim.SGD", counts=False),)
        ...
        ...     def update(self, xp, p, g, slots, c):
        ...         return p - c.lr * g, {}
        >>> import torch
        >>> opt, w = PlainDescent(0.5), torch.nn.Parameter(torch.ones(2))
        >>> portopt.to_native(opt, opt.init(w), "torch", w).param_groups[0]["lr"]
        0.5
    """

    name: str
    slots: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    placeholders: tuple[str, ...] = ()
    keeps_axes: bool = False
    unread: tuple[str, ...] = ()
    begins: str = ""
    next_step: str = ""
    inner: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = True
    exact: bool = True
    differs: str = ""
    translated: bool = True
    compared: bool = True
    near: Mapping[str, Any] = field(default_factory=dict)
    epsilon: Epsilon = ""
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The part of the name before its last dot, such as `"torch.optim"`."""
        return self.name.rpartition(".")[0]
