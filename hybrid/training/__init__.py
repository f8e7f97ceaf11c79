"""Training: optimizer, the pure step, and the loop, which writes the workdir.

Read `optimizer.py`, `objective.py`, `step.py`, `events.py`, `prepare.py` and `loop.py`, in this
order; `window_schedule.py` changes the step on the way.
"""
