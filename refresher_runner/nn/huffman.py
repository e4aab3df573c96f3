"""Huffman's tree: the shorter the walk to a word, the more often it comes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count


def huffman(counts: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Of every word its walk down the tree: inner nodes in [0, V - 1), from the root, and the turn at each, +1 or -1."""
    order = count()
    heap: list[tuple[int, int, int]] = [(n, next(order), word) for word, n in enumerate(counts)]
    heapq.heapify(heap)
    parents: dict[int, tuple[int, int]] = {}
    for node in range(len(counts), 2 * len(counts) - 1):  # numbered after the words
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        parents[left], parents[right] = (node, 1), (node, -1)
        heapq.heappush(heap, (a + b, next(order), node))
    walks = []
    for word in range(len(counts)):
        walk, at = [], word
        while at in parents:
            at, turn = parents[at]
            walk.append((at - len(counts), turn))
        walks.append(walk[::-1])
    return walks
