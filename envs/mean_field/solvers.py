"""Iterative solvers of mean field games, exact in each step, for whole batches of games at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..naming import nearest
from .dynamics import TIE_TOLERANCE, exploited
from .game import MFGame
from .sweeps import Rewards, Sweeps, Tie


@dataclass(frozen=True)
class History:
    """How a solver got on."""

    iterations: tuple[int, ...]
    """Iterations done at each evaluation; 0 is the initial policy."""
    exploitability: Tensor
    """(evaluations, …)"""
    seconds: tuple[float, ...]
    """Since the beginning, time for evaluations included."""


@dataclass(frozen=True)
class Solution:
    """What a solver found."""

    policy: Tensor
    """(…, n_pop, H, S, A)"""
    flow: Tensor
    """Of that policy, (…, n_pop, H + 1, S)"""
    history: History
    interrupted: bool = False
    """Whether Ctrl-C ended it; the policy is that of the last whole iteration then."""

    @property
    def exploitability(self) -> Tensor:
        """Of that policy, (…,)."""
        return self.history.exploitability[-1]


class Solver:
    """A policy that gets better step by step.

    What follows from the policy is computed when it is asked for, once, and forgotten when the policy changes.

    :param sweeps: passes through the game
    :param policy: the first one, (H, S, A, L)
    """

    name: ClassVar[str]

    def __init__(self, sweeps: Sweeps, policy: Tensor) -> None:
        self.sweeps, self._policy = sweeps, policy

    @property
    def policy(self) -> Tensor:
        """(H, S, A, L)"""
        return self._policy

    @cached_property
    def mu(self) -> Tensor:
        """Flow of the policy, (H + 1, S, L)."""
        return self.sweeps.forward(self.policy)

    @cached_property
    def joint(self) -> Tensor:
        """Occupancies of the policy, (H, S, A, L)."""
        return self.policy * self.mu[:-1].unsqueeze(2)

    @cached_property
    def rewards(self) -> Rewards:
        """Along the flow."""
        return self.sweeps.rewards(self.mu)

    @cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """Values of the best response to the flow."""
        return self.sweeps.best(self.mu, self.rewards)

    def exploitability(self) -> Tensor:
        """:return: of the policy, (*batch,)."""
        return exploited(self.sweeps, self.joint, self.mu, self.rewards, self.best[1])

    def q_values(self) -> Tensor:
        """:return: of actions under the policy, (H, S, A, L)."""
        return self.sweeps.evaluate(self.policy, self.mu, self.rewards)[0]

    def forget(self) -> None:
        """Drop what followed from the last policy."""
        for name in ("mu", "joint", "rewards", "best"):
            self.__dict__.pop(name, None)

    def step(self, k: int) -> None:
        """Improve the policy.

        :param k: number of the iteration, from 1
        """
        raise NotImplementedError


class FictitiousPlay(Solver):
    """Best respond to the average crowd so far (arXiv 2007.03458).

    The average is one of crowds: policies are weighted by the mass that follows them. Where moves do not depend on the
    crowd, the flow of the average policy is the average of flows.

    :param learning_rate: weight of the newest best response; None: 1 / (k + 1) in iteration k
    :param temperature: above 0, the response is a softmax of the best response's values over it
    :param tie: see :func:`best_response`
    """

    name = "fictitious_play"

    def __init__(
        self,
        sweeps: Sweeps,
        policy: Tensor,
        learning_rate: float | None = None,
        temperature: float = 0.0,
        tie: Tie = "split",
    ) -> None:
        super().__init__(sweeps, policy)
        self.learning_rate, self.temperature, self.tie = learning_rate, temperature, tie
        self._is_average = False

    @property
    def policy(self) -> Tensor:
        """See :class:`Solver`."""
        if self._is_average:
            return self.sweeps.conditional(self.joint)
        return self._policy

    def step(self, k: int) -> None:
        """See :class:`Solver`."""
        response = _response(self.sweeps, self.best[0], self.temperature, self.tie)
        weight = 1 / (k + 1) if self.learning_rate is None else self.learning_rate
        mu = self.sweeps.forward(response)
        joint = torch.lerp(self.joint, response * mu[:-1].unsqueeze(2), weight)
        mu = torch.lerp(self.mu, mu, weight)
        if self.sweeps.game.dynamic:
            self._policy = self.sweeps.conditional(joint)
            self.forget()
            return
        self.forget()
        self.joint, self.mu, self._is_average = joint, mu, True


class SoftSolver(Solver):
    """The next policy is a softmax of values of the last one.

    :param learning_rate: of values
    """

    def __init__(self, sweeps: Sweeps, policy: Tensor, learning_rate: float = 0.1) -> None:
        super().__init__(sweeps, policy)
        self.learning_rate = learning_rate

    def logits(self) -> Tensor:
        """:return: of the next policy, (H, S, A, L)."""
        raise NotImplementedError

    def step(self, k: int) -> None:
        """See :class:`Solver`."""
        self._policy = self.sweeps.softmax(self.logits())
        self.forget()


class OnlineMirrorDescent(SoftSolver):
    """Follow the softmax of all values so far (arXiv 2103.00623)."""

    name = "online_mirror_descent"

    def __init__(self, sweeps: Sweeps, policy: Tensor, learning_rate: float = 0.1) -> None:
        super().__init__(sweeps, policy, learning_rate)
        self._sum = policy.log().clamp(min=torch.finfo(policy.dtype).min)

    def logits(self) -> Tensor:
        """See :class:`SoftSolver`."""
        return self._sum.add_(self.q_values(), alpha=self.learning_rate)


class MunchausenMirrorDescent(SoftSolver):
    """Mirror descent without a sum: the last policy's logarithm stands for it (arXiv 2203.11973)."""

    name = "munchausen_mirror_descent"

    def logits(self) -> Tensor:
        """See :class:`SoftSolver`."""
        lowest = torch.finfo(self.policy.dtype).tiny
        return self.policy.clamp(min=lowest).log() + self.learning_rate * self.q_values()


