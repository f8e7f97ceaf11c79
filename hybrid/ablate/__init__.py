"""Ablations: many runs that differ in a key or two, and how sure the differences are.

Read in order: `config.py` (a sweep's keys), `run/` (its runs), `statistics/` (losses, differences,
intervals), `report/` (files and page). `__main__.py` is the command.
"""
