"""``headway evaluate --search``: what a policy gains by looking ahead before it acts."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..agents.tpo import Search
from ..wrappers.specs import spec_of
from .episodes import evaluate_agent, evaluation_env, table
from .policies import Policy
from .runs import progress_bar
from .statistics import Summary, estimate_improvement, summarise
from .worlds import World

ALONE = "policy alone"


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What came of one way of looking ahead.

    :param search: as it was asked for
    :param simulated: steps of the simulator for each of the environment
    :param better: probability that an episode returns more than one of the same policy alone, see
        ``estimate_improvement``
    :param summary: of the returns; of several policies, of the mean return of each
    """

    search: str
    simulated: float
    better: float
    summary: Summary


@dataclass(frozen=True, kw_only=True)
class _Played:
    """Episodes of one policy with one way of looking ahead."""

    simulated: float
    returns: list[float]
    lengths: list[int]


def _told(search: str, played: Sequence[_Played], alone: Sequence[_Played]) -> Searched:
    """:return: what came of a way, by the episodes of each policy"""
    returns = [np.array(one.returns) for one in played]
    better = estimate_improvement(returns, [np.array(one.returns) for one in alone]).value
    summary = summarise(played[0].returns, played[0].lengths)
    if len(played) > 1:
        summary = summarise([float(part.mean()) for part in returns], [int(np.mean(one.lengths)) for one in played])
    simulated = float(np.mean([one.simulated for one in played]))
    return Searched(search=search, simulated=simulated, better=better, summary=summary)


class _Watched:
    """A policy, and a bar that moves with its decisions."""

    def __init__(self, policy: Any, bar: "tqdm[Any]") -> None:
        self.policy, self.bar = policy, bar

    def predict(self, *args: Any) -> Any:
        self.bar.update()
        return self.policy.predict(*args)


def evaluate_searches(
    policies: Sequence[Policy],
    world: World,
    searches: Sequence[str],
    *,
    episodes: int,
    n_envs: int,
    seed: int,
    deterministic: bool = True,
    csv: Path | None = None,
) -> list[Searched]:
    """Evaluate policies alone, and with several ways of looking ahead, in the same episodes; print a line for each.

    :param policies: they
    :param world: where
    :param searches: the ways, as :meth:`~headway.agents.tpo.Search.of` reads them
    :param episodes: of each policy in each way
    :param n_envs: environments that are decided on together
    :param seed: of the first episode, and of what a search draws
    :param deterministic: take what looks best, instead of drawing
    :param csv: where to write a line for each policy and way
    :return: what came of the ways, by all policies together
    :raises TypeError: see :class:`~headway.agents.tpo.SearchPolicy`
    :raises ValueError: likewise
    """
    names = [ALONE, *searches]
    width = max(map(len, names))
    played: list[list[_Played]] = []
    header = ["policy", "steps", "search", "simulator_steps_per_step", "better", *(f.name for f in fields(Summary))]
    with table(csv, header) as write:
        for policy in policies:
            if played:
                print(f"{policy.path}: {policy.name} after {policy.agent.num_timesteps:,} steps")
            env = policy.in_(evaluation_env(world, min(n_envs, episodes)))
            actors: list[Any] = [policy.agent]
            for text in searches:  # that copies are exact is found out once
                first = not played and len(actors) == 1
                actors.append(Search.of(text).around(policy.agent, env, seed=seed, check=first))
            spec = spec_of(env)
            limit = world.max_episode_steps or (None if spec is None else spec.max_episode_steps)
            most = limit * -(-episodes // env.num_envs) if limit else 0
            played.append([])
            for name, actor in zip(names, actors, strict=True):
                with progress_bar(most, 0) as bar:
                    bar.set_description_str(f"{name} · ")
                    watched: Any = _Watched(actor, bar)
                    returns, lengths = evaluate_agent(watched, env, episodes, seed, deterministic)
                    simulated = getattr(actor, "simulated", 0) / (bar.n * env.num_envs)
                played[-1].append(_Played(simulated=simulated, returns=returns, lengths=lengths))
                one = _told(name, played[-1][-1:], played[-1][:1])
                steps, spent = policy.agent.num_timesteps, round(one.simulated, 2)
                write(policy.path, steps, name, spent, one.better, *astuple(one.summary))
                _say(width, one, str(one.summary))
            env.close()
    ways = list(zip(*played, strict=True))
    found = [_told(name, way, ways[0]) for name, way in zip(names, ways, strict=True)]
    if len(policies) > 1:
        print(f"{len(policies)} policies, of each its mean return:")
        for one in found:
            _say(width, one, one.summary.spread())
    return found


def _say(width: int, one: Searched, returns: str) -> None:
    print(f"{one.search:<{width}}  {one.simulated:5.1f} simulated   {returns}   better {one.better:.0%}", flush=True)
