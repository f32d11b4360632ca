"""Write docs/dialects.md, the table of dialects, from the rules: formulas from their docstrings, arguments from their fields.

With --check, write nothing, and exit with 1 if the file is not what would be written.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import portopt
from portopt.dialects import DIALECTS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "dialects.md"

INTRODUCTION = """\
# Dialects

Made from the rules by `make api`. The examples in it are run by the tests, and each dialect is compared with its framework,
in float64 over 50 steps.

Frameworks disagree on what Adam is: where epsilon is added, whether the learning rate is inside the momentum, what the defaults
are. A rule's `dialect` says whose formula, defaults and options it has. Names of arguments and slots stay portopt's.

```python
import numpy as np
import portopt

opt = portopt.Adam(dialect="torch", weight_decay=0.01, decoupled_weight_decay=True)
params = {"w": np.zeros(3)}
state = opt.init(params)
params, state = opt.apply(params, {"w": np.ones(3)}, state)
```

An option that a dialect does not have is an error that says which dialects have it:

```python
>>> portopt.RMSprop(centered=True)
Traceback (most recent call last):
TypeError: RMSprop was given 'centered', which does not exist in the dialect 'keras2': leave it out, or choose \
dialect='keras3', dialect='torch' or dialect='optax'
>>> portopt.RMSprop.defaults("torch")["rho"]
0.99
```

"""

COMMON = """
## What all rules have in common

- `clipnorm` and `clipvalue` mean the same in every dialect: the norm over all gradients together, then each element. They come
  first. Keras 3's `clipnorm` of each variable, `global_clipnorm`, averages and loss scaling belong to its training loop, torch's
  and optax's clipping to theirs.
- Then, in torch, `maximize` changes the sign of the gradient.
- Then `weight_decay`, where it is not 0. keras3: `p = p - p * weight_decay * lr`, for every rule. torch:
  `g = g + weight_decay * p`; with `decoupled_weight_decay`, `p = p * (1 - lr * weight_decay)`. optax has it in the step, see
  below; in Adadelta, `g = g + weight_decay * p`.
- optax has no default learning rate. portopt takes that of Keras 3, and for Adadelta the paper's, which is 1.
- A rule's first dialect is its default one, and configs name any other. `get_weights` and `set_weights` are about the lists of
  Keras 2, and so are for that dialect, and for rules without any.
- A slot has one name in every dialect. The moment of SGD, which keras2 always has, is there in the other dialects only with
  momentum; a step cannot be given a momentum if the state has no slot for it.
- A "–" means that the dialect does not have the argument.

## What is left out

- torch counts the steps of each parameter on its own. Here there is one count, so a parameter that got no gradient at first has
  other bias corrections afterwards, and `dampening` acts on its first gradient.
- torch keeps the product of Nadam's momenta in the default dtype, float32. Here it is a float64.
- optax: `mu_dtype` and `accumulator_dtype` (see `slot_dtype` of `init`), masks of weight decay,
  `bias_correction_mu` and `bias_correction_nu` of `amsgrad`, and Adadelta with `learning_rate=None`, which goes up.
- The ranges of arguments are portopt's: a momentum above 1 or a `rho` of 1 is refused, though torch takes it.
"""

FORMULA = re.compile(r"^- (?P<dialect>\w+): (?P<text>.*(?:\n  .*)*)$", re.MULTILINE)


def render() -> str:
    """Return the text of docs/dialects.md."""
    known = "\n".join(f"| `{dialect}` | {framework} |" for dialect, framework in DIALECTS.items())
    sections = "".join(f"\n{section(rule)}" for rule in portopt.RULES)
    return f"{INTRODUCTION}| dialect | follows |\n| --- | --- |\n{known}\n{COMMON}{sections}"


def section(rule: type[portopt.Optimizer]) -> str:
    """Return the section of a rule: its docstring, formulas as a table, and a table of its arguments."""
    summary, _, description = inspect.cleandoc(rule.__doc__ or "").partition("\n\n")
    description = description.partition("\nArgs:\n")[0].strip()
    columns = rule.dialects() or (None,)
    found = list(FORMULA.finditer(description))
    if [match["dialect"] for match in found] != list(rule.dialects()):
        raise SystemExit(
            f"the docstring of {rule.__name__} must have one line `- dialect: formula` for each of its dialects, in order: "
            f"{', '.join(rule.dialects()) or 'none'}"
        )
    parts = [f"## {rule.__name__}\n", f"{summary}\n"]
    if found:
        before, after = description[: found[0].start()].strip(), description[found[-1].end() :].strip()
        table = "| dialect | formula |\n| --- | --- |\n"
        table += "".join(f"| {match['dialect']} | {' '.join(match['text'].split())} |\n" for match in found)
        parts += [f"{before}\n" * bool(before), table, f"{after}\n" * bool(after)]
    else:
        parts.append(f"{description}\n")
    return "\n".join(part for part in [*parts, "".join(arguments(rule, columns))] if part)


def arguments(rule: type[portopt.Optimizer], dialects: Sequence[str | None]) -> Iterator[str]:
    """Yield the lines of the table of a rule's arguments, those of all rules aside, with their defaults."""
    yield f"| argument | {' | '.join(dialect or 'default' for dialect in dialects)} |\n| --- |{' --- |' * len(dialects)}\n"
    defaults = [rule.defaults(dialect) for dialect in dialects]
    for name in inspect.signature(rule).parameters:
        if name not in ("lr", "clipnorm", "clipvalue", "dialect"):
            cells = (default(name, of_dialect) for of_dialect in defaults)
            yield f"| `{name}` | {' | '.join(cells)} |\n"


def default(name: str, defaults: dict[str, Any]) -> str:
    if name not in defaults:
        return "–"
    return "`portopt.epsilon()`" if (name, defaults[name]) == ("epsilon", None) else f"`{defaults[name]}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    text = render()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run `make api`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
