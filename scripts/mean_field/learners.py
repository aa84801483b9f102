"""The deep solvers that ``headway mfg learn`` knows, their settings, and the exact algorithms that they approximate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from ...agents.core.config import Config, Count, Fraction, LearningRate, Positive, Range
from ...agents.mean_field import (
    AverageConfig,
    BestResponseConfig,
    DeepSolution,
    MirrorDescentConfig,
    average_fictitious_play,
    deep_fictitious_play,
    deep_mirror_descent,
    fictitious_play_with,
)
from ...envs.mean_field import MFGame


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Config):
    """Fictitious play whose best responses Stable-Baselines3's PPO learns; its defaults where not said otherwise."""

    timesteps: Annotated[int, Range(1, unit="environment steps")] = 20_000
    """To train for, per iteration and population (our choice)."""

    members: Count = 64
    """Environments side by side (our choice)."""

    restart: bool = False
    """Train a new agent in each iteration, instead of going on with the last one."""

    learning_rate: LearningRate = 3e-4
    """Step size of Adam."""

    n_steps: Annotated[int | None, Range(1, unit="steps of each environment")] = None
    """Between trainings; none: an episode (our choice)."""

    batch_size: Count = 64
    """Rows per gradient step."""

    n_epochs: Count = 10
    """Passes over what was collected."""

    gamma: Fraction = 1.0
    """Discount factor per decision; games end, so 1 does no harm (our choice)."""

    gae_lambda: Fraction = 0.95
    """Of generalised advantage estimation."""

    clip_range: Positive = 0.2
    """How far the ratio of probabilities may be from 1."""

    ent_coef: Annotated[float, Range(0)] = 0.0
    """Weight of the entropy."""

    net_arch: tuple[Count, ...] = (64, 64)
    """Hidden layer widths of policy and value function."""


def ppo(game: MFGame, config: PPOConfig, *, seed: int = 0, **options: Any) -> DeepSolution:
    """Fictitious play with PPO.

    :param game: the game
    :param config: of PPO and of its environments
    :param seed: of the environments and of PPO
    :param options: see :func:`fictitious_play_with`
    :return: see there
    """

    def made(env: VecEnv) -> PPO:
        names = ("learning_rate", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "ent_coef")
        return PPO(
            "MlpPolicy",
            env,
            n_steps=config.n_steps or game.H,
            policy_kwargs={"net_arch": list(config.net_arch)},
            seed=seed,
            device=game.device,
            **{name: getattr(config, name) for name in names},
        )

    options |= {name: getattr(config, name) for name in ("timesteps", "members", "restart")}
    return fictitious_play_with(game, made, seed=seed, **options)


@dataclass(frozen=True)
class Algorithm:
    """A deep solver.

    :param title: of its figures
    :param config: its settings
    :param solve: takes a game, settings, iterations, seed, progress and on_iteration
    :param exact: name and parameters of the exact algorithm that it approximates, by settings
    """

    title: str
    config: type[Config]
    solve: Callable[..., DeepSolution]
    exact: Callable[[Any], tuple[str, dict[str, Any]]]


def _fictitious_play(config: Config) -> tuple[str, dict[str, Any]]:
    return "fictitious_play", {}


def _mirror_descent(config: MirrorDescentConfig) -> tuple[str, dict[str, Any]]:
    return "online_mirror_descent", {"learning_rate": 1 / config.temperature}


ALGORITHMS = {
    "deep_mirror_descent": Algorithm("deep mirror descent", MirrorDescentConfig, deep_mirror_descent, _mirror_descent),
    "average_fictitious_play": Algorithm(
        "fictitious play, averaged by a network", AverageConfig, average_fictitious_play, _fictitious_play
    ),
    "deep_fictitious_play": Algorithm(
        "fictitious play with deep Q-networks", BestResponseConfig, deep_fictitious_play, _fictitious_play
    ),
    "ppo": Algorithm("fictitious play with PPO", PPOConfig, ppo, _fictitious_play),
}
"""By name."""
