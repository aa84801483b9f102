"""Instructions as vectors: of words, those that were never seen included, of whole sentences, of numbers of tasks.

A word is a number, see :mod:`headway.wrappers.missions`: below ``KNOWN`` of the vocabulary, else ``KNOWN`` plus a hash.
Each encoder turns the missions of B rows into vectors (B, W, d), and tells which of them are no padding, (B, W).
"""

import torch
from torch import Tensor, nn

from ...wrappers.missions import PAD

PRIME = 2**31 - 1
FACTOR = 48271
"""A primitive root modulo that prime: its powers are far apart."""

MOST_HASHES = 8


class HashedTable(nn.Module):
    """The vector of a number as the sum of rows of a table that all numbers share.

    Two numbers share one row with a chance of 1 / M, but all of them with one of about 1 / M^H: "bloom embeddings"
    (Serra, Karatzoglou: "Getting deep recommenders fit", RecSys 2017). Row h of a number x is::

        ((a_h x + b_h) mod p) mod M,   p = 2^31 - 1,   a_h = 48271^(2h + 1) mod p,   b_h = 48271^(2h + 2) mod p

    :param buckets: M
    :param width: d
    :param hashes: H
    """

    factors: Tensor
    offsets: Tensor

    def __init__(self, buckets: int, width: int, hashes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, width)
        powers = torch.tensor([pow(FACTOR, 1 + k, PRIME) for k in range(2 * hashes)])
        self.register_buffer("factors", powers[0::2], persistent=False)
        self.register_buffer("offsets", powers[1::2], persistent=False)

    def places(self, numbers: Tensor) -> Tensor:
        """:return: rows that make up the vectors of numbers (…) int64 below 2^31, (…, H)"""
        return (numbers.unsqueeze(-1) * self.factors + self.offsets) % PRIME % self.table.num_embeddings

    def forward(self, numbers: Tensor) -> Tensor:
        """:return: vectors of numbers (…), (…, d); with the variance of one row at the start, whatever their number"""
        return self.table(self.places(numbers)).sum(-2) * len(self.factors) ** -0.5  # type: ignore[no-any-return]


class WordEncoder(nn.Module):
    """A vector for each word of a sentence.

    :param vocabulary: words with a vector of their own, those whose ids are below this
    :param slots: W, words of a sentence with its padding
    :param width: d
    :param hashes: see :class:`HashedTable`, which has the vectors of all other words
    :param buckets: likewise
    """

    def __init__(self, vocabulary: int, slots: int, width: int, hashes: int, buckets: int) -> None:
        super().__init__()
        self.slots = slots
        self.known = nn.Embedding(vocabulary, width)
        self.others = HashedTable(buckets, width, hashes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """:return: of sentences (B, W): (B, W, d), (B, W)"""
        known = (tokens >= 0) & (tokens < self.known.num_embeddings)
        own = self.known(torch.where(known, tokens, PAD))
        return torch.where(known.unsqueeze(-1), own, self.others(tokens)), tokens != PAD


class SentenceEncoder(nn.Module):
    """One vector for a whole sentence, which has nothing in common with that of a similar one.

    Its number is the sum of w_i 48271^i modulo a prime, to which padding adds nothing.

    The parameters as :class:`WordEncoder`.
    """

    powers: Tensor

    def __init__(self, slots: int, width: int, hashes: int, buckets: int) -> None:
        super().__init__()
        self.slots = 1
        self.sentences = HashedTable(buckets, width, hashes)
        powers = torch.tensor([pow(FACTOR, i, PRIME) for i in range(slots)])
        self.register_buffer("powers", powers, persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """:return: of sentences (B, W): (B, 1, d), (B, 1)"""
        numbers = (tokens * self.powers[: tokens.shape[1]] % PRIME).sum(1, keepdim=True) % PRIME
        return self.sentences(numbers), (tokens != PAD).any(1, keepdim=True)


class TaskEncoder(nn.Module):
    """A vector for each task.

    :param tasks: how many there are
    :param width: d
    """

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        self.slots = 1
        self.tasks = nn.Embedding(tasks, width)

    def forward(self, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """:return: of numbers (B, 1) of tasks: (B, 1, d), (B, 1)"""
        return self.tasks(tasks), torch.ones_like(tasks, dtype=torch.bool)


class NoText(nn.Module):
    """Nothing, of missions without words.

    :param width: d
    """

    slots = 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """:return: of missions (B, 0): (B, 0, d), (B, 0)"""
        empty = tokens[:, :0]
        return empty.unsqueeze(-1).expand(-1, -1, self.width).float(), empty.bool()
