"""Two small worlds whose reward is hardly ever met by chance: a chain, and a pendulum to be swung up (our own)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from .batched import Info
from .horizon import HorizonBatch, RowEnv
from .splitmix import start, uniforms
from .vector import face

CHAIN_ID, PENDULUM_ID = "headway/Chain-v0", "headway/SparsePendulum-v0"
VECTOR_ENTRY_POINTS = (f"{__name__}:make_chain_vector", f"{__name__}:make_pendulum_vector")

CROWN, CONSOLATION = 1.0, 0.01
"""Rewards at the far end of the chain, and at its beginning."""

UPRIGHT = math.radians(8)
"""Angle from the vertical within which the pendulum is rewarded."""

_GRAVITY, _TORQUE, _SPEED, _STEP = 10.0, 2.0, 8.0, 0.05  # Gymnasium's Pendulum-v1, of 1 kg and 1 m


class ChainBatch(HorizonBatch):
    """``N`` walkers on a chain of states, from its first to its last, which is worth a hundred times the first.

    Observations are one-hot. An action above 0 leads right, any other left. Each step that ends in the last state earns
    1, each that ends in the first 0.01, and an episode is two steps longer than the way: random actions get there with
    a chance of (n + 5) / 2^(n + 1), and whoever learns from rewards alone learns to stay.

    :param num_envs: N
    :param max_episode_steps: where episodes are cut; None: at ``length``; 0: never
    :param length: states of the chain (n)
    :param device: where the tensors are
    :param dtype: of observations and rewards
    :param autoreset_mode: see :class:`HorizonBatch`
    :raises ValueError: a chain of less than two states, no rows
    """

    truncates: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("is_success",)

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        *,
        length: int = 10,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if length < 2:
            raise ValueError(f"length is {length}: a chain has at least 2 states")
        limit = length + 1 if max_episode_steps is None else max_episode_steps or 2**62
        super().__init__(num_envs, limit, device, dtype, autoreset_mode)
        self.length = length
        kind: Any = np.float64 if dtype is torch.float64 else np.float32
        self._set_spaces(spaces.Box(0.0, 1.0, (length,), kind), spaces.Box(-1.0, 1.0, (1,), np.float32))
        self._registers |= {
            "place": torch.zeros(num_envs, dtype=torch.int64, device=self.device),
            "reached": torch.zeros(num_envs, dtype=torch.bool, device=self.device),
        }

    def _seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        """Nothing is drawn."""

    def _begin(self, rows: np.ndarray[Any, Any], mask: Tensor) -> None:
        held = self._registers
        held["place"], held["reached"] = held["place"].masked_fill(mask, 0), held["reached"] & ~mask

    def _move(self, actions: Tensor, times: Tensor) -> tuple[Tensor, Info]:
        held, last = self._registers, self.length - 1
        place = (held["place"] + 2 * (actions[:, 0] > 0).long() - 1).clamp(0, last)
        held["place"], held["reached"] = place, held["reached"] | (place == last)
        rewards = CROWN * (place == last).double() + CONSOLATION * (place == 0).double()
        return rewards, {"is_success": held["reached"]}

    def _limits(self) -> dict[str, int]:
        return super()._limits() | {"place": self.length - 1}

    def _observed(self) -> Tensor:
        return torch.nn.functional.one_hot(self._registers["place"], self.length).to(self.dtype)

    def like(self, num_envs: int) -> "ChainBatch":
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        mode = self.metadata["autoreset_mode"]
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "autoreset_mode": mode}
        return ChainBatch(num_envs, self.horizon, length=self.length, **options)


class SparsePendulumBatch(HorizonBatch):
    """``N`` pendulums that hang down and are rewarded for standing up: Gymnasium's Pendulum-v1 with another reward.

    Observations are the cosine and sine of the angle from the vertical, and its speed in rad/s. The action is the
    torque, from -1 to 1 of what cannot lift the pendulum at once. A step that ends within 8 degrees of the vertical
    earns 1, any other nothing.

    :param num_envs: N
    :param max_episode_steps: where episodes are cut; 0: never
    :param device: where the tensors are
    :param dtype: of observations and rewards
    :param autoreset_mode: see :class:`HorizonBatch`
    :raises ValueError: no rows
    """

    truncates: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("is_success",)

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int = 200,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        super().__init__(num_envs, max_episode_steps or 2**62, device, dtype, autoreset_mode)
        kind: Any = np.float64 if dtype is torch.float64 else np.float32
        high: Any = np.array([1.0, 1.0, _SPEED], kind)
        self._set_spaces(spaces.Box(-high, high, dtype=kind), spaces.Box(-1.0, 1.0, (1,), np.float32))
        for name in ("angle", "speed"):
            self._registers[name] = torch.zeros(num_envs, dtype=torch.float64, device=self.device)
        self._registers["reached"] = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._registers["stream"] = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._seed(range(num_envs), [None] * num_envs)

    def _seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        words = [start(seed) for seed in seeds]
        self._registers["stream"][list(rows)] = torch.tensor(words, dtype=torch.int64, device=self.device)

    def _begin(self, rows: np.ndarray[Any, Any], mask: Tensor) -> None:
        held = self._registers
        drawn, following = uniforms(held["stream"], 2)
        swing = 0.2 * drawn - 0.1  # around hanging still
        held["angle"] = torch.where(mask, math.pi + swing[:, 0], held["angle"])
        held["speed"] = torch.where(mask, swing[:, 1], held["speed"])
        held["reached"] = held["reached"] & ~mask
        held["stream"] = torch.where(mask, following, held["stream"])

    def _move(self, actions: Tensor, times: Tensor) -> tuple[Tensor, Info]:
        held = self._registers
        torque = _TORQUE * actions[:, 0].double().clamp(-1, 1)
        pull = 1.5 * _GRAVITY * held["angle"].sin() + 3 * torque
        held["speed"] = (held["speed"] + _STEP * pull).clamp(-_SPEED, _SPEED)
        held["angle"] = held["angle"] + _STEP * held["speed"]
        up = held["angle"].cos() >= math.cos(UPRIGHT)
        held["reached"] = held["reached"] | up
        return up.double(), {"is_success": held["reached"]}

    def _observed(self) -> Tensor:
        angle = self._registers["angle"]
        return torch.stack((angle.cos(), angle.sin(), self._registers["speed"]), 1).to(self.dtype)

    def like(self, num_envs: int) -> "SparsePendulumBatch":
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        mode = self.metadata["autoreset_mode"]
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "autoreset_mode": mode}
        return SparsePendulumBatch(num_envs, self.horizon, **options)


class ChainEnv(RowEnv):
    """A row of a :class:`ChainBatch` by itself.

    :param length: of the chain
    """

    batch_class = ChainBatch

    def __init__(self, length: int = 10) -> None:
        super().__init__(None, length=length)


class SparsePendulumEnv(RowEnv):
    """A row of a :class:`SparsePendulumBatch` by itself."""

    batch_class = SparsePendulumBatch


def make_chain_vector(
    num_envs: int, device: torch.device | str | None = None, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """:return: what ``gymnasium.make_vec`` does, see :func:`~headway.envs.vector.face`"""
    return face(ChainBatch, num_envs, device, **options)


def make_pendulum_vector(
    num_envs: int, device: torch.device | str | None = None, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """:return: what ``gymnasium.make_vec`` does, see :func:`~headway.envs.vector.face`"""
    return face(SparsePendulumBatch, num_envs, device, **options)


def register_all() -> None:
    """Register both; importing ``headway.envs`` has done it."""
    made = ((CHAIN_ID, "ChainEnv", None), (PENDULUM_ID, "SparsePendulumEnv", 200))  # a chain has a limit of its own
    for (env_id, single, limit), vector in zip(made, VECTOR_ENTRY_POINTS, strict=True):
        gym.register(env_id, entry_point=f"{__name__}:{single}", vector_entry_point=vector, max_episode_steps=limit)
