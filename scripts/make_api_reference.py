"""Write docs/api.md, the API reference, from the docstrings.

With --check, write nothing, and exit with 1 if the file is not what would be written.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import portopt
import portopt_jax
import portopt_torch
from portopt import backend, optimizer, program, scalars, schedules, trees
from portopt.arithmetic import dtypes
from portopt.program import primitives
from portopt.rules import dialect_rule

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"

INTRODUCTION = """\
# API reference

Made from the docstrings by `make api`. The examples in it are run by the tests.
"""


def sections() -> list[tuple[str, str, list[tuple[str, Any]]]]:
    """Return title, introduction, and the objects with their names, of each section."""

    def of(prefix: str, module: Any, *names: str) -> list[tuple[str, Any]]:
        return [(f"{prefix}.{name}", getattr(module, name)) for name in names]

    functions = [
        name
        for name, value in vars(scalars).items()
        if inspect.isfunction(value) and value.__module__ == scalars.__name__ and name[0] != "_" and name != "flush"
    ]
    return [
        ("Optimizers", "", of("portopt", optimizer, "Optimizer", "OptimizerState")),
        (
            "Rules",
            "",
            [
                *((f"portopt.{rule.__name__}", rule) for rule in portopt.RULES),
                *of("portopt.rules.dialect_rule", dialect_rule, "DialectRule"),
            ],
        ),
        (
            "Names, configs and registration",
            "",
            of("portopt", portopt, "get", "serialize", "deserialize", "register", "epsilon", "set_epsilon"),
        ),
        ("Checkpoints", "", of("portopt", portopt, "save", "load", "CheckpointError")),
        (
            "Native optimizers",
            "",
            of("portopt", portopt, "NativeOptimizer", "TFOptimizer", "from_native", "to_native"),
        ),
        ("Execution", "", of("portopt", portopt, "interpreted", "get_num_threads", "set_num_threads")),
        (
            "Schedules",
            str(inspect.getdoc(schedules)).partition("\n\n")[2],
            [
                *of("portopt", portopt, "Schedule"),
                *((f"portopt.schedules.{c.__name__}", c) for c in _subclasses(schedules.Schedule, schedules)),
                *of("portopt", portopt, "register_schedule"),
            ],
        ),
        (
            "Writing a rule",
            "",
            of("portopt", portopt, "hyperparameter", "option", "epsilon_hyperparameter", "UnsupportedOperationError"),
        ),
        (
            "Scalars",
            str(inspect.getdoc(scalars)).partition("\n\n")[2],
            of("portopt.scalars", scalars, "Scalar", *functions),
        ),
        (
            "Programs",
            "",
            [
                *of("portopt", program, "Program"),
                *of("portopt.program", program, "Op", "Kind"),
            ],
        ),
        (
            "Backends",
            "",
            [
                *of("portopt", portopt, "backends", "get_backend", "Backend", "ArrayAPIBackend"),
                *of("portopt.backend", backend, "Mode", "ArrayInfo", "accept"),
                *of("portopt.program.primitives", primitives, "Primitives"),
                *of("portopt.arithmetic.dtypes", dtypes, "round_scalar"),
                *of("portopt.trees", trees, "Trees"),
            ],
        ),
        ("PyTorch", "", of("portopt_torch", portopt_torch, "TorchOptimizer")),
        ("optax", "", of("portopt_jax", portopt_jax, "to_optax", "step", "optax_factory", "PortoptState")),
    ]


def _subclasses(base: type[Any], module: Any) -> list[type[Any]]:
    return [value for value in vars(module).values() if inspect.isclass(value) and base in value.__mro__[1:]]


def check_complete(documented: set[str]) -> None:
    """Raise an error if a name that `portopt` exports is in no section."""
    tree = ast.parse(inspect.getsource(portopt))
    exported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    missing = [
        name
        for name in exported
        if f"portopt.{name}" not in documented and not inspect.ismodule(getattr(portopt, name)) and name != "RULES"
        if not name.startswith("__")
    ]
    if missing:
        raise SystemExit(
            f"the API reference lacks {', '.join(missing)}: add them to a section of {Path(__file__).name}"
        )


def render() -> str:
    """Return the text of docs/api.md."""
    parts = [INTRODUCTION]
    documented = set()
    for title, introduction, objects in sections():
        parts.append(f"## {title}\n")
        if introduction:
            parts.append(f"{introduction}\n")
        for name, thing in objects:
            documented.add(name)
            parts.extend(entry(name, thing))
    check_complete(documented)
    return "\n".join(parts)


def entry(name: str, thing: Any) -> Iterator[str]:
    """Yield the parts of one object's section."""
    yield f"### `{name}`\n"
    if not inspect.isclass(thing):
        yield f"```text\n{name}{signature(thing)}\n```\n"
        yield docstring(thing)
        return
    if constructible(thing):
        yield f"```text\n{name}{signature(thing)}\n```\n"
    yield docstring(thing)
    attributes = dict(attribute_docs(thing))
    if attributes:
        yield "Attributes of the class:\n"
        yield "".join(f"- `{attribute}`: {one_line(text)}\n" for attribute, text in attributes.items())
    for method, function in vars(thing).items():
        described = function.fget if isinstance(function, property) else inspect.unwrap(getattr(thing, method))
        if isinstance(function, functools.cached_property):
            described = function.func
        if method.startswith("_") or not inspect.isroutine(described) or not described.__doc__:
            continue
        yield f"#### `{name}.{method}`\n"
        if isinstance(function, property | functools.cached_property):
            yield "A property.\n"
        else:
            yield f"```text\n{method}{signature(described, skip_self=True)}\n```\n"
        yield docstring(described)


