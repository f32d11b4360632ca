"""Put the tables of reports of `portopt bench` into docs/performance.md, between its two comments.

Usage: python scripts/write_performance_tables.py DIR/bench.json [DIR/bench.json ...]
"""

import json
import sys
from pathlib import Path

from portopt_tools.bench.markdown import as_markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
START, END = "<!-- bench-tables -->", "<!-- /bench-tables -->"


def replace(page: str, tables: str) -> str:
    """Return the page with other tables between the comments."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{PAGE.name} lacks {START} or {END}")
    return f"{before}{START}\n{tables}{END}{after}"


def main(*reports: str) -> None:
    tables = "\n".join(as_markdown(json.loads(Path(report).read_text(encoding="utf-8"))) for report in reports)
    PAGE.write_text(replace(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
