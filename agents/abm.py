"""Advantage-weighted behaviour models.

Siegel, Springenberg, Berkenkamp, Abdolmaleki, Neunert, Lampe, Hafner, Heess, Riedmiller: "Keep Doing What Worked:
Behavioral Modelling Priors for Offline Reinforcement Learning", arXiv 2002.08396. Written from memory of the paper;
policies improve as in MPO (arXiv 1806.06920), and constants are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bc import cloning_loss
from .core.compile import captured
from .core.config import Count, Positive, Range
from .core.data import Transitions
from .core.nets import Adam, BoundedGaussian, Critics, DensityActor
from .core.offline import Dataset, OfflineAgent, OfflineConfig, act
from .core.spaces import Obs, map_obs


@dataclass(frozen=True, kw_only=True)
class ABMConfig(OfflineConfig):
    """Hyper-parameters of ABM. Defaults are ours."""

    live = OfflineConfig.live | {"epsilon", "epsilon_mean", "epsilon_std", "target_update_interval"}

    n_samples: Count = 20
    """Actions that stand for a policy's expectation."""

    n_steps: Count = 10
    """Rewards of an advantage before a value stands for the rest."""

    epsilon: Positive = 0.1
    """Divergence from the prior that better actions are weighted by, in nats."""

    epsilon_mean: Positive = 5e-3
    """How far the policy's mean may move from the target policy's, in nats."""

    epsilon_std: Positive = 1e-5
    """How far its standard deviation may, in nats."""

    target_update_interval: Count = 200
    """Gradient steps between copies to the target networks."""

    multiplier_learning_rate: Annotated[float, Range(0, 1, open_low=True)] = 1e-2
    """Step size of Adam for the multipliers of the three constraints."""

    n_critics: Count = 2
    """Critics, of whose target values the least is used."""


@dataclass(frozen=True, slots=True)
class Snippets(Transitions):
    """Transitions, and the next few rewards.

    :param partial: sum_(k < n) gamma^k r_(t+k), up to ``n_steps`` or the episode's end, (*stack, B)
    :param discount: gamma^n of what follows; 0 after a termination, (*stack, B)
    :param later_obs: s_(t+n), (*stack, B, *O)
    """

    partial: Tensor
    discount: Tensor
    later_obs: Obs


