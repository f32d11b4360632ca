"""`portopt bench`: the time of a step, side by side with the optimizers of other libraries.

`shapes.py` says what is updated, `cases.py` by which rules, `contenders.py` by whom, `pure.py` what steps that make new arrays
are compared with, and `participants.py` who of them can; `measuring.py` takes the times, `group.py` those of one rule on one set
of shapes, `first_step.py` those of the first step of a process, and `benchmark.py` puts it all together. `console.py`,
`markdown.py`, `charts.py` and `reports.py` show a report.
"""
