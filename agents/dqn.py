"""Deep Q-learning.

Mnih et al.: "Human-level control through deep reinforcement learning", Nature 518, 2015; van Hasselt, Guez, Silver:
"Deep Reinforcement Learning with Double Q-learning", arXiv 1509.06461. The equations below are the ones that
Stable-Baselines3's DQN implements; a test holds ten updates of the two against each other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .core.compile import captured, compiled
from .core.config import Count, Fraction, LearningRate, OffPolicyConfig, Positive, Range
from .core.data import Step, Transitions
from .core.nets import QValues
from .core.off_policy import OffPolicyAgent
from .core.spaces import Obs


@dataclass(frozen=True, kw_only=True)
class DQNConfig(OffPolicyConfig):
    """Hyper-parameters of DQN. Names and defaults are Stable-Baselines3's."""

    live = OffPolicyConfig.live | {
        "target_update_interval",
        "exploration_fraction",
        "exploration_initial_eps",
        "exploration_final_eps",
        "double",
    }

    learning_rate: LearningRate = 1e-4
    """Step size of Adam."""

    batch_size: Count = 32
    """Rows per gradient step."""

    net_arch: tuple[Count, ...] = (64, 64)
    """Hidden layer widths."""

    tau: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    """Share of the weights that enters the target network when it moves."""

    train_freq: Count | tuple[Count, Literal["step", "episode"]] = 4
    """Steps of every environment between trainings; "1 episode" counts episodes instead."""

    max_grad_norm: Positive | None = 10.0
    """Clip the gradient to this Euclidean norm; none does not clip."""

    target_update_interval: Annotated[int, Range(1, unit="environment steps")] = 10_000
    """Steps, over all environments together, between moves of the target network."""

    exploration_fraction: Fraction = 0.1
    """Share of total_timesteps over which exploration falls."""

    exploration_initial_eps: Fraction = 1.0
    """Share of random actions at the start."""

    exploration_final_eps: Fraction = 0.05
    """Share of random actions from then on."""

    double: bool = False
    """Let the network choose the action that the target network values (arXiv 1509.06461, eq. 4)."""


Q = Callable[[Obs], Tensor]
"""Maps observations (B, *O) to values of all actions, (1, B, A): :class:`QValues`, or what looks like it."""


def best_target(batch: Transitions, q: Q, target_q: Q, gamma: float, double: bool) -> Tensor:
    """y = r + gamma (1 - terminated) Q'(s', a*), a* = argmax_a Q'(s', a), or of Q where it is double.

    A truncated row bootstraps: only termination ends the sum.

    :param batch: transitions, B rows
    :param q: the network
    :param target_q: the slow network
    :param gamma: discount per step
    :param double: whose best action
    :return: regression targets without gradient, (B,)
    """
    with torch.no_grad():
        next_q = target_q(batch.next_obs).squeeze(-3)  # (B, A)
        chooser = q(batch.next_obs).squeeze(-3) if double else next_q
        best = next_q.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)  # (B,)
        value: Tensor = best.masked_fill(batch.terminated, 0.0)
        return batch.rewards + gamma * value


def q_loss(q: Q, batch: Transitions, target: Tensor, error: Literal["huber", "mse"] = "huber") -> Tensor:
    """The mean of the errors Q(s, a) - y.

    :param q: the network
    :param batch: transitions, B rows
    :param target: y, (B,)
    :param error: Huber's, quadratic up to 1 and linear from there on, or the square
    :return: scalar
    """
    values = q(batch.obs).squeeze(-3).gather(1, batch.actions.unsqueeze(1)).squeeze(1)  # (B,)
    return F.smooth_l1_loss(values, target) if error == "huber" else F.mse_loss(values, target)


@final
class DQN(OffPolicyAgent[DQNConfig]):
    """DQN: off-policy, for Discrete actions, by values of all of them (Nature 518, 2015).

    Each update does::

        y   = r + gamma (1 - terminated) max_a Q'(s', a)       (double: Q'(s', argmax_a Q(s', a)))
        Q  <- descend huber(Q(s, a) - y)

    and every ``target_update_interval`` steps Q' <- (1 - tau) Q' + tau Q. It acts by the best action, or, with a
    probability that falls over the first part of training, a random one; each environment decides for itself, where
    Stable-Baselines3 decides for all of them at once.

    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`DQNConfig`.
    """

    config_class = DQNConfig
    config: DQNConfig
    action_kinds = ("Discrete",)

    def _build(self) -> None:
        cfg = self.config
        network = QValues(self.codec.features(), self.actions.size, **cfg.perceptron)
        self.q = self.track("q", network, target=True, joint_norm=True)
        self._target = compiled(best_target, cfg.compile, self.device)
        self._loss = compiled(q_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    @property
    def exploration_rate(self) -> float:
        """The probability of a random action at this point of training."""
        cfg, done = self.config, 1 - self.progress_remaining
        if done >= cfg.exploration_fraction:
            return cfg.exploration_final_eps
        share = done / cfg.exploration_fraction
        return cfg.exploration_initial_eps + share * (cfg.exploration_final_eps - cfg.exploration_initial_eps)

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """See :meth:`OffPolicyAgent.explore`; with the largest value, by which a network of NaN shows itself."""
        values, best = self.q.module(obs).squeeze(-3).max(1)  # (N,) each
        return {"actions": self._mixed(best, self.generators["collect"]), "values": values}

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        best: Tensor = self.q.module(obs).squeeze(-3).argmax(1)  # (B,)
        return best if deterministic else self._mixed(best, generator)

    def _mixed(self, best: Tensor, generator: torch.Generator) -> Tensor:
        """:return: the best actions, (B,), some of them exchanged for random ones"""
        other = self.actions.random(len(best), generator)
        explores = torch.rand(len(best), generator=generator, device=self.device) < self.exploration_rate
        return torch.where(explores, other, best)

    def keep(self, step: Step) -> None:
        """See :meth:`OffPolicyAgent.keep`; the target network moves when it is time."""
        super().keep(step)
        interval, before = self.config.target_update_interval, self.num_timesteps
        if (before + self.n_envs) // interval > before // interval:
            self.q.follow(self.config.tau)

    def _update(self, phase: str) -> dict[str, Tensor]:
        return self._step(self.sample(), self.config)

    def _take_step(self, batch: Transitions, cfg: DQNConfig) -> dict[str, Tensor]:
        target_q = self.q.target
        assert target_q is not None
        target = self._target(batch, self.q.module, target_q, cfg.gamma, cfg.double)
        loss = self._loss(self.q.module, batch, target)
        self.q.minimise(loss)
        return {"loss": loss}
