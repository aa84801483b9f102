"""A learned model as an environment: for whoever is to be judged, searched or trained in what it imagines."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ...envs.batched import Info
from ...envs.horizon import HorizonBatch
from ...envs.splitmix import normals, start, uniforms
from ...envs.terminations import Termination
from ..core.spaces import actions_of
from .dynamics import Dynamics
from .imagination import by_any_elite


class ModelEnv(HorizonBatch):
    """``N`` rows of the world as an ensemble imagines it.

    Episodes begin in one of given observations. A row is moved by a member that is drawn anew in each step, as MBPO
    does, or at the start of each episode, as posterior sampling does. An episode ends where the termination says so,
    and is truncated after ``horizon`` steps.

    :param model: the ensemble, of which a copy is kept
    :param termination: of next observations
    :param starts: where episodes begin, (S, O)
    :param shown: the spaces of observations and actions, as the real environment has them
    :param num_envs: N
    :param horizon: steps per episode, at most
    :param members: numbers of the members that move rows, (M,) int64; None: all
    :param keeps_member: one member moves a row for a whole episode
    :param autoreset_mode: see :class:`~headway.envs.horizon.HorizonBatch`
    :raises ValueError: there is nowhere to begin, or another argument is out of range
    """

    truncates: ClassVar[bool] = True

    def __init__(
        self,
        model: Dynamics,
        termination: Termination,
        starts: Tensor,
        shown: tuple[spaces.Space[Any], spaces.Space[Any]],
        *,
        num_envs: int,
        horizon: int,
        members: Tensor | None = None,
        keeps_member: bool = False,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if not len(starts):
            raise ValueError("starts is empty: give at least one observation in which episodes begin")
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        super().__init__(num_envs, horizon, starts.device, torch.float32, autoreset_mode)
        self.model = deepcopy(model).requires_grad_(False)
        self.termination = deepcopy(termination)  # a network that learns it goes on learning
        self.starts, self.keeps_member = starts.clone(), keeps_member
        self.members = torch.arange(len(model), device=self.device) if members is None else members.clone()
        self._set_spaces(*shown)
        self._actions = actions_of(shown[1], self.device, squashes=True)
        self._registers |= {
            "obs": starts[:1].repeat(num_envs, 1),
            "over": torch.zeros(num_envs, dtype=torch.bool, device=self.device),
            "member": torch.zeros(num_envs, dtype=torch.int64, device=self.device),
            "streams": torch.zeros(num_envs, dtype=torch.int64, device=self.device),
        }
        self._seed(range(num_envs), [None] * num_envs)

    def _seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        words = torch.tensor([start(seed) for seed in seeds], dtype=torch.int64, device=self.device)
        streams = self._registers["streams"].clone()
        streams[torch.tensor(rows, dtype=torch.int64, device=self.device)] = words
        self._registers["streams"] = streams

    def _drawn(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """:return: of each row a place among the starts and a member, (N,) each; streams go on where the mask is set"""
        held = self._registers
        shares, after = uniforms(held["streams"], 2)
        held["streams"] = torch.where(mask, after, held["streams"])
        member = self.members[(shares[:, 1] * len(self.members)).long()]
        return (shares[:, 0] * len(self.starts)).long(), member

    def _begin(self, rows: np.ndarray[Any, Any], mask: Tensor) -> None:
        held = self._registers
        place, member = self._drawn(mask)
        held["obs"] = torch.where(mask.unsqueeze(1), self.starts[place], held["obs"])
        held["member"] = torch.where(mask, member, held["member"])
        held["over"] = held["over"] & ~mask

    def _move(self, actions: Tensor, times: Tensor) -> tuple[Tensor, Info]:
        held = self._registers
        if not self.keeps_member:
            held["member"] = self._drawn(torch.ones_like(held["over"]))[1]
        noise, held["streams"] = normals(held["streams"], 1 + self.starts.shape[1])
        given = (held["obs"], self._actions.from_env(actions), noise.float(), held["member"])
        obs, pushed, drawn, member = (part.unsqueeze(0) for part in given)
        step = by_any_elite(self.model, obs, pushed, drawn, self.termination, member)
        held["obs"], held["over"] = step.next_obs[0], step.terminated[0]
        return step.rewards[0], {}

    def _over(self) -> Tensor:
        return self._registers["over"]

    def _limits(self) -> dict[str, int]:
        return super()._limits() | {"member": len(self.model) - 1}

    def _observed(self) -> Tensor:
        return self._registers["obs"].clone()

    def like(self, num_envs: int) -> "ModelEnv":
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        return ModelEnv(
            self.model,
            self.termination,
            self.starts,
            (self.single_observation_space, self.single_action_space),
            num_envs=num_envs,
            horizon=self.horizon,
            members=self.members,
            keeps_member=self.keeps_member,
            autoreset_mode=self.metadata["autoreset_mode"],
        )
