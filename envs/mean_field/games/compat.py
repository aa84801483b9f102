"""Where OpenSpiel computes another game than the one it describes.

In some of its games the reward reads the action that led to a state, while values are kept by time and state alone. So
each (time, state) is charged for the action on the first path that its depth-first search took there.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def arrival_table(horizon: int, mu0: Tensor, ways: Mapping[str, Tensor], worth: Tensor, neutral: int) -> Tensor:
    """Follow OpenSpiel's first path to every state at every time.

    The search goes from each start through the actions in order, skips those whose state after the move was seen at
    that time before, then goes through the noise in order, even where its probability is 0.

    :param horizon: H
    :param mu0: (1, S)
    :param ways: ``post``, ``noise_idx`` and ``legal``, as a game's; noise is bound by what is legal too, A = K
    :param worth: what to note of each action, (A,)
    :param neutral: the action taken to have led to the starts
    :return: worth of the action that led to a state first, (H + 1, S); that of the neutral one where no path leads
    """
    post, noise_idx = ways["post"], ways["noise_idx"]
    legal = ways.get("legal", torch.ones_like(post, dtype=torch.bool)).tolist()
    moves = [[(a, y) for a, y in enumerate(row) if can[a]] for row, can in zip(post.tolist(), legal, strict=True)]
    drifts = [[z for k, z in enumerate(row) if can[k]] for row, can in zip(noise_idx.tolist(), legal, strict=True)]
    costs = worth.tolist()
    table = torch.full((horizon + 1, len(moves)), costs[neutral], dtype=torch.float64)
    moved, arrived = set[tuple[int, int]](), set[tuple[int, int]]()

    def onward(t: int, state: int) -> Iterator[tuple[int, int]]:
        for action, after in moves[state]:
            if (t, after) in moved:
                continue
            moved.add((t, after))
            for end in drifts[after]:
                if (t + 1, end) not in arrived:
                    arrived.add((t + 1, end))
                    table[t + 1, end] = costs[action]
                    yield t + 1, end

    for start in mu0[0].nonzero().flatten().tolist():
        path = [onward(0, start)]
        while path:
            if (found := next(path[-1], None)) is None:
                path.pop()
            elif found[0] < horizon:
                path.append(onward(*found))
    return table.to(worth)
