"""The mean cost of what each step is matched with: one number from 0 to 2, whatever the method."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .config import RelabelConfig
from .sinkhorn import NEVER, cosine_cost, exact_products, quick_on_cpu, transport
from .states import Problem
from .workers import Workers

LARGEST_BATCH = 256
"""Pairs that a GPU solves at once: more are no faster (our choice)."""


@dataclass(frozen=True)
class EpisodeCosts:
    """What an episode costs beside each of K demonstrations.

    :param costs: mean cost of what each step is matched with, (K, N)
    :param column_error: of each plan, (K,); NaN where there is none
    """

    costs: Tensor
    column_error: Tensor


def with_context(states: Tensor, steps: int) -> Tensor:
    """Put each state beside those that follow it, so that one cost is the mean of several (TemporalOT).

    :param states: of length 1, (N, D)
    :param steps: how many stand together; the last state is repeated
    :return: of length 1, (N, steps * D)
    """
    places = torch.arange(len(states), device=states.device)
    together = torch.cat([states[(places + i).clamp_max(len(states) - 1)] for i in range(steps)], 1)
    return together / math.sqrt(steps)


def outside_band(lengths: Tensor, rows: int, columns: int, mask_k: int) -> Tensor:
    """Which steps are too far apart in time to be matched.

    Where both have the same length this is TemporalOT's band, ``|i - j| > mask_k``. Where not, the diagonal is
    stretched and ``mask_k`` counts in steps of the shorter one, so that each step can be matched (our choice).

    :param lengths: of episodes, (B,) int64
    :param rows: N, of the longest
    :param columns: M, of the demonstration
    :param mask_k: at least 1
    :return: (B, N, M) bool
    """
    n = lengths[:, None, None]
    i, j = (torch.arange(size, device=lengths.device) for size in (rows, columns))
    apart = (2 * i[:, None] + 1) * columns - (2 * j + 1) * n  # shares of both that have passed, times 2 n columns
    return apart.abs() > 2 * mask_k * n.clamp_min(columns)


def other_segment(lengths: Tensor, rows: int, columns: int, segments: int) -> Tensor:
    """Which steps lie in another part of their episode.

    :param lengths: of episodes, (B,) int64
    :param rows: N, of the longest
    :param columns: M, of the demonstration
    :param segments: parts, fewer where one of both is shorter
    :return: (B, N, M) bool
    """
    n = lengths[:, None, None]
    parts = n.clamp_max(min(columns, segments))
    i, j = (torch.arange(size, device=lengths.device) for size in (rows, columns))
    return (i[:, None] * parts // n) != (j * parts // columns)


class Matcher:
    """Compares episodes with demonstrations, in memory that is used again and again.

    :param demonstrations: states of each, of length 1, (M, D)
    :param config: how
    :param device: where
    """

    def __init__(
        self, demonstrations: Sequence[Tensor], config: RelabelConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self._demonstrations = [self._in_context(states) for states in demonstrations]
        self._memory = [torch.empty(0) for _ in range(2)]
        self._mask: tuple[tuple[int, ...], Tensor] = (), torch.empty(0)

    def _in_context(self, states: Tensor) -> Tensor:
        states = states.to(self.device)
        return with_context(states, self.config.context) if self.config.method == "temporal" else states

    def match(self, episodes: Sequence[Tensor]) -> list[EpisodeCosts]:
        """Compare some episodes with all demonstrations.

        :param episodes: states of each, of length 1, (N, D)
        :return: what each costs
        """
        x = pad_sequence([self._in_context(states) for states in episodes], batch_first=True)
        lengths = [len(states) for states in episodes]
        results = [self._pairs(x, lengths, states)[:2] for states in self._demonstrations]
        costs = torch.stack([cost for cost, _ in results], 1).cpu()
        errors = torch.stack([error for _, error in results], 1).cpu()
        return [EpisodeCosts(costs[b, :, :n].clone(), errors[b]) for b, n in enumerate(lengths)]

    def plan(self, states: Tensor, demonstration: int) -> Tensor:
        """What one episode is matched with, for figures.

        :param states: of the episode, of length 1, (N, D)
        :param demonstration: which one
        :return: the share of each match in its row, (N, M)
        """
        x = self._in_context(states)[None]
        _, _, matched = self._pairs(x, [len(states)], self._demonstrations[demonstration])
        matched = matched[0]
        if not self.config.transports:
            nearest = matched.argmin(1, keepdim=True)
            return torch.zeros_like(matched).scatter_(1, nearest, 1.0)
        return matched / matched.sum(1, keepdim=True)

    def _pairs(self, x: Tensor, lengths: list[int], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:return: mean costs (B, N), column errors (B,), and plans or costs (B, N, M) in memory that is used again."""
        cost = cosine_cost(x, y, out=self._room(0, (*x.shape[:2], len(y)), x))
        if (banned := self._banned(lengths, cost)) is not None:
            cost.masked_fill_(banned, NEVER)
        if not self.config.transports:
            return cost.amin(2), cost.new_full((len(x),), float("nan")), cost
        rows = None
        if min(lengths) < x.shape[1]:
            rows = torch.arange(x.shape[1], device=x.device) < torch.tensor(lengths, device=x.device)[:, None]
        solved, plan = transport(
            cost,
            rows,
            epsilon=self.config.epsilon,
            iterations=self.config.iterations,
            tolerance=self.config.tolerance,
            kernel=self._room(1, tuple(cost.shape), x),
        )
        return solved.cost, solved.column_error, plan

    def _banned(self, lengths: list[int], cost: Tensor) -> Tensor | None:
        """Which matches must not be; the last answer is kept, for most episodes have one length."""
        of = {"temporal": (outside_band, self.config.mask_k), "segment": (other_segment, self.config.segments)}
        if self.config.method not in of:
            return None
        key = (*lengths, *cost.shape)
        if self._mask[0] != key:
            which, number = of[self.config.method]
            steps = torch.tensor(lengths, device=cost.device)
            self._mask = key, which(steps, cost.shape[1], cost.shape[2], number)
        return self._mask[1]

    def _room(self, place: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        numbers = torch.Size(shape).numel()
        if self._memory[place].numel() < numbers:
            self._memory[place] = like.new_empty(numbers)
        return self._memory[place][:numbers].view(shape)


def compare(
    problem: Problem, todo: Sequence[int], *, workers: int = 1, device: str = "cpu", memory: int | None = None
) -> Iterator[tuple[int, EpisodeCosts]]:
    """Compare episodes with all demonstrations.

    On a CPU pair by pair, for a pair's matrices stay in the cache; on a GPU many at once.

    :param problem: episodes and demonstrations
    :param todo: which episodes
    :param workers: processes, each of one thread, on a CPU; 1 works in this one
    :param device: where
    :param memory: bytes for matrices on a GPU; by default a quarter of what is free
    :return: number and costs of each episode, in any order
    """
    episodes = problem.episodes()
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu and workers > 1:
        setup = ([states.numpy() for states in problem.demonstrations], problem.config)
        things = {i: episodes[i].numpy() for i in todo}  # arrays: tensors would travel through shared memory
        for i, (costs, errors) in Workers(min(workers, len(todo)), _prepare_worker, setup).map(things):
            yield i, EpisodeCosts(torch.from_numpy(costs), torch.from_numpy(errors))
        return
    matcher = Matcher(problem.demonstrations, problem.config, device)
    for batch in batches(problem, todo, 0 if on_cpu else memory or torch.cuda.mem_get_info(device)[0] // 4):
        with quick_on_cpu() if on_cpu else exact_products():
            found = matcher.match([episodes[i] for i in batch])
        yield from zip(batch, found, strict=True)


Arrays = tuple[np.ndarray, np.ndarray]


def _prepare_worker(demonstrations: Sequence[np.ndarray], config: RelabelConfig) -> Callable[[np.ndarray], Arrays]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    matcher = Matcher([torch.from_numpy(states) for states in demonstrations], config)

    def match(states: np.ndarray) -> Arrays:
        found = matcher.match([torch.from_numpy(states)])[0]
        return found.costs.numpy(), found.column_error.numpy()

    return match


def batches(problem: Problem, todo: Sequence[int], memory: int) -> Iterator[list[int]]:
    """Put episodes of like length together.

    :param problem: episodes and demonstrations
    :param todo: which episodes
    :param memory: bytes that a batch's costs, kernels and masks may take; 0 makes batches of one
    :return: numbers of episodes, in batches
    """
    width = max((len(states) for states in problem.demonstrations), default=1)
    per_step = width * (3 * problem.states.element_size() + 1)
    batch: list[int] = []
    for i in sorted(todo, key=lambda i: -int(problem.lengths[i])) if memory else todo:
        longest = int(problem.lengths[batch[0] if batch else i])
        if batch and (len(batch) == LARGEST_BATCH or (len(batch) + 1) * longest * per_step > memory):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
