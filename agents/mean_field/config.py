"""Hyper-parameters of the deep solvers of mean field games.

Where not said otherwise, defaults are those of OpenSpiel 2.0's examples of the same algorithms.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..core.config import AgentConfig, Count, Fraction, LearningRate, Positive, Range

Starts = Annotated[int, Range(0, unit="transitions")]
Interval = Annotated[float, Range(0, open_low=True, unit="transitions")]


@dataclass(frozen=True, kw_only=True)
class MemberConfig(AgentConfig):
    """What learners of action values have in common. Defaults are OpenSpiel's for deep mirror descent on four rooms."""

    live = AgentConfig.live | {"train_freq", "target_update_interval", "exploration"}

    learning_rate: LearningRate = 0.01
    """Step size of Adam."""

    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Keep the learning rate, or let it fall linearly to zero over the iterations."""

    gamma: Fraction = 1.0
    """Discount factor per decision; games end, so 1 does no harm."""

    batch_size: Count = 128
    """Transitions per gradient step."""

    net_arch: tuple[Count, ...] = (128, 128)
    """Hidden layer widths; none makes a network linear."""

    inputs: Literal["coordinates", "table"] = "coordinates"
    """What networks read: one-hot coordinates and time, as members observe them, or one input for each state and time,
    with which even a linear network can represent anything (our choice)."""

    episodes: Count = 1000
    """Episodes per iteration and population."""

    members: Count = 1000
    """Episodes lived through side by side, between which the network learns; fewer, where buffer_size holds fewer (our
    choice: OpenSpiel has one at a time)."""

    buffer_size: Count = 40_000
    """The newest transitions of an iteration to learn from."""

    learning_starts: Starts = 1000
    """Transitions to collect in an iteration before the first gradient step."""

    train_freq: Interval = 64
    """Transitions collected per gradient step."""

    target_update_interval: Interval = 200
    """Transitions between copies of the network into its target."""

    exploration: Fraction = 0.1
    """Share of decisions taken uniformly at random while collecting."""


@dataclass(frozen=True, kw_only=True)
class MirrorDescentConfig(MemberConfig):
    """Hyper-parameters of deep mirror descent. Defaults are OpenSpiel's for four rooms, where not said otherwise."""

    live = MemberConfig.live | {"temperature", "alpha"}

    temperature: Positive = 10.0
    """tau, in the reward's unit: policies are softmax(Q / tau), so that 1 / tau is the step size of mirror descent."""

    alpha: Fraction = 0.99
    """How much of the last policy is kept. 1 is mirror descent; less pays members for entropy, with a temperature of
    (1 - alpha) tau in the end."""


@dataclass(frozen=True, kw_only=True)
class BestResponseConfig(MemberConfig):
    """Hyper-parameters of the deep Q-network that best responds. Defaults are OpenSpiel's for average-network
    fictitious play, where not said otherwise."""

    learning_rate: LearningRate = 0.001
    episodes: Count = 3000
    members: Count = 500
    buffer_size: Count = 5000
    learning_starts: Starts = 200
    train_freq: Interval = 40

    max_grad_norm: Positive | None = 40.0
    """Clip the gradient of action values to this Euclidean norm; none does not clip."""


@dataclass(frozen=True, kw_only=True)
class AverageConfig(BestResponseConfig):
    """Hyper-parameters of average-network fictitious play: of best responses, and of the network that averages them."""

    live = BestResponseConfig.live | {"average_steps", "average_batch_size", "average_max_grad_norm"}

    average_episodes: Count = 100
    """Episodes of each best response that the average is to learn."""

    average_steps: Count = 2000
    """Gradient steps of the average per iteration."""

    average_batch_size: Count = 128
    """Decisions per gradient step of the average."""

    average_learning_rate: LearningRate = 0.01
    """Step size for the average, which no schedule lowers (OpenSpiel's for gradient descent; we use it for Adam)."""

    average_max_grad_norm: Positive | None = 100.0
    """Clip the average's gradient to this Euclidean norm; none does not clip."""

    reservoir_size: Count = 100_000_000
    """Decisions kept of all best responses, a uniform sample of them; memory is taken as they come."""