class BoltzmannPolicyIteration(SoftSolver):
    """Follow the softmax of the last policy's values, at an inverse temperature of that rate (arXiv 2102.01585)."""

    name = "boltzmann_policy_iteration"

    def logits(self) -> Tensor:
        """See :class:`SoftSolver`."""
        return self.learning_rate * self.q_values()


class FixedPoint(Solver):
    """Respond to the crowd, move the crowd towards what the response does, and again.

    :param damping: share of the crowd that stays as it was, in [0, 1)
    :param temperature: above 0, the response is a softmax of the best response's values over it
    :param tie: see :func:`best_response`
    """

    name = "fixed_point"

    def __init__(
        self, sweeps: Sweeps, policy: Tensor, damping: float = 0.0, temperature: float = 0.0, tie: Tie = "split"
    ) -> None:
        super().__init__(sweeps, policy)
        self.damping, self.temperature, self.tie = damping, temperature, tie
        self._crowd = self.mu

    def step(self, k: int) -> None:
        """See :class:`Solver`."""
        if self.damping:
            values, _ = self.sweeps.best(self._crowd, self.sweeps.rewards(self._crowd))
        else:
            values, _ = self.best
        self._policy = _response(self.sweeps, values, self.temperature, self.tie)
        self.forget()
        self._crowd = torch.lerp(self.mu, self._crowd, self.damping)


SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver
    for solver in (FictitiousPlay, OnlineMirrorDescent, MunchausenMirrorDescent, BoltzmannPolicyIteration, FixedPoint)
}


@torch.no_grad()
def solve(
    game: MFGame,
    algorithm: str = "online_mirror_descent",
    iterations: int = 100,
    *,
    policy: Tensor | None = None,
    tolerance: float | None = None,
    evaluate_every: int = 1,
    progress: bool = False,
    on_evaluation: Callable[[int, Tensor], Any] | None = None,
    interruptible: bool = False,
    **parameters: Any,
) -> Solution:
    """Look for a Nash equilibrium.

    :param game: one game, or a batch of them
    :param algorithm: a name in :data:`SOLVERS`
    :param iterations: at most so many
    :param policy: where to start, (…, n_pop, H, S, A), further leading dimensions solve further times; None: uniform
    :param tolerance: stop as soon as no game's exploitability is greater
    :param evaluate_every: distance between evaluations of exploitability, in iterations; the last one is always done
    :param progress: show a bar
    :param on_evaluation: called with the iterations done and the exploitability (…,)
    :param interruptible: at Ctrl-C, return what was found by then, instead of raising KeyboardInterrupt
    :param parameters: the algorithm's
    :return: the last policy, its flow, and exploitability on the way
    :raises ValueError: an unknown algorithm (the nearest is named), a parameter out of range, a policy that is none
    :raises TypeError: a parameter that the algorithm does not have
    """
    if algorithm not in SOLVERS:
        raise ValueError(f"there is no algorithm {algorithm!r}: {nearest(algorithm, SOLVERS)}")
    if iterations < 0 or evaluate_every < 1:
        raise ValueError(
            f"iterations must be at least 0 and evaluate_every at least 1, got {iterations} and {evaluate_every}"
        )
    first = game.uniform_policy() if policy is None else game.check_policy(policy)
    sweeps = Sweeps(game, tuple(first.shape[:-4]))
    work = _Work(SOLVERS[algorithm], sweeps, sweeps.layout.inward(first, 3), _checked(algorithm, parameters))
    interrupted = False
    with tqdm(total=iterations, desc=f"{game.name}, {algorithm}", disable=not progress, leave=False) as bar:
        try:
            for k in range(1, iterations + 1):
                if tolerance is not None and work.is_within(tolerance):
                    break
                work.step(k)
                bar.update()
                if k % evaluate_every == 0 or k == iterations:
                    found = work.evaluate()
                    if progress:
                        bar.set_postfix(exploitability=f"{float(found.max()):.3g}", refresh=k == iterations)
                    if on_evaluation is not None:
                        on_evaluation(k, found)
        except KeyboardInterrupt:
            if not interruptible:
                raise
            interrupted = True
            work.make_whole()
    outward, solver = sweeps.layout.outward, work.solver
    return Solution(outward(solver.policy), outward(solver.mu), work.history(algorithm), interrupted)


