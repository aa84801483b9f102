"""Laws of random delays, in ticks: how long a packet travels.

A law is a frozen value. Drawing from it is a function of uniform random numbers, so that one row or thousands, on the
CPU or on a GPU, draw the same delays from the same numbers.
"""

import csv
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..envs.naming import nearest

UNIFORMS = 2
"""Uniform random numbers that a draw is given, used or not: so the streams of all laws advance alike."""


class Delay(ABC):
    """How long packets travel, in ticks; 0 means that a packet sent in a tick is there in the same tick."""

    @property
    @abstractmethod
    def range(self) -> tuple[int, int]:
        """The shortest and the longest delay it can draw."""

    @property
    def min(self) -> int:
        """The shortest delay it can draw."""
        return self.range[0]

    @property
    def max(self) -> int:
        """The longest delay it can draw."""
        return self.range[1]

    @abstractmethod
    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the delays of one tick.

        :param u: uniform on [0, 1), (N, :data:`UNIFORMS`) float64
        :param tick: of each row's episode, from 0, (N,) int64
        :param memory: what the last draw of the episode left, (N,) int64; anything at tick 0
        :return: delays (N,) int64 and the new memory (N,) int64
        """

    def draw_one(self, u: Sequence[float], tick: int, memory: int) -> tuple[int, int]:
        """Draw what :meth:`draw` draws, for one row; laws that can do it without tensors are faster.

        :param u: :data:`UNIFORMS` numbers on [0, 1)
        :param tick: see :meth:`draw`
        :param memory: see :meth:`draw`
        :return: the delay and the new memory
        """
        drawn, kept = self.draw(torch.tensor([u], dtype=torch.float64), torch.tensor([tick]), torch.tensor([memory]))
        return int(drawn), int(kept)

    @abstractmethod
    def __str__(self) -> str:
        """:return: the form that :func:`parse` reads."""

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw whole episodes.

        :param shape: (…, T): T ticks of as many episodes as the other axes have
        :param generator: source of randomness, on the CPU
        :return: delays, of that shape, int64
        """
        *lead, ticks = shape
        rows = int(torch.Size(lead).numel())
        memory, drawn = torch.zeros(rows, dtype=torch.int64), torch.empty(rows, ticks, dtype=torch.int64)
        for t in range(ticks):
            u = torch.rand(rows, UNIFORMS, dtype=torch.float64, generator=generator)
            drawn[:, t], memory = self.draw(u, torch.full((rows,), t), memory)
        return drawn.view(*lead, ticks)

    def _table(self, values: Any, like: Tensor) -> Tensor:
        """:return: what a law looks up in, of a tensor's type and on its device; made once for each device."""
        tables: dict[str, Tensor] = self.__dict__.setdefault("_tables", {})
        key = str(like.device)
        if key not in tables:
            tables[key] = torch.tensor(values, dtype=like.dtype, device=like.device)
        return tables[key]


LONGEST = 10_000
"""Ticks that a delay can last: as many observations and actions are kept for every environment; our choice."""


def _checked(name: str, value: Any, low: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name} must be a whole number of ticks, at least {low}, got {value!r}")
    if int(value) > LONGEST:
        raise ValueError(f"{name} must be at most {LONGEST} ticks, got {value}")
    return int(value)


