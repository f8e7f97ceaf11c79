"""A row of MRCR, read or made."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages of user and assistant in alternation, and what the last one asks for.

    Attributes:
      turns: their texts, the user's first and last.
      answer: the random string and then the wanted reply.
      random_string: what a reply must begin with.
      num_needles: how many identical requests there are.
    """

    turns: tuple[str, ...]
    answer: str
    random_string: str
    num_needles: int
