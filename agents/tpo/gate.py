"""Whether a policy acts better when it looks ahead: if it does not, there is nothing to be learned from its search."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.data.episodes import Turn, run_episodes
from ..core.spaces import Obs
from .planners import Planner, Roots

GATE_HORIZON = 1_000
"""Steps after which episodes are cut; our choice."""


class SearchDoesNotHelpError(ValueError):
    """With search, the bootstrap acts no better than without: there is nothing to learn from it."""


@dataclass(frozen=True)
class Judged:
    """What came of episodes with search and without.

    :param policy: mean return of the policy's mode
    :param search: with search
    :param errors: standard errors of both
    :param episodes: of each
    :param simulated: steps of the simulator
    """

    policy: float
    search: float
    errors: tuple[float, float]
    episodes: int
    simulated: int

    @property
    def helps(self) -> bool:
        """Whether more came with search."""
        return self.search > self.policy

    def __str__(self) -> str:
        with_search, alone = f"{self.search:.1f} ± {self.errors[1]:.1f}", f"{self.policy:.1f} ± {self.errors[0]:.1f}"
        return f"{with_search} with search, {alone} without ({self.episodes} episodes each, ± standard errors)"


def judge(planner: Planner, env: Any, seed: int, words: Callable[[int], Tensor]) -> Judged:
    """Play the same episodes without search and with it.

    :param planner: that searches, with as many roots as the environment has rows
    :param env: a batch, in which an episode of each row is played twice
    :param seed: of the first episode
    :param words: random streams of all rows at a step, from 1
    :return: what came of them
    """
    guide, rows, step, simulated = planner.guide, torch.arange(env.num_envs, device=env.device), 0, 0

    def alone(obs: Obs, turn: Turn) -> Tensor:
        return guide.to_env(guide.mode(guide.look(guide.encode(obs))[0])).to(env.device)

    def ahead(obs: Obs, turn: Turn) -> Tensor:
        nonlocal step, simulated
        step += 1
        decision = planner.plan(Roots(env.state(rows), guide.encode(obs), words(step)))
        simulated += int(decision.simulated.sum())
        return guide.to_env(decision.actions).to(env.device)

    played = [run_episodes(env, act, horizon=GATE_HORIZON, seed=seed).returns.double() for act in (alone, ahead)]
    policy, search = (float(returns.mean()) for returns in played)
    spreads = (float(returns.std(correction=0)) / math.sqrt(len(returns)) for returns in played)
    return Judged(policy, search, (next(spreads), next(spreads)), env.num_envs, simulated)
