"""Timed comparisons and tables of cost; `README.md` says how to run each."""
