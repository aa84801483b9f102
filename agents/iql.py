"""Implicit Q-learning.

Kostrikov, Nair, Levine: "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169. Constants and the
order of the updates are those of the authors' public code. ``extraction="ddpg+bc"`` takes the policy out of the same
critics as arXiv 2406.09329 advises, which finds weighted regression to be the bottleneck.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, final

import torch
from torch import Tensor

from .bc import cloning_loss
from .core.compile import captured, compiled
from .core.config import Count, Fraction, OffPolicyConfig, Positive, Range
from .core.data import Transitions
from .core.nets import Critics, DensityActor, QValues, StateCritics, action_values, orthogonal_
from .core.off_policy import OffPolicyAgent
from .core.offline import act, density_policy, joined, joined_rows
from .core.offline_to_online import OfflineToOnlineAgent, OfflineToOnlineConfig
from .core.spaces import Obs


@dataclass(frozen=True, kw_only=True)
class IQLConfig(OfflineToOnlineConfig, OffPolicyConfig):
    """Hyper-parameters of IQL. Defaults are those of the authors' code for MuJoCo's locomotion."""

    live = (
        OfflineToOnlineConfig.live
        | OffPolicyConfig.live
        | {"expectile", "inverse_temperature", "max_weight", "bc_coef"}
    )

    expectile: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.7
    """tau: 0.5 is the mean; towards 1, V tends to the greatest value among the data's actions."""

    inverse_temperature: Annotated[float, Range(0)] = 3.0
    """b: 0 clones the data; greater ones prefer better actions."""

    max_weight: Positive = 100.0
    """Bound on exp(b A)."""

    extraction: Literal["weighted", "ddpg+bc"] = "weighted"
    """How the policy follows from the critics: by regression with weights, or by ascending Q beside the data."""

    bc_coef: Annotated[float, Range(0)] = 1.0
    """Weight of log pi(a|s) beside Q over its mean magnitude, with ddpg+bc (our choice)."""

    actor_schedule: Literal["constant", "cosine"] = "cosine"
    """Of the actor's learning rate: as learning_rate_schedule says, or down to zero along a cosine over
    total_timesteps. Online it is as learning_rate_schedule says."""

    n_critics: Count = 2
    """Critics, of whose values the least is used."""

    online_share: Fraction = 0.5
    """Share of new steps in a batch where learning goes on in an environment (symmetric sampling, arXiv 2302.02948)."""


def expectile_loss(values: Tensor, q: Tensor, expectile: float) -> Tensor:
    """L(V) = E[|tau - 1(u < 0)| u^2], u = Q(s, a) - V(s), eq. 5.

    :param values: V(s), (*stack, B)
    :param q: (*stack, B)
    :param expectile: tau
    :return: scalar: the mean over rows, the sum over a stack
    """
    u = q - values
    weight = (expectile - (u < 0).to(u.dtype)).abs()
    return (weight * u.square()).mean(-1).sum()


def advantage_weights(q: Tensor, values: Tensor, b: float, most: float) -> Tensor:
    """min(exp(b (Q(s, a) - V(s))), most), eq. 7.

    :return: (*stack, B)
    """
    return (b * (q - values)).exp().clamp(max=most)


def critic_loss(critics: Critics | QValues, batch: Transitions, next_values: Tensor, gamma: float) -> Tensor:
    """J(Q) = sum_i E[(Q_i(s, a) - (r + gamma (1 - terminated) V(s')))^2], eq. 6.

    A truncated row bootstraps: only termination ends the sum.

    :param critics: E of them
    :param batch: (*stack, B, …)
    :param next_values: V(s'), without gradient, (*stack, B)
    :param gamma: discount per step
    :return: scalar
    """
    target = batch.rewards + gamma * next_values.masked_fill(batch.terminated, 0.0)
    q = action_values(critics, batch.obs, batch.actions)  # (*stack, E, B)
    return (q - target.unsqueeze(-2)).square().mean(-1).sum()


def ascending_loss(actor: DensityActor, critics: Critics, batch: Transitions, bc_coef: float) -> Tensor:
    """L(pi) = -E[min_i Q_i(s, mu(s))] / E[|min_i Q_i|] - c E[log pi(a|s)] (arXiv 2406.09329, section 3).

    :param actor: the policy, mu its mean
    :param critics: no gradient reaches their weights
    :param batch: (*stack, B, …)
    :param bc_coef: c
    :return: scalar
    """
    q: Tensor = critics(batch.obs, actor.mode(batch.obs), frozen=True).amin(-2)  # (*stack, B)
    scale = q.detach().abs().mean(-1, keepdim=True)
    return -(q / scale).mean(-1).sum() + bc_coef * cloning_loss(actor, batch)


