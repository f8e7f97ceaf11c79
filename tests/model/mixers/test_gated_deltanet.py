"""GatedDeltaNet as a letter of the pattern."""

from model.mixer_contract import StateMixer


class TestGatedDeltaNet(StateMixer):
    letter = "D"
    refused = ("num_heads", -1)
