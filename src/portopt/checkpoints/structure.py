"""Trees as JSON, and a readable name in the file for each of their leaves.

A node is `"array"`, None, or a dict of one of the forms that `describe` makes. The name of a leaf is the way to it, joined by
`/`; different ways give different names, whatever characters the keys have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from portopt.trees import Trees, item

ARRAY = "array"
DEEPEST = 100
"""How many containers may be inside one another."""
ANY = object()
"""Stands in a template for an array of any shape and dtype."""


class _Child(NamedTuple):
    name: str
    path: str
    tree: Any


class _Container(NamedTuple):
    children: list[_Child]
    build: Callable[[Sequence[Any]], Any]


def _open(trees: Trees, tree: Any, path: str) -> _Container | None:
    """Return the parts of a container, or None if `tree` is a leaf."""
    kind = type(tree)
    if tree is None:
        return None
    if kind is dict:
        children = [_Child(_key_name(key, path), item(key), child) for key, child in tree.items()]
        return _Container(children, lambda new: dict(zip(tree, new, strict=True)))
    if kind in (list, tuple):
        return _Container([_Child(str(i), f"[{i}]", child) for i, child in enumerate(tree)], kind)
    if _is_namedtuple(tree):
        children = [_Child(_escape(f), f".{f}", child) for f, child in zip(kind._fields, tree, strict=True)]
        return _Container(children, lambda new: kind(*new))
    leaves, definition = trees.flatten(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        return None
    paths = trees.paths(tree)
    if len(set(paths)) != len(paths):
        paths = [f"[{i}]" for i in range(len(leaves))]
    children = [_Child(_escape(path), path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    return _Container(children, lambda new: trees.unflatten(definition, new))


def _is_namedtuple(tree: Any) -> bool:
    return isinstance(tree, tuple) and isinstance(getattr(tree, "_fields", None), tuple)


def _key_name(key: Any, path: str) -> str:
    if type(key) is str:
        return _escape(key)
    if type(key) is int:
        # Another name than that of the key "3".
        return f"[{key}]"
    raise TypeError(
        f"params{path} has the key {key!r} of type {type(key).__name__}; in a checkpoint, keys must be of type str or int"
    )


def _escape(key: str) -> str:
    def percent(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))

    return re.sub(r"[%/\x00-\x1f\x7f\ud800-\udfff]|^\[", percent, key)


def map_leaves(
    function: Callable[[str, str, Any], Any], trees: Trees, tree: Any, *, name: str = "", path: str = ""
) -> Any:
    """Return the tree with each leaf replaced by `function(name, path, leaf)`; the name begins with `name` and a slash."""
    container = _open(trees, tree, path)
    if container is None:
        return None if tree is None else function(name, path, tree)
    return container.build(
        [
            map_leaves(function, trees, child.tree, name=f"{name}/{child.name}", path=path + child.path)
            for child in container.children
        ]
    )


def describe(trees: Trees, tree: Any, path: str = "", levels: int = DEEPEST) -> Any:
    """Return the structure of a tree as JSON values."""
    container = _open(trees, tree, path)
    if container is None:
        return None if tree is None else ARRAY
    if levels == 0:
        raise ValueError(f"params{path:.200} is nested more than {DEEPEST} levels deep, which a checkpoint cannot hold")
    nodes = [describe(trees, child.tree, path + child.path, levels - 1) for child in container.children]
    kind = type(tree)
    if kind is dict:
        return {"dict": [list(pair) for pair in zip(tree, nodes, strict=True)]}
    if kind in (list, tuple):
        return {kind.__name__: nodes}
    pairs = [[child.path, node] for child, node in zip(container.children, nodes, strict=True)]
    return {"class": kind.__qualname__, "parts": pairs}


def template(node: Any, error: Callable[[str], Exception], path: str = "") -> Any:
    """Return a tree of dicts, lists and tuples that has the structure, and `ANY` for each array."""
    if node is None or node == ARRAY:
        return node and ANY
    if "dict" in node:
        return {key: template(child, error, path + item(key)) for key, child in node["dict"]}
    for kind in (list, tuple):
        if kind.__name__ in node:
            return kind(template(child, error, f"{path}[{i}]") for i, child in enumerate(node[kind.__name__]))
    raise error(
        f"params{path} was saved as {node['class']}, which only its class can make again: give load parameters of this "
        "structure as like="
    )


def explain_difference(saved: Any, given: Any, path: str = "") -> str | None:
    """Say where the structure in the file and that of `like` part; None if they are equal."""
    if _kind(saved) != _kind(given):
        return f"params{path} is {_kind(saved)} in the file, but like{path} is {_kind(given)}"
    ours, theirs = _parts(saved), _parts(given)
    for part, node in ours.items():
        if part not in theirs:
            return f"params{path}{part} is in the file, but like{path}{part} is missing"
        difference = explain_difference(node, theirs[part], path + part)
        if difference is not None:
            return difference
    further = next((part for part in theirs if part not in ours), None)
    return None if further is None else f"like{path}{further} was given, but params{path}{further} is not in the file"


def _kind(node: Any) -> str:
    if isinstance(node, dict):
        return f"of class {node['class']}" if "class" in node else f"a {next(iter(node))}"
    return "None" if node is None else "an array"


def _parts(node: Any) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {}
    if "class" in node:
        return dict(node["parts"])
    if "dict" in node:
        return {item(key): child for key, child in node["dict"]}
    return {f"[{i}]": child for i, child in enumerate(next(iter(node.values())))}
