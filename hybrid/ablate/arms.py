"""Arms that pages share: recall by rule, of sizes that two CPU cores train in a minute.

An arm is a dict of overrides by dotted key (`config.py`); a page adds its own with `|`.
"""

from hybrid.ablate.config import Overrides

_ANSWERS_A_DISTANCE = 200


def needle(*distances: int, num_steps: int = 150) -> Overrides:
    """A value planted `distances` tokens back, in rows of 128; a guess is right once in 16."""
    return {
        "data.source": "needle",
        "data.needle.distances": distances,
        "data.needle.num_eval_examples": _ANSWERS_A_DISTANCE * len(distances),
        "model.vocab_size": 64,
        "training.context_length": 128,
        "training.num_steps": num_steps,
    }


def mqar(num_pairs: int = 4, context_length: int = 64, num_steps: int = 400) -> Overrides:
    """Associative recall of `num_pairs` pairs; a guess among all values is right once in 128."""
    return {
        "data.source": "mqar",
        "data.mqar.num_pairs": (num_pairs,),
        "model.vocab_size": 256,
        "training.context_length": context_length,
        "training.num_steps": num_steps,
    }
