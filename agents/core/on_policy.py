"""The base of agents that learn from what their present policy has just done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...envs.schema import array, flag, group, real, whole
from .agent import ActorCriticAgent
from .config import AgentConfig, Count, Fraction, Positive, Range
from .data import RolloutStore, Step, StepCollector, generalised_advantages
from .loop import Part
from .spaces import Fields, FieldSpec, map_obs

SCALAR, FLAG = FieldSpec((), torch.float32), FieldSpec((), torch.bool)


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(AgentConfig):
    """What agents that learn on-policy add. Names and defaults are Stable-Baselines3's for PPO."""

    live = AgentConfig.live | {"n_epochs", "gae_lambda"}

    batch_size: Count = 64
    """Rows per gradient step; the last of an epoch may have fewer."""

    n_steps: Annotated[int, Range(1, unit="steps")] = 2048
    """Length of a round, of every environment."""

    n_epochs: Count = 10
    """Passes over a round's rows."""

    gae_lambda: Fraction = 0.95
    """Weight of longer returns in advantages: 0 looks one step ahead, 1 to the end (arXiv 1506.02438)."""

    reward_scaling: Literal["off", "returns"] = "off"
    """returns: divide rewards by the running standard deviation of discounted returns, and clip them to [-10, 10], as
    VecNormalize does (arXiv 2005.12729 finds it to matter more than the clipped loss)."""


@dataclass(frozen=True, kw_only=True)
class ProximalConfig(OnPolicyConfig):
    """What agents have that take PPO's steps (arXiv 1707.06347). Names and defaults are Stable-Baselines3's."""

    live = OnPolicyConfig.live | {
        "clip_range",
        "clip_range_schedule",
        "clip_range_vf",
        "normalize_advantage",
        "ent_coef",
        "vf_coef",
        "target_kl",
    }

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


C = TypeVar("C", bound=OnPolicyConfig)


