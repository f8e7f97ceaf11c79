"""Mamba-2 as a letter of the pattern."""

from model.mixer_contract import StateMixer

KEYS = {"head_dim": 8, "state_dim": 6, "num_groups": 2}


class TestMamba2(StateMixer):
    letter = "M"
    keys = {"mamba2": KEYS}  # noqa: RUF012
    refused = ("state_dim", 0)
