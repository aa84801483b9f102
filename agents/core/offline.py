"""The base of agents that learn from data that are there already."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from gymnasium import spaces
from torch import Tensor

from ...wrappers.spaces_only import SpacesOnlyVecEnv
from .agent import ActorCriticAgent
from .config import AgentConfig
from .data import GradientSteps, ReplayStore, Transitions, transition_fields
from .spaces import ObservationCodec

C = TypeVar("C", bound=AgentConfig)


class Dataset(Protocol):
    """Recorded steps, all of them, in the order of time, one episode after the other."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def transitions(self, codec: ObservationCodec) -> Mapping[str, Any]:
        """:return: the fields of :class:`Transitions`, observations encoded, the environment's actions, (R, …)"""


class OfflineAgent(ActorCriticAgent[C]):
    """An agent that learns from a dataset and needs no environment; a step of ``learn`` is a gradient step.

    Its environment is one of spaces alone, so that Stable-Baselines3's callbacks, its progress bar, ``set_env`` and
    ``load`` work; an ``EvalCallback`` takes a real one. ``log_interval`` counts thousands of gradient steps. The data
    are not part of checkpoints: ``resume`` takes them anew.

    :param dataset: what to learn from; not needed to predict
    """

    arguments = ("dataset",)
    dataset: Dataset | None
    store: ReplayStore[Transitions]

    def _default_env(self) -> Any:
        if self.dataset is None:
            return None
        return SpacesOnlyVecEnv(self.dataset.observation_space, self.dataset.action_space)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.dataset is not None:
            self.store = self._load_data(self.dataset)

    def _load_data(self, dataset: Dataset) -> ReplayStore[Transitions]:
        rows = dict(dataset.transitions(self.codec))
        rows["actions"] = self.actions.from_env(rows["actions"].to(self.device))
        store = ReplayStore(
            Transitions,
            transition_fields(self.codec.spec, self.actions.field),
            capacity=len(rows["rewards"]),
            n_envs=1,
            device=self.device,
            generator=self.generators["store"],
        )
        store.extend({name: _one_column(values) for name, values in rows.items()})
        return store

    def _make_collector(self) -> GradientSteps:
        return GradientSteps(self)

    def begin_gradient_step(self) -> None:
        """Count a gradient step, log when it is time, and make it the next thing to do.

        :raises ValueError: there are no data
        """
        if self.dataset is None:
            raise ValueError(f"{type(self).__name__} has no data to learn from: pass dataset=")
        self.num_timesteps += 1
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._log_between((self.num_timesteps - 1) // 1000, self.num_timesteps // 1000)
        self.end_round(1)


def _one_column(values: Any) -> Any:
    """:return: (R, …) as (R, 1, …): the steps of one environment."""
    if isinstance(values, Mapping):
        return {name: part.unsqueeze(1) for name, part in values.items()}
    assert isinstance(values, Tensor)
    return values.unsqueeze(1)
