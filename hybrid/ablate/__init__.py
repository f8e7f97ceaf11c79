"""Ablations: many runs that differ in a key or two, and what can be said of the differences.

Read in order: `config.py` (a sweep's keys), `run/` (its runs), `statistics/` (losses, differences,
intervals), `report/` (files and page). `__main__.py` is the command.
"""
