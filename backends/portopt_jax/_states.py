"""The states of optax as slots: numbers, and trees like the parameters with None where something keeps nothing of one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class _Entry(NamedTuple):
    """A part of a state.

    Attributes:
        name: its path in the state.
        kinds: for each parameter, 1 for an array, 0 for nothing, and a tuple of as many ones as a list has arrays. None: the part
            is no tree like the parameters.
    """

    name: str
    kinds: list[Any] | None

    @property
    def names(self) -> list[str]:
        """The names of the slots that it is: of lists, one for each place."""
        longest = max((len(kind) for kind in self.kinds or () if isinstance(kind, tuple)), default=-1)
        return [self.name] if longest < 0 else [f"{self.name}.{k}" for k in range(longest)]


class StateStructure:
    """How the state that a transformation keeps of some parameters is made of slots, named by their path, such as `0.mu`.

    Args:
        state: the state, or the shapes of its arrays.
        params: the parameters.
    """

    def __init__(self, state: Any, params: Any) -> None:
        self._jax = importlib.import_module("jax")
        masking = importlib.import_module("optax")
        self._nothing = masking.MaskedNode
        self._definition = self._jax.tree.structure(params)
        found, self._outer = self._jax.tree_util.tree_flatten_with_path(state, is_leaf=self._is_like_params)
        self._entries = []
        for path, part in found:
            name = self._jax.tree_util.keystr(path, simple=True, separator=".") or "state"
            kinds = list(map(self._kind, self._leaves(part))) if self._is_like_params(part) else None
            self._entries.append(_Entry(name, kinds))

    @property
    def names(self) -> list[str]:
        """The names of the slots."""
        return [name for entry in self._entries for name in entry.names]

    def slots(self, state: Any) -> dict[str, Any]:
        """Return a state as slots."""
        found: dict[str, Any] = {}
        for entry, part in zip(self._entries, self._outer.flatten_up_to(state), strict=True):
            if entry.kinds is None:
                found[entry.name] = part
                continue
            leaves = self._leaves(part)
            for k, name in enumerate(entry.names):
                own = [_part(leaf, kind, k) for leaf, kind in zip(leaves, entry.kinds, strict=True)]
                found[name] = self._jax.tree.unflatten(self._definition, own)
        return found

    def state(self, slots: Mapping[str, Any]) -> Any:
        """Return slots as a state."""
        parts = []
        for entry in self._entries:
            if entry.kinds is None:
                parts.append(slots[entry.name])
                continue
            columns = [self._leaves(slots[name]) for name in entry.names]
            leaves = [self._whole(kind, [of[i] for of in columns]) for i, kind in enumerate(entry.kinds)]
            parts.append(self._jax.tree.unflatten(self._definition, leaves))
        return self._jax.tree.unflatten(self._outer, parts)

    def _leaves(self, tree: Any) -> list[Any]:
        leaves: list[Any] = self._definition.flatten_up_to(tree)
        return leaves

    def _is_like_params(self, part: Any) -> bool:
        try:
            leaves = self._leaves(part)
        except (TypeError, ValueError):
            return False
        return all(self._kind(leaf) is not None for leaf in leaves)

    def _kind(self, leaf: Any) -> Any:
        if isinstance(leaf, self._nothing):
            return 0
        if isinstance(leaf, list):
            return tuple(1 for _ in leaf) if all(map(self._is_array, leaf)) else None
        return 1 if self._is_array(leaf) else None

    def _is_array(self, leaf: Any) -> bool:
        return leaf is not None and bool(self._jax.tree_util.all_leaves([leaf]))

    def _whole(self, kind: Any, values: list[Any]) -> Any:
        if kind == 0:
            return self._nothing()
        return values[: len(kind)] if isinstance(kind, tuple) else values[0]


def _part(leaf: Any, kind: Any, k: int) -> Any:
    if isinstance(kind, tuple):
        return leaf[k] if k < len(kind) else None
    return leaf if kind and not k else None
