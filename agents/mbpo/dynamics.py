"""An ensemble of probabilistic networks that predict what a step does, and its training.

Janner, Fu, Zhang, Levine: "When to Trust Your Model: Model-Based Policy Optimization", arXiv 1906.08253, as
the authors' program has it; the networks are those of Chua, Calandra, McAllister, Levine, arXiv 1805.12114. Row weights
that are drawn once and kept are ours: see :class:`FitSettings`.

Shapes: ``E`` members, ``B`` rows, ``O`` observation, ``A`` action, ``d = 1 + O`` what is predicted: the reward first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...envs.schema import array, by_name, group, maybe, whole
from ..core.nets import Precision, StackedMLP, Tracked

DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
"""Of the weights of each layer, from the first to the last (the program's); of fewer or more, spread between."""

BOUNDS = (-10.0, 0.5)
"""Where the learned bounds of log variances begin (the program's)."""

BOUND_WEIGHT = 0.01
"""How much the loss wants them close together (the program's)."""

IMPROVEMENT = 0.01
"""Share by which the error on held-out rows must fall to count (the program's)."""


GradientStep = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of a batch's inputs, (E, B, O + A), standardised targets, (E, B, d), and row weights, (E, B): the loss."""


class Prediction(NamedTuple):
    """What members expect of a step; samples where noise was given."""

    rewards: Tensor
    """(E, B)"""

    next_obs: Tensor
    """(E, B, O)"""


class Dynamics(nn.Module):
    """E networks of one architecture, each a diagonal Gaussian over reward and next observation.

    Inputs are standardised by :meth:`fit_scales`. A log variance v stays within learned bounds, one pair per predicted
    number for all members: ``v <- max - softplus(max - v)``, then ``v <- min + softplus(v - min)``.

    :param obs_dim: O
    :param action_dim: A
    :param members: E
    :param net_arch: widths of the hidden layers, with SiLU after each
    :param target: predict the change of the observation, or the next one itself (arXiv 2510.01457)
    :param scales_targets: standardise what is predicted, the reward included, per dimension
    :param prior_scale: weight of a fixed random network of the same shape that each member's mean contains (randomised
        priors); 0: none
    :param precision: of the networks' products, see :class:`~headway.agents.core.nets.StackedMLP`
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        members: int = 7,
        net_arch: Sequence[int] = (200, 200, 200, 200),
        target: Literal["delta", "absolute"] = "delta",
        scales_targets: bool = False,
        prior_scale: float = 0.0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.members, self.target, self.scales_targets, self.prior_scale = members, target, scales_targets, prior_scale
        inputs, outputs = obs_dim + action_dim, 1 + obs_dim
        self.mlp = StackedMLP((members,), inputs, 2 * outputs, net_arch, "silu", precision)
        truncated_normal_(self.mlp)
        self.prior: StackedMLP | None = None
        if prior_scale:
            self.prior = StackedMLP((members,), inputs, outputs, net_arch, "silu", precision).requires_grad_(False)
            truncated_normal_(self.prior)
        self.min_log_var, self.max_log_var = (nn.Parameter(torch.full((outputs,), bound)) for bound in BOUNDS)
        for name, size in (("input", inputs), ("target", outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.input_mean: Tensor
        self.input_std: Tensor
        self.target_mean: Tensor
        self.target_std: Tensor

    def __len__(self) -> int:
        return self.members

    @torch.no_grad()
    def fit_scales(self, inputs: Tensor, targets: Tensor) -> None:
        """Take up means and standard deviations, computed in float64; a column that does not vary is only shifted.

        :param inputs: observations and actions, (N, O + A)
        :param targets: (N, d)
        """
        kept = [("input", inputs)] + [("target", targets)] * self.scales_targets
        for name, rows in kept:
            wide = rows.double()
            std = wide.std(0, correction=0)
            getattr(self, f"{name}_mean").copy_(wide.mean(0))
            getattr(self, f"{name}_std").copy_(torch.where(std < 1e-12, 1.0, std))

    def targets(self, obs: Tensor, rewards: Tensor, next_obs: Tensor) -> Tensor:
        """:return: what is to be predicted of a step, before it is standardised, (B, d)"""
        return torch.cat((rewards.unsqueeze(-1), next_obs - obs if self.target == "delta" else next_obs), -1)

    def forward(self, inputs: Tensor, member: int | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate all members.

        :param inputs: observations and actions, (B, O + A), or for each member its own, (E, B, O + A)
        :param member: evaluate this one alone, without its axis
        :return: means and log variances of standardised targets, (E, B, d) each
        """
        x = (inputs - self.input_mean) / self.input_std
        mean, raw = self.mlp(x, members=member).chunk(2, -1)
        if self.prior is not None:
            mean = mean + self.prior_scale * self.prior(x, members=member)
        log_var = self.max_log_var - F.softplus(self.max_log_var - raw)
        return mean, self.min_log_var + F.softplus(log_var - self.min_log_var)

    @torch.no_grad()
    def predict(
        self, obs: Tensor, actions: Tensor, noise: Tensor | None = None, member: int | None = None
    ) -> Prediction:
        """Say what a step does.

        :param obs: (B, O), or for each member its own, (E, B, O)
        :param actions: (B, A), or (E, B, A)
        :param noise: standard normal, (E, B, d); None: means
        :param member: ask this one alone, without its axis
        :return: by each member
        """
        mean, log_var = self(torch.cat((obs, actions), -1), member)
        drawn = mean if noise is None else torch.addcmul(mean, (0.5 * log_var).exp(), noise)
        drawn = drawn * self.target_std + self.target_mean
        change = drawn[..., 1:]
        return Prediction(drawn[..., 0], obs + change if self.target == "delta" else change)


@torch.no_grad()
def truncated_normal_(mlp: StackedMLP) -> None:
    """Initialise as the program does: weights normal with 1 / (2 sqrt(inputs)), cut at twice that; biases zero."""
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        std = 1 / (2 * math.sqrt(weight.shape[-2]))
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(bias)


def gaussian_loss(mean: Tensor, log_var: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """sum_e mean_b w mean_d ((mu - y)^2 exp(-v) + v), the mean over rows weighted by w.

    :param mean: (E, B, d)
    :param log_var: v, (E, B, d)
    :param targets: y, (E, B, d)
    :param weights: w, (E, B); None: 1
    :return: scalar
    """
    rows = ((mean - targets).square() * (-log_var).exp() + log_var).mean(-1)  # (E, B)
    if weights is None:
        return rows.mean(1).sum()
    return ((rows * weights).sum(1) / weights.sum(1).clamp(min=1)).sum()


def decay_loss(model: Dynamics) -> Tensor:
    """sum_l c_l |W_l|^2 / 2 over all members, and the pull of the log variances' bounds towards each other.

    :return: scalar
    """
    last = len(model.mlp.weights) - 1
    shares = tuple(DECAY[round(layer / max(last, 1) * (len(DECAY) - 1))] for layer in range(last + 1))
    decay: Tensor = _Decay.apply(shares, *model.mlp.weights)  # type: ignore[no-untyped-call]
    return decay + BOUND_WEIGHT * (model.max_log_var.sum() - model.min_log_var.sum())


class _Decay(torch.autograd.Function):
    """sum_l c_l |W_l|^2 / 2 in two passes over the weights, one of them backward, instead of five."""

    @staticmethod
    def forward(ctx: Any, shares: tuple[float, ...], *weights: Tensor) -> Tensor:
        ctx.shares = shares
        ctx.save_for_backward(*weights)
        squares = (
            share * torch.dot(flat, flat) for share, flat in zip(shares, map(torch.flatten, weights), strict=True)
        )
        return 0.5 * sum(squares, start=weights[0].new_zeros(()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(share * grad * weight for share, weight in zip(ctx.shares, ctx.saved_tensors, strict=True))


@dataclass(frozen=True)
class FitSettings:
    """How an ensemble is trained. Defaults are the program's."""

    batch_size: int = 256
    """Rows per member and gradient step."""

    holdout: float = 0.2
    """Share of the rows that is held out."""

    most_held_out: int = 5000
    """Rows that are held out at most."""

    patience: int = 5
    """Passes over the rows in which no member improves, after which one more ends the training."""

    bootstrap: Literal["redrawn", "kept", "none"] = "redrawn"
    """Which rows a member learns from: as many as there are, drawn with replacement at every call (the program); all,
    with weights that were drawn once, when a row was stored (ours: members that go on from where they are forget
    redrawn ones, and become alike); all alike."""


class Fit:
    """One call of the training, a pass over the rows at a time, so that it can be stopped and gone on with in between.

    Rows are held out at random, and scales fitted to the others. After each pass the error of each member's mean on the
    held-out rows tells whether it has improved, by more than one percent; then its own weights are kept. When no member
    has for more than ``patience`` passes, each goes back to what was kept of it.

    :param model: whose networks are trained
    :param tracked: with what
    :param settings: how
    :param generator: of all draws
    :param record: makes of a gradient step what is called, as :func:`~headway.agents.core.compile.captured` does; None:
        the step itself is called
    """

    def __init__(
        self,
        model: Dynamics,
        tracked: Tracked[Dynamics],
        settings: FitSettings,
        generator: torch.Generator,
        record: Callable[[GradientStep], GradientStep] | None = None,
    ) -> None:
        self.model, self.tracked, self.settings, self.generator = model, tracked, settings, generator
        self.errors = torch.full((len(model),), math.inf, device=generator.device)
        """Mean squared error of each member on the held-out rows, of standardised targets, (E,)."""
        self.spread = self.calibration = self.errors.new_zeros(())
        """Of the last call, on the held-out rows: the mean standard deviation of members' means, and the mean square of
        errors over the variances that were expected, which is 1 of a model that knows how far it errs; scalars."""
        self._rows: Tensor | None = None
        self._drawn: Tensor | None = None
        self._stale, self.passes = 0, 0
        self.calls = 0
        """How many have ended."""
        self._best: dict[str, Tensor] = {}
        self._step: GradientStep = self._take_step if record is None else record(self._take_step)

    @property
    def in_progress(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._rows is not None

    @property
    def elites(self) -> Tensor:
        """:return: members by their error, the least first, (E,) int64."""
        return self.errors.argsort(stable=True)

    def begin(self, inputs: Tensor, targets: Tensor) -> None:
        """Start a call.

        :param inputs: observations and actions of all rows, (N, O + A)
        :param targets: (N, d), not standardised
        :raises ValueError: too few rows to hold any out, or targets that are not finite
        """
        count, held = len(inputs), self._held(len(inputs))
        if held < 1 or count - held < 1:
            raise ValueError(
                f"{count} rows are too few to hold out a share of {self.settings.holdout} of them: at least "
                f"{math.ceil(1 / self.settings.holdout)} are needed"
            )
        if not bool(torch.isfinite(targets.sum())):
            row, column = (~targets.isfinite()).nonzero()[0].tolist()
            what = "reward" if column == 0 else f"next observation[{column - 1}]"
            raise ValueError(f"row {row} has a {what} of {float(targets[row, column])}: no model can learn that")
        device = inputs.device
        self._rows = torch.randperm(count, generator=self.generator, device=device)
        kept = self._rows[held:]
        self._drawn = None
        if self.settings.bootstrap == "redrawn":
            shape = (len(self.model), len(kept))
            self._drawn = torch.randint(len(kept), shape, generator=self.generator, device=device)
        self.model.fit_scales(inputs[kept], targets[kept])
        self.errors.fill_(1e10)
        self._stale, self.passes = 0, 0
        self._best = {name: part.detach().clone() for name, part in self._members().items()}

    def advance(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[bool, Tensor]:
        """Pass over the rows once.

        :param inputs: as of :meth:`begin`
        :param targets: as of :meth:`begin`
        :param weights: of the rows for each member, (N, E), where these are kept
        :return: whether the call has ended with it, and the mean loss of the pass, scalar
        """
        assert self._rows is not None
        scaled = (targets - self.model.target_mean) / self.model.target_std
        kept, loss, steps = self._rows[self._held(len(inputs)) :], targets.new_zeros(()), 0
        for rows in self._minibatches(kept):
            share = None if weights is None else weights.T.gather(1, rows).to(inputs.dtype)
            loss, steps = loss + self._step(inputs[rows], scaled[rows], share), steps + 1
        self.passes += 1
        self._judge(inputs, scaled)
        if self._stale > self.settings.patience:
            self._end(inputs, scaled)
            return True, loss / steps
        return False, loss / steps

    def _take_step(self, inputs: Tensor, scaled: Tensor, weights: Tensor | None) -> Tensor:
        """:return: the loss before it, without the decay, scalar"""
        mean, log_var = self.model(inputs)
        data_loss = gaussian_loss(mean, log_var, scaled, weights)
        self.tracked.minimise(data_loss + decay_loss(self.model))
        return data_loss.detach()

    def _held(self, count: int) -> int:
        return min(int(self.settings.holdout * count), self.settings.most_held_out)

    def _minibatches(self, kept: Tensor) -> Sequence[Tensor]:
        """:return: rows for each member, in an order of its own, (E, B) each; the first fill up the last batch."""
        size, members, count = self.settings.batch_size, len(self.model), len(kept)
        order = torch.rand(members, count, generator=self.generator, device=kept.device).argsort(1)
        drawn = order if self._drawn is None else self._drawn.gather(1, order)
        batches = -(-count // size)
        wrapped = torch.arange(batches * size, device=kept.device) % count
        return torch.split(kept[drawn[:, wrapped]], size, 1)

    def _members(self) -> dict[str, nn.Parameter]:
        """:return: what belongs to each member alone, by its name, (E, …) each."""
        return dict(self.model.mlp.named_parameters())

    @torch.no_grad()
    def _errors(self, inputs: Tensor, scaled: Tensor) -> Tensor:
        assert self._rows is not None
        held = self._rows[: self._held(len(inputs))]
        mean: Tensor = self.model(inputs[held])[0]
        return (mean - scaled[held]).square().mean((1, 2))

    @torch.no_grad()
    def _judge(self, inputs: Tensor, scaled: Tensor) -> None:
        """See which members have improved, and keep what they are."""
        found = self._errors(inputs, scaled)
        better = (self.errors - found) / self.errors > IMPROVEMENT  # (E,)
        for name, part in self._members().items():
            kept = self._best[name]
            kept.copy_(torch.where(better.view(-1, *[1] * (part.dim() - 1)), part, kept))
        self.errors = torch.where(better, found, self.errors)
        self._stale = 0 if bool(better.any()) else self._stale + 1

    @torch.no_grad()
    def _end(self, inputs: Tensor, scaled: Tensor) -> None:
        for name, part in self._members().items():
            part.copy_(self._best[name])
        self.errors = self._errors(inputs, scaled)
        assert self._rows is not None
        held = self._rows[: self._held(len(inputs))]
        mean, log_var = self.model(inputs[held])
        self.spread = mean.std(0, correction=0).mean()
        self.calibration = ((mean - scaled[held]).square() * (-log_var).exp()).mean()
        self._rows, self._drawn, self._best = None, None, {}
        self.calls += 1

    def state(self) -> dict[str, Any]:
        """:return: the place in a call, and the errors of the last one."""
        return {
            "errors": self.errors.clone(),
            "rows": None if self._rows is None else self._rows.clone(),
            "drawn": None if self._drawn is None else self._drawn.clone(),
            "stale": self._stale,
            "passes": self.passes,
            "calls": self.calls,
            "spread": self.spread.clone(),
            "calibration": self.calibration.clone(),
            "best": {name: part.clone() for name, part in self._best.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to that place.

        :raises ValueError: it does not fit
        """
        members, device = len(self.model), self.errors.device
        fields = {
            "errors": array((members,), "float32", finite=False, low=0),
            "stale": whole(),
            "passes": whole(),
            "calls": whole(),
        }
        fields |= dict.fromkeys(("spread", "calibration"), array((), "float32", finite=False, low=0))
        fields |= {"rows": maybe(array((None,), "int64", low=0)), "best": by_name(array(None, "float32"))}
        group(fields | {"drawn": maybe(array((members, None), "int64", low=0))})(state, "the training of the model")
        shapes = {name: part.shape for name, part in self._members().items()} if state["rows"] is not None else {}
        if {name: part.shape for name, part in state["best"].items()} != shapes:
            raise ValueError("the training of the model must keep the weights of every member, and nothing else")
        self.errors = state["errors"].to(device).clone()
        self._rows, self._drawn = (None if state[k] is None else state[k].to(device) for k in ("rows", "drawn"))
        self._stale, self.passes, self.calls = (state[name] for name in ("stale", "passes", "calls"))
        self.spread, self.calibration = (state[name].to(device).clone() for name in ("spread", "calibration"))
        self._best = {name: part.to(device).clone() for name, part in state["best"].items()}


def keep_weights(rows: int, members: int, generator: torch.Generator) -> Tensor:
    """Draw how often each member counts rows that are stored for good: Poisson with mean 1 (ours).

    :param rows: N
    :param members: E
    :param generator: the stream
    :return: (N, E) uint8
    """
    rates = torch.ones(rows, members, device=generator.device)
    return torch.poisson(rates, generator=generator).to(torch.uint8)
