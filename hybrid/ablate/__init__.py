"""Ablations: many runs that differ in a key or two, and how sure the differences are.

Read in order: `config.py` (a sweep's keys), `run/` (its cells and runs, and how they are trained),
`statistics/` (losses, differences and their intervals), `report/` (results.json, results.csv and
the page). `__main__.py` is the command.
"""
