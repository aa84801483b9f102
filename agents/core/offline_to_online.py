"""The base of agents that learn from data, and may go on in an environment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from .agent import ActorCriticAgent
from .config import AgentConfig, ReplayConfig
from .data import Collector
from .off_policy import OffPolicyAgent
from .offline import OfflineAgent, OfflineConfig


@dataclass(frozen=True, kw_only=True)
class OfflineToOnlineConfig(OfflineConfig, ReplayConfig):
    """What agents have that learn from data and go on in an environment: what they share with agents of a replay store
    counts there."""

    live = OfflineConfig.live | ReplayConfig.live


C = TypeVar("C", bound=OfflineToOnlineConfig)


class OfflineToOnlineAgent(OfflineAgent[C], OffPolicyAgent[C]):
    """An agent that learns from a dataset, from an environment, or from one after the other.

    Without a real environment it is an :class:`OfflineAgent`; in one, an :class:`OffPolicyAgent` that may have data
    besides what it collects. ``set_env`` leads from the one to the other.
    """

    goes_online = True

    def _connect_env(self) -> None:
        super()._connect_env()
        if self.is_offline:
            return
        if self.stack:
            raise ValueError("several seeds at once learn from data alone: go on with agent.member(i)")
        if self.normalizer is not None and self.dataset is not None:
            raise ValueError("the data are not as VecNormalize shows them: leave it out, and use normalize_obs=True")

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on in an environment with the spaces of the data, of any number of rows; see
        :meth:`ActorCriticAgent.set_env`."""
        was_offline = self.is_offline
        if was_offline:  # its rows were nobody's
            self.attach_env(env)
            env = self.env
        super().set_env(env, force_reset)
        self.collector = self._make_collector()  # type: ignore[assignment]
        if self.is_offline is not was_offline:
            self.store = self.parts["store"] = self._make_store()

    @property
    def store_capacity(self) -> int:
        """Rows that the store has room for: none to speak of where nothing is collected."""
        return 1 if self.is_offline else super().store_capacity

    def _make_collector(self) -> Collector:  # type: ignore[override]
        return super()._make_collector() if self.is_offline else OffPolicyAgent._make_collector(self)

    def _config_changed(self, before: AgentConfig) -> None:
        if self.is_offline:  # there are no rounds of environment steps, of which there might be more or fewer
            ActorCriticAgent._config_changed(self, before)
        else:
            super()._config_changed(before)

    def choose(self) -> dict[str, Tensor]:
        """:return: what :meth:`explore` says, from the first step on where there are data to begin with."""
        return super().choose() if self.data is None else ActorCriticAgent.choose(self)

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`; offline, a step is a gradient step."""
        return self.schedule(collected) if self.is_offline else super().phases(collected)
