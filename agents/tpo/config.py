"""The settings of TPO."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..core.config import Count, Fraction, Positive, Range
from ..core.on_policy import ProximalConfig
from .moments import Correction
from .tree import TreeConfig


@dataclass(frozen=True, kw_only=True)
class TPOConfig(TreeConfig, ProximalConfig):
    """Hyper-parameters of TPO: those of PPO, of the trees, and of what is learned from them.

    Of the paper's only its abstract could be read: defaults of PPO are PPO's, all others are ours.
    """

    unused = frozenset(
        {"decide", "include_mean", "root"}
    )  # what is learned from draws by visits, of unbiased candidates
    live = ProximalConfig.live | {
        "policy_loss",
        "std_coef",
        "value_mix",
        "kl_coef",
        "kl_stop",
        "a0c_temperature",
    }

    n_steps: Annotated[int, Range(1, unit="steps")] = 128
    """Length of a round, of every environment. With 16 of them a round has 2,048 steps, PPO's own number."""

    bootstrap_steps: Annotated[int, Range(0, unit="environment steps")] = 300_000
    """Steps of PPO before the first search; none where a policy is given as ``start_from``. The round in which they are
    reached is finished."""

    gate: Literal["stop", "warn", "off"] = "stop"
    """What becomes of a bootstrap that does not act better with search than without: an end, a warning, nothing."""

    gate_episodes: Count = 10
    """Episodes of each that the gate plays."""

    std: Literal["state", "shared"] = "state"
    """Whether each state gets a standard deviation of its own once there is search; PPO has one for all."""

    policy_loss: Literal["moments", "kl_moments", "policy_moments", "nll", "a0c", "adv"] = "moments"
    """What the policy is fitted by. moments: mean and standard deviation of candidates by visits (our reading of the
    abstract). policy_moments: those that the policy itself had (another). adv: PPO's loss of all candidates, whitened
    by normalize_advantage (a third). kl_moments, nll, a0c: see :mod:`~headway.agents.tpo.moments`. In a Discrete space
    all but a0c and adv are the cross-entropy to the shares of visits."""

    correction: Correction = "shrunk"
    """How moments of few candidates become estimates, see :func:`~headway.agents.tpo.moments.moments`."""

    std_coef: Annotated[float, Range(0)] = 0.5
    """c_s: weight of standard deviations beside means."""

    value_mix: Fraction = 0.5
    """eta: what values are fitted to, from 0, what the search said, to 1, the lambda-return along the way."""

    kl_coef: Annotated[float, Range(0)] = 0.0
    """Weight of the divergence from the policy of the round before, in nats."""

    kl_stop: Positive | None = 0.1
    """Leave out the rest of a round's updates once the policy has moved so far, in nats; none does not."""

    bound_coef: Annotated[float, Range(0)] = 0.1
    """Weight of means beyond the actions' bounds. Ours, from a trial (docs/tpo.md): AWR's code has 10."""

    a0c_temperature: Positive = 0.1
    """tau of a0c (alphazero-gym's)."""

    history: Count = 4
    """M: rounds that are learned from, the last ones."""

    default_envs = 16

    search_batch_size: Count = 256
    """Rows per gradient step, once there is search."""