def constructible(cls: type[Any]) -> bool:
    """Tell whether the signature of a class says how to construct an object."""
    if getattr(cls, "_is_protocol", False) or issubclass(cls, BaseException | program.Kind) or cls is portopt.Optimizer:
        return False
    return any(name in vars(base) for base in cls.__mro__[:-1] for name in ("__init__", "__new__"))


def signature(thing: Any, *, skip_self: bool = False) -> str:
    """Return a signature as its source has it, which is the same text on every version of Python."""
    found = inspect.signature(thing)
    words: list[str] = []
    starred = False
    for parameter in found.parameters.values():
        if skip_self and parameter.name in ("self", "cls") and not words:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
        starred |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        prefix = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        prefix = "**" if parameter.kind is parameter.VAR_KEYWORD else prefix
        text = prefix + parameter.name
        annotated = parameter.annotation is not parameter.empty
        if annotated:
            text += f": {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            default = "..." if parameter.default is ... else repr(parameter.default)
            text += f" = {default}" if annotated else f"={default}"
        words.append(text)
    returns = "" if found.return_annotation is found.empty else f" -> {annotation(found.return_annotation)}"
    line = f"({', '.join(words)}){returns}"
    return line if len(line) <= 100 else "(\n" + "".join(f"    {word},\n" for word in words) + f"){returns}"


def annotation(value: Any) -> str:
    # Types as text are the same on every version of Python; a NamedTuple wraps its fields' text once more.
    text = getattr(value, "__forward_arg__", value)
    return text if isinstance(text, str) else getattr(text, "__name__", str(text))


SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Reference|Returns|Yields):$")
ITEM = re.compile(r"^(?P<names>[*\w][\w, *]*): (?P<text>.*)$")
URL = re.compile(r"(?<![<(`])https://\S+[^\s.,;]")


def docstring(thing: Any) -> str:
    """Return a docstring in Google style as Markdown."""
    text = inspect.cleandoc(thing.__doc__ or "")
    output: list[str] = []
    section, collected = "", list[str]()
    for line in [*text.splitlines(), "Returns:"]:
        if match := SECTION.match(line):
            output.append(formatted(section, collected))
            section, collected = match[1], []
        else:
            collected.append(line)
    return "\n".join(part for part in output if part)


def formatted(section: str, lines: list[str]) -> str:
    body = textwrap.dedent("\n".join(lines)).strip("\n")
    if not body:
        return ""
    match section:
        case "":
            return f"{body}\n"
        case "Example":
            return f"Example:\n\n```pycon\n{body}\n```\n"
        case "Reference":
            return f"Reference: {URL.sub(lambda url: f'<{url[0]}>', one_line(body))}\n"
        case "Returns" | "Yields":
            return f"{section}: {one_line(body)}\n"
        case _:
            title = {"Args": "Arguments", "Raises": "Raises", "Attributes": "Attributes"}[section]
            return f"{title}:\n\n{bullets(body)}"


def bullets(body: str) -> str:
    entries: list[list[str]] = []
    for line in body.splitlines():
        if line[:1].isspace() and entries:
            entries[-1].append(line.strip())
        else:
            entries.append([line])
    result = []
    for words in map(" ".join, entries):
        match = ITEM.match(words)
        names = ", ".join(f"`{name.strip()}`" for name in match["names"].split(",")) if match else ""
        result.append(f"- {names}: {match['text']}\n" if match else f"- {words}\n")
    return "".join(result)


def one_line(text: str) -> str:
    return " ".join(text.split())


def attribute_docs(cls: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a class that have a string below them, and the string."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield node.target.id, below.value.value


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if docs/api.md is out of date")
    arguments = parser.parse_args()
    text = render()
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run `make api`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
