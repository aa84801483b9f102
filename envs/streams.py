"""Random streams, one per row: a row draws the same numbers whatever other rows do and however many there are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import PCG64, Generator, SeedSequence
from torch import Tensor

Bound = float | Sequence[float]


class Draws(ABC):
    """Numbers for the rows that start anew; the other rows' streams stay where they are, and they get zeros."""

    @abstractmethod
    def uniform(self, low: Bound, high: Bound, size: int, accept: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Draw evenly between bounds.

        :param low: smallest value, or one per column
        :param high: largest value, or one per column
        :param size: columns
        :param accept: (N, size) -> (N,) bool; rows that it refuses are drawn again
        :return: (N, size)
        """

    @abstractmethod
    def normal(self, size: int) -> Tensor:
        """:return: standard normal numbers, (N, size)."""


class Streams(ABC):
    """The streams themselves."""

    def seed(self, seeds: Sequence[int | None], rows: Sequence[int] | None = None) -> None:
        """Start streams anew.

        :param seeds: one per row of ``rows``; None leaves that row's stream as it is
        :param rows: which rows; None: all
        """
        chosen = range(len(self.state)) if rows is None else rows
        pairs = [(row, seed) for row, seed in zip(chosen, seeds, strict=True) if seed is not None]
        self._begin([row for row, _ in pairs], [seed for _, seed in pairs])

    @abstractmethod
    def _begin(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        """Start the streams of some rows; from entropy where a seed is None."""

    @abstractmethod
    def draw(self, rows: Tensor) -> Draws:
        """:return: draws for the rows that are True in ``rows`` (N,)."""

    @property
    @abstractmethod
    def state(self) -> Tensor:
        """Where every stream is: live, (N, …); copying rows of it copies streams."""


class HostStreams(Streams):
    """NumPy's PCG64, seeded as Gymnasium seeds ``np_random``, one per row.

    States lie in one array, so that saving thousands of rows is one copy; a generator is set to a row's state only to
    draw for it.

    :param num_rows: N
    :param spawn_key: () for the stream of Gymnasium's ``np_random``; anything else for independent ones
    """

    def __init__(self, num_rows: int, spawn_key: tuple[int, ...] = ()) -> None:
        self._spawn_key = spawn_key
        self._words = np.zeros((num_rows, 4), np.uint64)  # state and increment, high word first
        self._tensor = torch.from_numpy(self._words.view(np.int64))
        self._generator = Generator(PCG64(0))
        self._begin(range(num_rows), [None] * num_rows)

    def _begin(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        for row, seed in zip(rows, seeds, strict=True):
            self._store(row, PCG64(SeedSequence(seed, spawn_key=self._spawn_key)).state)

    def draw(self, rows: Tensor) -> Draws:
        """See :class:`Streams`."""
        return _HostDraws(self, rows.nonzero().flatten().tolist())

    @property
    def state(self) -> Tensor:
        """See :class:`Streams`; (N, 4) int64."""
        return self._tensor

    def generator(self, row: int) -> Generator:
        """:return: a new generator that stands where row ``row`` stands."""
        generator = Generator(PCG64(0))
        generator.bit_generator.state = self._load(row)
        return generator

    def put(self, row: int, generator: Generator) -> None:
        """Let row ``row`` stand where a generator stands.

        :raises TypeError: the generator is another than NumPy's PCG64
        """
        state: Any = generator.bit_generator.state
        if state["bit_generator"] != "PCG64":
            raise TypeError(f"the generator draws from {state['bit_generator']}: it has to be NumPy's PCG64")
        self._store(row, state)

    def each(self, rows: Sequence[int], size: int, draw: Callable[[Generator], Any]) -> np.ndarray[Any, Any]:
        """Draw for some rows.

        :param rows: row numbers
        :param size: columns
        :param draw: one row's draw
        :return: (N, size), zero elsewhere
        """
        out = np.zeros((len(self._words), size))
        bits = self._generator.bit_generator
        for row in rows:
            bits.state = self._load(row)
            out[row] = draw(self._generator)
            self._store(row, bits.state)
        return out

    def _load(self, row: int) -> dict[str, Any]:
        high, low, inc_high, inc_low = self._words[row].tolist()
        words = {"state": high << 64 | low, "inc": inc_high << 64 | inc_low}
        return {"bit_generator": "PCG64", "state": words, "has_uint32": 0, "uinteger": 0}

    def _store(self, row: int, state: Any) -> None:
        low64 = (1 << 64) - 1
        number, increment = state["state"]["state"], state["state"]["inc"]
        self._words[row] = number >> 64, number & low64, increment >> 64, increment & low64


class _HostDraws(Draws):
    def __init__(self, streams: HostStreams, rows: list[int]) -> None:
        self.streams, self.rows = streams, rows

    def uniform(self, low: Bound, high: Bound, size: int, accept: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        def draw(generator: Generator) -> Any:
            return generator.uniform(low, high, size)

        drawn = torch.from_numpy(self.streams.each(self.rows, size, draw))
        while accept is not None:
            accepted = accept(drawn)
            again = [row for row in self.rows if not accepted[row]]
            if not again:
                break
            redrawn = torch.from_numpy(self.streams.each(again, size, draw))
            drawn[again] = redrawn[again]
        return drawn

    def normal(self, size: int) -> Tensor:
        return torch.from_numpy(self.streams.each(self.rows, size, lambda generator: generator.standard_normal(size)))
