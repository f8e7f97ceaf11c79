"""KimiDelta as a letter of the pattern."""

from model.mixer_contract import StateMixer


class TestKimiDelta(StateMixer):
    letter = "K"
    refused = ("num_heads", -1)
