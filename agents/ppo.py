"""Proximal policy optimisation.

Schulman, Wolski, Dhariwal, Radford, Klimov: "Proximal Policy Optimization Algorithms", arXiv 1707.06347. The equations
below are the ones that Stable-Baselines3's PPO implements; a test holds ten updates of the two against each other.
Every choice that is code rather than method, and is known to matter (arXiv 2005.12729, 2006.05990), is a field of the
configuration, so that a study can switch it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .core.compile import compiled
from .core.config import Count, Positive, Range
from .core.nets import Adam, CategoricalActor, GaussianActor, Value, orthogonal_, orthogonal_layers_
from .core.on_policy import OnPolicyAgent, OnPolicyConfig
from .core.spaces import Obs, VectorFeatures, count_rows


@dataclass(frozen=True, kw_only=True)
class PPOConfig(OnPolicyConfig):
    """Hyper-parameters of PPO. Names and defaults are Stable-Baselines3's."""

    net_arch: tuple[Count, ...] = (64, 64)
    """Hidden layer widths of actor and value."""

    activation: Literal["relu", "tanh", "elu"] = "tanh"
    """Non-linearity between layers."""

    clip_range: Positive = 0.2
    """Bound on how far the probability ratio counts: to [1 - c, 1 + c]."""

    clip_range_schedule: Literal["constant", "linear"] = "constant"
    """Keep the clip range, or let it fall linearly to zero over total_timesteps."""

    clip_range_vf: Positive | None = None
    """Bound on how far a value counts that moves away from the old one, in the reward's unit; none does not clip."""

    normalize_advantage: bool = True
    """Shift and scale the advantages of every minibatch to mean 0 and standard deviation 1."""

    ent_coef: Annotated[float, Range(0)] = 0.0
    """Weight of the entropy bonus."""

    vf_coef: Annotated[float, Range(0)] = 0.5
    """Weight of the value loss."""

    max_grad_norm: Positive | None = 0.5
    """Clip the gradient of actor and value together to this Euclidean norm; none does not clip."""

    target_kl: Positive | None = None
    """Leave out the rest of a round's updates once the policy has moved 1.5 times as far, in nats; none does not."""

    ortho_init: bool = True
    """Begin with orthogonal weights: gain sqrt(2), at the actor's end 0.01, at the value's 1; else as torch does."""

    log_std_init: float = 0.0
    """Logarithm of the standard deviation that actions of a Box begin with, in their own unit."""

    adam_eps: Positive = 1e-5
    """Adam's epsilon (torch's default is 1e-8)."""


class Minibatch(NamedTuple):
    """Rows of a round."""

    obs: Any
    """(B, *O)"""
    actions: Tensor
    """(B, A), or (B,) int64"""
    log_probs: Tensor
    """log pi_old(a|s), (B,)"""
    values: Tensor
    """V_old(s), (B,)"""
    advantages: Tensor
    """A, (B,)"""
    returns: Tensor
    """R = A + V_old(s), (B,)"""


class Networks(nn.Module):
    """Actor and value, on the same features of observations.

    :param features: maps observations (B, *O) to (B, D)
    :param actor: the policy, of features
    :param value: the value function, of features
    """

    def __init__(self, features: nn.Module, actor: GaussianActor | CategoricalActor, value: Value) -> None:
        super().__init__()
        self.features, self.actor, self.value = features, actor, value


