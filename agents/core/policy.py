"""The policy through which Stable-Baselines3's tools see an agent: numpy in, numpy out, one observation or many."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from .spaces import Actions, Obs, ObservationCodec

Memory = dict[str, Tensor]
"""What an agent carries from step to step of an episode, (B, …) each; ``predict`` takes and returns it as ``state``."""

Act = Callable[[Obs, bool, Memory | None, Tensor | None], tuple[Tensor, Memory | None]]


class AgentPolicy(BasePolicy):
    """An agent's networks behind Stable-Baselines3's ``BasePolicy``.

    :param observation_space: what it reads
    :param action_space: what it acts in
    :param networks: the agent's networks by name, targets included
    :param act: maps encoded observations (B, *O), "deterministic", the memory and which rows begin an episode (B,) to
        the agent's actions and the memory
    :param codec: how observations are encoded
    :param actions: how the agent's actions become the environment's
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        networks: Mapping[str, nn.Module],
        act: Act,
        codec: ObservationCodec,
        actions: Actions,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.networks = nn.ModuleDict(networks)
        self._act, self._codec, self._actions = act, codec, actions

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Choose actions.

        :param observation: one observation, or a batch of them, as arrays
        :param state: what the last call returned as such, of agents that remember
        :param episode_start: rows that begin an episode, whose memory starts afresh, (B,)
        :param deterministic: the mode of the policy instead of a sample
        :return: actions within the space's bounds, and the memory (None of agents that have none)
        """
        self.set_training_mode(False)
        tensors, several = self.obs_to_tensor(observation)
        starts = None if episode_start is None else torch.as_tensor(episode_start, device=self.device).bool()
        with torch.no_grad():
            chosen, state = self._act(self._codec.encode(tensors, self.device), deterministic, state, starts)
            array = self._actions.to_env(chosen).cpu().numpy().astype(self.action_space.dtype, copy=False)
        array = array.reshape(-1, *(self.action_space.shape or ()))
        if isinstance(self.action_space, spaces.Box):  # the space's own precision may be another than float32
            array = np.clip(array, self.action_space.low, self.action_space.high)
        return (array if several else array[0]), state

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self._act(self._codec.encode(observation, self.device), deterministic, None, None)[0]

    def forward(self, observation: Any, deterministic: bool = False) -> Tensor:
        """:return: the agent's own actions for a batch of observation tensors, as :meth:`predict` before scaling."""
        with torch.no_grad():
            return self._predict(observation, deterministic)
