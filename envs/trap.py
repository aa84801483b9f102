"""A point mass whose straight way to the goal is a dead end: a small world that deceives gradients (our own)."""

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

TRAP_ID = "headway/Trap-v0"
SHALLOW_ID = "headway/ShallowTrap-v0"
SHALLOW = 0.2
"""Depth of the trap that a search finds out of, at times: out of 0.4 it did in none of six tries (our choice)."""
VECTOR_ENTRY_POINT = f"{__name__}:make_trap_vector"

START, GOAL = (-1.0, 0.0), (1.0, 0.0)
HALF_WIDTH = 0.6
"""Of the trap, whose back is the wall x = 0, |y| <= 0.6."""
BOUNDS = (2.0, 1.5)
"""|x| and |y| of the outer walls."""
REACHED = 0.15
"""Distance from the goal that counts as success."""

_STEP, _PUSH, _DRAG = 0.1, 1.0, 0.3
_GAP = 1e-3  # between a wall and a point that has run into it


class TrapBatch(HorizonBatch):
    """``N`` points that are pushed over a plane, from (-1, 0) towards (1, 0), into a U that is open towards them.

    Observations are x, y and their velocities; actions accelerate, each from -1 to 1. The reward of a step is minus the
    distance to the goal. The walls of the U are x = 0, |y| <= 0.6, and y = ±0.6 from x = -depth to 0: who comes nearer
    to the goal step by step ends in it, who is in it has to go away from the goal, by as much as the U is deep.

    :param num_envs: N
    :param max_episode_steps: where episodes are cut; 0: never
    :param depth: of the trap, in [0, 0.9]; 0 is a wall without sides
    :param device: where the tensors are
    :param dtype: of observations and rewards
    :param autoreset_mode: see :class:`HorizonBatch`
    :raises ValueError: a depth out of its range, no rows
    """

    truncates: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("is_success",)

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int = 200,
        *,
        depth: float = 0.6,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if not 0 <= depth <= 0.9:
            raise ValueError(f"depth is {depth}: it must lie in [0, 0.9], since points start at x = -1")
        super().__init__(num_envs, max_episode_steps or 2**62, device, dtype, autoreset_mode)
        self.depth = depth
        kind: Any = np.float64 if dtype is torch.float64 else np.float32
        high: Any = np.array([*BOUNDS, np.inf, np.inf], kind)
        self._set_spaces(spaces.Box(-high, high, dtype=kind), spaces.Box(-1.0, 1.0, (2,), np.float32))
        self._goal = torch.tensor(GOAL, dtype=torch.float64, device=self.device)
        self._bounds = torch.tensor(BOUNDS, dtype=torch.float64, device=self.device)
        self._registers |= {
            "place": torch.zeros(num_envs, 2, dtype=torch.float64, device=self.device),
            "velocity": torch.zeros(num_envs, 2, dtype=torch.float64, device=self.device),
            "reached": torch.zeros(num_envs, dtype=torch.bool, device=self.device),
            "stream": torch.zeros(num_envs, dtype=torch.int64, device=self.device),
        }
        self._seed(range(num_envs), [None] * num_envs)

    def _seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        words = [start(seed) for seed in seeds]
        self._registers["stream"][list(rows)] = torch.tensor(words, dtype=torch.int64, device=self.device)

    def _begin(self, rows: np.ndarray[Any, Any], mask: Tensor) -> None:
        held, column = self._registers, mask.unsqueeze(1)
        drawn, following = uniforms(held["stream"], 2)
        begun = torch.tensor(START, dtype=torch.float64, device=self.device) + 0.2 * drawn - 0.1
        held["place"] = torch.where(column, begun, held["place"])
        held["velocity"] = held["velocity"].masked_fill(column, 0)
        held["reached"] = held["reached"] & ~mask
        held["stream"] = torch.where(mask, following, held["stream"])

    def _move(self, actions: Tensor, times: Tensor) -> tuple[Tensor, Info]:
        held = self._registers
        pushed = held["velocity"] * (1 - _DRAG * _STEP) + _STEP * _PUSH * actions.double().clamp(-1, 1)
        place, velocity = self._past_walls(held["place"], pushed)
        held["place"], held["velocity"] = place, velocity
        distance = (place - self._goal).norm(dim=1)
        held["reached"] = held["reached"] | (distance < REACHED)
        return -distance, {"is_success": held["reached"]}

    def _past_walls(self, place: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Move along x, then along y, each up to the first wall, which takes the velocity across it."""
        x, y = place.unbind(1)
        vx, vy = velocity.unbind(1)
        moved = x + _STEP * vx
        hits = (x.sign() * moved.sign() < 0) & (y.abs() <= HALF_WIDTH)  # the back of the U is x = 0
        new_x, vx = torch.where(hits, x.sign() * _GAP, moved), vx.masked_fill(hits, 0)
        moved = y + _STEP * vy
        side = torch.where(y >= 0, HALF_WIDTH, -HALF_WIDTH)
        hits = ((y - side) * (moved - side) < 0) & (new_x <= 0) & (new_x >= -self.depth)
        new_y, vy = torch.where(hits, side + (y - side).sign() * _GAP, moved), vy.masked_fill(hits, 0)
        free = torch.stack((new_x, new_y), 1)
        held = torch.maximum(torch.minimum(free, self._bounds), -self._bounds)
        return held, torch.stack((vx, vy), 1).masked_fill(held != free, 0)

    def _observed(self) -> Tensor:
        return torch.cat((self._registers["place"], self._registers["velocity"]), 1).to(self.dtype)

    def like(self, num_envs: int) -> "TrapBatch":
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        mode = self.metadata["autoreset_mode"]
        return TrapBatch(
            num_envs, self.horizon, depth=self.depth, device=self.device, dtype=self.dtype, autoreset_mode=mode
        )


class TrapEnv(RowEnv):
    """A row of a :class:`TrapBatch` by itself.

    :param depth: of the trap
    """

    batch_class = TrapBatch

    def __init__(self, depth: float = 0.6) -> None:
        super().__init__(depth=depth)


def make_trap_vector(
    num_envs: int, device: torch.device | str | None = None, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """:return: what ``gymnasium.make_vec`` does, see :func:`~headway.envs.vector.face`"""
    return face(TrapBatch, num_envs, device, **options)


def register_all() -> None:
    """Register the traps; importing ``headway.envs`` has done it."""
    for name, options in ((TRAP_ID, {}), (SHALLOW_ID, {"depth": SHALLOW})):
        gym.register(
            name,
            entry_point=f"{__name__}:TrapEnv",
            vector_entry_point=VECTOR_ENTRY_POINT,
            max_episode_steps=200,
            kwargs=options,
        )