class _Work:
    """A solver, how far it has got, and how exploitable its policy was on the way.

    :param kind: of solver
    :param sweeps: passes through the game
    :param policy: the first one, (H, S, A, L)
    :param parameters: the algorithm's
    """

    def __init__(self, kind: type[Solver], sweeps: Sweeps, policy: Tensor, parameters: dict[str, Any]) -> None:
        self.started = time.perf_counter()
        self.solver, self.done = kind(sweeps, policy, **parameters), 0
        self.records: list[tuple[int, Tensor, float]] = []
        self.before: dict[str, Any] | None = None
        self.evaluate()

    def step(self, k: int) -> None:
        """Do iteration k."""
        self.before = dict(vars(self.solver))  # of what follows from a policy, solvers overwrite nothing
        self.solver.step(k)
        self.done, self.before = k, None

    def evaluate(self) -> Tensor:
        """:return: exploitability now, which is noted."""
        found = self.solver.exploitability()
        self.records.append((self.done, found, time.perf_counter() - self.started))
        return found

    def is_within(self, tolerance: float) -> bool:
        """:return: whether the present policies are known to be no more exploitable than that."""
        done, found, _ = self.records[-1]
        return done == self.done and bool((found <= tolerance).all())

    def make_whole(self) -> None:
        """Undo an iteration that got half way, and evaluate what is there."""
        if self.before is not None:
            vars(self.solver).clear()
            vars(self.solver).update(self.before)
        if self.records[-1][0] < self.done:
            self.evaluate()

    def history(self, algorithm: str) -> History:
        """:return: what was noted; :raises ValueError: something in it is NaN."""
        numbers, values, seconds = zip(*self.records, strict=True)
        exploitability = torch.stack(values)
        if exploitability.isnan().any():
            first = int(exploitability.reshape(len(numbers), -1).isnan().any(1).nonzero()[0])
            name = self.solver.sweeps.game.name
            raise ValueError(f"{name}: exploitability is NaN after {numbers[first]} iterations of {algorithm}")
        return History(numbers, exploitability, seconds)


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda value: 0 < value < float("inf"), "must lie in (0, inf)"),
    "damping": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "temperature": (lambda value: 0 <= value < float("inf"), "must lie in [0, inf)"),
}


def _checked(algorithm: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """:return: the parameters, whose values can be."""
    for name, value in parameters.items():
        fits, words = _RANGES.get(name, (lambda _: True, ""))
        if (value is None and algorithm != FictitiousPlay.name) or (value is not None and not fits(value)):
            raise ValueError(f"{name} of {algorithm} {words}, got {value}")
    if algorithm == FictitiousPlay.name and (rate := parameters.get("learning_rate")) is not None and rate > 1:
        raise ValueError(f"learning_rate of {algorithm} must lie in (0, 1], got {rate}")
    if (tie := parameters.get("tie", "split")) not in ("split", "first"):
        raise ValueError(f"tie is {tie!r}: it can be 'split' or 'first'")
    return parameters


def _response(sweeps: Sweeps, values: Tensor, temperature: float, tie: Tie) -> Tensor:
    """:return: the policy (H, S, A, L) that goes with the values of a best response."""
    if temperature:
        return sweeps.softmax(values / temperature)
    return sweeps.greedy(values, tie, TIE_TOLERANCE.get(values.dtype, 1e-4))
