"""The RG-LRU as a letter of the pattern."""

from model.mixer_contract import StateMixer


class TestRGLRU(StateMixer):
    letter = "R"
    keys = {"rg_lru": {"width": 24}}  # noqa: RUF012
    refused = ("conv_size", 0)
