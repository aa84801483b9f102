"""Advantage-weighted regression under a divergence of choice: HDCR and AWR, one family.

Rotinov: "Hellinger Distance Constrained Regression", submission to ICLR 2021 (openreview kB8DkEKSDH). Only its abstract
could be read: equations and constants here are derived from the problem that it states, and are ours. Its weight is a
member, q = 1/2, of the q-exponential (Tsallis) family, published as policies in "q-exponential family for policy
optimization" (Zhu et al., ICLR 2025); q = 1 is advantage-weighted regression, Peng, Kumar, Zhang, Levine, arXiv
1910.00177, whose loop (values by TD(lambda), then regression) all members share.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self, final

import torch
from torch import Tensor

from ..envs.schema import array, group, maybe
from .bc import cloning_loss
from .core.compile import captured
from .core.config import Count, Fraction, LearningRate, Positive, Range
from .core.data import Transitions
from .core.loop import Part
from .core.nets import Adam, BoundedGaussian, Categorical, DensityActor, StateCritics
from .core.offline import Dataset, act, in_chunks, joined, picked
from .core.offline_to_online import OfflineToOnlineAgent, OfflineToOnlineConfig
from .core.spaces import Obs

log = logging.getLogger("headway")

FEW, MANY = 0.02, 0.2
"""Effective share of samples below which, and share of clipped weights above which, a warning is due. Our choice."""


@dataclass(frozen=True, kw_only=True)
class HDCRConfig(OfflineToOnlineConfig):
    """Hyper-parameters of HDCR and AWR. Defaults are ours, for 100,000 steps of data."""

    live = OfflineToOnlineConfig.live | {"q", "temperature", "max_weight", "upper_clip"}

    weight: Literal["q_exponential", "step", "linear"] = "q_exponential"
    """w(A): [1 + (q - 1) A / tau]_+^(1 / (q - 1)); 1 where A >= 0 and else 0 (as in ABM's prior and binary CRR); or
    [1 + A / tau]_+, which is q = 2."""

    q: Annotated[float, Range(0, 2, open_low=True)] = 0.5
    """Member of the family: 0.5 is HDCR (a Hellinger constraint), 1 is AWR (a Kullback-Leibler one)."""

    temperature: Positive = 1.5
    """tau, in standard deviations of the advantages. HDCR's lambda is 2 tau, where its weight has a pole: 3 weighs as
    greedily as AWR at 1, by the mean advantage under the weights."""

    max_weight: Positive = 20.0
    """Bound on weights (AWR's), where they are not normalised."""

    normaliser: Literal["fixed", "batch", "dataset"] = "fixed"
    """fixed: w(A) as it is. dataset: A is shifted so that weights have mean 1 over all data, as the constrained problem
    asks for; batch: over each minibatch. Steps are not shifted."""

    upper_clip: Positive = 2.0
    """Where advantages are cut from above before they are shifted, in standard deviations: without it, the exact
    weights of ten thousands of samples condense on a single one."""

    target_divergence: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None
    """Squared Hellinger distance that the weights shall have from 1, by which tau is found; none keeps temperature. It
    needs a normaliser of dataset or batch."""

    return_lambda: Fraction = 0.95
    """Weight of longer returns: 0 looks one step ahead, 1 to the end (AWR's)."""

    value_learning_rate: LearningRate = 1e-3
    """Step size of Adam for V; learning_rate is the actor's."""

    value_steps: Count = 200
    """Gradient steps of V per round (AWR's)."""

    actor_steps: Count = 1000
    """Gradient steps of the actor per round (AWR's)."""

    log_std_init: float = math.log(0.4)
    """Logarithm of the standard deviation that actions of a Box begin with, in half their range (AWR's)."""

    normalize_obs: bool = True
    """Shift and scale observations by their mean and standard deviation in the data, and clip them to [-10, 10]."""

    train_freq: Count | tuple[Count, Literal["step", "episode"]] = 2048
    """Steps of every environment between rounds, where learning goes on in one (AWR's)."""

    buffer_size: Count = 50_000
    """Newest steps that are kept there (AWR's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_divergence is not None and self.normaliser == "fixed":
            raise ValueError("HDCRConfig.target_divergence needs normaliser='dataset' or 'batch': fixed is no density")
        if self.weight == "step" and self.normaliser != "fixed":
            raise ValueError(f"HDCRConfig.normaliser={self.normaliser!r} shifts advantages, weight='step' keeps them")


def q_exponential(x: Tensor, q: float, most: float) -> Tensor:
    """min([1 + (q - 1) x]_+^(1 / (q - 1)), most); exp(x) at q = 1. Never infinite or NaN for finite x.

    :param x: A / tau
    :param q: member
    :param most: bound; below q = 1 also what lies beyond the pole at x = 1 / (1 - q) has it
    :return: weights, of the shape of ``x``
    """
    if q == 1:
        return x.exp().clamp(max=most)
    base = 1 + (q - 1) * x
    if q < 1:  # at the pole, base falls to 0, and is not far from it where its power is twice the bound
        base = base.clamp(min=(2 * most) ** (q - 1))
    return (base.clamp(min=0) ** (1 / (q - 1))).clamp(max=most)


def normalising_shift(advantages: Tensor, q: float, tau: float) -> Tensor:
    """Find c with mean_n exp_q((A_n - c) / tau) = 1, by bisection; of q = 1/2, alpha = 2 tau + c of the closed form
    w = (2 tau / (alpha - A))^2.

    :param advantages: (*stack, N) float64
    :param q: member
    :param tau: temperature
    :return: c, (*stack, 1)
    """
    count, top = advantages.shape[-1], advantages.amax(-1, keepdim=True)
    # At c = max A no weight is above 1; where the largest alone has weight N, the mean is 1 at least.
    reach = math.log(count) if q == 1 else (count ** (q - 1.0) - 1) / (q - 1)
    low, high = top - tau * reach, top.clone()
    for _ in range(60):
        middle = (low + high) / 2
        above = q_exponential((advantages - middle) / tau, q, 2.0 * count).mean(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class Seen:
    """What V is fitted to returns by.

    :param obs: (*stack, B, *O)
    """

    obs: Obs


@dataclass(frozen=True, slots=True)
class Demonstrated(Seen):
    """What the actor is fitted to.

    :param actions: (*stack, B, A), or (*stack, B) int64
    """

    actions: Tensor


class Weighing(NamedTuple):
    """Weights and what is known of them."""

    weights: Tensor
    """(*stack, N) float64"""
    h2: Tensor
    """1 - E[sqrt(w)] of the weights over their mean: the squared Hellinger distance of the weighted data, (*stack)"""
    ess: Tensor
    """(sum w)^2 / (N sum w^2): the effective share of samples, (*stack)"""
    clipped: Tensor
    """Share of weights, or advantages, that were clipped, (*stack)"""
    advantage: Tensor
    """E_w[A]: the mean advantage under the weights, (*stack)"""


def weigh(advantages: Tensor, cfg: HDCRConfig) -> Weighing:
    """Turn standardised advantages into weights of regression.

    :param advantages: A, (*stack, N)
    :param cfg: the member of the family, its normaliser and its bounds
    :return: weights
    :raises ValueError: an advantage is not finite, or all weights are zero
    """
    a = advantages.double()
    if not a.isfinite().all():
        raise ValueError("advantages are not finite: V has diverged, lower value_learning_rate")
    q = 2.0 if cfg.weight == "linear" else cfg.q
    if cfg.weight == "step":
        weights = (a >= 0).double()
        clipped = torch.zeros_like(a, dtype=torch.bool)
    elif cfg.normaliser == "fixed":
        weights = q_exponential(a / cfg.temperature, q, cfg.max_weight)
        clipped = weights >= cfg.max_weight
    else:
        clipped = a > cfg.upper_clip
        cut = a.clamp(max=cfg.upper_clip)
        if cfg.target_divergence is not None:
            weights = weights_at_distance(cut, q, cfg.target_divergence)
        else:
            shifted = cut - normalising_shift(cut, q, cfg.temperature)
            weights = q_exponential(shifted / cfg.temperature, q, 2.0 * a.shape[-1])
    total = weights.sum(-1)
    if (total == 0).any():
        raise ValueError(
            f"all weights are zero (weight={cfg.weight}, temperature={cfg.temperature:g}): raise temperature"
        )
    mean = weights.mean(-1, keepdim=True)
    return Weighing(
        weights,
        1 - (weights / mean).sqrt().mean(-1),
        total.square() / (a.shape[-1] * weights.square().sum(-1)),
        clipped.double().mean(-1),
        (weights * a).sum(-1) / total,
    )


def weights_at_distance(advantages: Tensor, q: float, h2: float) -> Tensor:
    """Find the normalised weights with a squared Hellinger distance from 1, by bisection on the temperature.

    Normalised weights are exp_q((A - max A) / s) over their mean, with s = tau m^(1 - q), m this mean: what makes the
    mean 1 need not be searched for. The distance falls as s grows.

    :param advantages: (*stack, N) float64
    :param q: member
    :param h2: 1 - E[sqrt(w)]
    :return: (*stack, N)
    """
    below = advantages - advantages.amax(-1, keepdim=True)
    low = torch.full_like(below[..., :1], math.log(1e-6))
    high = -low

    def at(log_s: Tensor) -> Tensor:
        weights = q_exponential(below / log_s.exp(), q, 1.0)
        return weights / weights.mean(-1, keepdim=True)

    for _ in range(50):
        middle = (low + high) / 2
        far = 1 - at(middle).sqrt().mean(-1, keepdim=True) > h2
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    return at(high)


def td_lambda(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, ended: Tensor, gamma: float, lam: float
) -> Tensor:
    """G_t = r_t + gamma ((1 - lambda) V(s_(t+1)) + lambda G_(t+1)), and r_t + gamma V(s_(t+1)) where an episode ends.

    Termination alone makes the value after it 0; a truncated end bootstraps.

    :param rewards: in the order of time, one episode after the other, (R,)
    :param next_values: V(s_(t+1)), (*stack, R)
    :param terminated: (R,) bool
    :param ended: the row after is no continuation, (R,) bool
    :param gamma: discount per step
    :param lam: lambda
    :return: (*stack, R) float64
    """
    values = next_values.double().masked_fill(terminated, 0.0)
    goes_on = (~ended).double()
    decay = gamma * lam * goes_on
    returns = rewards + gamma * values * (1 - lam * goes_on)
    # G_t = b_t + a_t G_(t+1) is put into itself, which doubles the distance that is looked over: as many passes as the
    # longest episode's length has binary digits.
    reach = 1
    while reach < len(rewards) and bool(decay.any()):
        returns[..., :-reach] += decay[:-reach] * returns[..., reach:].clone()
        decay = torch.cat((decay[:-reach] * decay[reach:], torch.zeros_like(decay[:reach])))
        reach *= 2
    return returns


@final
class HDCR(OfflineToOnlineAgent[HDCRConfig]):
    """HDCR, and AWR by its preset: from data, or in an environment, regression on actions by their advantages.

    A round evaluates, and then improves, with V swept over all data before either::

        G   = TD(lambda) returns;                V  <- descend 1/2 (V(s) - G)^2           (value_steps times)
        A   = (G - V(s)), standardised;  w = w(A);  pi <- ascend w log pi(a|s)            (actor_steps times)

    With H(pi, mu) <= epsilon as the constraint, the problem max E_pi[A] has the solution pi = mu w,
    w = (lambda / (alpha - A))^2 with E_mu[w] = 1; the default normaliser, "fixed", takes alpha = lambda. In a replay of
    several policies, mu is their mixture, from which uniform rows are drawn, and nothing else changes.

    Parameters as :class:`~headway.agents.core.offline.OfflineAgent`, hyper-parameters as :class:`HDCRConfig`.
    """

    config_class = HDCRConfig
    config: HDCRConfig
    action_kinds = ("Box", "Discrete")

    def _setup_model(self) -> None:
        self.targets: Tensor | None = None
        """Returns of all rows while V is fitted, and their weights while the actor is, (*stack, R)."""
        self._rows: tuple[Transitions, Tensor] | None = None
        self._behavior_logp: Tensor | None = None
        self._warned = False
        super()._setup_model()
        self.register("targets", Part(lambda: {"targets": self.targets}, self._load_targets))

    def _build(self) -> None:
        cfg, shape = self.config, {"stack": self.stack, **self.config.perceptron}
        policy: BoundedGaussian | Categorical
        if self.actions.choices is None:
            policy = BoundedGaussian(self.actions.size, cfg.log_std_init, (-5.0, 1.0), stack=self.stack)
        else:
            policy = Categorical(self.actions.choices, stack=self.stack)
        self.actor = self.track("actor", DensityActor(self.features(), policy, **shape))
        value = StateCritics(self.features(), n_critics=1, **shape)
        self.value = self.track("value", value, optimiser=Adam(learning_rate=cfg.value_learning_rate))
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return act(self.actor.module, obs, deterministic, generator)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`; offline, a step is one of V or of the actor, as the round goes."""
        cfg = self.config
        if not self.is_offline:
            if self.num_timesteps <= cfg.learning_starts:
                return []
            self._rows = None
            return [("returns", 1), ("value", cfg.value_steps), ("weigh", 1), ("actor", cfg.actor_steps)]
        return self._at((self.num_timesteps - 1) % (cfg.value_steps + cfg.actor_steps))

    def _at(self, place: int) -> list[tuple[str, int]]:
        """:return: what a gradient step at this place in a round is"""
        if place < self.config.value_steps:
            return [("returns", 1)] * (place == 0) + [("value", 1)]
        return [("weigh", 1)] * (place == self.config.value_steps) + [("actor", 1)]

    def schedule(self, steps: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.schedule`: so many steps from the start of a round."""
        length = self.config.value_steps + self.config.actor_steps
        return [phase for step in range(steps) for phase in self._at(step % length)]

    def member(self, index: int) -> Self:
        """See :meth:`~headway.agents.core.offline.OfflineAgent.member`."""
        member = super().member(index)
        member.targets = None if self.targets is None else self.targets[index].clone()
        member._rows, member._behavior_logp = self._rows, self._behavior_logp
        return member

    def take_up(self, members: Sequence[Any]) -> None:
        """See :meth:`~headway.agents.core.offline.OfflineAgent.take_up`."""
        super().take_up(members)
        targets = [member.targets for member in members if member.targets is not None]
        self.targets = torch.stack(targets) if len(targets) == len(members) else None

    def _connect_env(self) -> None:
        super()._connect_env()
        self.targets = self._rows = None  # there is something else to learn from now

    def rows(self) -> tuple[Transitions, Tensor]:
        """:return: all there is to learn from, in the order of time, (R, …), and which rows none continues, (R,)"""
        if self._rows is None:
            parts = []
            if self.data is not None or self.is_offline:
                data = self.need_data()
                ended = data.terminated | data.truncated
                ended[-1] = True
                parts.append((data, ended))
            if not self.is_offline:
                at, ended = self.store.chronological()
                parts.append((self.normalised(self.store.at(at)), ended))
            batches, ends = zip(*parts, strict=True)
            self._rows = batches[0] if len(batches) == 1 else joined(*batches), torch.cat(ends)
        return self._rows

    @torch.no_grad()
    def _values(self, obs: Obs) -> Tensor:
        """:return: V of many observations, in the reward's unit, (*stack, R)"""
        return in_chunks(lambda part: self.value.module(part).squeeze(-2), obs) / (1 - self.config.gamma)

    def _update(self, phase: str) -> dict[str, Tensor]:
        if phase in ("returns", "weigh"):
            return self._sweep(phase)
        if self.targets is None:  # where a policy file, or another environment, was taken up within a round
            self._sweep("returns" if phase == "value" else "weigh")
            assert self.targets is not None
        data, targets = self.rows()[0], self.targets
        at = self.draw_rows(len(data.rewards), self.config.batch_size)
        batch = Demonstrated(data.obs, data.actions) if phase == "actor" else Seen(data.obs)
        # To weigh a minibatch by itself is not recorded: what it refuses has to be waited for.
        step = self._take_step if phase == "actor" and self.config.normaliser == "batch" else self._step
        return step(phase, picked(batch, at), targets.gather(-1, at), self.config)

    def _sweep(self, phase: str) -> dict[str, Tensor]:
        """Work out returns of all rows, or their weights."""
        (data, ended), cfg = self.rows(), self.config
        returns = td_lambda(
            data.rewards, self._values(data.next_obs), data.terminated, ended, cfg.gamma, cfg.return_lambda
        )
        if phase == "returns":
            self.targets = (returns * (1 - cfg.gamma)).float()  # in V's own unit
            return {}
        advantages = returns - self._values(data.obs)
        std, mean = torch.std_mean(advantages, -1, correction=0, keepdim=True)
        standardised = (advantages - mean) / (std + 1e-5)
        if cfg.normaliser == "batch":
            self.targets = standardised.float()
            return {}
        weighing = weigh(standardised, cfg)
        self.targets = weighing.weights.float()
        self._warn(weighing)
        return self._metrics(weighing) | self._measured(data)

    def _take_step(self, phase: str, batch: Any, targets: Tensor, cfg: HDCRConfig) -> dict[str, Tensor]:
        if phase == "value":
            loss = 0.5 * (self.value.module(batch.obs).squeeze(-2) - targets).square().mean(-1).sum()
            self.value.minimise(loss)
            return {"value_loss": loss}
        metrics: dict[str, Tensor] = {}
        if cfg.normaliser == "batch":
            weighing = weigh(targets, cfg)
            targets, metrics = weighing.weights.float(), self._metrics(weighing)
        loss = cloning_loss(self.actor.module, batch, targets)
        self.actor.minimise(loss)
        return metrics | {"actor_loss": loss}

    # -- what is told of weights -------------------------------------------------------------------------------------

    def _metrics(self, weighing: Weighing) -> dict[str, Tensor]:
        shares = {name: getattr(weighing, name).mean().float() for name in ("h2", "ess", "clipped", "advantage")}
        return {f"weight_{name}": value for name, value in shares.items()}

    def _warn(self, weighing: Weighing) -> None:
        """Say once that weights are of few rows, or clipped; what is logged says how it goes on."""
        ess, clipped = float(weighing.ess.min()), float(weighing.clipped.max())
        if not self._warned and (ess < FEW or clipped > MANY):
            self._warned = True
            log.warning(
                "weights: %.1f %% effective samples, %.0f %% clipped (usual: over %.0f %%, under %.0f %%): "
                "raise temperature",
                *(100 * ess, 100 * clipped, 100 * FEW, 100 * MANY),
            )

    @torch.no_grad()
    def _measured(self, data: Transitions) -> dict[str, Tensor]:
        """:return: 1 - E[sqrt(pi / mu)] over the data, where the density of their actions was recorded."""
        if self._behavior_logp is None or not self.is_offline or self.stack:
            return {}
        log_prob = in_chunks(self.actor.module.log_prob, data.obs, data.actions)
        return {"h2_measured": 1 - (0.5 * (log_prob - self._behavior_logp)).exp().mean()}

    def _load_data(self, dataset: Dataset) -> Transitions:
        extras = getattr(dataset, "extras", {})
        if "behavior_logp" in extras:
            # A density per unit of the action space; the actor's is per half its range.
            scale = 0.0 if self.actions.choices is not None else float(self._half_range().log().sum())
            self._behavior_logp = extras["behavior_logp"].to(self.device).float() + scale
        return super()._load_data(dataset)

    def _half_range(self) -> Tensor:
        space: Any = self.action_space
        return torch.as_tensor((space.high - space.low) / 2).double()

    def _load_targets(self, state: Any) -> None:
        group({"targets": maybe(array((*self.stack, None), "float32"))})(state, "the targets")
        self.targets, self._rows = state["targets"], None
        if self.targets is not None:
            self.targets = self.targets.to(self.device)
