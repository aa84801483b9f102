"""The base of agents that learn from a replay store."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .agent import ActorCriticAgent
from .config import OffPolicyConfig
from .data import FieldSpec, OffPolicyCollector, ReplayStore, Transitions
from .files import contents

C = TypeVar("C", bound=OffPolicyConfig)


class OffPolicyAgent(ActorCriticAgent[C]):
    """An agent that learns from a replay store.

    Its configuration is an :class:`OffPolicyConfig`.
    """

    collector: OffPolicyCollector

    def _setup_model(self) -> None:
        super()._setup_model()
        self.store = self._make_store()

    def _reset_env(self) -> None:
        super()._reset_env()
        self.store.cut()  # what was stored before is not followed by what comes now

    def _make_store(self) -> ReplayStore[Any]:
        """:return: the store; an agent that keeps more fields overrides this."""
        flag = FieldSpec((), torch.bool)
        obs = FieldSpec(self.codec.shape, self.codec.dtype)
        fields = {
            "obs": obs,
            "actions": FieldSpec((self.scaler.size,), torch.float32),
            "rewards": FieldSpec((), torch.float32),
            "terminated": flag,
            "truncated": flag,
            "next_obs": obs,
        }
        return ReplayStore(
            Transitions,
            fields,
            capacity=self.config.buffer_size,
            n_envs=self.n_envs,
            device=self.device,
            generator=self.generators["store"],
        )

    def to_store(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn a step into the fields of the store; an agent that overrides :meth:`_make_store` overrides this too.

        :param rows: encoded ``obs``, ``actions``, ``rewards``, ``terminated``, ``truncated`` and ``next_obs``, (N, …)
        :return: the fields, (N, …)
        """
        return rows

    def _make_collector(self) -> OffPolicyCollector:
        if isinstance(self.config.train_freq, tuple) and self.config.train_freq[1] == "episode" and self.n_envs > 1:
            raise ValueError(f"train_freq in episodes needs one environment, got {self.n_envs}: count steps instead")
        return OffPolicyCollector(self)

    def schedule_updates(self, collected: int) -> None:
        """Set how many gradient steps follow a round of data.

        :param collected: environment steps of the round
        """
        if self.num_timesteps > self.config.learning_starts:
            steps = self.config.gradient_steps
            self._pending_updates = collected if steps < 0 else steps * self.n_envs

    def sample(self) -> Transitions:
        """:return: a batch from the store, normalised where the environment is."""
        batch: Transitions = self.store.sample(self.config.batch_size)
        if self.normalizer is None:
            return batch
        return replace(
            batch,
            obs=self.normalizer.obs(batch.obs),
            next_obs=self.normalizer.obs(batch.next_obs),
            rewards=self.normalizer.rewards(batch.rewards),
        )

    def noise(self, *shape: int) -> Tensor:
        """:return: standard normal numbers for an update, from its own stream."""
        return torch.randn(shape, generator=self.generators["update"], device=self.device)

    @property
    def replay_buffer(self) -> ReplayStore[Any]:
        """The store, under the name by which Stable-Baselines3's tools look for one."""
        return self.store

    def save_replay_buffer(self, path: str | Path) -> None:
        """Save the experience alone.

        :param path: file to write
        """
        contents.save_store(self.store, path)

    def load_replay_buffer(self, path: str | Path) -> None:
        """Load experience saved by :meth:`save_replay_buffer`.

        :param path: the file
        :raises FileFormatError: it is broken or foreign
        :raises ValueError: its fields do not fit this agent
        """
        contents.load_store(self.store, path)
