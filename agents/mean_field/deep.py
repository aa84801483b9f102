"""Deep solvers of mean field games: mirror descent, and fictitious play with agents that learn their best responses.

Members learn from experience, sampled against the crowd as it is. What their policies do to the crowd, and how much one
member could gain by another (exploitability), is computed exactly after every iteration.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from tqdm import tqdm

from ...envs.mean_field import History, MFGame, Solution, exploitability, flow
from ...envs.mean_field.member import MeanFieldAgentBatch
from ...wrappers.sb3 import BatchedVecEnv
from .agent import AverageDQN, BestResponseDQN, MemberDQN, MirrorDescentDQN
from .config import AverageConfig, BestResponseConfig, MemberConfig, MirrorDescentConfig
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
    callback: MaybeCallback
    """Stable-Baselines3 callbacks for ``learn`` of every learner, in every iteration; one that stops it ends all."""


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
    """What learnt, by population: agents of :mod:`.agent`, or those that ``make_learner`` made."""


def deep_mirror_descent(
    game: MFGame, config: MirrorDescentConfig | None = None, *, seed: int = 0, **options: Unpack[Options]
) -> DeepSolution:
    """Deep Munchausen online mirror descent (D-MOMD, arXiv 2203.11973).

    Each iteration lets a :class:`~.agent.MirrorDescentDQN` learn against the crowd's present flow; then the crowd does
    as it does.

    :param game: one game, without a regulariser
    :param config: hyper-parameters
    :param seed: of all that is drawn
    :param options: see :class:`Options`
    :return: the last policy, its flow, and exploitability on the way; after Ctrl-C, those of the last whole iteration
    :raises ValueError: a game or number that will not do, or learning that diverged
    """
    return _deep("deep_mirror_descent", MirrorDescentDQN, game, config or MirrorDescentConfig(), seed, None, options)


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
    weight, config = _weight(learning_rate), config or BestResponseConfig()
    return _deep("deep_fictitious_play", BestResponseDQN, game, config, seed, weight, options)


def average_fictitious_play(
    game: MFGame, config: AverageConfig | None = None, *, seed: int = 0, **options: Unpack[Options]
) -> DeepSolution:
    """Deep average-network fictitious play (D-AFP, arXiv 2203.11973).

    Each iteration lets an :class:`~.agent.AverageDQN` learn a best response to the crowd's present flow, and take it
    into its average of all of them; then the crowd does as the average does.

    :param game: one game, without a regulariser
    :param config: hyper-parameters
    :param seed: of all that is drawn
    :param options: see :class:`Options`
    :return: see :func:`deep_mirror_descent`
    :raises ValueError: a game or number that will not do, or learning that diverged
    """
    return _deep("average_fictitious_play", AverageDQN, game, config or AverageConfig(), seed, None, options)


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

    def train(p: int, mu: Tensor, done: float, callback: MaybeCallback) -> int:
        batches[p].set_mean_field(mu)
        if restart and done > 0:
            learners[p] = made(envs[p])
        before = learners[p].num_timesteps
        watched: dict[str, Any] = {} if callback is None else {"callback": callback}
        learners[p].learn(timesteps, reset_num_timesteps=False, **watched)
        return int(learners[p].num_timesteps - before)

    options.setdefault("iterations", 10)
    return _run("fictitious_play_with", game, learners, train, _weight(learning_rate), **options)


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


Train = Callable[[int, Tensor, float, MaybeCallback], int]
"""Trains the learner of a population in the crowd of a flow (n_pop, H + 1, S), when a share of all iterations is done,
with callbacks; returns environment steps."""


def _deep(
    name: str,
    agent: type[MemberDQN],
    game: MFGame,
    config: MemberConfig,
    seed: int,
    weight: Callable[[int], float] | None,
    options: Options,
) -> DeepSolution:
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**31 - 1, (_single(game).n_pop,), generator=generator).tolist()
    learners = [agent(game=game, population=p, config=config, seed=s, device=game.device) for p, s in enumerate(seeds)]

    def train(p: int, mu: Tensor, done: float, callback: MaybeCallback) -> int:
        return learners[p].learn_against(mu, done, callback)

    return _run(name, game, learners, train, weight, **options)


def _run(
    name: str,
    game: MFGame,
    learners: list[Any],
    train: Train,
    weight: Callable[[int], float] | None,
    *,
    iterations: int = 100,
    tolerance: float | None = None,
    progress: bool = False,
    on_iteration: OnIteration | None = None,
    callback: MaybeCallback = None,
) -> DeepSolution:
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    policy = tabular_policy(learners, game) if weight is None else game.uniform_policy()
    started = time.perf_counter()
    records = [_measured(game, 0, 0, started, policy)]
    interrupted = False
    try:
        with tqdm(total=iterations, desc=f"{game.name}, {name}", disable=not progress, leave=False) as bar:
            for k in range(1, iterations + 1):
                if tolerance is not None and records[-1].exploitability <= tolerance:
                    break
                mu, done = flow(game, policy), (k - 1) / iterations
                steps = sum(train(p, mu, done, callback) for p in range(game.n_pop))
                learnt = tabular_policy(learners, game)
                new = learnt if weight is None else averaged(game, policy, learnt, weight(k))
                record = _measured(game, k, records[-1].steps + steps, started, new)
                policy, records = new, [*records, record]
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
        learners=tuple(learners),
        interrupted=interrupted,
    )


@torch.no_grad()
def _measured(game: MFGame, k: int, steps: int, started: float, policy: Tensor) -> Iteration:
    exploited = float(exploitability(game, policy))
    return Iteration(k, exploited, time.perf_counter() - started, steps, policy)


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
