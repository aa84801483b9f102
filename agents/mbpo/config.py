"""Hyper-parameters of MBPO and of posterior sampling."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..core.config import Count, Fraction, LearningRate, Range
from ..core.entropy import EntropyConfig
from .dynamics import FitSettings

Bound = Annotated[int, Range(0)]

SAMPLERS = ("ps", "ops", "model_only")
"""Variants with agents of their own for each model."""


@dataclass(frozen=True, kw_only=True)
class MBPOConfig(EntropyConfig):
    """Hyper-parameters of MBPO and its variants. Where not said otherwise, defaults are MBPO's own for Hopper."""

    live = EntropyConfig.live | {"real_ratio", "spread_weight"}

    variant: Literal["mbpo", "ps", "ops", "model_only", "sombrl"] = "mbpo"
    """mbpo: one agent, imagined steps by any elite. ps: agents for each model, one of which is drawn for each episode.
    ops: the one of which most is expected. model_only: as ps, but agents know the world by their model alone, and are
    trained anew whenever it changes. sombrl: mbpo, rewarded for what models disagree about."""

    learning_starts: Annotated[int, Range(5, unit="environment steps")] = 5000
    """Steps with uniformly random actions before the model's first training."""

    gradient_steps: Annotated[int, Range(1)] = 20
    """Gradient steps of the agents per environment step."""

    target_entropy: float | str = "auto"
    """Entropy, in nats, that the temperature steers towards; "auto" is minus the number of action dimensions. MBPO's
    own are in the presets."""

    model_train_freq: Annotated[int, Range(1, unit="environment steps")] = 250
    """Steps between trainings of the model, each followed by rollouts."""

    rollouts_per_step: Count = 400
    """Imagined rollouts per environment step, of all agents together."""

    rollout_schedule: tuple[Bound, Bound, Bound, Bound] = (20, 150, 1, 15)
    """a, b, lo, hi: rollouts are lo steps long until epoch a, and hi from epoch b on."""

    epoch_length: Annotated[int, Range(1, unit="environment steps")] = 1000
    """An epoch of that schedule."""

    retain_epochs: Count = 1
    """Epochs for which imagined steps are kept."""

    real_ratio: Fraction = 0.05
    """Share of each batch that was really experienced."""

    n_models: Count = 7
    """Members of the model (K)."""

    n_elites: Count = 5
    """Members that imagine, the best on held-out rows (mbpo and sombrl; the others drop none)."""

    agents_per_model: Count = 1
    """Agents of each member (P), of the variants that have agents of their own."""

    model_net_arch: tuple[Count, ...] = (200, 200, 200, 200)
    """Hidden layer widths of the model."""

    model_learning_rate: LearningRate = 1e-3
    """Step size of Adam for the model."""

    model_target: Literal["delta", "absolute"] = "delta"
    """What the model predicts: the change of the observation, or the next one (arXiv 2510.01457)."""

    scale_targets: bool = False
    """Standardise what the model predicts, the reward included, per dimension (arXiv 2412.14312)."""

    prior_scale: Annotated[float, Range(0)] = 0.0
    """Weight of a fixed random network in each member's mean (randomised priors); 0: none."""

    bootstrap: Literal["auto", "redrawn", "kept", "none"] = "auto"
    """What rows a member learns from, see FitSettings; auto: redrawn of mbpo and sombrl, kept of the others."""

    refit_factor: Count = 5
    """How many times as many gradient steps as the others agents take that know the world by their model alone
    (model_only), since they begin anew with each model (our choice)."""

    judged_steps: Annotated[int, Range(0)] = 10
    """Imagined steps after which critics judge an agent (ops, and whom evaluations show)."""

    spread_weight: Annotated[float, Range(0)] = 1.0
    """What the ensemble's spread adds to the reward (sombrl)."""

    anchor_kl: Annotated[float, Range(0)] = 0.0
    """How strongly the agents of ps and ops are pulled towards one that imagines by any member, as MBPO's does: the
    weight of the divergence between their actions in the actors' loss (our choice); 0: there is none."""

    learn_termination: bool = False
    """As a last resort, let a network learn from the steps that ended an episode what ends imagined ones, where nobody
    has entered a formula on observations, see headway.envs.terminations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        a, b, low, high = self.rollout_schedule
        if not (a < b and 1 <= low <= high):
            raise ValueError(
                f"{self._label('rollout_schedule')} must be a, b, lo, hi with a < b and 1 <= lo <= hi, "
                f"got {self.rollout_schedule}"
            )
        if self.n_elites > self.n_models and self.variant not in SAMPLERS:
            raise ValueError(
                f"{self._label('n_elites')} must be at most n_models, {self.n_models}, got {self.n_elites}"
            )

        if self.anchor_kl and self.variant not in ("ps", "ops"):
            raise ValueError(
                f"{self._label('anchor_kl')} is for the variants ps and ops, got {self.anchor_kl} for {self.variant}"
            )

    @property
    def n_agents(self) -> int:
        """A."""
        return self.n_models * self.agents_per_model if self.variant in SAMPLERS else 1

    @property
    def stacked(self) -> int:
        """Agents that learn: A, and the anchor, if there is one, which comes last."""
        return self.n_agents + bool(self.anchor_kl)

    @property
    def rows(self) -> int:
        """Rollouts of each agent between two trainings of the model."""
        return max(self.rollouts_per_step * self.model_train_freq // self.n_agents, 1)

    @property
    def keeps_counts(self) -> bool:
        """Whether how often members and agents count a row is drawn once and kept with it."""
        return self.fitting.bootstrap == "kept"

    def capacity(self, length: int) -> int:
        """:return: imagined rows that each agent keeps, where rollouts have this length"""
        rounds = -(-self.epoch_length // self.model_train_freq)
        return self.retain_epochs * length * self.rows * rounds

    @property
    def fitting(self) -> FitSettings:
        """How the model is trained."""
        own: Any = "kept" if self.variant in SAMPLERS else "redrawn"
        return FitSettings(bootstrap=own if self.bootstrap == "auto" else self.bootstrap)
