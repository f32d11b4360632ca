"""The fuzzer's command line: `python -m fuzzing --minutes 60`, or `--episode 1234` for one again, as a failure named it."""

from __future__ import annotations

import argparse
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter

from fuzzing import drawn_rules
from fuzzing.arrays import ARRAYS
from fuzzing.episodes import Episode
from fuzzing.worlds import Difference

LONGEST_EPISODE = 900
"""Seconds after which an episode counts as hanging; one with new kernels in threads takes some ten."""


def run_all(first: int, until: float, libraries: list[str], *, stop_at_first: bool) -> int:
    """Run episodes in a process of their own, so that one that ends or hangs is known by its number; return how many failed."""
    counts: Counter[str] = Counter()
    seed, said = first, time.monotonic()
    while time.monotonic() < until:
        options = [f"--library={name}" for name in libraries]
        command = [sys.executable, "-X", "faulthandler", "-m", "fuzzing", "--serve", f"--seed={seed}", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
            lines: queue.Queue[str | None] = queue.Queue()
            reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
            reader.start()
            text: list[str] = []
            while time.monotonic() < until:
                try:
                    line = lines.get(timeout=LONGEST_EPISODE)
                except queue.Empty:
                    text.append(f"episode {seed} has not ended after {LONGEST_EPISODE} s")
                    line = None
                if line is None:
                    break
                if line.startswith("passed "):
                    _, done, operations = line.split()
                    seed = int(done) + 1
                    counts += Counter(episodes=1, operations=int(operations))
                else:
                    text.append(line.rstrip())
                if time.monotonic() > said + 60:
                    said = time.monotonic()
                    print(f"{counts['episodes']} episodes, {counts['operations']} operations", flush=True)
            else:
                text.clear()
            child.kill()
        if text or child.returncode not in (0, -9):
            counts["failures"] += 1
            print(f"FAILED in episode {seed}, exit status {child.returncode}:", *text[-40:], sep="\n  ", flush=True)
            seed += 1
            if stop_at_first:
                break
    print(f"{counts['episodes']} episodes, {counts['operations']} operations, {counts['failures']} failures")
    return counts["failures"]


def _read(stream: object, lines: queue.Queue[str | None]) -> None:
    for line in stream:  # type: ignore[attr-defined]  # of text
        lines.put(line)
    lines.put(None)


def serve(first: int, libraries: list[str]) -> int:
    """Run episodes for ever, saying which one passed."""
    for seed in range(first, sys.maxsize):
        operations = drawn_rules.run_both(seed) if _is_of_programs(seed) else Episode(seed, libraries).run()
        print("passed", seed, operations, flush=True)
    return 0


def _is_of_programs(seed: int) -> bool:
    """Tell whether an episode is a rule drawn at random rather than steps of rules that there are."""
    return seed % 8 == 7


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to go on")
    parser.add_argument("--seed", type=int, help="the first episode, at random by default; each has the next number")
    parser.add_argument("--episode", type=int, help="run this one only, and say what it does")
    parser.add_argument("--library", choices=sorted(ARRAYS), action="append", help="only arrays of this library")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    libraries = arguments.library or sorted(ARRAYS)
    first = random.SystemRandom().randrange(10**9) if arguments.seed is None else arguments.seed
    try:
        if arguments.episode is not None and _is_of_programs(arguments.episode):
            print(f"{drawn_rules.run_both(arguments.episode)} steps of a rule drawn at random, no difference")
            return 0
        if arguments.episode is not None:
            episode = Episode(arguments.episode, libraries)
            print(episode, flush=True)
            operations = episode.run()
            print(*episode.trail, f"{operations} operations, no difference", sep="\n")
            return 0
        if arguments.serve:
            return serve(first, libraries)
    except Difference as difference:
        print(difference)
        return 1
    until = time.monotonic() + 60 * arguments.minutes
    return 1 if run_all(first, until, libraries, stop_at_first=not arguments.keep_going) else 0


if __name__ == "__main__":
    sys.exit(main())
