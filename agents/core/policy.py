"""The policy through which Stable-Baselines3's tools see an agent: numpy in, numpy out, one observation or many."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from .spaces import ObservationCodec

Act = Callable[[Tensor, bool], Tensor]


class AgentPolicy(BasePolicy):
    """An agent's networks behind Stable-Baselines3's ``BasePolicy``.

    :param observation_space: what it reads
    :param action_space: what it acts in
    :param networks: the agent's networks by name, targets included
    :param act: maps encoded observations (B, *O) and "deterministic" to actions (B, A), in [-1, 1] when squashed
    :param codec: how observations are encoded
    :param squash_output: actions are in [-1, 1] and get scaled to the space; otherwise they are clipped to it
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        networks: Mapping[str, nn.Module],
        act: Act,
        codec: ObservationCodec,
        *,
        squash_output: bool = True,
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=squash_output)
        self.networks = nn.ModuleDict(networks)
        self._act, self._codec = act, codec

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self._act(self._codec.encode(observation, self.device), deterministic)

    def forward(self, observation: Any, deterministic: bool = False) -> Tensor:
        """:return: actions for a batch of observation tensors, as :meth:`predict` before scaling."""
        with torch.no_grad():
            return self._predict(observation, deterministic)
