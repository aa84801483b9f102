"""When episodes end, told from observations: for who imagines steps instead of simulating them.

The formulas are Gymnasium's, version 5, written on what is observed, and are held to the simulators by
:func:`check_termination`. Users enter those of their own environments by :func:`register_termination`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from .naming import nearest

Termination = Callable[[Tensor], Tensor]
"""Says of next observations (…, O) which of them end an episode, (…) bool, without waiting for the device."""


def _within(values: Tensor, low: float, high: float) -> Tensor:
    """:return: which are above low and below high; of NaN, none"""
    return (values > low) & (values < high)


def never(obs: Tensor) -> Tensor:
    """Of tasks that only a time limit ends."""
    return torch.zeros(obs.shape[:-1], dtype=torch.bool, device=obs.device)


def hopper(obs: Tensor) -> Tensor:
    """The trunk is too low or leans too far, or something has come loose."""
    calm = _within(obs[..., 1:], -100.0, 100.0).all(-1)
    return ~(calm & _within(obs[..., 0], 0.7, torch.inf) & _within(obs[..., 1], -0.2, 0.2))


def walker(obs: Tensor) -> Tensor:
    """The trunk is too low, too high, or leans too far."""
    return ~(_within(obs[..., 0], 0.8, 2.0) & _within(obs[..., 1], -1.0, 1.0))


def ant(obs: Tensor) -> Tensor:
    """The trunk is too low or too high, or something is not finite."""
    height = obs[..., 0]
    return ~(obs.isfinite().all(-1) & (height >= 0.2) & (height <= 1.0))


def humanoid(obs: Tensor) -> Tensor:
    """The trunk is too low or too high."""
    return ~_within(obs[..., 0], 1.0, 2.0)


def inverted_pendulum(obs: Tensor) -> Tensor:
    """The pole leans by more than 0.2 rad."""
    return ~(obs.isfinite().all(-1) & (obs[..., 1].abs() <= 0.2))


def inverted_double_pendulum(obs: Tensor) -> Tensor:
    """The tip is at most 1 m high.

    The simulator tests where the tip was an integrator's stage before, which is up to 11 mm from where the observed
    angles put it, so that a tip near 1 m may be judged otherwise.
    """
    first, second = (torch.atan2(obs[..., 1 + pole], obs[..., 3 + pole]) for pole in range(2))
    return 0.6 * (first.cos() + (first + second).cos()) <= 1.0


def mountain_car(obs: Tensor) -> Tensor:
    """The car is on the hill, and does not roll back."""
    return (obs[..., 0] >= 0.45) & (obs[..., 1] >= 0.0)


def lqr(obs: Tensor) -> Tensor:
    """The state is zero, but for what DeepMind's control suite tolerates."""
    return obs.square().sum(-1).sqrt() < 1e-6


TERMINATIONS: dict[str, Termination] = {
    "Hopper": hopper,
    "Walker2d": walker,
    "Ant": ant,
    "Humanoid": humanoid,
    "InvertedPendulum": inverted_pendulum,
    "InvertedDoublePendulum": inverted_double_pendulum,
    "MountainCarContinuous": mountain_car,
    "lqr-lqr_2_1": lqr,
    "lqr-lqr_6_2": lqr,
    **dict.fromkeys(
        (
            "HalfCheetah",
            "Swimmer",
            "Reacher",
            "Pusher",
            "HumanoidStandup",
            "Pendulum",
            "Trap",
            "Chain",
            "SparsePendulum",
        ),
        never,
    ),
}
"""By the name of an environment, without namespace and version."""

_NEVER_END = re.compile(r"(.*:)?(dm_control/\w+-\w+|metaworld/[\w-]+)-v\d+")
"""Of DeepMind's control suite (domain-task; its other tasks have no dash, and may end) and of Meta-World."""


def base_name(env_id: str) -> str:
    """:return: an environment's id without module, namespace and version"""
    name = env_id.rpartition(":")[2].rpartition("/")[2]
    base, dash, version = name.rpartition("-v")
    return base if dash and version.isdecimal() else name


def register_termination(env_id: str, function: Termination) -> None:
    """Say when episodes of an environment end; see that it is right with :func:`check_termination`.

    :param env_id: its id; all versions of it share the function
    :param function: of next observations
    """
    TERMINATIONS[base_name(env_id)] = function


def find_termination(env_id: str) -> Termination:
    """Look up when episodes of an environment end.

    :param env_id: its id
    :return: the function
    :raises ValueError: nobody has said it
    """
    found = TERMINATIONS.get(base_name(env_id)) or (never if _NEVER_END.fullmatch(env_id) else None)
    if found is None:
        raise ValueError(
            f"nobody has said by what is observed when episodes of {env_id} end "
            f"({nearest(base_name(env_id), TERMINATIONS)}): "
            "enter a function with headway.envs.terminations.register_termination; as a last resort, MBPO can learn it "
            "(learn_termination)"
        )
    return found


@dataclass(frozen=True)
class TerminationReport:
    """How a function agrees with an environment."""

    rows: int
    """Steps that were compared."""

    ended: int
    """Of these, those that the environment ended."""

    mismatches: int
    """Steps of which the function said otherwise."""

    example: str
    """The first of them; "": there is none."""

    def __str__(self) -> str:
        share = self.ended / self.rows
        wrong = "no mismatch" if not self.mismatches else f"{self.mismatches} mismatches, the first: {self.example}"
        return f"{self.rows:,} steps, of which {share:.0%} ended the episode: {wrong}"


def check_termination(
    env: gym.Env[Any, Any] | str,
    function: Termination | None = None,
    steps: int = 2000,
    seed: int = 0,
    *,
    past: int = 20,
    leave_out: Callable[[Tensor], Tensor] | None = None,
) -> TerminationReport:
    """Hold a function to an environment, by random actions that also go on past the end of episodes.

    :param env: the environment, or its id; its wrappers are left out, since a time limit is no end
    :param function: to be checked; None: the one that is registered
    :param steps: how many
    :param seed: of the environment and the actions
    :param past: steps that an episode goes on after its end, since both sides of it are to be seen
    :param leave_out: of observations that are too close to call, (O,) -> bool
    :return: what was found
    """
    made = gym.make(env) if isinstance(env, str) else env
    bare: Any = made.unwrapped
    if function is None:
        assert made.spec is not None, "an environment without id has no registered termination"
        function = find_termination(made.spec.id)
    bare.action_space.seed(seed)
    bare.reset(seed=seed)
    rows = ended = mismatches = gone = 0
    example = ""
    for _ in range(steps):
        obs, _, terminated, _, _ = bare.step(bare.action_space.sample())
        seen = torch.from_numpy(np.asarray(obs, np.float64))
        if leave_out is None or not leave_out(seen):
            rows, ended = rows + 1, ended + bool(terminated)
            if bool(function(seen)) is not bool(terminated):
                mismatches += 1
                example = example or f"terminated is {terminated} at {np.array2string(seen.numpy(), precision=4)}"
        gone = gone + 1 if terminated or gone else 0
        if gone > past:
            bare.reset()
            gone = 0
    if made is not env:
        made.close()
    return TerminationReport(rows, ended, mismatches, example)