class OnPolicyAgent(ActorCriticAgent[C]):
    """An agent that works off a round of its own newest steps, in epochs of minibatches, and forgets it.

    Its configuration is an :class:`OnPolicyConfig`. It fills in :meth:`values`, and keeps ``values`` with every step.
    """

    squashes = False

    def values(self, obs: Any) -> Tensor:
        """:return: V(s) of encoded observations, as they are seen, (B,)"""
        raise NotImplementedError

    def kept(self) -> dict[str, Fields]:
        """:return: what :meth:`explore` gives beside actions, to be kept with every step."""
        return {"values": SCALAR, "log_probs": SCALAR}

    @property
    def reward_unit(self) -> float:  # type: ignore[override]
        """See :attr:`ActorCriticAgent.reward_unit`."""
        scales = self.config.reward_scaling != "off" and self.reward_scale.count >= 1
        return self.reward_scale.unit if scales else super().reward_unit

    def _setup_model(self) -> None:
        super()._setup_model()
        fields = {"obs": self.codec.spec, "actions": self.actions.field, "rewards": SCALAR, "ended": FLAG, "real": FLAG}
        fields |= {"advantages": SCALAR, "returns": SCALAR, **self.kept()}
        self.rollout = RolloutStore(fields, n_steps=self.config.n_steps, n_envs=self.n_envs, device=self.device)
        self.register("rollout", self.rollout)
        self._order, self._place = torch.zeros(0, dtype=torch.int64, device=self.device), 0
        self._ordered: dict[str, Any] = {}
        self.register("epoch", Part(self._epoch, self._load_epoch))
        if self.config.reward_scaling != "off":
            self.reward_scale = ReturnScale(self.n_envs, self.config.gamma, self.device)
            self.register("reward_scale", self.reward_scale)

    def _config_changed(self, before: AgentConfig) -> None:
        super()._config_changed(before)
        if self.config.reward_scaling != "off":
            self.reward_scale.gamma = self.config.gamma

    def _reset_env(self, seeds: list[int | None] | None = None) -> None:
        super()._reset_env(seeds)
        self.rollout.clear()  # a round that was cut off is not followed by what comes now
        self.collector = self._make_collector()

    def interrupt(self) -> None:
        """See :meth:`ActorCriticAgent.interrupt`; episodes that are cut off bootstrap, as truncated ones do."""
        last = self.rollout.steps - 1
        if self.collector.in_progress and last >= 0:
            going_on = ~self.rollout["ended"][last]
            with torch.no_grad():
                self.rollout["rewards"][last] += self.config.gamma * self.values(self.last_obs) * going_on
            self.rollout["ended"][last] = True
        super()._reset_env()

    def _make_collector(self) -> StepCollector:
        return StepCollector(self, self.config.n_steps)

    def keep(self, step: Step) -> None:
        """Store a step as it was seen; what a truncated episode would have gone on to earn joins its last reward.

        :param step: of all environments
        """
        rewards = step.seen_rewards
        if self.config.reward_scaling != "off":
            rewards = self.reward_scale(rewards, step.terminated | step.truncated)
        if step.dones.any():
            rows = torch.from_numpy(np.flatnonzero(step.dones)).to(self.device)
            final = map_obs(lambda part: part.index_select(0, rows), step.next_obs)
            with torch.no_grad():
                values = self.values(final if self.normalizer is None else self.normalizer.obs(final))
            rewards = rewards.index_add(0, rows, self.config.gamma * values * step.truncated.index_select(0, rows))
        real = torch.ones_like(step.terminated) if step.real is None else step.real.to(self.device)
        row = {"obs": step.seen_obs, "rewards": rewards, "ended": step.terminated | step.truncated, "real": real}
        self.rollout.add(row | dict.fromkeys(("advantages", "returns"), torch.zeros_like(rewards)) | step.chosen)

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`: advantages first, then ``n_epochs`` of minibatches."""
        rollout, cfg = self.rollout, self.config
        with torch.no_grad():
            last_values = self.values(self.last_obs)
        rewards, values, ended = (rollout[name] for name in ("rewards", "values", "ended"))
        advantages = generalised_advantages(rewards, values, last_values, ended, cfg.gamma, cfg.gae_lambda)
        rollout["advantages"].copy_(advantages)
        torch.add(advantages, values, out=rollout["returns"])
        self.metrics.add({"explained_variance": 1 - advantages.var() / rollout["returns"].var()})
        self._order, self._ordered = self._order[:0], {}
        rows = int(rollout["real"].sum())
        return self.schedule(cfg.n_epochs * -(-rows // cfg.batch_size))

    def minibatch(self, fields: tuple[str, ...]) -> dict[str, Any]:
        """Go on in the epoch; begin another, in a new order, where it is through.

        :param fields: of the rollout
        :return: their values in the next rows, (B, …)
        """
        store, size = self.source()
        if self._place >= len(self._order):
            rows = store["real"].flatten().nonzero().squeeze(1)
            order = torch.randperm(len(rows), generator=self.generators["update"], device=self.device)
            self._order, self._place, self._ordered = rows[order], 0, {}
        if not self._ordered:  # once for the epoch: a minibatch is then a slice
            self._ordered = dict(zip(fields, store.take(fields, self._order), strict=True))
        here = slice(self._place, self._place + size)
        self._place += size
        return {name: map_obs(lambda part: part[here], values) for name, values in self._ordered.items()}

    def source(self) -> tuple[RolloutStore, int]:
        """:return: what is learned from, with a field "real", and how many rows of it by a gradient step"""
        return self.rollout, self.config.batch_size

    def _epoch(self) -> dict[str, Any]:
        return {"order": self._order, "place": self._place}

    def _load_epoch(self, state: dict[str, Any]) -> None:
        rows = self.source()[0].n_steps * self.n_envs
        group({"order": array((None,), "int64", low=0, high=rows - 1), "place": whole()})(state, "the epoch")
        self._order, self._place, self._ordered = state["order"].to(self.device), state["place"], {}


class ReturnScale:
    """Rewards over the running standard deviation of discounted returns, as Stable-Baselines3's ``VecNormalize``.

    :param n_envs: N
    :param gamma: discount per step
    :param device: where rewards are
    """

    CLIP, EPSILON = 10.0, 1e-8

    def __init__(self, n_envs: int, gamma: float, device: torch.device) -> None:
        self.gamma = gamma
        self.returns = torch.zeros(n_envs, dtype=torch.float64, device=device)
        self.mean, self.var = torch.zeros((), dtype=torch.float64, device=device), torch.ones_like(self.returns[0])
        self.count = 1e-4
        self.frozen = False
        """Whether statistics stay as they are."""

    def fix(self, unit: float) -> None:
        """Divide rewards by a number from now on."""
        self.var, self.count, self.frozen = torch.full_like(self.var, unit**2 - self.EPSILON), 1.0, True

    def __call__(self, rewards: Tensor, ended: Tensor) -> Tensor:
        """Take up a step's rewards, and scale them.

        :param rewards: (N,)
        :param ended: (N,) bool
        :return: (N,)
        """
        if self.frozen:
            return self._scaled(rewards)
        self.returns = self.returns * self.gamma + rewards
        mean, var, count = self.returns.mean(), self.returns.var(correction=0), len(rewards)
        total, delta = self.count + count, mean - self.mean
        squares = self.var * self.count + var * count + delta.square() * self.count * count / total
        self.mean, self.var, self.count = self.mean + delta * count / total, squares / total, total
        self.returns = self.returns.masked_fill(ended, 0.0)
        return self._scaled(rewards)

    def _scaled(self, rewards: Tensor) -> Tensor:
        return (rewards / (self.var + self.EPSILON).sqrt()).clamp(-self.CLIP, self.CLIP).to(rewards.dtype)

    @property
    def unit(self) -> float:
        """What rewards are divided by at present."""
        return float((self.var + self.EPSILON).sqrt())

    def state(self) -> dict[str, Any]:
        """:return: statistics and running returns."""
        statistics = {"returns": self.returns, "mean": self.mean, "var": self.var, "count": self.count}
        return statistics | {"frozen": self.frozen}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        :raises ValueError: it does not fit
        """
        number = array((), "float64")
        fields = {"returns": array(tuple(self.returns.shape), "float64"), "mean": number}
        fields |= {"var": array((), "float64", low=0), "count": real(0, above=True), "frozen": flag}
        group(fields, optional=("frozen",))(state, "the reward scale")
        self.frozen = state.get("frozen", False)
        self.returns, self.mean, self.var = (state[k].to(self.returns.device) for k in ("returns", "mean", "var"))
        self.count = state["count"]
