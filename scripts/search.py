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
    """What came of a policy with one way of looking ahead.

    :param search: as it was asked for
    :param simulated: steps of the simulator for each of the environment
    :param better: probability that an episode returns more than one of the policy alone, see ``estimate_improvement``
    :param summary: of the returns
    """

    search: str
    simulated: float
    better: float
    summary: Summary


class _Watched:
    """A policy, and a bar that moves with its decisions."""

    def __init__(self, policy: Any, bar: "tqdm[Any]") -> None:
        self.policy, self.bar = policy, bar

    def predict(self, *args: Any) -> Any:
        self.bar.update()
        return self.policy.predict(*args)


def evaluate_searches(
    policy: Policy,
    world: World,
    searches: Sequence[str],
    *,
    episodes: int,
    n_envs: int,
    seed: int,
    deterministic: bool = True,
    csv: Path | None = None,
) -> list[Searched]:
    """Evaluate a policy alone, and with several ways of looking ahead, in the same episodes; print a line for each.

    :param policy: it
    :param world: where
    :param searches: the ways, as :meth:`~headway.agents.tpo.Search.of` reads them
    :param episodes: of each
    :param n_envs: environments that are decided on together
    :param seed: of the first episode, and of what a search draws
    :param deterministic: take what looks best, instead of drawing
    :param csv: where to write a line for each
    :return: what came of them
    :raises TypeError: see :class:`~headway.agents.tpo.SearchPolicy`
    :raises ValueError: likewise
    """
    env = policy.in_(evaluation_env(world, min(n_envs, episodes)))
    names = [ALONE, *searches]
    actors: list[Any] = [policy.agent]
    for number, text in enumerate(searches):  # that copies are exact is found out once
        actors.append(Search.of(text).around(policy.agent, env, seed=seed, check=number == 0))
    spec, width = spec_of(env), max(map(len, names))
    rounds = -(-episodes // env.num_envs)
    limit = world.max_episode_steps or (None if spec is None else spec.max_episode_steps)
    found: list[Searched] = []
    returns_alone: list[float] = []
    header = ["search", "simulator_steps_per_step", "better", *(field.name for field in fields(Summary))]
    with table(csv, header) as write:
        for name, actor in zip(names, actors, strict=True):
            with progress_bar(rounds * limit if limit else 0, 0) as bar:
                bar.set_description_str(f"{name} · ")
                returns, lengths = evaluate_agent(_Watched(actor, bar), env, episodes, seed, deterministic)  # type: ignore[arg-type]
                steps = bar.n * env.num_envs
            returns_alone = returns_alone or returns
            better = estimate_improvement([np.array(returns)], [np.array(returns_alone)]).value
            simulated = getattr(actor, "simulated", 0) / steps
            one = Searched(search=name, simulated=simulated, better=better, summary=summarise(returns, lengths))
            found.append(one)
            write(name, round(simulated, 2), better, *astuple(one.summary))
            print(f"{name:<{width}}  {simulated:5.1f} simulated   {one.summary}   better {better:.0%}", flush=True)
    env.close()
    return found
