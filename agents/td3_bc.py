"""TD3+BC and ReBRAC: TD3 that stays near the data.

Fujimoto, Gu: "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860 (the defaults);
Tarasov, Kurenkov, Nikulin, Kolesnikov: "Revisiting the Minimalist Approach to Offline Reinforcement Learning",
arXiv 2305.09836 (the preset ``rebrac``): penalties of the actor and of the critic apart, layer norms in the critics,
deeper networks, larger batches. Constants are those of the authors' public code.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor

from .core.compile import captured, compiled
from .core.config import Positive, Range, SmoothingConfig
from .core.data import Transitions
from .core.nets import Critics, DeterministicActor, LayerNormCritics
from .core.offline import Dataset, OfflineAgent, OfflineConfig
from .core.spaces import Obs


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(OfflineConfig, SmoothingConfig):
    """Hyper-parameters of TD3+BC and ReBRAC. Defaults are TD3+BC's."""

    live = OfflineConfig.live | SmoothingConfig.live | {"q_coef", "actor_bc_coef", "critic_bc_coef"}

    normalize_obs: bool = True
    """Shift and scale observations by their mean and standard deviation in the data, and clip them to [-10, 10] (which
    the authors do not); ReBRAC leaves them as they are."""

    q_coef: Positive = 2.5
    """Weight of Q over its mean magnitude in the actor's loss (alpha of TD3+BC)."""

    actor_bc_coef: Annotated[float, Range(0)] | None = None
    """Weight of the squared distance to the data's action, summed over dimensions; none: 1 / A, TD3+BC's mean."""

    critic_bc_coef: Annotated[float, Range(0)] = 0.0
    """Weight of the next action's squared distance to the data's, which is taken from its value in the target."""

    actor_critic: Literal["first", "least"] = "first"
    """By which critic the actor is valued: the first (TD3+BC), or the least of all (ReBRAC)."""

    layer_norm: bool = False
    """A layer norm after each hidden layer of the critics (ReBRAC)."""


@dataclass(frozen=True, slots=True)
class ContinuedTransitions(Transitions):
    """Transitions, and what was done after them.

    :param next_actions: the action after, (*stack, B, A)
    :param continued: whether there was one, (*stack, B) bool; not after the last step of an episode
    """

    next_actions: Tensor
    continued: Tensor


def penalised_target(
    batch: ContinuedTransitions,
    target_actor: DeterministicActor,
    target_critics: Critics,
    cfg: TD3BCConfig,
    noise: Tensor,
) -> Tensor:
    """y = r + gamma (1 - terminated) (min_i Q'_i(s', a') - c |a' - a'_data|^2), a' = clip(pi'(s') + clip(noise std)).

    A truncated row bootstraps, without a penalty, since nothing was done after it.

    :param batch: (*stack, B, …)
    :param target_actor: the slow policy
    :param target_critics: the slow critics
    :param cfg: for gamma, the penalty and the smoothing noise
    :param noise: standard normal, (*stack, B, A)
    :return: regression targets without gradient, (*stack, B)
    """
    with torch.no_grad():
        eps = (noise * cfg.target_policy_noise).clamp(-cfg.target_noise_clip, cfg.target_noise_clip)
        next_actions = (target_actor.mode(batch.next_obs) + eps).clamp(-1, 1)
        next_q: Tensor = target_critics(batch.next_obs, next_actions).amin(-2)
        distance = (next_actions - batch.next_actions).square().sum(-1) * batch.continued
        value = (next_q - cfg.critic_bc_coef * distance).masked_fill(batch.terminated, 0.0)
        return batch.rewards + cfg.gamma * value


def critic_loss(critics: Critics, batch: Transitions, target: Tensor) -> Tensor:
    """J(Q) = sum_i E[(Q_i(s, a) - y)^2].

    :param critics: E of them
    :param batch: (*stack, B, …)
    :param target: (*stack, B)
    :return: scalar
    """
    q: Tensor = critics(batch.obs, batch.actions)  # (*stack, E, B)
    return (q - target.unsqueeze(-2)).square().mean(-1).sum()


