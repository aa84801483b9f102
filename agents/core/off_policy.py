"""The bases of agents that learn from a replay store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .agent import ActorCriticAgent
from .config import AgentConfig, OffPolicyConfig, ReplayConfig, StoreConfig
from .data import ReplayStore, Step, StepCollector, Transitions, transition_fields
from .files import contents

C = TypeVar("C", bound=StoreConfig)
R = TypeVar("R", bound=ReplayConfig)


class ReplayAgent(ActorCriticAgent[C]):
    """An agent with a replay store, whatever fills it. Its configuration is a :class:`StoreConfig`."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.store = self._make_store()
        self.register("store", self.store)

    def _reset_env(self, seeds: list[int | None] | None = None) -> None:
        super()._reset_env(seeds)
        self.store.cut()  # what was stored before is not followed by what comes now

    def _make_store(self) -> ReplayStore[Any]:
        """:return: the store; an agent that keeps more fields overrides this."""
        return ReplayStore(
            Transitions,
            transition_fields(self.codec.raw_spec, self.actions.field),
            capacity=self.store_capacity,
            n_envs=self.n_envs,
            device=self.device,
            generator=self.generators["store"],
        )

    @property
    def store_capacity(self) -> int:
        """Rows that the store has room for, over all environments together."""
        return self.config.buffer_size

    def keep(self, step: Step) -> None:
        """Store a step; an agent that keeps more fields overrides this.

        :param step: of all environments
        """
        self.store.add(step.transitions(), step.real)

    def sample(self, rows: int | None = None) -> Transitions:
        """Draw from the store.

        :param rows: B; None: ``batch_size``
        :return: a batch, normalised where the environment is
        """
        return self.normalised(self.store.sample(self.config.batch_size if rows is None else rows))

    def normalised(self, batch: Transitions) -> Transitions:
        """:return: stored steps as they are read: normalised where the environment is"""
        if self.normalizer is None:
            if not self.codec.is_wide:
                return batch
            obs, next_obs = (self.codec.narrowed(part) for part in (batch.obs, batch.next_obs))
            return replace(batch, obs=obs, next_obs=next_obs)
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

    @replay_buffer.setter
    def replay_buffer(self, value: Any) -> None:
        raise AttributeError(
            f"{type(self).__name__}.replay_buffer is not set by assignment: use save_replay_buffer(path) of the one "
            "agent and load_replay_buffer(path) of the other"
        )

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


class OffPolicyAgent(ReplayAgent[R]):
    """An agent that fills a replay store step by step, and learns from it after each few steps or episodes.

    Its configuration is a :class:`ReplayConfig`; an :class:`OffPolicyConfig`, unless it has :meth:`phases` of its own.
    """

    collector: StepCollector

    def _config_changed(self, before: AgentConfig) -> None:
        collector = self._make_collector()  # refuses what it cannot do
        super()._config_changed(before)
        self.collector.length, self.collector.unit = collector.length, collector.unit

    def choose(self) -> dict[str, Tensor]:
        """:return: uniformly random actions before ``learning_starts``, what :meth:`explore` says after."""
        if self.num_timesteps < self.config.learning_starts:
            return {"actions": self.actions.random(self.n_envs, self.generators["collect"])}
        return super().choose()

    def _make_collector(self) -> StepCollector:
        frequency = self.config.train_freq
        length, unit = frequency if isinstance(frequency, tuple) else (frequency, "step")
        if unit == "episode" and self.n_envs > 1:
            raise ValueError(f"train_freq in episodes needs one environment, got {self.n_envs}: count steps instead")
        return StepCollector(self, length, unit)

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`; so many gradient steps as the configuration says."""
        if self.num_timesteps <= self.config.learning_starts:
            return []
        assert isinstance(self.config, OffPolicyConfig)
        steps = self.config.gradient_steps
        return self.schedule(collected if steps < 0 else self.collector.share(steps, collected))