@dataclass(frozen=True)
class Constant(Delay):
    """Always the same.

    :param ticks: the delay
    """

    ticks: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "ticks", _checked("a constant delay", self.ticks))

    @property
    def range(self) -> tuple[int, int]:
        """See :class:`Delay`."""
        return self.ticks, self.ticks

    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Delay`."""
        return torch.full_like(tick, self.ticks), memory

    def draw_one(self, u: Sequence[float], tick: int, memory: int) -> tuple[int, int]:
        """See :class:`Delay`."""
        return self.ticks, memory

    def __str__(self) -> str:
        return f"constant:{self.ticks}"


@dataclass(frozen=True)
class Categorical(Delay):
    """From a table.

    :param probs: probabilities of the delays start, start + 1, …; they sum to 1 within 1e-3, and are then scaled to
    :param start: the delay that the first probability is for
    """

    probs: tuple[float, ...]
    start: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "probs", tuple(float(p) for p in self.probs))
        object.__setattr__(self, "start", _checked("the first delay of a table", self.start))
        total = sum(self.probs)
        if not self.probs or not all(0 <= p <= 1 for p in self.probs) or abs(total - 1) > 1e-3:
            raise ValueError(f"probabilities must lie in [0, 1] and sum to 1, got {self.probs}, which sum to {total:g}")

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        return _inner_bounds(self.probs)

    @property
    def range(self) -> tuple[int, int]:
        """See :class:`Delay`."""
        possible = [self.start + i for i, p in enumerate(self.probs) if p > 0]
        return possible[0], possible[-1]

    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Delay`."""
        bounds = self._table(self._bounds, u)
        return self.start + torch.searchsorted(bounds, u[:, 0].contiguous(), right=True), memory

    def draw_one(self, u: Sequence[float], tick: int, memory: int) -> tuple[int, int]:
        """See :class:`Delay`."""
        return self.start + bisect_right(self._bounds, u[0]), memory

    def __str__(self) -> str:
        return f"categorical:{self.start}@{_joined(self.probs)}"


def _inner_bounds(probs: Sequence[float]) -> tuple[float, ...]:
    """:return: upper ends of the intervals of [0, 1) that the outcomes own, without the last one's, which is 1."""
    cumulative = list(accumulate(probs))
    return tuple(bound / cumulative[-1] for bound in cumulative[:-1])


class Uniform(Categorical):
    """Every delay from ``low`` to ``high``, both included, with equal probability.

    :param low: shortest
    :param high: longest
    """

    def __init__(self, low: int, high: int) -> None:
        low = _checked("the shortest delay", low)
        count = _checked("the longest delay", high, low) - low + 1
        super().__init__((1 / count,) * count, low)

    def __str__(self) -> str:
        return f"uniform:{self.min}-{self.max}"


class WiFi(Categorical):
    """Delays measured over WiFi, in ticks of 20 ms, cut at 0.1 s (the table of the authors' code, arXiv 2010.02966)."""

    def __init__(self) -> None:
        super().__init__((0.3082, 0.5927, 0.0829, 0.0162), 1)

    def __str__(self) -> str:
        return "wifi"


