"""What happens between two steps, as `(when, action)` values in one order.

After step N the loop runs the events that are due, in this order:

    1. profile   start or stop the trace
    2. evaluate  its row is on disk before the checkpoint of the same step
    3. save      a checkpoint of step N, with all rows up to N on disk
    4. stop      a signal, or the last step: save what is not saved yet and leave

Before evaluating, saving and stopping, the metrics of step N itself are fetched and written; at
other steps the loop fetches them one step late, so that the device never waits.
"""

from collections.abc import Callable
from typing import NamedTuple


class Event(NamedTuple):
    """`action(step)` is due after a finished step where `when(step)` is true."""

    when: Callable[[int], bool]
    action: Callable[[int], None]


def every(num_steps: int, last_step: int) -> Callable[[int], bool]:
    """True at multiples of `num_steps` (never, if 0) and at the last step."""
    return lambda step: step == last_step or (num_steps > 0 and step % num_steps == 0)


def run_due(events: tuple[Event, ...], step: int) -> bool:
    """Runs the events due after `step`, in order; True if there were any."""
    due = [event for event in events if event.when(step)]
    for event in due:
        event.action(step)
    return bool(due)
