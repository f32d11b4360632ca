"""The files that `portopt compare --out` writes: `report.json` for programs and `report.html` for people."""

from __future__ import annotations

import html
import json
import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from portopt.interchange.configuration import serialize
from portopt_tools import inventory
from portopt_tools.compare.charts import curves_svg
from portopt_tools.compare.comparison import Comparison, Run
from portopt_tools.compare.digits import CLASSES, HIDDEN, PATHS, PIXELS
from portopt_tools.compare.wording import conclusion, short_verdict, verdict_lines
from portopt_tools.output import write_files

SCHEMA_VERSION = 1
"""Version of the layout of `report.json`; it changes when a key changes its meaning or goes away."""

_PACKAGES = ("numpy", "array-api-compat", "optree", "rich", "ml_dtypes", "scikit-learn", "matplotlib")


def write_reports(folder: Path, comparison: Comparison, command: str) -> list[Path]:
    """Write both files and return their paths.

    Args:
        folder: where to; it must exist.
        comparison: the results.
        command: the command line that gave them.
    """
    data = as_json(comparison, command)
    return write_files(
        {
            folder / "report.json": json.dumps(data, indent=2, allow_nan=False) + "\n",
            folder / "report.html": as_html(comparison, data),
        }
    )


def as_json(comparison: Comparison, command: str) -> dict[str, Any]:
    """Return the comparison as values that JSON can hold; numbers that are not finite become strings."""
    settings = comparison.settings
    reference = comparison.reference
    report = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "partial": comparison.interrupt is not None,
        "identical": comparison.identical,
        "conclusion": conclusion(comparison),
        "reference": reference.name if reference else None,
        "settings": {
            "optimizer": serialize(settings.optimizer),
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "dtype": settings.dtype,
            "seed": settings.seed,
            "steps": comparison.problem.steps,
        },
        "model": {
            "layers": [PIXELS, HIDDEN, CLASSES],
            "parameters": [
                {"path": f"params{path}", "shape": list(array.shape)}
                for path, array in zip(PATHS, comparison.problem.initial, strict=True)
            ],
            "training_images": len(comparison.problem.digits.train_images),
            "test_images": len(comparison.problem.digits.test_images),
        },
        "runs": [_run_as_json(run) for run in comparison.runs],
        "not_run": [asdict(left_out) for left_out in comparison.not_run],
        "versions": _versions(comparison),
    }
    finite: dict[str, Any] = _finite(report)
    return finite


def _run_as_json(run: Run) -> dict[str, Any]:
    runner, found = run.runner, run.measurements
    described = {
        "name": run.name,
        "backend": runner.backend,
        "version": runner.version,
        "device": runner.device,
        "mode": runner.mode,
        "formula": runner.formula or "portopt",
        "verdict": run.verdict.value,
        "error": run.error,
    }
    if found is None:
        return described
    return described | {
        "steps_per_second": 1 / found.seconds_per_step,
        "seconds_first_step": found.seconds_first_step,
        "final_loss": found.losses[-1],
        "test_accuracy": found.accuracies[-1],
        "sha256": found.sha256,
        "first_difference": asdict(found.difference) if found.difference else None,
        "epochs": {
            "loss": found.losses,
            "test_accuracy": found.accuracies,
            "largest_difference_from_reference": found.distances,
        },
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _versions(comparison: Comparison) -> dict[str, str]:
    system = f"{platform.system()} {platform.release()} {platform.machine()}, {sys.byteorder}-endian"
    versions = {**inventory.versions(_PACKAGES), "platform": system}
    for run in comparison.runs:
        versions.setdefault(run.runner.backend, run.runner.version)
    return versions


def as_html(comparison: Comparison, report: Mapping[str, Any]) -> str:
    """Return a page that needs nothing but itself."""
    settings = report["settings"]
    rows = "\n".join(_row(run, data) for run, data in zip(comparison.runs, report["runs"], strict=True))
    remarks = [*verdict_lines(comparison), *(f"not run: {n['backend']}: {n['reason']}" for n in report["not_run"])]
    versions = "\n".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in report["versions"].items())
    return _PAGE.format(
        title=f"portopt compare: {_text(settings['optimizer']['class_name'])}, {_text(settings['dtype'])}",
        outcome=_outcome(comparison),
        conclusion=_text(report["conclusion"]),
        command=_text(report["command"]),
        optimizer=_text(json.dumps(settings["optimizer"])),
        settings=settings,
        model=report["model"],
        layers="-".join(map(str, report["model"]["layers"])),
        rows=rows,
        remarks="\n".join(f"<p>{_text(remark)}</p>" for remark in remarks),
        curves=curves_svg(comparison),
        versions=versions,
    )