class Losses(NamedTuple):
    """What is minimised, and what is watched; scalars."""

    loss: Tensor
    policy_gradient_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def ppo_losses(nets: Networks, batch: Minibatch, clip_range: float, cfg: PPOConfig) -> Losses:
    """L = -E[min(rho A, clip(rho, 1 - c, 1 + c) A)] + c_v E[(V(s) - R)^2] - c_e E[H(pi(.|s))], eq. 7 and 9.

    rho = pi(a|s) / pi_old(a|s) and R = A + V_old(s). The distance from the old policy is watched by
    E[(rho - 1) - log rho], an estimate of the Kullback-Leibler divergence that is never negative.

    :param nets: actor and value
    :param batch: B rows of a round
    :param clip_range: c
    :param cfg: for the coefficients
    :return: scalars
    """
    features = nets.features(batch.obs)
    log_prob, entropy = nets.actor.evaluate(features, batch.actions)  # (B,), (B,) or (1,)
    values = nets.value(features)  # (B,)
    advantages = batch.advantages
    if cfg.normalize_advantage and len(advantages) > 1:
        std, mean = torch.std_mean(advantages)
        advantages = (advantages - mean) / (std + 1e-8)
    log_ratio = log_prob - batch.log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    policy_loss = -torch.minimum(advantages * ratio, advantages * clipped).mean()
    if cfg.clip_range_vf is not None:
        values = batch.values + (values - batch.values).clamp(-cfg.clip_range_vf, cfg.clip_range_vf)
    value_loss = F.mse_loss(values, batch.returns)
    entropy_loss = -entropy.mean()
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = (clipped != ratio).float().mean()
    loss = torch.add(policy_loss, value_loss, alpha=cfg.vf_coef)
    if cfg.ent_coef:
        loss = torch.add(loss, entropy_loss, alpha=cfg.ent_coef)
    return Losses(loss, policy_loss, value_loss, entropy_loss, approx_kl, clip_fraction)


@final
class PPO(OnPolicyAgent[PPOConfig]):
    """PPO: on-policy, stochastic, for Box and Discrete actions, and for thousands of environments (arXiv 1707.06347).

    Each round collects ``n_steps`` of every environment, works out advantages (arXiv 1506.02438), and descends::

        rho     = pi(a|s) / pi_old(a|s)
        actor  <- ascend E[min(rho A, clip(rho, 1 - c, 1 + c) A)] + c_e E[H(pi(.|s))]
        V      <- descend c_v E[(V(s) - R)^2],   R = A + V_old(s)

    in ``n_epochs`` of minibatches. Truncated episodes bootstrap. Actions of a Box are in its own unit, and clipped.

    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`PPOConfig`.
    """

    config_class = PPOConfig
    config: PPOConfig
    action_kinds = ("Box", "Discrete", "MultiDiscrete")

    def _build(self) -> None:
        cfg, features = self.config, self.codec.features()
        read = VectorFeatures(int(features.features_dim))  # type: ignore[arg-type]
        actor: GaussianActor | CategoricalActor
        if self.actions.choices is None:
            actor = GaussianActor(read, self.actions.size, log_std_init=cfg.log_std_init, **cfg.perceptron)
        else:
            actor = CategoricalActor(read, self.actions.choices, **cfg.perceptron)
        value = Value(read, **cfg.perceptron)
        if cfg.ortho_init:
            orthogonal_layers_(features)
            orthogonal_(actor, output_gain=0.01)
            orthogonal_(value, output_gain=1.0)
        self.nets = self.track("policy", Networks(features, actor, value), optimiser=Adam(eps=cfg.adam_eps))
        self._losses = compiled(ppo_losses, cfg.compile, self.device)

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        nets = self.nets.module
        features = nets.features(obs)
        if deterministic:
            return nets.actor.mode(features)
        return nets.actor.sample(features, nets.actor.noise(count_rows(obs), generator))[0]

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """See :meth:`ActorCriticAgent.explore`; with each action its log-probability, and the value of the state."""
        nets = self.nets.module
        features = nets.features(obs)
        noise = nets.actor.noise(self.n_envs, self.generators["collect"])
        actions, log_probs = nets.actor.sample(features, noise)
        return {"actions": actions, "log_probs": log_probs, "values": nets.value(features)}

    def values(self, obs: Obs) -> Tensor:
        """See :meth:`OnPolicyAgent.values`."""
        return self.nets.module.value(self.nets.module.features(obs))  # type: ignore[no-any-return]

    def schedule(self, steps: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.schedule`."""
        return [("minibatch", steps)]

    def _update(self, phase: str) -> dict[str, Tensor]:
        cfg, batch = self.config, Minibatch(**self.minibatch(Minibatch._fields))
        clip_range = cfg.clip_range * (self.progress_remaining if cfg.clip_range_schedule == "linear" else 1.0)
        losses = self._losses(self.nets.module, batch, clip_range, cfg)
        if cfg.target_kl is not None and float(losses.approx_kl) > 1.5 * cfg.target_kl:
            self.end_phase()
        else:
            self.nets.minimise(losses.loss)
        return losses._asdict()
