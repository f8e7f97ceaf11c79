"""Which source each row of a mixture comes from: by counting, without draws, state or loops.

Of the first n rows source i has c_i(n), as near to n·w_i as whole rows allow. Rounding each share
by itself would give prefixes that don't add up, or that take rows back; so the rounding is nested.
The sources are the leaves of a binary tree, and a node with n rows gives

    (1)  floor(n · w_left / (w_left + w_right) + 1/2)  to its left, the rest to its right.

(1) grows by 0 or 1 as n grows by 1, so each row goes to exactly one leaf, found by walking down;
and row r of the run is row c_i(r) of its source. At multiples of the weights' common denominator
nothing is rounded: the counts are exact there.

How far off in between? A node adds at most 1/2 to its children, and what it is off itself falls on
them by their weights. So, over the nodes v from a leaf up to below the root,

    (2)  |c_i(n) − n·w_i| <= 1/2 · Σ_v w_i / w_v.

The tree is Huffman's, which joins the two lightest nodes until one is left. A node there weighs at
least as much as the two before it on the path together, so the sum stays below 1 + 1 + 1/2 + 1/3 +
1/5 + 1/8 + … = 3.36 (reciprocals of Fibonacci's numbers): no source of two is off by more than 1/2
row, of three by more than 1, of any number by more than 1.68. In a chain, where one source after
the other takes its part of the rest, that would grow with the logarithm of their number.

Weights are the decimal numbers that were written: 0.1 is a tenth. A mixture goes in stages, from
one change of weights to the next: at the steps of a schedule, and where a source is used up and the
others have its part. Each stage counts from its own first row. Read next: `mixed.py`.
"""

import bisect
import dataclasses
import functools
import heapq
from collections.abc import Sequence
from fractions import Fraction

_ENDLESS = 1 << 60  # rows
Weights = Sequence[Fraction]
Tree = int | tuple["Node", "Node"]  # a leaf is the number of its source


@dataclasses.dataclass(frozen=True)
class Node:
    """A leaf or two subtrees; `weight` is that of all its leaves."""

    weight: Fraction
    tree: Tree

    @functools.cached_property
    def _left_part(self) -> tuple[int, int]:
        assert isinstance(self.tree, tuple)
        return (self.tree[0].weight / self.weight).as_integer_ratio()

    def left_share(self, num_rows: int) -> int:
        """(1): how many of this node's first rows go to its left."""
        above, below = self._left_part
        return (2 * num_rows * above + below) // (2 * below)


def exact(number: float) -> Fraction:
    """The number as it is written: `exact(0.1)` is 1/10."""
    return Fraction(str(number))


def tree_of(weights: Weights) -> Node | None:
    """Huffman's tree of the sources whose weight is above 0; None without one."""
    heap = [(weight, index, Node(weight, index)) for index, weight in enumerate(weights) if weight]
    heapq.heapify(heap)  # equal weights in the order of the sources
    while len(heap) > 1:
        (_, first, light), (_, second, heavy) = heapq.heappop(heap), heapq.heappop(heap)
        joined = Node(light.weight + heavy.weight, (heavy, light))
        heapq.heappush(heap, (joined.weight, min(first, second), joined))
    return heap[0][2] if heap else None


def counts(node: Node, num_rows: int, num_sources: int) -> list[int]:
    """c_i: how many of a tree's first rows each source has."""
    found = [0] * num_sources
    nodes = [(node, num_rows)]
    while nodes:
        at, rows = nodes.pop()
        if isinstance(at.tree, int):
            found[at.tree] = rows
        else:
            left = at.left_share(rows)
            nodes += [(at.tree[0], left), (at.tree[1], rows - left)]
    return found


def place_in(node: Node, row: int) -> tuple[int, int]:
    """The source of a tree's row, and how many of the rows before are of it."""
    while not isinstance(node.tree, int):
        left = node.left_share(row)
        is_left = node.left_share(row + 1) > left
        row, node = (left, node.tree[0]) if is_left else (row - left, node.tree[1])
    return node.tree, row


@dataclasses.dataclass(frozen=True)
class Stage:
    """Rows under one set of weights.

    Attributes:
      first_row: of the run.
      before: rows of each source in the stages before.
      node: the tree of those that are left.
    """

    first_row: int
    before: tuple[int, ...]
    node: Node

    def counts(self, row: int) -> list[int]:
        """Rows of each source among the first `row` of the run, which lies in this stage."""
        own = counts(self.node, row - self.first_row, len(self.before))
        return [before + more for before, more in zip(self.before, own, strict=True)]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The order of a mixture's rows.

    Attributes:
      stages: by their first rows, which ascend; the first one is 0.
      num_rows: where the sources are used up; None: never.
    """

    stages: tuple[Stage, ...]
    num_rows: int | None

    def place(self, row: int) -> tuple[int, int]:
        """The source of row `row` of the run, and which row of that source's own run it is."""
        stage = self._stage_at(row)
        source, own = place_in(stage.node, row - stage.first_row)
        return source, stage.before[source] + own

    def counts(self, row: int) -> list[int]:
        """Rows of each source among the first `row` rows of the run."""
        return self._stage_at(row).counts(row)

    def _stage_at(self, row: int) -> Stage:
        assert self.num_rows is None or row <= self.num_rows
        return self.stages[bisect.bisect(self.stages, row, key=lambda s: s.first_row) - 1]


def mixture_of(changes: Sequence[tuple[int, Weights]], caps: Sequence[int | None]) -> Mixture:
    """The stages of a mixture.

    Args:
      changes: (row of the run, weights from there on), rows ascending from 0.
      caps: rows of each source that there are; None: without end.
    """
    stages: list[Stage] = []
    row, before = 0, [0] * len(caps)
    ends = [first for first, _ in changes[1:]] + [None]
    for (_, weights), end in zip(changes, ends, strict=True):
        while end is None or row < end:
            left = [
                None if cap is None else cap - had for cap, had in zip(caps, before, strict=True)
            ]
            is_left = [rows is None or rows > 0 for rows in left]
            node = tree_of([weight * has for weight, has in zip(weights, is_left, strict=True)])
            if node is None:
                return Mixture(tuple(stages), row)
            stages.append(Stage(row, tuple(before), node))
            used_up = [
                row + _rows_until(node, source, rows, len(caps))
                for source, rows in enumerate(left)
                if rows and weights[source]
            ]
            row = min([*used_up, *([] if end is None else [end])], default=-1)
            if row < 0:
                return Mixture(tuple(stages), None)
            before = stages[-1].counts(row)
    raise AssertionError("the last weights have no end")


def _rows_until(node: Node, source: int, num_rows: int, num_sources: int) -> int:
    """The fewest rows of a tree among which the source has `num_rows`."""

    def had(rows: int) -> int:
        return counts(node, rows, num_sources)[source]

    high = 1
    while had(high) < num_rows and high < _ENDLESS:
        high *= 2
    return bisect.bisect_left(range(high + 1), num_rows, key=had)