def _outcome(comparison: Comparison) -> str:
    if not comparison.agreeing:
        return "different"
    return "same" if comparison.interrupt is None else "partial"


def _row(run: Run, data: Mapping[str, Any]) -> str:
    if run.measurements is None:
        numbers = ["", "", "", ""]
    else:
        found = run.measurements
        rate, loss = f"{1 / found.seconds_per_step:,.0f}", f"{found.losses[-1]:.6f}"
        numbers = [rate, loss, f"{found.accuracies[-1]:.4f}", found.sha256]
    cells = [data["backend"], data["version"], data["device"], data["mode"], *numbers, short_verdict(run)]
    classes = ["", "", "", "", "number", "number", "number", "digest", f"verdict {run.verdict.name.lower()}"]
    inner = "".join(f'<td class="{kind}">{_text(cell)}</td>' for kind, cell in zip(classes, cells, strict=True))
    return f"<tr>{inner}</tr>"


def _text(value: object) -> str:
    return html.escape(str(value))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
  margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: .3rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.conclusion {{ font-size: 1.1rem; font-weight: 600; padding: .6rem .9rem; border-left: .35rem solid; }}
.same {{ border-color: #009e73; background: #eefaf5; }}
.partial {{ border-color: #e69f00; background: #fdf8ec; }}
.different {{ border-color: #c22f2f; background: #fdf0f0; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top; }}
thead th {{ border-bottom: 2px solid #888; white-space: nowrap; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.digest, pre {{ font-family: ui-monospace, monospace; font-size: .8rem; }}
.digest {{ overflow-wrap: anywhere; min-width: 17rem; }}
.verdict {{ white-space: nowrap; font-weight: 600; }}
.reference, .identical {{ color: #00704f; }}
.verdict.different, .failed {{ color: #b01c1c; background: none; }}
.other_formula {{ color: #666; font-weight: 400; }}
pre {{ background: #f4f4f4; padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="conclusion {outcome}">{conclusion}</p>
<pre>{command}</pre>
<p>A multi-layer perceptron, {layers} with softmax cross-entropy, trained on scikit-learn's handwritten digits:
{model[training_images]} images for training, {model[test_images]} for the test, {settings[epochs]} epochs in batches of
{settings[batch_size]}, {settings[steps]} steps, parameters in {settings[dtype]}, seed {settings[seed]}. Each run starts from the
same parameters and computes its gradients from its own parameters with one NumPy function, so only the optimizer can make a
difference. The bits of all parameters are compared after every step; two NaNs count as equal.</p>
<pre>{optimizer}</pre>
<h2>Runs</h2>
<div class="scroll"><table>
<thead><tr><th>backend</th><th>version</th><th>device</th><th>mode</th><th>steps/s</th><th>final loss</th><th>test accuracy</th>
<th>SHA-256 of the final parameters</th><th>verdict</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>
{remarks}
<p>Steps per second are those of the optimizer alone, from gradients on the device to new parameters on the host, at the median
duration of a step. The SHA-256 is over the little-endian bytes of the parameters, in the order of their paths.</p>
<h2>Curves</h2>
{curves}
<h2>Versions</h2>
<table><tbody>
{versions}
</tbody></table>
</body>
</html>
"""