def actor_loss(actor: DeterministicActor, critics: Critics, batch: Transitions, cfg: TD3BCConfig) -> Tensor:
    """J(pi) = c E[|pi(s) - a|^2] - q_coef E[Q(s, pi(s))] / E[|Q(s, pi(s))|], Q the first critic or the least.

    :param actor: the policy
    :param critics: no gradient reaches their weights
    :param batch: (*stack, B, …)
    :param cfg: for the coefficients
    :return: scalar
    """
    actions = actor.mode(batch.obs)
    if cfg.actor_critic == "first" and not cfg.layer_norm:
        q = critics.first(batch.obs, actions)
    else:
        every: Tensor = critics(batch.obs, actions, frozen=True)  # (*stack, E, B)
        q = every[..., 0, :] if cfg.actor_critic == "first" else every.amin(-2)
    coef = 1 / actions.shape[-1] if cfg.actor_bc_coef is None else cfg.actor_bc_coef
    distance = (actions - batch.actions).square().sum(-1)  # (*stack, B)
    magnitude = q.detach().abs().mean(-1, keepdim=True)
    return (coef * distance - cfg.q_coef * q / magnitude).mean(-1).sum()


@final
class TD3BC(OfflineAgent[TD3BCConfig]):
    """TD3+BC, and ReBRAC by its preset: from data, TD3 with penalties for leaving them (arXiv 2106.06860, 2305.09836).

    Each update does::

        y       = r + gamma (1 - terminated) (min_i Q'_i(s', a') - c_Q |a' - a'_data|^2),   a' = clip(pi'(s') + eps)
        Q_i    <- descend (Q_i(s, a) - y)^2

    and every ``policy_delay``-th one also::

        pi     <- descend c_pi |pi(s) - a|^2 - alpha Q(s, pi(s)) / E|Q|
        Q'_i   <- (1 - tau) Q'_i + tau Q_i,   pi' <- (1 - tau) pi' + tau pi

    Parameters as :class:`~headway.agents.core.offline.OfflineAgent`, hyper-parameters as :class:`TD3BCConfig`.
    """

    config_class = TD3BCConfig
    config: TD3BCConfig

    def _build(self) -> None:
        cfg, shape = self.config, {"stack": self.stack, **self.config.perceptron}
        kind = LayerNormCritics if cfg.layer_norm else Critics
        actor = DeterministicActor(self.features(), self.actions.size, **shape)
        critics = kind(self.features(), self.actions.size, n_critics=cfg.n_critics, **shape)
        self.actor = self.track("actor", actor, target=True)
        self.critics = self.track("critics", critics, target=True)
        self._target = compiled(penalised_target, cfg.compile, self.device)
        self._critic_loss = compiled(critic_loss, cfg.compile, self.device)
        self._actor_loss = compiled(actor_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _load_data(self, dataset: Dataset) -> ContinuedTransitions:
        data = super()._load_data(dataset)
        plain = {field.name: getattr(data, field.name) for field in fields(data)}
        continued = ~(data.terminated | data.truncated)
        continued[-1] = False
        return ContinuedTransitions(**plain, next_actions=data.actions.roll(-1, 0), continued=continued)

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return self.actor.module.mode(obs)

    def _update(self, phase: str) -> dict[str, Tensor]:
        moves = (self._n_updates + 1) % self.config.policy_delay == 0
        batch = self.sample()
        noise = self.noise(self.config.batch_size, self.actions.size)
        return self._step(batch, noise, self.config, moves)

    def _take_step(self, batch: Any, noise: Tensor, cfg: TD3BCConfig, moves: bool) -> dict[str, Tensor]:
        actor, critics = self.actor, self.critics
        assert actor.target is not None
        assert critics.target is not None
        target = self._target(batch, actor.target, critics.target, cfg, noise)
        metrics = {"critic_loss": self._critic_loss(critics.module, batch, target)}
        critics.minimise(metrics["critic_loss"])
        if moves:
            metrics["actor_loss"] = self._actor_loss(actor.module, critics.module, batch, cfg)
            actor.minimise(metrics["actor_loss"])
            critics.follow(cfg.tau)
            actor.follow(cfg.tau)
        return metrics
