"""Behaviour cloning: the baseline that every table of agents which learn from data needs.

Pomerleau: "ALVINN: An Autonomous Land Vehicle in a Neural Network", NeurIPS 1988; ``keep_best`` is the "10 % BC" of
arXiv 2106.01345, section 5.1, by episodes.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol, final

import torch
from torch import Tensor

from .core.compile import captured, compiled
from .core.config import Range
from .core.data import Transitions
from .core.nets import DensityActor
from .core.offline import Dataset, OfflineAgent, OfflineConfig, act, density_policy
from .core.spaces import Obs


@dataclass(frozen=True, kw_only=True)
class BCConfig(OfflineConfig):
    """Hyper-parameters of behaviour cloning."""

    live = OfflineConfig.live - {"gamma"}

    keep_best: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    """Share of the episodes, those of the highest return, that is imitated; at least one."""


class Demonstrations(Protocol):
    """What can be imitated."""

    @property
    def obs(self) -> Obs:
        """(*stack, B, *O)"""

    @property
    def actions(self) -> Tensor:
        """(*stack, B, A), or (*stack, B) int64"""


def cloning_loss(actor: DensityActor, batch: Demonstrations, weights: Tensor | None = None) -> Tensor:
    """L(pi) = -E[w log pi(a|s)]: maximum likelihood, or weighted regression.

    :param actor: the policy
    :param batch: observations and actions, (*stack, B, …)
    :param weights: (*stack, B); None: one each
    :return: scalar: the mean over rows, the sum over a stack
    """
    log_prob = actor.log_prob(batch.obs, batch.actions)  # (*stack, B)
    return -(log_prob if weights is None else weights * log_prob).mean(-1).sum()


def best_episodes(dataset: Dataset, share: float, groups: Tensor | None = None) -> Dataset:
    """Keep the episodes of the highest returns.

    :param dataset: with ``returns``, and ``select``
    :param share: of the episodes; at least one is kept
    :param groups: the number of the group that each episode competes in, (E,), for a share of each; None: one of all
    :return: a data set of these, one group after the other
    """
    returns: Tensor = dataset.returns  # type: ignore[attr-defined]
    groups = torch.zeros(len(returns), dtype=torch.int64) if groups is None else groups
    kept = []
    for group in torch.unique(groups):
        members = (groups == group).nonzero().squeeze(1)
        count = max(1, int(round(share * len(members), 6)))  # 0.29 of a hundred is 28.999999999999996
        kept.append(members[returns[members].argsort(descending=True, stable=True)[:count]])
    return dataset.select(torch.cat(kept))  # type: ignore[attr-defined, no-any-return]


@final
class BC(OfflineAgent[BCConfig]):
    """Behaviour cloning: from data, the actions of the data themselves, or of the best episodes.

    Each update does ``pi <- ascend log pi(a|s)``. Actions of a Box have a Gaussian around tanh of the network's output.

    Parameters as :class:`~headway.agents.core.offline.OfflineAgent`, hyper-parameters as :class:`BCConfig`.
    """

    config_class = BCConfig
    config: BCConfig
    action_kinds = ("Box", "Discrete")

    def _setup_model(self) -> None:
        if self.dataset is not None and self.config.keep_best < 1:
            self.dataset = best_episodes(self.dataset, self.config.keep_best)
        super()._setup_model()

    def _build(self) -> None:
        cfg = self.config
        policy = density_policy(self)
        self.actor = self.track("actor", DensityActor(self.features(), policy, stack=self.stack, **cfg.perceptron))
        self._loss = compiled(cloning_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return act(self.actor.module, obs, deterministic, generator)

    def _update(self, phase: str) -> dict[str, Tensor]:
        return self._step(self.sample())

    def _take_step(self, batch: Transitions) -> dict[str, Tensor]:
        loss = self._loss(self.actor.module, batch)
        self.actor.minimise(loss)
        return {"actor_loss": loss}
