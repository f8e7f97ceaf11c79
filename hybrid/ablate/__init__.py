"""Ablations: many runs that differ in a key or two, and what can be said of the differences.

Read in order: `config.py` (a sweep), `cells.py` (its runs), `match.py` (what is held equal),
`sweep.py` (running them), `gather.py` and `results.py` (reading them back), `summary.py` and
`statistics.py` (what they show, with intervals), `report.py` (the page). `__main__.py` is the
command.
"""
