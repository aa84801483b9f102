"""The gradient learner beside a population: TD3, or SAC by its mean action, each with a pull towards another policy."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.compile import captured, compiled
from ..core.data import Transitions
from ..core.entropy import temperature_loss
from ..core.nets import Actor, Adam, Critics, DeterministicActor, SquashedGaussianActor, Temperature, Tracked
from ..core.spaces import Obs
from ..sac import actor_loss as sac_actor_loss
from ..sac import critic_loss as sac_critic_loss
from ..sac import soft_target
from ..td3 import actor_loss as td3_actor_loss
from ..td3 import critic_loss as td3_critic_loss
from ..td3 import smoothed_target


def distance(one: Actor, other: Actor, obs: Obs) -> Tensor:
    """E[(pi(s)_j - pi'(s)_j)^2] over states and dimensions, actions in [-1, 1].

    :param one: a policy, which gradients reach
    :param other: another, which they do not
    :param obs: (B, *O)
    :return: scalar
    """
    with torch.no_grad():
        goal = other.mode(obs)
    return (one.mode(obs) - goal).square().mean()


def guided_loss(
    critics: Critics, actor: DeterministicActor, guide: Actor, obs: Obs, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """J(pi) = -E[Q_1(s, pi(s))], with and without beta E[(pi(s)_j - pi'(s)_j)^2]; pi is evaluated once for both.

    :param critics: of which the first is used; no gradient reaches their weights
    :param actor: the policy pi
    :param guide: the policy pi', likewise
    :param obs: (B, *O)
    :param beta: scalar
    :return: without and with it, scalars
    """
    actions = actor.mode(obs)
    with torch.no_grad():
        goal = guide.mode(obs)
    loss = -critics.first(obs, actions).mean()
    return loss, loss + beta * (actions - goal).square().mean()


class Learner(Protocol):
    """What learns by gradients."""

    actor: Tracked[Any]
    critics: Tracked[Critics]

    def critic_step(self, batch: Transitions) -> dict[str, Tensor]:
        """Improve the critics, whose targets follow; :return: what is to be logged."""

    def actor_step(self, batch: Transitions, guide: Actor | None, beta: Tensor) -> dict[str, Tensor]:
        """Improve the actor, whose target follows.

        :param batch: transitions, B rows
        :param guide: a policy that it is pulled towards; None: by nobody
        :param beta: how strongly, scalar
        :return: what is to be logged
        """


class TD3Learner:
    """TD3 (arXiv 1802.09477), in updates of the critics and updates of the actor.

    :param agent: whose networks these are; its configuration is a
        :class:`~headway.agents.core.config.SmoothingConfig` with ``actor_learning_rate`` and ``weight_decay``
    """

    def __init__(self, agent: Any) -> None:
        cfg, codec, size = agent.config, agent.codec, agent.actions.size
        self.agent = agent
        actor = DeterministicActor(codec.features(), size, **cfg.perceptron)
        critics = Critics(codec.features(), size, n_critics=cfg.n_critics, **cfg.perceptron)
        rates = Adam(learning_rate=cfg.actor_learning_rate, weight_decay=cfg.weight_decay)
        self.actor = agent.track("actor", actor, target=True, optimiser=rates)
        self.critics = agent.track("critics", critics, target=True, optimiser=Adam(weight_decay=cfg.weight_decay))
        self._target = compiled(smoothed_target, cfg.compile, agent.device)
        self._critic_loss = compiled(td3_critic_loss, cfg.compile, agent.device)
        self._actor_loss = compiled(td3_actor_loss, cfg.compile, agent.device)
        self._guided_loss = compiled(guided_loss, cfg.compile, agent.device)
        stream = agent.generators["update"]
        self._critic_step = captured(self._take_critic_step, cfg.compile, agent.modules, stream)
        self._actor_step = captured(self._take_actor_step, cfg.compile, agent.modules, stream)

    def critic_step(self, batch: Transitions) -> dict[str, Tensor]:
        """See :class:`Learner`."""
        return self._critic_step(batch, self.agent.config, True)

    def actor_step(self, batch: Transitions, guide: Actor | None, beta: Tensor) -> dict[str, Tensor]:
        """See :class:`Learner`."""
        return self._actor_step(batch, self.agent.config, guide, beta)

    def delayed_step(self, batch: Transitions, moves: bool, guide: Actor | None, beta: Tensor) -> dict[str, Tensor]:
        """Take TD3's own step: critics first, then, every few times, actor and targets on the same batch.

        :param batch: transitions, B rows
        :param moves: whether it is time for the latter
        :param guide: see :meth:`actor_step`
        :param beta: see :meth:`actor_step`
        :return: what is to be logged
        """
        cfg = self.agent.config
        metrics = self._critic_step(batch, cfg, False)
        if moves:
            metrics = metrics | self._actor_loss_step(batch, guide, beta)
            self.critics.follow(cfg.tau)
            self.actor.follow(cfg.tau)
        return metrics

    def _take_critic_step(self, batch: Transitions, cfg: Any, follows: bool) -> dict[str, Tensor]:
        actor, critics = self.actor.target, self.critics.target
        assert actor is not None
        assert critics is not None
        noise = self.agent.noise(cfg.batch_size, self.agent.actions.size)
        target = self._target(batch, actor, critics, cfg, noise)
        loss = self._critic_loss(self.critics.module, batch, target)
        self.critics.minimise(loss)
        if follows:
            self.critics.follow(cfg.tau)
        return {"critic_loss": loss}

    def _take_actor_step(self, batch: Transitions, cfg: Any, guide: Actor | None, beta: Tensor) -> dict[str, Tensor]:
        metrics = self._actor_loss_step(batch, guide, beta)
        self.actor.follow(cfg.tau)
        return metrics

    def _actor_loss_step(self, batch: Transitions, guide: Actor | None, beta: Tensor) -> dict[str, Tensor]:
        if guide is None:
            loss = pulled = self._actor_loss(self.critics.module, self.actor.module, batch.obs)
        else:
            loss, pulled = self._guided_loss(self.critics.module, self.actor.module, guide, batch.obs, beta)
        self.actor.minimise(pulled)
        return {"actor_loss": loss}


class SACLearner:
    """SAC (arXiv 1812.05905) with a learned temperature; members of the population, and the pull, have its mean action.

    It has no slow actor: what the elite lends to targets, see ``target_from_elite``, it has no use for.

    :param agent: as of :class:`TD3Learner`
    """

    def __init__(self, agent: Any) -> None:
        cfg, codec, size = agent.config, agent.codec, agent.actions.size
        self.agent = agent
        actor = SquashedGaussianActor(codec.features(), size, **cfg.perceptron)
        critics = Critics(codec.features(), size, n_critics=cfg.n_critics, **cfg.perceptron)
        rates = Adam(learning_rate=cfg.actor_learning_rate, weight_decay=cfg.weight_decay)
        self.actor = agent.track("actor", actor, optimiser=rates)
        self.critics = agent.track("critics", critics, target=True, optimiser=Adam(weight_decay=cfg.weight_decay))
        self.temperature = agent.track("temperature", Temperature(1.0))
        self._target = compiled(soft_target, cfg.compile, agent.device)
        self._critic_loss = compiled(sac_critic_loss, cfg.compile, agent.device)
        self._actor_loss = compiled(sac_actor_loss, cfg.compile, agent.device)
        stream = agent.generators["update"]
        self._critic_step = captured(self._take_critic_step, cfg.compile, agent.modules, stream)
        self._actor_step = captured(self._take_actor_step, cfg.compile, agent.modules, stream)

    def critic_step(self, batch: Transitions) -> dict[str, Tensor]:
        """See :class:`Learner`."""
        return self._critic_step(batch, self.agent.config)

    def actor_step(self, batch: Transitions, guide: Actor | None, beta: Tensor) -> dict[str, Tensor]:
        """See :class:`Learner`."""
        return self._actor_step(batch, self.agent.config, guide, beta)

    def _take_critic_step(self, batch: Transitions, cfg: Any) -> dict[str, Tensor]:
        assert self.critics.target is not None
        noise = self.agent.noise(cfg.batch_size, self.agent.actions.size)
        alpha = self.temperature.module.alpha
        target = self._target(batch, self.actor.module, self.critics.target, alpha, cfg.gamma, noise)
        loss = self._critic_loss(self.critics.module, batch, target)
        self.critics.minimise(loss)
        self.critics.follow(cfg.tau)
        return {"critic_loss": loss}

    def _take_actor_step(self, batch: Transitions, cfg: Any, guide: Actor | None, beta: Tensor) -> dict[str, Tensor]:
        noise = self.agent.noise(cfg.batch_size, self.agent.actions.size)
        actions, log_prob = self.actor.module.sample(batch.obs, noise)
        alpha = self.temperature.module.alpha
        loss = self._actor_loss(self.critics.module, batch.obs, actions, log_prob, alpha)
        metrics = {"actor_loss": loss, "ent_coef": alpha}
        if guide is not None:
            loss = loss + beta * distance(self.actor.module, guide, batch.obs)
        self.actor.minimise(loss)
        entropy = -float(self.agent.actions.size)
        self.temperature.minimise(temperature_loss(self.temperature.module.log_alpha, log_prob, entropy))
        return metrics
