"""What a sweep's runs show, with 95 % intervals.

Read in order: `intervals.py`, `cell_summary.py`, `groups.py`, `token_scores.py`, `summary.py`.
"""
