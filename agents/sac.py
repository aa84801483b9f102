"""Soft actor-critic.

Haarnoja, Zhou, Hartikainen, Tucker, Ha, Tan, Kumar, Zhu, Gupta, Abbeel, Levine: "Soft Actor-Critic Algorithms and
Applications", arXiv 1812.05905. The equations below are the ones that Stable-Baselines3's SAC implements; a test holds
ten updates of the two against each other.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .core.compile import captured, compiled
from .core.config import Count
from .core.data import Transitions
from .core.entropy import EntropyAgent, EntropyConfig, temperature_loss
from .core.nets import Critics, SquashedGaussianActor
from .core.spaces import Obs, count_rows


@dataclass(frozen=True, kw_only=True)
class SACConfig(EntropyConfig):
    """Hyper-parameters of SAC. Names and defaults are Stable-Baselines3's."""

    live = EntropyConfig.live | {"target_update_interval"}

    target_update_interval: Count = 1
    """Gradient steps between moves of the target critics."""

    n_critics: Count = 2
    """Critics, of whose values the least is used."""


def soft_target(
    batch: Transitions,
    actor: SquashedGaussianActor,
    target_critics: Critics,
    alpha: Tensor,
    gamma: float,
    noise: Tensor,
) -> Tensor:
    """y = r + gamma (1 - terminated) (min_i Q'_i(s', a') - alpha log pi(a'|s')), a' ~ pi(.|s').

    A truncated row bootstraps: only termination ends the sum.

    :param batch: transitions, (*stack, B, …)
    :param actor: the policy
    :param target_critics: the slow critics
    :param alpha: temperature, (*stack)
    :param gamma: discount per step
    :param noise: standard normal, (*stack, B, A)
    :return: regression targets without gradient, (*stack, B)
    """
    with torch.no_grad():
        next_actions, next_log_prob = actor.sample(batch.next_obs, noise)  # (*stack, B, A), (*stack, B)
        next_q: Tensor = target_critics(batch.next_obs, next_actions).amin(-2)  # (*stack, E, B) -> (*stack, B)
        soft_value = (next_q - alpha.unsqueeze(-1) * next_log_prob).masked_fill(batch.terminated, 0.0)
        return batch.rewards + gamma * soft_value


def critic_loss(critics: Critics, batch: Transitions, target: Tensor) -> Tensor:
    """J(Q) = 1/2 sum_i E[(Q_i(s, a) - y)^2], summed over a stack of agents.

    :param critics: E of each
    :param batch: transitions, (*stack, B, …)
    :param target: (*stack, B)
    :return: scalar
    """
    q: Tensor = critics(batch.obs, batch.actions)  # (*stack, E, B)
    each = q.shape[:-1].numel()  # the sum over critics of means over rows
    return 0.5 * each * F.mse_loss(q, target.unsqueeze(-2).expand_as(q))


def actor_loss(critics: Critics, obs: Obs, actions: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """J(pi) = E[alpha log pi(a|s) - min_i Q_i(s, a)], a reparametrised, summed over a stack of agents.

    :param critics: E of each; no gradient reaches their weights
    :param obs: (*stack, B, *O)
    :param actions: drawn from the policy, differentiable, (*stack, B, A)
    :param log_prob: their log densities, (*stack, B)
    :param alpha: temperature, (*stack)
    :return: scalar
    """
    q: Tensor = critics(obs, actions, frozen=True)  # (*stack, E, B)
    return (alpha.unsqueeze(-1) * log_prob - q.min(-2).values).mean(-1).sum()


@final
class SAC(EntropyAgent[SACConfig]):
    """Soft actor-critic: off-policy, stochastic, maximising return plus entropy (arXiv 1812.05905).

    Each update does, in this order, with fresh noise::

        alpha  <- descend -log(alpha) (log pi(a|s) + target entropy)           (learned temperature only)
        y       = r + gamma (1 - terminated) (min_i Q'_i(s', a') - alpha log pi(a'|s')),   a' ~ pi(.|s')
        Q_i    <- descend 1/2 (Q_i(s, a) - y)^2
        pi     <- descend alpha log pi(a|s) - min_i Q_i(s, a),   a ~ pi(.|s)
        Q'_i   <- (1 - tau) Q'_i + tau Q_i

    Deviations from the paper, shared with Stable-Baselines3: the temperature loss multiplies log(alpha), not alpha.
    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`SACConfig`.
    """

    config_class = SACConfig
    config: SACConfig

    def _build(self) -> None:
        cfg, codec = self.config, self.codec
        actor = SquashedGaussianActor(codec.features(), self.actions.size, **cfg.perceptron)
        critics = Critics(codec.features(), self.actions.size, n_critics=cfg.n_critics, **cfg.perceptron)
        self.actor = self.track("actor", actor)
        self.critics = self.track("critics", critics, target=True)
        self._track_temperature()
        self._soft_target = compiled(soft_target, cfg.compile, self.device)
        self._critic_loss = compiled(critic_loss, cfg.compile, self.device)
        self._actor_loss = compiled(actor_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        if deterministic:
            return self.actor.module.mode(obs)
        noise = torch.randn(count_rows(obs), self.actions.size, generator=generator, device=self.device)
        return self.actor.module.sample(obs, noise)[0]

    def _update(self, phase: str) -> dict[str, Tensor]:
        follows = (self._n_updates + 1) % self.config.target_update_interval == 0
        return self._step(self.sample(), self._fixed_alpha, self.config, follows)

    def _take_step(self, batch: Transitions, fixed_alpha: Tensor, cfg: SACConfig, follows: bool) -> dict[str, Tensor]:
        noise = self.noise(2, cfg.batch_size, self.actions.size)
        actor, critics, target_critics = self.actor.module, self.critics.module, self.critics.target
        assert target_critics is not None

        actions, log_prob = actor.sample(batch.obs, noise[0])
        metrics: dict[str, Tensor] = {}
        alpha = fixed_alpha
        if cfg.learns_alpha:
            alpha = self.temperature.module.alpha
            metrics["ent_coef_loss"] = temperature_loss(
                self.temperature.module.log_alpha, log_prob, cfg.entropy_goal(self.actions.size)
            )
            self.temperature.minimise(metrics["ent_coef_loss"])

        target = self._soft_target(batch, actor, target_critics, alpha, cfg.gamma, noise[1])
        metrics["critic_loss"] = self._critic_loss(critics, batch, target)
        self.critics.minimise(metrics["critic_loss"])

        metrics["actor_loss"] = self._actor_loss(critics, batch.obs, actions, log_prob, alpha)
        self.actor.minimise(metrics["actor_loss"])

        if follows:
            self.critics.follow(cfg.tau)
        return metrics | {"ent_coef": alpha}
