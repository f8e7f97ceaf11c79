"""Rwkv7 as a letter of the pattern."""

from model.mixer_contract import StateMixer


class TestRwkv7(StateMixer):
    letter = "W"
    refused = ("num_heads", -1)