class Geometric(Categorical):
    """A packet arrives in each tick with probability ``p``, in tick ``max`` at the latest.

    :param p: probability, in (0, 1]
    :param max: longest delay, which takes what probability is left
    """

    def __init__(self, p: float, max: int) -> None:
        if not 0 < p <= 1:
            raise ValueError(f"the probability of a geometric delay must lie in (0, 1], got {p}")
        last = _checked("the longest delay", max)
        super().__init__((*(p * (1 - p) ** k for k in range(last)), (1 - p) ** last))
        object.__setattr__(self, "_text", f"geometric:{_joined([p])}/{last}")

    def __str__(self) -> str:
        return str(self._text)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PerEpisode(Delay):
    """Drawn in the first tick of an episode, and kept for all of it.

    :param dist: what it is drawn from
    """

    dist: Delay

    def __post_init__(self) -> None:
        if not isinstance(self.dist, (Constant, Categorical, Markov)):
            raise ValueError(f"what is drawn once per episode must be a law of its own, got {self.dist}")

    @property
    def range(self) -> tuple[int, int]:
        """See :class:`Delay`."""
        return self.dist.range

    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Delay`."""
        fresh, _ = self.dist.draw(u, torch.zeros_like(tick), memory)
        kept = torch.where(tick == 0, fresh, memory)
        return kept, kept

    def draw_one(self, u: Sequence[float], tick: int, memory: int) -> tuple[int, int]:
        """See :class:`Delay`."""
        kept = memory if tick else self.dist.draw_one(u, 0, memory)[0]
        return kept, kept

    def __str__(self) -> str:
        return f"per-episode:{self.dist}"


@dataclass(frozen=True)
class Markov(Delay):
    """A chain of hidden regimes, each with a law of its own; it starts an episode in its stationary distribution.

    :param transition: row ``i`` holds the probabilities of going from regime ``i`` to each
    :param dists: the laws of the regimes; each without memory
    """

    transition: tuple[tuple[float, ...], ...]
    dists: tuple[Delay, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "transition", tuple(tuple(float(p) for p in row) for row in self.transition))
        object.__setattr__(self, "dists", tuple(self.dists))
        size = len(self.dists)
        if not size or len(self.transition) != size or any(len(row) != size for row in self.transition):
            raise ValueError(f"{size} regimes need a {size} x {size} transition table, got {self.transition}")
        for row in self.transition:
            Categorical(row)
        if not all(isinstance(dist, (Constant, Categorical)) for dist in self.dists):
            raise ValueError(f"the laws of regimes must be without memory, got {', '.join(map(str, self.dists))}")

    @property
    def range(self) -> tuple[int, int]:
        """See :class:`Delay`."""
        return min(dist.min for dist in self.dists), max(dist.max for dist in self.dists)

    @cached_property
    def _bounds(self) -> tuple[tuple[float, ...], ...]:
        """Of the regimes' intervals, by the regime left; the last row is for the start."""
        chain = np.array(self.transition)
        chain /= chain.sum(1, keepdims=True)
        size = len(chain)
        balance = np.vstack((chain.T - np.eye(size), np.ones(size)))
        stationary = np.linalg.lstsq(balance, np.eye(size + 1)[-1])[0].clip(0)
        return (*map(_inner_bounds, chain.tolist()), _inner_bounds(stationary.tolist()))

    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Delay`."""
        left = torch.where(tick == 0, len(self.dists), memory)
        regime = (u[:, :1] >= self._table(self._bounds, u)[left]).sum(1)
        drawn = torch.stack([dist.draw(u[:, 1:], tick, memory)[0] for dist in self.dists], 1)
        return drawn.gather(1, regime.unsqueeze(1)).squeeze(1), regime

    def draw_one(self, u: Sequence[float], tick: int, memory: int) -> tuple[int, int]:
        """See :class:`Delay`."""
        regime = bisect_right(self._bounds[memory if tick else -1], u[0])
        return self.dists[regime].draw_one(u[1:], tick, memory)[0], regime

    def __str__(self) -> str:
        return f"markov:{'|'.join(map(_joined, self.transition))};{';'.join(map(str, self.dists))}"


@dataclass(frozen=True)
class Trace(Delay):
    """A recording, played back: its t-th entry is the delay of tick t of the episode.

    :param delays: one per tick
    :param wrap: start over at its end; else an episode longer than it is an error
    :param source: the file it came from, if any
    """

    delays: tuple[int, ...]
    wrap: bool = False
    source: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        delays = tuple(_checked(f"entry {index} of a trace", delay) for index, delay in enumerate(self.delays))
        if not delays:
            raise ValueError("a trace of delays must not be empty")
        object.__setattr__(self, "delays", delays)

    @classmethod
    def read(cls, path: str | Path, wrap: bool = False) -> "Trace":
        """Read a recording.

        :param path: a CSV file; its last column holds whole numbers of ticks, a first line of words is skipped
        :param wrap: as for the class
        :raises ValueError: the file is missing, empty, or holds something else
        """
        try:
            if not Path(path).is_file():
                raise OSError("there is no such file")
            rows = [row for row in csv.reader(Path(path).read_text().splitlines()) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"the trace {str(path)!r} cannot be read: {error}") from error
        if rows and re.fullmatch(r"\s*[^\W\d].*", rows[0][-1]):
            rows = rows[1:]
        delays = []
        for line, row in enumerate(rows, 1):
            if not row[-1].strip().isdecimal():
                raise ValueError(f"{path}: entry {line} is {row[-1]!r}, expected a whole number of ticks")
            delays.append(int(row[-1]))
        return cls(tuple(delays), wrap, str(path))

    @cached_property
    def range(self) -> tuple[int, int]:
        """See :class:`Delay`."""
        return min(self.delays), max(self.delays)

    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Delay`.

        :raises ValueError: the recording has run out, and does not wrap
        """
        last = int(tick.max()) if len(tick) and not self.wrap else 0
        if last >= len(self.delays):
            raise self._run_out(last)
        return self._table(self.delays, tick)[tick % len(self.delays)], memory

    def draw_one(self, u: Sequence[float], tick: int, memory: int) -> tuple[int, int]:
        """See :class:`Delay`.

        :raises ValueError: the recording has run out, and does not wrap
        """
        if tick >= len(self.delays) and not self.wrap:
            raise self._run_out(tick)
        return self.delays[tick % len(self.delays)], memory

    def _run_out(self, tick: int) -> ValueError:
        name = f"the trace {self.source!r}" if self.source else "the trace"
        return ValueError(
            f"{name} of {len(self.delays)} delays has run out at tick {tick}: "
            "record a longer one, end episodes sooner, or play it with wrap"
        )

    def __str__(self) -> str:
        name = self.source or "/".join(map(str, self.delays))
        return f"trace{'-wrap' if self.wrap else ''}:{name}"