def look_ahead(
    rewards: Tensor, terminated: Tensor, ended: Tensor, gamma: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the next few rewards of every step.

    :param rewards: in the order of time, (R,)
    :param terminated: (R,) bool
    :param ended: the row after is no continuation, (R,) bool
    :param gamma: discount per step
    :param steps: n, at most
    :return: sum_(k < n) gamma^k r_(t+k); gamma^n, or 0 where the last of them terminated; and t + n - 1, (R,) each
    """
    last = torch.arange(len(rewards), device=rewards.device)
    partial, discount = rewards.clone(), torch.full_like(rewards, gamma)
    for _ in range(steps - 1):
        goes_on = ~ended[last]
        following = (last + 1).clamp(max=len(rewards) - 1)
        partial += torch.where(goes_on, discount * rewards[following], 0.0)
        discount = torch.where(goes_on, discount * gamma, discount)
        last = torch.where(goes_on, following, last)
    return partial, discount.masked_fill(terminated[last], 0.0), last


class Multipliers(nn.Module):
    """eta, and the two of the trust region, kept positive by softplus.

    :param stack: axes of members
    """

    def __init__(self, stack: Sequence[int] = ()) -> None:
        super().__init__()
        self.stack = tuple(stack)
        self.raw = nn.Parameter(torch.full((*self.stack, 1, 3), math.log(math.e - 1)))  # softplus is 1

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """:return: (*stack, 1) each"""
        eta, mean, std = (F.softplus(self.raw) + 1e-6).unbind(-1)
        return eta, mean, std


def temperature_dual(q: Tensor, eta: Tensor, epsilon: float) -> Tensor:
    """g(eta) = eta epsilon + eta E_s[log mean_j exp(Q(s, a_j) / eta)] (arXiv 1806.06920, eq. 9).

    :param q: of M actions of the prior, (*stack, M, B)
    :param eta: (*stack, 1)
    :param epsilon: bound on the divergence
    :return: scalar, the sum over a stack
    """
    soft = (q / eta.unsqueeze(-1)).logsumexp(-2) - math.log(q.shape[-2])  # (*stack, B)
    return (eta.squeeze(-1) * (epsilon + soft.mean(-1))).sum()


def moved(policy: BoundedGaussian, mean: Tensor, old_mean: Tensor, old_log_std: Tensor) -> tuple[Tensor, Tensor]:
    """KL(old || new) of Gaussians, its part by the mean and its part by the standard deviation.

    :return: in nats: the mean over rows, (*stack, 1); (*stack, 1)
    """
    by_mean = 0.5 * ((mean - old_mean) / old_log_std.exp()).square().sum(-1).mean(-1, keepdim=True)
    change = policy.log_std - old_log_std  # (*stack, 1, A)
    by_std = (0.5 * (-2 * change).exp() - 0.5 + change).sum(-1)
    return by_mean, by_std


def _log_std(actor: DensityActor) -> Tensor:
    """:return: (*stack, 1, A)"""
    assert isinstance(actor.policy, BoundedGaussian)
    return actor.policy.log_std


@final
class ABM(OfflineAgent[ABMConfig]):
    """ABM: from data, MPO's improvement of a prior that imitates what went better than expected (arXiv 2002.08396).

    Each update does, with V'(s) the mean of min_i Q'_i(s, a) over actions of the target policy::

        Q_i      <- descend (Q_i(s, a) - r - gamma (1 - terminated) V'(s'))^2
        pi_abm   <- ascend 1[sum_(k < n) gamma^k r_k + gamma^n V'(s_n) >= V'(s)] log pi_abm(a|s)
        q_j       = softmax_j(Q'(s, a_j) / eta),   a_j ~ pi_abm(.|s),   eta from the dual with KL <= epsilon
        pi       <- ascend sum_j q_j log pi(a_j|s), within a trust region around the target policy

    Parameters as :class:`~headway.agents.core.offline.OfflineAgent`, hyper-parameters as :class:`ABMConfig`.
    """

    config_class = ABMConfig
    config: ABMConfig

    def _build(self) -> None:
        cfg, shape = self.config, {"stack": self.stack, **self.config.perceptron}
        policies = [BoundedGaussian(self.actions.size, -1.0, stack=self.stack) for _ in range(2)]
        actor, prior = (DensityActor(self.features(), policy, **shape) for policy in policies)
        self.actor = self.track("actor", actor, target=True)
        self.prior = self.track("prior", prior)
        critics = Critics(self.features(), self.actions.size, n_critics=cfg.n_critics, **shape)
        self.critics = self.track("critics", critics, target=True)
        settings = Adam(learning_rate=cfg.multiplier_learning_rate)
        self.multipliers = self.track("multipliers", Multipliers(self.stack), optimiser=settings)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _load_data(self, dataset: Dataset) -> Snippets:
        data, cfg = super()._load_data(dataset), self.config
        ended = data.terminated | data.truncated
        ended[-1] = True
        partial, discount, last = look_ahead(data.rewards, data.terminated, ended, cfg.gamma, cfg.n_steps)
        plain = {field.name: getattr(data, field.name) for field in fields(data)}
        later = map_obs(lambda part: part.index_select(0, last), data.next_obs)
        return Snippets(**plain, partial=partial, discount=discount, later_obs=later)

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return act(self.actor.module, obs, deterministic, generator)

    def _update(self, phase: str) -> dict[str, Tensor]:
        follows = (self._n_updates + 1) % self.config.target_update_interval == 0
        batch, cfg = self.sample(), self.config
        noise = self.noise(4, cfg.n_samples, cfg.batch_size, self.actions.size)  # (*stack, 4, M, B, A)
        return self._step(batch, noise, cfg, follows)

    def _several(self, actor: DensityActor, obs: Obs, noise: Tensor) -> Tensor:
        """:return: M actions in each of B states, (*stack, M, B, A)"""
        mean, log_std = actor.mode(obs).unsqueeze(-3), _log_std(actor).unsqueeze(-3)
        return torch.addcmul(mean, log_std.exp(), noise).clamp(-1, 1)

    def _q(self, obs: Obs, actions: Tensor) -> Tensor:
        """:return: the least target critic's values of M actions in each of B states, (*stack, M, B)"""
        rows, axis = actions.shape[-3:-1], len(self.stack)

        def repeated(part: Tensor) -> Tensor:  # (*stack, M B, *O)
            wide = part.unsqueeze(axis).expand(*part.shape[:axis], rows[0], *part.shape[axis:])
            return wide.flatten(axis, axis + 1)

        assert self.critics.target is not None
        q: Tensor = self.critics.target(map_obs(repeated, obs), actions.flatten(-3, -2)).amin(-2)
        return q.view(*q.shape[:-1], *rows)

    def _take_step(self, batch: Any, noise: Tensor, cfg: ABMConfig, follows: bool) -> dict[str, Tensor]:
        target, prior = self.actor.target, self.prior.module
        assert target is not None
        with torch.no_grad():
            states = (batch.next_obs, batch.later_obs, batch.obs)
            next_v, later_v, values = (
                self._q(obs, self._several(target, obs, part)).mean(-2)
                for obs, part in zip(states, noise.unbind(-4), strict=False)
            )
            y = batch.rewards + cfg.gamma * next_v.masked_fill(batch.terminated, 0.0)
            better = (batch.partial + batch.discount * later_v >= values).float()
        q = self.critics.module(batch.obs, batch.actions)  # (*stack, E, B)
        critic = (q - y.unsqueeze(-2)).square().mean(-1).sum()
        self.critics.minimise(critic)
        prior_loss = cloning_loss(prior, batch, better)
        self.prior.minimise(prior_loss)
        actor_loss, h = self._improve(batch.obs, noise.select(-4, 3), cfg)
        if follows:
            self.critics.follow(1.0)
            self.actor.follow(1.0)
        losses = {"critic_loss": critic, "prior_loss": prior_loss, "actor_loss": actor_loss}
        return losses | {"better": better.mean(), "eta": h.mean()}

    def _improve(self, obs: Obs, noise: Tensor, cfg: ABMConfig) -> tuple[Tensor, Tensor]:
        """Fit the policy to better actions of the prior; :return: its loss, and eta"""
        actor, target, multipliers = self.actor.module, self.actor.target, self.multipliers.module
        assert target is not None
        policy: Any = actor.policy
        with torch.no_grad():
            actions = self._several(self.prior.module, obs, noise)
            q = self._q(obs, actions)
            old_mean, old_log_std = target.mode(obs), _log_std(target)
        eta, by_mean, by_std = multipliers()
        weights = (q / eta.detach().unsqueeze(-1)).softmax(-2)  # (*stack, M, B)
        mean = actor.mode(obs)
        # Decoupled, as in MPO: the mean is fitted with the old deviation, the deviation around the old mean.
        fits = [
            (-0.5 * ((actions - centre.unsqueeze(-3)) / spread.exp()).square() - spread).sum(-1)
            for centre, spread in (
                (mean, old_log_std.unsqueeze(-3)),
                (old_mean, policy.log_std.unsqueeze(-3)),
            )
        ]
        fit = (weights * (fits[0] + fits[1])).sum(-2).mean(-1).sum()
        kl_mean, kl_std = moved(policy, mean, old_mean, old_log_std)
        loss = -fit + (by_mean.detach() * kl_mean + by_std.detach() * kl_std).sum()
        dual = temperature_dual(q, eta, cfg.epsilon)
        dual = dual + (by_mean * (cfg.epsilon_mean - kl_mean.detach())).sum()
        dual = dual + (by_std * (cfg.epsilon_std - kl_std.detach())).sum()
        self.actor.minimise(loss)
        self.multipliers.minimise(dual)
        return loss, eta.detach()
