"""Runs of a sweep: cells, pairing, match, sweep, run_result."""
