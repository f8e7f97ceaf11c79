"""From a sweep's config to finished runs.

Read in order: `cells.py`, `pairing.py`, `match.py`, `sweep.py`, `run_result.py`.
"""
