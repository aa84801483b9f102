"""``headway evaluate --missions``: how well a policy does what it is told, task by task."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from ..agents.core.data.episodes import Turn, run_episodes
from ..agents.tdt import TDT
from ..envs.batched import Obs
from ..envs.missions import SPLITS, Split, Task, references_of, tasks_of
from ..wrappers import as_batched
from ..wrappers.missions import Missions
from .episodes import Acting, table
from .policies import Policy
from .runs import progress_bar
from .statistics import Estimate, estimate_mean
from .worlds import World

EVERY = 8
"""Steps between those at which it is asked what the mission decides, the first after half as many (our choice)."""

TIERS = ("easy", "medium", "hard")
COLUMNS = (
    *("policy", "steps", "split", "task", "tier", "episodes", "score", "success", "length"),
    *("normalized", "random", "oracle", "sensitivity"),
)
"""Of the CSV file, a line for each policy and task."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """Episodes of one policy that was told a task.

    :param split: of the instructions
    :param task: it
    :param scores: one per episode, (E,)
    :param successes: whether each counts as done, (E,)
    :param lengths: in steps, (E,)
    :param sensitivity: mean divergence of the next action's distribution under another task's instruction, in nats;
        NaN of policies that cannot be asked
    """

    split: Split
    task: Task
    scores: NDArray[np.float64]
    successes: NDArray[np.float64]
    lengths: NDArray[np.float64]
    sensitivity: float

    @property
    def normalised(self) -> NDArray[np.float64] | None:
        """Scores between the references of the task, (E,); None where there are none."""
        reference = references_of(self.task.game).get(self.task.id)
        return None if reference is None else np.array([reference.normalised(score) for score in self.scores])


def missions_of(world: World) -> Missions:
    """:return: one environment of a world, from which its tasks can be read

    :raises ValueError: it has no missions
    """
    made: Any = world.single()
    env = made
    while isinstance(env, gym.Wrapper) and not isinstance(env, Missions):
        env = env.env
    if not isinstance(env, Missions):
        made.close()
        raise ValueError(f"--missions is for environments with missions, as headway/TextFrostbite-v0: {world} has none")
    return env


@dataclass(frozen=True)
class Job:
    """An episode that is to be played: which, of which task, in which split."""

    split: Split
    task: Task
    episode: int


class _Begun(gym.Wrapper[Any, Any, Any, Any]):
    """Begins its first episode from a seed of its own, whatever row it is."""

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        super().__init__(env)
        self.seed: int | None = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        own, self.seed = self.seed, None
        return self.env.reset(seed=own, options=options)


def _row(world: World, job: Job, seed: int) -> gym.Env[Any, Any]:
    made = world.single(split=job.split, tasks=(job.task.id,), reward="delta")
    return Monitor(_Begun(made, seed + job.episode))


class _Asking(Acting):
    """Acts, and asks now and then what the policy would do if it were told something else."""

    def __init__(self, agent: TDT, device: torch.device, deterministic: bool, otherwise: Mapping[str, Tensor]) -> None:
        super().__init__(agent, device, deterministic)
        self.tdt, self.otherwise, self.step = agent, otherwise, 0
        rows = len(otherwise["mission_task"])
        self.sums, self.counts = torch.zeros(rows), torch.zeros(rows)

    def __call__(self, obs: Obs, turn: Turn) -> Tensor:
        if self.step % EVERY == EVERY // 2:
            assert isinstance(obs, Mapping)
            other = {**obs, **{key: value for key, value in self.otherwise.items() if key in obs}}
            effect = self.tdt.mission_effect(obs, other, self.memory).cpu()
            self.sums += effect.masked_fill(~turn.running, 0)
            self.counts += turn.running
        self.step += 1
        return super().__call__(obs, turn)


def _told_otherwise(env: Missions, jobs: Sequence[Job], seed: int) -> dict[str, Tensor]:
    """:return: for each an instruction of another task in its split, or of training if there is no other"""
    numbers = list(tasks_of(env.game))
    tokens, tasks = [], []
    for job in jobs:
        rng = np.random.default_rng([seed, numbers.index(job.task.id), job.episode])
        others = [other for other in env.of_split(job.split) if other.id != job.task.id]
        others = others or [other for other in env.of_split("train") if other.id != job.task.id]
        other = others[int(rng.integers(len(others)))]
        sentences = other.sentences(job.split) or other.train
        tokens.append(env.tokenizer.encode(sentences[int(rng.integers(len(sentences)))]))
        tasks.append(numbers.index(other.id))
    return {"mission_tokens": torch.as_tensor(np.stack(tokens)), "mission_task": torch.as_tensor(tasks)}


def _play(
    policy: Policy, world: World, env: Missions, jobs: Sequence[Job], seed: int, deterministic: bool
) -> NDArray[np.float64]:
    """:return: score, success, length and effect of the words of each of some episodes, played together, (jobs, 4)"""
    vec = policy.in_(DummyVecEnv([partial(_row, world, job, seed) for job in jobs]))
    batch = as_batched(vec)
    acting = Acting(policy.agent, batch.device, deterministic)
    if isinstance(policy.agent, TDT):
        acting = _Asking(policy.agent, batch.device, deterministic, _told_otherwise(env, jobs, seed))
    played = run_episodes(batch, acting)
    vec.close()
    effects = torch.full((len(jobs),), torch.nan)
    if isinstance(acting, _Asking):
        effects = acting.sums / acting.counts  # NaN of an episode that was over before it was asked
    scores = played.returns.clamp(0, 1)  # rewards are float32, their sum may be -1e-8
    return torch.stack([part.double() for part in (scores, played.successes, played.lengths, effects)], 1).numpy()


def evaluate_missions(
    policies: Sequence[Policy],
    world: World,
    splits: Sequence[str],
    *,
    episodes: int,
    n_envs: int,
    seed: int,
    deterministic: bool = True,
    csv: Path | None = None,
) -> list[list[Told]]:
    """Tell policies every task of some splits, and print a table of what they make of it.

    :param policies: they, of several seeds say; intervals are over their means then, and over episodes of a single one
    :param world: where, an environment with missions
    :param splits: of :data:`~headway.envs.missions.SPLITS`
    :param episodes: of each policy with each task
    :param n_envs: episodes that are stepped together, of whichever tasks
    :param seed: of the first episode of each task
    :param deterministic: take the likeliest action instead of drawing
    :param csv: where to write a line for each policy and task
    :return: by task of each split, what came of each policy
    :raises ValueError: the environment has no missions, or no such split
    """
    env = missions_of(world)
    if odd := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"--missions {odd[0]}: it can be {', '.join(SPLITS)}")
    chosen: list[tuple[Any, Task]] = [(split, task) for split in splits for task in env.of_split(split)]
    jobs = [Job(split, task, episode) for split, task in chosen for episode in range(episodes)]
    jobs.sort(key=lambda job: job.task.horizon)  # those that take as long are played together
    found: list[list[Told]] = [[] for _ in chosen]
    with table(csv, COLUMNS) as write, progress_bar(len(policies) * len(jobs), 0, "episodes") as bar:
        for policy in policies:
            parts: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
            for first in range(0, len(jobs), n_envs):
                together = jobs[first : first + n_envs]
                results = _play(policy, world, env, together, seed, deterministic)
                for job, result in zip(together, results, strict=True):
                    parts[job.split, job.task.id].append(result)
                bar.set_description_str(f"{together[-1].task.id}, {together[-1].split} · ", refresh=False)
                bar.update(len(together))
            for told, (split, task) in zip(found, chosen, strict=True):
                told.append(_told(split, task, np.stack(parts[split, task.id])))
                write(policy.path, policy.agent.num_timesteps, *_line(told[-1]))
    env.close()
    for split in splits:
        _print_split(split, [told for told in found if told[0].split == split], episodes, len(policies))
    return found


def _told(split: Split, task: Task, results: NDArray[np.float64]) -> Told:
    scores, successes, lengths, effects = results.T
    asked = effects[~np.isnan(effects)]
    sensitivity = float(asked.mean()) if len(asked) else float("nan")
    return Told(split=split, task=task, scores=scores, successes=successes, lengths=lengths, sensitivity=sensitivity)


def _line(told: Told) -> tuple[Any, ...]:
    """:return: what stands in the CSV file, without the policy"""
    reference = references_of(told.task.game).get(told.task.id)
    normalised = told.normalised
    empty = "" if np.isnan(told.sensitivity) else told.sensitivity
    means = (told.scores.mean(), told.successes.mean(), told.lengths.mean())
    between = ("", "", "") if normalised is None or reference is None else (normalised.mean(), *reference)
    return (told.split, told.task.id, told.task.tier, len(told.scores), *means, *between, empty)


# -- what is printed -------------------------------------------------------------------------------------------------


def units(told: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """:return: what varies: means of several policies, episodes of a single one"""
    return np.array([part.mean() for part in told]) if len(told) > 1 else told[0]


def normalised_units(told: Sequence[Told]) -> NDArray[np.float64] | None:
    """:return: the same of normalised scores, by which tasks are pooled; None where there are no references"""
    parts = [part for one in told if (part := one.normalised) is not None]
    return units(parts) if parts else None


def _print_split(split: str, found: Sequence[Sequence[Told]], episodes: int, policies: int) -> None:
    several = f", {policies} policies" * (policies > 1)
    print(f"\n{split}: {len(found)} tasks, {episodes} episodes of each{several}")
    print(f"{'task':<18} {'score [95 % interval]':<21} {'done':>5} {'normalised':<18} {'random  oracle   words'}")
    for told in found:
        reference = references_of(told[0].task.game).get(told[0].task.id)
        own = normalised_units(told)
        normalised = "" if own is None else _interval(estimate_mean([own]))
        known = f"{'':>6} {'':>6}" if reference is None else f"{reference.random:6.2f} {reference.oracle:6.2f}"
        print(
            f"{told[0].task.id:<18} {_interval(estimate_mean([units([one.scores for one in told])])):<21} "
            f"{_mean([one.successes.mean() for one in told]):5.0%} {normalised:<18} {known} {_words(told)}"
        )
    for tier in (*TIERS, "all"):
        tasks = [told for told in found if tier in ("all", told[0].task.tier)]
        pooled = [own for told in tasks if (own := normalised_units(told)) is not None]
        if tasks:
            scores = estimate_mean([units([one.scores for one in told]) for told in tasks])
            done = _mean([one.successes.mean() for told in tasks for one in told])
            normalised = _interval(estimate_mean(pooled)) if pooled else ""
            words = _words([one for told in tasks for one in told])
            print(f"{tier:<18} {_interval(scores):<21} {done:5.0%} {normalised:<18} {'':>13} {words}")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _words(told: Sequence[Told]) -> str:
    value = _mean([one.sensitivity for one in told])
    return f"{'':>6}" if np.isnan(value) else f"{value:6.3f}"


def _interval(estimate: Estimate) -> str:
    reach = "" if np.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{reach}"
