"""Twin delayed deep deterministic policy gradient.

Fujimoto, van Hoof, Meger: "Addressing Function Approximation Error in Actor-Critic Methods", arXiv 1802.09477. The
equations below are the ones that Stable-Baselines3's TD3 implements; a test holds ten updates of the two against each
other.
"""

from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .core.compile import captured, compiled
from .core.config import LearningRate, OffPolicyConfig, Range, SmoothingConfig
from .core.data import Transitions
from .core.nets import Critics, DeterministicActor
from .core.off_policy import OffPolicyAgent
from .core.spaces import Obs


@dataclass(frozen=True, kw_only=True)
class TD3Config(SmoothingConfig, OffPolicyConfig):
    """Hyper-parameters of TD3. Names and defaults are Stable-Baselines3's, but for the exploration noise."""

    live = SmoothingConfig.live | OffPolicyConfig.live | {"action_noise_std"}

    learning_rate: LearningRate = 1e-3
    """Step size of Adam, for every network (Stable-Baselines3's default for TD3)."""

    action_noise_std: Annotated[float, Range(0, unit="half the action range")] = 0.1
    """Standard deviation of the Gaussian exploration noise (our choice; Stable-Baselines3 adds none unless told)."""


def smoothed_target(
    batch: Transitions,
    target_actor: DeterministicActor,
    target_critics: Critics,
    cfg: SmoothingConfig,
    noise: Tensor,
) -> Tensor:
    """y = r + gamma (1 - terminated) min_i Q'_i(s', clip(pi'(s') + eps)), eps = clip(noise * std).

    A truncated row bootstraps: only termination ends the sum.

    :param batch: transitions, B rows
    :param target_actor: the slow policy
    :param target_critics: the slow critics
    :param cfg: for gamma and the smoothing noise
    :param noise: standard normal, (B, A)
    :return: regression targets without gradient, (B,)
    """
    with torch.no_grad():
        eps = (noise * cfg.target_policy_noise).clamp(-cfg.target_noise_clip, cfg.target_noise_clip)
        next_actions = (target_actor.mode(batch.next_obs) + eps).clamp(-1, 1)  # (B, A)
        next_q: Tensor = target_critics(batch.next_obs, next_actions).amin(0)  # (E, B) -> (B,)
        return batch.rewards + cfg.gamma * next_q.masked_fill(batch.terminated, 0.0)


def critic_loss(critics: Critics, batch: Transitions, target: Tensor) -> Tensor:
    """J(Q) = sum_i E[(Q_i(s, a) - y)^2].

    :param critics: E of them
    :param batch: transitions, B rows
    :param target: (B,)
    :return: scalar
    """
    q: Tensor = critics(batch.obs, batch.actions)  # (E, B)
    return len(q) * F.mse_loss(q, target.expand_as(q))  # the sum over critics of means over rows


def actor_loss(critics: Critics, actor: DeterministicActor, obs: Obs) -> Tensor:
    """J(pi) = -E[Q_1(s, pi(s))].

    :param critics: of which the first is used; no gradient reaches their weights
    :param actor: the policy
    :param obs: (B, *O)
    :return: scalar
    """
    return -critics.first(obs, actor.mode(obs)).mean()


@final
class TD3(OffPolicyAgent[TD3Config]):
    """TD3: off-policy, deterministic, with clipped twin critics and a delayed, smoothed policy (arXiv 1802.09477).

    Each update does::

        y       = r + gamma (1 - terminated) min_i Q'_i(s', clip(pi'(s') + eps)),   eps ~ clip(N(0, std))
        Q_i    <- descend (Q_i(s, a) - y)^2

    and every ``policy_delay``-th one also::

        pi     <- ascend Q_1(s, pi(s))
        Q'_i   <- (1 - tau) Q'_i + tau Q_i,   pi' <- (1 - tau) pi' + tau pi

    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`TD3Config`.
    """

    config_class = TD3Config
    config: TD3Config

    def _build(self) -> None:
        cfg, codec = self.config, self.codec
        actor = DeterministicActor(codec.features(), self.actions.size, **cfg.perceptron)
        critics = Critics(codec.features(), self.actions.size, n_critics=cfg.n_critics, **cfg.perceptron)
        self.actor = self.track("actor", actor, target=True)
        self.critics = self.track("critics", critics, target=True)
        self._target = compiled(smoothed_target, cfg.compile, self.device)
        self._critic_loss = compiled(critic_loss, cfg.compile, self.device)
        self._actor_loss = compiled(actor_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return self.actor.module.mode(obs)

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """The policy's action with Gaussian noise; see :meth:`ActorCriticAgent.explore`."""
        actions = self.actor.module.mode(obs)
        noise = torch.randn(actions.shape, generator=self.generators["collect"], device=self.device)
        return {"actions": (actions + self.config.action_noise_std * noise).clamp(-1, 1)}

    def _update(self, phase: str) -> dict[str, Tensor]:
        moves = (self._n_updates + 1) % self.config.policy_delay == 0
        return self._step(self.sample(), self.config, moves)

    def _take_step(self, batch: Transitions, cfg: TD3Config, moves: bool) -> dict[str, Tensor]:
        noise = self.noise(cfg.batch_size, self.actions.size)
        target_actor, target_critics = self.actor.target, self.critics.target
        assert target_actor is not None
        assert target_critics is not None

        target = self._target(batch, target_actor, target_critics, cfg, noise)
        metrics = {"critic_loss": self._critic_loss(self.critics.module, batch, target)}
        self.critics.minimise(metrics["critic_loss"])

        if moves:
            metrics["actor_loss"] = self._actor_loss(self.critics.module, self.actor.module, batch.obs)
            self.actor.minimise(metrics["actor_loss"])
            self.critics.follow(cfg.tau)
            self.actor.follow(cfg.tau)
        return metrics
