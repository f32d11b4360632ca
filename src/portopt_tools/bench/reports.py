"""The files that `portopt bench --out` writes: `bench.json` for programs and `bench.svg` for people."""

from __future__ import annotations

import json
from pathlib import Path

from portopt_tools.bench.charts import ratios_svg
from portopt_tools.bench.wording import Report
from portopt_tools.output import write_files


def write_reports(folder: Path, report: Report) -> list[Path]:
    """Write both files into a folder that exists, and return their paths."""
    return write_files(
        {
            folder / "bench.json": json.dumps(report, indent=2, allow_nan=False) + "\n",
            folder / "bench.svg": ratios_svg(report),
        }
    )