@dataclass(frozen=True)
class Within(Delay):
    """A law, in an environment made for longer delays than it draws.

    What is observed depends on the longest delay: so can a policy meet laws of shorter ones than it was trained under.

    :param law: what is drawn
    :param longest: the longest delay to provide for
    :raises ValueError: the law draws longer ones
    """

    law: Delay
    longest: int

    def __post_init__(self) -> None:
        if self.law.max > _checked("the longest delay", self.longest):
            raise ValueError(f"delays of {self.law} are up to {self.law.max} ticks long, at most {self.longest} fit")

    @property
    def range(self) -> tuple[int, int]:
        """See :class:`Delay`."""
        return self.law.min, self.longest

    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Delay`."""
        return self.law.draw(u, tick, memory)

    def draw_one(self, u: Sequence[float], tick: int, memory: int) -> tuple[int, int]:
        """See :class:`Delay`."""
        return self.law.draw_one(u, tick, memory)

    def __str__(self) -> str:
        return f"within:{self.longest}:{self.law}"


# -- the form for the command line ------------------------------------------------------------------------------------


def parse(text: str) -> Delay:
    """Read a law from its one-string form, which is what ``str`` of a law gives.

    ``constant:2``, ``uniform:0-3``, ``wifi``, ``categorical:1@0.3/0.7`` (the first delay, then probabilities),
    ``geometric:0.4/6``, ``per-episode:uniform:0-3``, ``markov:0.9/0.1|0.5/0.5;constant:0;uniform:2-4`` (transition
    table, then a law per regime), ``within:5:wifi`` (made for longer delays than it draws), ``trace:FILE.csv`` or
    ``trace:1/0/2``, and the same with ``trace-wrap``.

    :param text: the form
    :return: the law
    :raises ValueError: it is none of these; the nearest is named
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in _FORMS:
        raise ValueError(f"there is no delay law {kind!r} (in {text!r}): {nearest(kind, _FORMS)}")
    form, read = _FORMS[kind]
    try:
        return read(rest)
    except (ValueError, IndexError, RecursionError) as error:
        raise ValueError(f"delay {text[:200]!r}: {error}; its form is {form!r}") from error


def parse_pair(text: str) -> tuple[Delay, Delay]:
    """Read the laws of both channels: ``OBSERVATION,ACTION``, for instance ``wifi,wifi`` or ``uniform:0-3,0-1``.

    :param text: two forms with a comma between them; the second may leave out the kind if it is the same
    :return: the law of observations and the law of actions
    :raises ValueError: it is none
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise ValueError(
            f"delays {text!r} must be two laws with a comma between them, of observations and of actions: "
            "for instance 'wifi,wifi', 'constant:2,2' or 'uniform:0-3,constant:1'"
        )
    first, second = (part.strip() for part in parts)
    if second and second.partition(":")[0] not in _FORMS and second[0].isdigit():
        second = f"{first.partition(':')[0]}:{second}"
    return parse(first), parse(second)


def _joined(numbers: Sequence[float]) -> str:
    """:return: numbers as text that reads back as exactly these."""
    return "/".join(repr(float(number)).removesuffix(".0") for number in numbers)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split("/"))


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text.strip()):
        raise ValueError(f"expected a whole number of ticks, got {text!r}")
    return int(text)


def _uniform(text: str) -> Delay:
    low, _, high = text.rpartition("-")
    return Uniform(_whole(low), _whole(high))


def _categorical(text: str) -> Delay:
    start, _, probs = text.rpartition("@")
    return Categorical(_numbers(probs), _whole(start or "0"))


def _geometric(text: str) -> Delay:
    p, _, longest = text.partition("/")
    return Geometric(float(p), _whole(longest))


def _markov(text: str) -> Delay:
    table, *dists = text.split(";")
    return Markov(tuple(map(_numbers, table.split("|"))), tuple(map(parse, dists)))


def _trace(text: str, wrap: bool = False) -> Delay:
    if re.fullmatch(r"\d+(/\d+)*", text):
        return Trace(tuple(map(int, text.split("/"))), wrap)
    return Trace.read(text, wrap)


def _wifi(text: str) -> Delay:
    if text:
        raise ValueError(f"{text!r} after 'wifi'")
    return WiFi()


def _within(text: str) -> Delay:
    longest, _, law = text.partition(":")
    return Within(parse(law), _whole(longest))


_FORMS: dict[str, tuple[str, Callable[[str], Delay]]] = {
    "constant": ("constant:TICKS", lambda text: Constant(_whole(text))),
    "uniform": ("uniform:LOW-HIGH", _uniform),
    "wifi": ("wifi", _wifi),
    "categorical": ("categorical:START@P/P/…", _categorical),
    "geometric": ("geometric:P/LONGEST", _geometric),
    "per-episode": ("per-episode:LAW", lambda text: PerEpisode(parse(text))),
    "markov": ("markov:P/P|P/P;LAW;LAW", _markov),
    "within": ("within:LONGEST:LAW", _within),
    "trace": ("trace:FILE.csv", _trace),
    "trace-wrap": ("trace-wrap:FILE.csv", lambda text: _trace(text, wrap=True)),
}


# -- what a law means for the receiver ---------------------------------------------------------------------------------

_ROWS, _TICKS = 200, 1000  # of simulations: shares within about 0.001 for laws that forget within some ticks


def law_table(law: Delay) -> Tensor:
    """How often a law draws which delay: exact where draws are independent, else simulated, the same at every call.

    :param law: any
    :return: P(delay = 0), …, P(delay = law.max), float64
    """
    if isinstance(law, PerEpisode):
        return law_table(law.dist)
    if isinstance(law, Within):
        return torch.cat((law_table(law.law), torch.zeros(law.longest - law.law.max, dtype=torch.float64)))
    if not isinstance(law, (Constant, Categorical)):
        return _shares(_simulated(law), law.max)
    probs = torch.tensor(law.probs if isinstance(law, Categorical) else (1.0,), dtype=torch.float64)
    shortest = law.start if isinstance(law, Categorical) else law.ticks
    table = torch.cat((torch.zeros(shortest, dtype=torch.float64), probs / probs.sum()))
    return table[: law.max + 1]


def age_law(law: Delay) -> Tensor:
    """How old the newest packet is that has arrived, if one is sent in every tick: exact or simulated likewise.

    With independent delays, P(age >= j) is the product of P(delay > i) over i < j.

    :param law: any
    :return: P(age = 0), …, P(age = law.max), float64
    """
    if isinstance(law, PerEpisode):  # all its packets take as long
        return law_table(law)
    if isinstance(law, Within):
        return torch.cat((age_law(law.law), torch.zeros(law.longest - law.law.max, dtype=torch.float64)))
    if not isinstance(law, (Constant, Categorical)):
        delays = _simulated(law)
        start = min(law.max, delays.shape[1] - 1)  # when the first packet has arrived
        ages = torch.full_like(delays, law.max)
        for age in reversed(range(law.max + 1)):
            there = delays[:, : delays.shape[1] - age] <= age
            ages[:, age:] = ages[:, age:].masked_fill(there, age)
        return _shares(ages[:, start:], law.max)
    longer = 1 - law_table(law).cumsum(0)  # P(delay > i)
    at_least = torch.cat((torch.ones(1, dtype=torch.float64), longer.cumprod(0)[:-1], torch.zeros(1)))
    return at_least[:-1] - at_least[1:]


def _simulated(law: Delay) -> Tensor:
    rows, ticks = (1, len(law.delays)) if isinstance(law, Trace) else (_ROWS, law.max + _TICKS)
    return law.sample((rows, ticks), torch.Generator().manual_seed(0))


def _shares(numbers: Tensor, longest: int) -> Tensor:
    return numbers.flatten().bincount(minlength=longest + 1).double() / numbers.numel()
