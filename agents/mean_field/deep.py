"""Deep solvers of mean field games: mirror descent, and fictitious play with agents that learn their best responses.

Members learn from experience, sampled against the crowd as it is. What their policies do to the crowd, and how much one
member could gain by another (exploitability), is computed exactly after every iteration.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from tqdm import tqdm

from ...envs.mean_field import History, MFGame, Solution, exploitability, flow
from ...envs.mean_field.member import MeanFieldAgentBatch
from ...wrappers.sb3 import BatchedVecEnv
from .config import AverageConfig, BestResponseConfig, MirrorDescentConfig
from .dqn import Average, BestMember, Member, MirrorMember
from .policies import averaged, tabular_policy


class Learner(Protocol):
    """What fictitious play asks of an agent: that of Stable-Baselines3."""

    def learn(self, total_timesteps: int, *, reset_num_timesteps: bool) -> Any:
        """Train for so many environment steps."""


class Iteration(NamedTuple):
    """How far a solver has got."""

    number: int
    """Iterations done."""
    exploitability: float
    """Of the policy, exact."""
    seconds: float
    """Since the beginning."""
    steps: int
    """Environment steps since the beginning, of all populations."""
    policy: Tensor
    """(n_pop, H, S, A)"""


OnIteration = Callable[[Iteration], Any]


class Options(TypedDict, total=False):
    """What all deep solvers can be told."""

    iterations: int
    """At most so many; by default 100, and 10 of :func:`fictitious_play_with`."""
    tolerance: float | None
    """Stop as soon as exploitability is no greater; None (the default): do all iterations."""
    progress: bool
    """Show a bar; off by default."""
    on_iteration: OnIteration | None
    """Called after each."""


@dataclass(frozen=True)
class DeepHistory(History):
    """How a deep solver got on."""

    steps: tuple[int, ...]
    """Environment steps since the beginning, of all populations."""


@dataclass(frozen=True, kw_only=True)
class DeepSolution(Solution):
    """What a deep solver found."""

    history: DeepHistory
    learners: tuple[Any, ...]
    """What learnt, by population: networks of this package, or the agents that ``make_learner`` made."""


def deep_mirror_descent(
    game: MFGame, config: MirrorDescentConfig | None = None, *, seed: int = 0, **options: Unpack[Options]
) -> DeepSolution:
    """Deep Munchausen online mirror descent (D-MOMD, arXiv 2203.11973).

    Each iteration learns, from episodes against the crowd's present flow and with a network Q that goes on from the
    last iteration's::

        Q(s, a) = r + alpha tau log p(a|s) + E sum_a' p(a'|s') (Q'(s', a') - tau log p(a'|s'))

    p = softmax(Q / tau) being the last policy, Q' a copy of Q, renewed every so often, and logarithms cut off at
    log 1e-6. With alpha = 1 this is online mirror descent of step size 1 / tau.

    Deviations: many members act at once, with probabilities p, not greedily; an iteration forgets the experience of the
    one before, whose rewards are another crowd's.

    :param game: one game, without a regulariser
    :param config: hyper-parameters
    :param seed: of all that is drawn
    :param options: see :class:`Options`
    :return: the last policy, its flow, and exploitability on the way; after Ctrl-C, those of the last whole iteration
    :raises ValueError: a game or number that will not do, or learning that diverged
    """
    config = config or MirrorDescentConfig()
    members = [MirrorMember(game, p, config, s) for p, s in enumerate(_seeds(_single(game), seed))]
    solver = _MirrorDescent(game, members)
    return _run(solver, "deep_mirror_descent", **options)


def deep_fictitious_play(
    game: MFGame,
    config: BestResponseConfig | None = None,
    *,
    learning_rate: float | None = None,
    seed: int = 0,
    **options: Unpack[Options],
) -> DeepSolution:
    """Fictitious play whose best responses are learnt by a deep Q-network, and averaged exactly.

    :param game: one game, without a regulariser
    :param config: hyper-parameters
    :param learning_rate: weight of the newest best response; None: 1 / (k + 1) in iteration k
    :param seed: of all that is drawn
    :param options: see :class:`Options`
    :return: see :func:`deep_mirror_descent`
    :raises ValueError: a game or number that will not do, or learning that diverged
    """
    config = config or BestResponseConfig()
    members = [BestMember(game, p, config, s) for p, s in enumerate(_seeds(_single(game), seed))]

    def respond(mu: Tensor, done: float) -> tuple[Tensor, int]:
        steps = _learn(members, mu, done)
        return _policies(members), steps

    solver = _FictitiousPlay(game, members, respond, _weight(learning_rate))
    return _run(solver, "deep_fictitious_play", **options)


def average_fictitious_play(
    game: MFGame, config: AverageConfig | None = None, *, seed: int = 0, **options: Unpack[Options]
) -> DeepSolution:
    """Deep average-network fictitious play (D-AFP, arXiv 2203.11973).

    Each iteration learns a best response to the flow of the average policy with a deep Q-network that goes on from the
    last iteration's, puts decisions of that response into a reservoir, and fits the average policy to the reservoir by
    cross-entropy.

    Deviations: the average is fitted by Adam over legal actions, and followed at the temperature at which it was
    fitted; OpenSpiel fits by gradient descent and follows at ten times that. An iteration forgets the experience of
    the one before, whose rewards are another crowd's.

    :param game: one game, without a regulariser
    :param config: hyper-parameters
    :param seed: of all that is drawn
    :param options: see :class:`Options`
    :return: see :func:`deep_mirror_descent`
    :raises ValueError: a game or number that will not do, or learning that diverged
    """
    config = config or AverageConfig()
    seeds = _seeds(_single(game), seed, 2)
    members = [BestMember(game, p, config, s) for p, s in enumerate(seeds[::2])]
    averages = [Average(member, config, s) for member, s in zip(members, seeds[1::2], strict=True)]
    solver = _AveragePlay(game, averages)
    return _run(solver, "average_fictitious_play", **options)


def fictitious_play_with(
    game: MFGame,
    make_learner: Callable[[VecEnv], Learner],
    *,
    timesteps: int = 20_000,
    members: int = 64,
    restart: bool = False,
    learning_rate: float | None = None,
    seed: int = 0,
    **options: Unpack[Options],
) -> DeepSolution:
    """Fictitious play whose best responses any agent learns that has discrete actions.

    Each iteration trains the agent as a member of the crowd, which moves as the average policy so far has it; then
    reads off what it does in all states at all times, and takes that into the average. Policies are averaged by the
    mass that follows them, as in arXiv 2007.03458::

        fictitious_play_with(game, lambda env: stable_baselines3.PPO("MlpPolicy", env, seed=0), iterations=20)

    Agents of Stable-Baselines3 know nothing of masks: while they learn, a legal action drawn at random takes the place
    of an illegal one; in the policy that is read off there are none. Of agents with values, the best action counts.

    :param game: one game, without a regulariser
    :param make_learner: makes an agent for an environment; one for each population
    :param timesteps: environment steps to train for, per iteration and population
    :param members: environments side by side
    :param restart: train a new agent in each iteration, instead of going on with the last one
    :param learning_rate: weight of the newest best response; None: 1 / (k + 1) in iteration k
    :param seed: of the environments; agents have their own
    :param options: see :class:`Options`
    :return: see :func:`deep_mirror_descent`
    :raises ValueError: a game or number that will not do
    """
    _single(game)
    for name, number in (("timesteps", timesteps), ("members", members)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    batches = [MeanFieldAgentBatch(members, game, population=p, illegal="random") for p in range(game.n_pop)]
    envs = [BatchedVecEnv(batch) for batch in batches]
    generator = torch.Generator().manual_seed(seed)

    def made(env: VecEnv) -> Any:
        learner = make_learner(env)  # which may seed its environment with its own seed, the same each time
        env.seed(int(torch.randint(2**31 - 1, (), generator=generator)))
        return learner

    learners: list[Any] = [made(env) for env in envs]

    def respond(mu: Tensor, done: float) -> tuple[Tensor, int]:
        before = sum(learner.num_timesteps for learner in learners)
        for p, batch in enumerate(batches):
            batch.set_mean_field(mu)
            if restart and done > 0:
                before -= learners[p].num_timesteps
                learners[p] = made(envs[p])
            learners[p].learn(timesteps, reset_num_timesteps=False)
        return tabular_policy(learners, game), sum(learner.num_timesteps for learner in learners) - before

    solver = _FictitiousPlay(game, learners, respond, _weight(learning_rate))
    options.setdefault("iterations", 10)
    return _run(solver, "fictitious_play_with", **options)


def log_iterations(logger: Logger) -> OnIteration:
    """Write every iteration to a logger of Stable-Baselines3: TensorBoard, CSV or the terminal.

    :param logger: as made by ``stable_baselines3.common.logger.configure(folder, ["tensorboard"])``
    :return: to be given as ``on_iteration``; steps are environment steps
    """

    def write(iteration: Iteration) -> None:
        logger.record("mean_field/exploitability", iteration.exploitability)
        logger.record("mean_field/iteration", iteration.number)
        logger.record("time/seconds", iteration.seconds)
        logger.dump(iteration.steps)

    return write


class _Solver(Protocol):
    game: MFGame
    policy: Tensor
    """(n_pop, H, S, A), replaced once an iteration is whole."""
    learners: Any

    def step(self, k: int, done: float) -> int:
        """Do iteration k, from 1, when a share of all is done; :return: environment steps."""


class _MirrorDescent:
    def __init__(self, game: MFGame, learners: list[MirrorMember]) -> None:
        self.game, self.learners = game, learners
        self.policy = _policies(learners)

    def step(self, k: int, done: float) -> int:
        steps = _learn(self.learners, flow(self.game, self.policy), done)
        self.policy = torch.stack([member.remember() for member in self.learners])
        return steps


class _FictitiousPlay:
    def __init__(
        self,
        game: MFGame,
        learners: Any,
        respond: Callable[[Tensor, float], tuple[Tensor, int]],
        weight: Callable[[int], float],
    ) -> None:
        self.game, self.learners, self.respond, self.weight = game, learners, respond, weight
        self.policy = game.uniform_policy()

    def step(self, k: int, done: float) -> int:
        response, steps = self.respond(flow(self.game, self.policy), done)
        self.policy = averaged(self.game, self.policy, response, self.weight(k))
        return steps


class _AveragePlay:
    def __init__(self, game: MFGame, learners: list[Average]) -> None:
        self.game, self.learners = game, learners
        self.policy = _policies(learners)

    def step(self, k: int, done: float) -> int:
        steps = _learn([average.member for average in self.learners], flow(self.game, self.policy), done)
        steps += sum(average.learn() for average in self.learners)
        self.policy = _policies(self.learners)
        return steps


def _run(
    solver: _Solver,
    name: str,
    iterations: int = 100,
    tolerance: float | None = None,
    progress: bool = False,
    on_iteration: OnIteration | None = None,
) -> DeepSolution:
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    game, policy, started = solver.game, solver.policy, time.perf_counter()
    records = [_measured(game, 0, 0, started, policy)]
    interrupted = False
    try:
        with tqdm(total=iterations, desc=f"{game.name}, {name}", disable=not progress, leave=False) as bar:
            for k in range(1, iterations + 1):
                if tolerance is not None and records[-1].exploitability <= tolerance:
                    break
                steps = solver.step(k, (k - 1) / iterations)
                record = _measured(game, k, records[-1].steps + steps, started, solver.policy)
                policy, records = solver.policy, [*records, record]
                bar.update()
                if progress:
                    bar.set_postfix(exploitability=f"{record.exploitability:.3g}")
                if on_iteration is not None:
                    on_iteration(record)
    except KeyboardInterrupt:
        interrupted = True
    numbers, values, seconds, counts, _ = zip(*records, strict=True)
    history = DeepHistory(numbers, torch.tensor(values, dtype=game.dtype, device=game.device), seconds, counts)
    return DeepSolution(
        policy=policy,
        flow=flow(game, policy),
        history=history,
        learners=tuple(solver.learners),
        interrupted=interrupted,
    )


@torch.no_grad()
def _measured(game: MFGame, k: int, steps: int, started: float, policy: Tensor) -> Iteration:
    exploited = float(exploitability(game, policy))
    return Iteration(k, exploited, time.perf_counter() - started, steps, policy)


def _policies(learners: Sequence[Member[Any] | Average]) -> Tensor:
    """:return: what they do, (n_pop, H, S, A)"""
    return torch.stack([learner.policy() for learner in learners])


def _learn(members: Sequence[Member[Any]], mu: Tensor, done: float) -> int:
    """:return: environment steps done while all members learnt against a flow."""
    steps = 0
    for member in members:
        member.schedule(done)
        steps += member.learn(mu)
    return steps


def _weight(learning_rate: float | None) -> Callable[[int], float]:
    if learning_rate is None:
        return lambda k: 1 / (k + 1)
    if not 0 < learning_rate <= 1:
        raise ValueError(f"learning_rate, the weight of a new best response, must lie in (0, 1], got {learning_rate}")
    return lambda k: learning_rate


def _single(game: MFGame) -> MFGame:
    """:return: the game; :raises ValueError: members cannot learn it."""
    if game.batch:
        raise ValueError(f"{game.name} is a batch {game.batch} of games: deep solvers take one at a time")
    if game.regulariser is not None:
        raise ValueError(
            f"{game.name} pays for how choices are spread, by {game.regulariser}, which single actions do not show: "
            "use headway.envs.mean_field.solve"
        )
    return game


def _seeds(game: MFGame, seed: int, each: int = 1) -> list[int]:
    """:return: numbers to seed with, so many for each population."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**31 - 1, (game.n_pop * each,), generator=generator).tolist()
