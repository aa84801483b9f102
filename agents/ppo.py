"""Proximal policy optimisation.

Schulman, Wolski, Dhariwal, Radford, Klimov: "Proximal Policy Optimization Algorithms", arXiv 1707.06347. The equations
below are the ones that Stable-Baselines3's PPO implements; a test holds ten updates of the two against each other.
Every choice that is code rather than method, and is known to matter (arXiv 2005.12729, 2006.05990), is a field of the
configuration, so that a study can switch it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .core.compile import captured, compiled
from .core.nets import ActorValue, Adam, Categorical, Gaussian
from .core.on_policy import Minibatch, OnPolicyAgent, ProximalConfig
from .core.spaces import Obs, count_rows


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ProximalConfig):
    """Hyper-parameters of PPO. Names and defaults are Stable-Baselines3's."""


class Losses(NamedTuple):
    """What is minimised, and what is watched; scalars."""

    loss: Tensor
    policy_gradient_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


class _ClippedLosses(torch.autograd.Function):
    """L_pi = -E[min(rho A, clip(rho, 1 - c, 1 + c) A)] and L_V = E[(V - R)^2] of B rows, as one node of the graph.

    rho = pi(a|s) / pi_old(a|s); V = V(s), or V_old(s) + clip(V(s) - V_old(s), -c_V, c_V). The gradients are::

        dL_pi / d log pi(a|s) = -rho A / B       where rho A is the lesser of the two, else 0
        dL_V  / d V(s)        = 2 (V - R) / B    where V is not clipped, else 0

    torch would find the same through twenty nodes, which at 64 rows take longer than the networks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_prob: Tensor,
        values: Tensor,
        advantages: Tensor,
        batch: Minibatch,
        clip_range: float | Tensor,
        clip_range_vf: float | None,
    ) -> tuple[Tensor, ...]:
        """:return: L_pi, L_V, E[(rho - 1) - log rho] and the share of rows whose rho is clipped; scalars."""
        log_ratio = log_prob - batch.log_probs
        ratio = log_ratio.exp()
        bounds: Any = (1 - clip_range, 1 + clip_range)
        clipped = ratio.clamp(*bounds)
        gain, bound = ratio * advantages, clipped * advantages
        errors = values - batch.returns
        if clip_range_vf is not None:
            moved = values - batch.values
            errors = batch.values - batch.returns + moved.clamp(-clip_range_vf, clip_range_vf)
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = (clipped != ratio).to(ratio.dtype).mean()
        policy_grad = torch.where(gain <= bound, gain, 0.0)
        value_grad = errors if clip_range_vf is None else torch.where(moved.abs() <= clip_range_vf, errors, 0.0)
        ctx.save_for_backward(policy_grad, value_grad)
        ctx.mark_non_differentiable(approx_kl, clip_fraction)
        return -torch.minimum(gain, bound).mean(), errors.square().mean(), approx_kl, clip_fraction

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, policy: Tensor, value: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """:return: the gradients that the docstring of the class states, times those of both losses"""
        policy_grad, value_grad = ctx.saved_tensors
        rows = len(policy_grad)
        return policy_grad * (policy / -rows), value_grad * (value * (2 / rows)), None, None, None, None


def ppo_losses(nets: ActorValue, batch: Minibatch, clip_range: float | Tensor, cfg: ProximalConfig) -> Losses:
    """L = -E[min(rho A, clip(rho, 1 - c, 1 + c) A)] + c_v E[(V(s) - R)^2] - c_e E[H(pi(.|s))], eq. 7 and 9.

    rho = pi(a|s) / pi_old(a|s) and R = A + V_old(s). The distance from the old policy is watched by
    E[(rho - 1) - log rho], an estimate of the Kullback-Leibler divergence that is never negative.

    :param nets: actor and value
    :param batch: B rows of a round
    :param clip_range: c
    :param cfg: for the coefficients
    :return: scalars
    """
    outputs, values = nets(batch.obs)  # (B, ·), (B,)
    log_prob, entropy = nets.policy.evaluate(outputs, batch.actions)  # (B,), (B,) or (1,)
    advantages = batch.advantages
    if cfg.normalize_advantage and len(advantages) > 1:
        std, mean = torch.std_mean(advantages)
        advantages = (advantages - mean) / (std + 1e-8)
    policy_loss, value_loss, approx_kl, clip_fraction = _ClippedLosses.apply(  # type: ignore[no-untyped-call]
        log_prob, values, advantages, batch, clip_range, cfg.clip_range_vf
    )
    entropy_loss = -entropy.mean()
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
    shares_features = True
    only_initial = ("log_std_init", "ortho_init")
    config: PPOConfig
    action_kinds = ("Box", "Discrete", "MultiDiscrete")

    def _build(self) -> None:
        cfg, choices = self.config, self.actions.choices
        policy = Gaussian(self.actions.size, cfg.log_std_init) if choices is None else Categorical(choices)
        nets = ActorValue(self.codec.features(), policy, **cfg.perceptron)
        if cfg.ortho_init:
            nets.orthogonal_()
        self.nets = self.track("policy", nets, optimiser=Adam(eps=cfg.adam_eps), joint_norm=True)
        self._losses = compiled(ppo_losses, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        outputs, policy = self.nets.module(obs)[0], self.nets.module.policy
        if deterministic:
            return policy.mode(outputs)
        return policy.sample(outputs, policy.noise(count_rows(obs), generator))[0]

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """See :meth:`ActorCriticAgent.explore`; with each action its log-probability, and the value of the state."""
        (outputs, values), policy = self.nets.module(obs), self.nets.module.policy
        actions, log_probs = policy.sample(outputs, policy.noise(self.n_envs, self.generators["collect"]))
        return {"actions": actions, "log_probs": log_probs, "values": values}

    def values(self, obs: Obs) -> Tensor:
        """See :meth:`OnPolicyAgent.values`."""
        return self.nets.module(obs)[1]  # type: ignore[no-any-return]

    def schedule(self, steps: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.schedule`."""
        return [("minibatch", steps)]

    def _update(self, phase: str) -> dict[str, Tensor]:
        cfg, batch = self.config, Minibatch(**self.minibatch(Minibatch._fields))
        linear = cfg.clip_range_schedule == "linear"
        clip_range: Any = cfg.clip_range * (self.progress_remaining if linear else 1.0)
        if linear and cfg.compile != "off":  # for a constant that changes, all would be compiled anew
            clip_range = torch.full((), clip_range, device=self.device)
        # Whether the target is passed has to be waited for.
        step = self._step if cfg.target_kl is None else self._take_step
        return step(batch, clip_range, cfg)

    def _take_step(self, batch: Minibatch, clip_range: float | Tensor, cfg: PPOConfig) -> dict[str, Tensor]:
        losses = self._losses(self.nets.module, batch, clip_range, cfg)
        if cfg.target_kl is not None and float(losses.approx_kl) > 1.5 * cfg.target_kl:
            self.end_phase()
        else:
            self.nets.minimise(losses.loss)
        return losses._asdict()
