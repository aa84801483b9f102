"""The cross-entropy method with a diagonal Gaussian, as population search over the weights of policies.

Pourchot, Sigaud: "CEM-RL: Combining evolutionary and gradient-based methods for policy search", arXiv 1810.01222, and
the program released with PGPS (openreview PeT5p3ocagr), whose rules these are.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...envs.schema import array, group, maybe, real

log = logging.getLogger("headway")

CHUNK = 2**24
"""Random numbers that are drawn together: 64 MiB of float32."""

TABLE = 2**22
"""Random numbers that shared candidates are windows of, besides one window's length: 16 MiB. Our choice."""


def recombination_weights(parents: int) -> Tensor:
    """w_i = ln((L + 1) / i) / sum_j ln((L + 1) / j), i = 1 … L: the best weighs most.

    :param parents: L
    :return: (L,) float32, summing to 1
    """
    raw = torch.tensor([math.log((parents + 1) / i) for i in range(1, parents + 1)], dtype=torch.float64)
    return (raw / raw.sum()).float()


class CEMSearch:
    """A Gaussian over vectors that moves towards the best of what is drawn from it.

    Each generation of P members with fitness f does, with L parents and their weights w::

        d   <- (1 - alpha) d + alpha d_min                     (the noise floor comes down first)
        v   <- s sum_i w_i (x_(i) - mu)^2 + d                  (around the old mean; s = 1 / L, or 1)
        mu  <- sum_i w_i x_(i)
        e   <- x_(1)                                           (the elite: this generation's best)

    With s = 1 / L, as in both programs although the weights sum to 1 already, the variance is little more than d: the
    width of the search is a schedule.

    :param mean: mu to begin with, (D,), on the device to work on
    :param population: P; one member alone is followed wherever it goes
    :param generator: of all draws, on that device
    :param parents: L; None: half of P, rounded down, at least 1
    :param variance: of each number to begin with, and d; 7.5e-3 is PGPS's, 1e-3 CEM-RL's
    :param final_variance: d_min
    :param decay: alpha, per generation; CEM-RL's is 0.05
    :param elitism: member 0 of each population is the last one's best
    :param mirror: draw in pairs around the mean (antithetic sampling, CEM-RL's for even P)
    :param inverse_parents: s = 1 / L instead of 1
    :raises ValueError: a number out of its range
    """

    def __init__(
        self,
        mean: Tensor,
        population: int,
        generator: torch.Generator,
        *,
        parents: int | None = None,
        variance: float = 7.5e-3,
        final_variance: float = 1e-5,
        decay: float = 0.03,
        elitism: bool = True,
        mirror: bool = False,
        inverse_parents: bool = True,
    ) -> None:
        parents = max(population // 2, 1) if parents is None else parents
        if population < 1:
            raise ValueError(f"population is {population}: there must be at least 1 member")
        if not 1 <= parents <= population:
            raise ValueError(f"parents is {parents}, it must be from 1 to the population of {population}")
        for name, value in (("variance", variance), ("final_variance", final_variance)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, it must be positive and finite")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}, it must lie in [0, 1]")
        self.population, self.parents, self.generator = population, parents, generator
        self.final_variance, self.decay = final_variance, decay
        self.elitism, self.mirror = elitism, mirror
        self.mean, self.variance = mean.detach().clone(), torch.full_like(mean, variance)
        self.floor = float(variance)
        """d: what is added to the variance of every number."""
        self.elite: Tensor | None = None
        self.weights = recombination_weights(parents).to(mean)
        self.scale = 1 / parents if inverse_parents else 1.0

    @property
    def width(self) -> Tensor:
        """The mean standard deviation of a number, scalar."""
        return self.variance.sqrt().mean()

    def draw(self, count: int, *, out: Tensor | None = None) -> Tensor:
        """Draw from the Gaussian alone.

        :param count: members; with ``mirror`` the second half mirrors the first
        :param out: where to write them, (count, D); None: new memory
        :return: (count, D)
        """
        drawn = self.mean.new_empty(count, len(self.mean)) if out is None else out
        noise = drawn[: -(-count // 2)] if self.mirror else drawn
        rows = max(1, CHUNK // len(self.mean))
        for first in range(0, len(noise), rows):
            noise[first : first + rows].normal_(generator=self.generator)
        noise.mul_(self.variance.sqrt())
        torch.neg(noise[: count - len(noise)], out=drawn[len(noise) :])
        return drawn.add_(self.mean)

    def batches(self, count: int, rows: int, *, shared: bool = False) -> Iterator[Tensor]:
        """Draw many, a few at a time, so that they stay in a processor's cache.

        Fresh ones are those of :meth:`draw`. Shared ones are windows of one table of random numbers, which is drawn
        anew for each call, begun at different places. Each by itself is a draw from the Gaussian, and two of them are
        uncorrelated weight by weight; but one's number for a weight is another's for another weight. At 500 members of
        129,306 weights they take a fifteenth of the random numbers. Where a table would be no less, all are fresh.

        :param count: members in all; shared ones are not mirrored
        :param rows: at a time
        :param shared: whether they share a table of random numbers
        :return: members in turn, (rows, D), the last ones maybe fewer; each time in the same memory
        """
        length = len(self.mean)
        buffer = self.mean.new_empty(min(rows, count), length)
        if not shared or count * length <= TABLE + length:
            for first in range(0, count, rows):
                yield self.draw(min(rows, count - first), out=buffer[: count - first])
            return
        part = max(1, TABLE // count)
        table = self.mean.new_empty(part * count + length).normal_(generator=self.generator)
        # One window begins in each of as many equal parts of the table: no two are the same.
        within = torch.randint(part, (count,), generator=self.generator, device=self.mean.device)
        starts = (within + part * torch.arange(count, device=within.device)).tolist()
        deviation = self.variance.sqrt()
        for first in range(0, count, rows):
            drawn = buffer[: count - first]
            for row, start in zip(drawn, starts[first : first + rows], strict=True):
                torch.addcmul(self.mean, deviation, table[start : start + length], out=row)
            yield drawn

    def ask(self) -> Tensor:
        """:return: the next population, (P, D); with ``elitism``, member 0 is the elite once there is one"""
        members = self.draw(self.population)
        if self.elitism and self.elite is not None:
            members[0] = self.elite
        return members

    def tell(self, members: Tensor, fitness: Tensor) -> Tensor:
        """Move the Gaussian.

        :param members: that were evaluated, (P, D)
        :param fitness: the greater, the better, (P,); NaN ranks last
        :return: numbers of the members from the best to the worst, (P,) int64
        :raises ValueError: shapes that do not fit, or no fitness that is a number
        """
        if members.shape != (len(fitness), len(self.mean)) or len(fitness) < self.parents:
            raise ValueError(
                f"members are {tuple(members.shape)} and fitness {tuple(fitness.shape)}: they must be (P, "
                f"{len(self.mean)}) and (P,), P at least the {self.parents} parents"
            )
        broken = int(fitness.isnan().sum())
        if broken == len(fitness):
            raise ValueError(f"the fitness of all {broken} members is NaN: look at the environment's rewards")
        if broken:
            log.warning("the fitness of %d of %d members is NaN: they rank last", broken, len(fitness))
        order = fitness.nan_to_num(nan=-math.inf, neginf=-math.inf, posinf=math.inf).argsort(
            descending=True, stable=True
        )
        best = members[order[: self.parents]]
        self.floor = (1 - self.decay) * self.floor + self.decay * self.final_variance
        self.variance = self.scale * (self.weights @ (best - self.mean).square()) + self.floor
        self.mean = self.weights @ best
        self.elite = best[0].clone()
        return order

    def state(self) -> dict[str, Any]:
        """:return: all that is learnt, by copy; the generator's is its owner's to keep"""
        elite = None if self.elite is None else self.elite.clone()
        return {"mean": self.mean.clone(), "variance": self.variance.clone(), "floor": self.floor, "elite": elite}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        :raises ValueError: it does not fit
        """
        vector = array(tuple(self.mean.shape), "float32")
        spread = array(tuple(self.mean.shape), "float32", low=0)
        fields = {"mean": vector, "variance": spread, "floor": real(0, above=True), "elite": maybe(vector)}
        group(fields)(state, "the search")
        device = self.mean.device
        self.mean, self.variance = (state[name].to(device).clone() for name in ("mean", "variance"))
        self.floor, elite = state["floor"], state["elite"]
        self.elite = None if elite is None else elite.to(device).clone()