@final
class IQL(OfflineToOnlineAgent[IQLConfig]):
    """IQL: off-policy from data, never asking for the value of an action that is not in them (arXiv 2110.06169).

    Each update does, in this order::

        V      <- descend |tau - 1(u < 0)| u^2,   u = min_i Q'_i(s, a) - V(s)
        pi     <- ascend min(exp(b (min_i Q'_i(s, a) - V(s))), 100) log pi(a|s)
        Q_i    <- descend (Q_i(s, a) - r - gamma (1 - terminated) V(s'))^2
        Q'_i   <- (1 - tau') Q'_i + tau' Q_i

    Actions of a Box have a Gaussian around tanh of the network's output, not squashed. The authors' dropout in the
    actor for Adroit's tasks is left out. In an environment it goes on, with the same losses, on old and new steps.

    Parameters as :class:`~headway.agents.core.offline.OfflineAgent`, hyper-parameters as :class:`IQLConfig`.
    """

    config_class = IQLConfig
    config: IQLConfig
    action_kinds = ("Box", "Discrete")

    def _build(self) -> None:
        cfg, shape = self.config, {"stack": self.stack, **self.config.perceptron}
        if cfg.extraction == "ddpg+bc" and self.actions.choices is not None:
            raise ValueError("extraction='ddpg+bc' ascends Q along the action, and these are choices: use 'weighted'")
        actor = DensityActor(self.features(), density_policy(self), **shape)
        critics: Critics | QValues
        if self.actions.choices is None:
            critics = Critics(self.features(), self.actions.size, n_critics=cfg.n_critics, **shape)
        else:
            critics = QValues(self.features(), self.actions.size, n_critics=cfg.n_critics, **shape)
        value = StateCritics(self.features(), n_critics=1, **shape)
        for head in (actor, critics, value):
            orthogonal_(head, output_gain=2**0.5)
        self.actor = self.track("actor", actor)
        self.critics = self.track("critics", critics, target=True)
        self.value = self.track("value", value)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])
        self._value_loss = compiled(expectile_loss, cfg.compile, self.device)
        self._critic_loss = compiled(critic_loss, cfg.compile, self.device)
        self._cloning_loss = compiled(cloning_loss, cfg.compile, self.device)
        self._ascending_loss = compiled(ascending_loss, cfg.compile, self.device)

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return act(self.actor.module, obs, deterministic, generator)

    def sample(self, rows: int | None = None) -> Any:
        """:return: a batch: of the data, of what was collected, or of both; (*stack, B, …)"""
        rows = self.config.batch_size if rows is None else rows
        new = 0 if self.is_offline else rows if self.data is None else round(rows * self.config.online_share)
        if new == 0:
            return super().sample(rows)
        collected = OffPolicyAgent.sample(self, new)
        return collected if new == rows else joined(collected, self.draw(rows - new))

    def _actor_rate(self) -> float:
        """:return: the share of the actor's learning rate that a cosine has left; online, what all others have"""
        if self.is_offline:
            return 0.5 * (1 - math.cos(math.pi * self.progress_remaining))
        return self.config.rate_left(self.progress_remaining)

    def _update(self, phase: str) -> dict[str, Tensor]:
        if self.config.actor_schedule == "cosine":
            self.actor.scale_learning_rate(self._actor_rate())
        return self._step(self.sample(), self.config)

    def _take_step(self, batch: Transitions, cfg: IQLConfig) -> dict[str, Tensor]:
        actor, critics, value = self.actor.module, self.critics.module, self.value.module
        assert self.critics.target is not None
        with torch.no_grad():
            q = action_values(self.critics.target, batch.obs, batch.actions).amin(-2)  # (*stack, B)
        value_loss = self._value_loss(value(batch.obs).squeeze(-2), q, cfg.expectile)
        self.value.minimise(value_loss)
        with torch.no_grad():
            both = value(joined_rows(batch.obs, batch.next_obs, len(self.stack)))  # (*stack, 1, 2 B)
            values, next_values = both.squeeze(-2).chunk(2, -1)
            weights = advantage_weights(q, values, cfg.inverse_temperature, cfg.max_weight)
        if cfg.extraction == "weighted":
            actor_loss = self._cloning_loss(actor, batch, weights)
        else:
            actor_loss = self._ascending_loss(actor, cast(Critics, critics), batch, cfg.bc_coef)
        self.actor.minimise(actor_loss)
        loss = self._critic_loss(critics, batch, next_values, cfg.gamma)
        self.critics.minimise(loss)
        self.critics.follow(cfg.tau)
        clipped = (weights >= cfg.max_weight).float().mean()
        return {"value_loss": value_loss, "actor_loss": actor_loss, "critic_loss": loss, "clipped_weights": clipped}
