"""Which tokens end a bigram that their window has shown before, and how far back.

A model that sees the earlier sight may copy from it (an induction head does), one whose windows
end before it must predict anew. So the loss on repeats, by distance, shows the use of far
context where the mean over all tokens hides it: most tokens are predicted from near ones.
Source: recurrent models lose most of their gap to attention on such tokens (Zoology,
2312.04927, where they are called associative recall hits).
"""

import numpy as np


def repeat_distances(
    tokens: np.ndarray, targets: np.ndarray, segment_ids: np.ndarray
) -> np.ndarray:
    """Tokens from each target back to where the bigram (token, target) was last seen to end.

    A sight counts in the same row and segment, that is, in the same window; 1 means that the
    bigram begins at the token before (`aaa`). The model sees the token to copy if it reaches one
    less back.

    Args:
      tokens, targets, segment_ids: as in `Batch`, int32 [b, t], ids below 2**20.
    Returns: int32 [b, t]; 0 where the window holds no earlier sight, and in padding.
    """
    num_rows, length = tokens.shape
    place = np.arange(num_rows * length)
    # One number a bigram of a window; a stable sort puts equal ones side by side, in order.
    window = place // length * (length + 1) + segment_ids.ravel()
    vocab_size = int(max(tokens.max(initial=0), targets.max(initial=0))) + 1
    bigrams = (window * vocab_size + tokens.ravel()) * vocab_size + targets.ravel()
    order = np.argsort(bigrams, kind="stable")
    is_repeat = bigrams[order[1:]] == bigrams[order[:-1]]
    distances = np.zeros(num_rows * length, np.int32)
    distances[order[1:]] = np.where(is_repeat, place[order[1:]] - place[order[:-1]], 0)
    distances[segment_ids.ravel() == 0] = 0
    return distances.reshape(tokens.shape)
