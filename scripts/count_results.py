"""Sum the result files of a test run: pytest's JUnit XML and the conformance suite's JSON.

Prints one line per file and, last, the plain line `N passed, N failed`. Exits with 1 if anything
failed, nothing passed, or a file cannot be read.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Counts(NamedTuple):
    passed: int
    failed: int


def junit_counts(path: Path) -> Counts:
    passed = failed = 0
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        total, failures, errors, skipped = (
            int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
        )
        passed += total - failures - errors - skipped
        failed += failures + errors
    return Counts(passed, failed)


def conformance_counts(path: Path) -> Counts:
    result = json.loads(path.read_text(encoding="utf-8"))
    return Counts(int(result["passed"]), int(result["failed"]))


READERS = {".xml": junit_counts, ".json": conformance_counts}


def count(path: Path) -> Counts:
    try:
        return READERS[path.suffix](path)
    except (ElementTree.ParseError, KeyError, TypeError, ValueError) as error:
        print(f"{path} is not a result file: {error!r}", file=sys.stderr)
        return Counts(passed=0, failed=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="folder with *.xml and *.json result files")
    folder: Path = parser.parse_args().results

    paths = sorted(path for path in folder.glob("*") if path.suffix in READERS)
    counts = [count(path) for path in paths]
    for path, (passed, failed) in zip(paths, counts, strict=True):
        print(f"{path.stem:<28} {passed:>8} passed {failed:>6} failed")

    passed = sum(each.passed for each in counts)
    failed = sum(each.failed for each in counts)
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
