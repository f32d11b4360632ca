"""Which backends and other libraries can take part, and what is said of those that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portopt_tools.bench.contenders import PEERS, Peer
from portopt_tools.errors import UnusableArgumentsError
from portopt_tools.inventory import find_entry, installed_backends

_FIRST = "numpy"
"""The backend that stands first in tables: it is always installed."""

NotMeasured = dict[str, Any]
"""An entry of a report's `not_run`."""


def not_measured(name: str, reason: str, install_command: str | None = None, *, failed: bool = False) -> NotMeasured:
    """Return the entry of something that was not measured; `failed` if it took part, and failed."""
    return {"name": name, "reason": reason, "install_command": install_command, "failed": failed}


def usable_backends(named: Sequence[str], not_run: list[NotMeasured]) -> list[str]:
    """Return the backends to measure: those that are named, else all that can be used, NumPy first."""
    usable = []
    entries = {entry.name: entry for entry in sorted(installed_backends(), key=lambda e: (e.name != _FIRST, e.name))}
    for name in dict.fromkeys(named or entries):
        entry = entries.get(name) or find_entry(name)
        why = entry.why_unusable("float32")
        if why is None:
            usable.append(name)
            continue
        if named:
            raise UnusableArgumentsError(f"the backend {name!r} was named, but {entry.with_remedy(why)}")
        not_run.append(not_measured(f"portopt {name}", entry.problem or why, entry.install_command))
    return usable


def usable_peers(named: Sequence[str], not_run: list[NotMeasured]) -> list[Peer]:
    """Return the other libraries to compare with: those that are named, else all that are installed."""
    usable = []
    for name in dict.fromkeys(named or PEERS):
        peer = PEERS[name]
        try:
            peer.version()
        except ImportError as error:
            reason = f"not installed ({error})"
            if named:
                raise UnusableArgumentsError(f"--against {name}: {reason}: {peer.install_command}") from None
            not_run.append(not_measured(peer.name, reason, peer.install_command))
        else:
            usable.append(peer)
    return usable
