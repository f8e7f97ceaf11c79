"""Training: optimizer, the pure step, and the loop with its files.

Read `optimizer.py`, `step.py`, `events.py`, `loop.py`, in this order; `checkpoint.py`,
`metrics.py`, `provenance.py` and `signals.py` are what the loop writes and listens to.
"""
