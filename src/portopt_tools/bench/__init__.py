"""`portopt bench`: the time of a step, side by side with the optimizers of other libraries.

`shapes.py` says what is updated, `cases.py` by which rules, `contenders.py` by whom; `measuring.py` takes the times,
`first_step.py` those of the first step of a process, and `benchmark.py` puts it all together. `tables.py`, `markdown.py` and
`charts.py` show a finished report.
"""
