"""How rewards are labelled."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..core.config import Config, Count, Positive, Range

Method = Literal["otr", "min-distance", "segment", "temporal", "constant", "shuffled", "ground-truth"]

Domain = Literal["mujoco", "adroit", "antmaze"]


@dataclass(frozen=True, kw_only=True)
class RelabelConfig(Config):
    """What labels are made of; the defaults are the authors' (arXiv 2303.13971, as their code has them)."""

    method: Method = "otr"
    """otr: optimal transport. temporal: the same, of three steps at once and near the diagonal (arXiv 2410.21795).
    min-distance, segment: the nearest state of the demonstration, or of the same part of it (arXiv 2506.06793).
    Controls: constant (1 per step), shuffled (labels of otr, dealt out anew), ground-truth (rewards as they are)."""

    domain: Literal["auto"] | Domain = "auto"
    """Whose constants: mujoco and adroit 5 exp(-5 c / d) with d numbers per observation, antmaze 5 exp(-c) and a
    bias of -2. auto: antmaze where the environment's id names a maze, else mujoco."""

    states: Literal["obs", "obs-action"] = "obs"
    """What is compared."""

    keys: tuple[str, ...] = ()
    """Parts of Dict observations that are compared; by default all."""

    standardize: Literal["none", "demonstrations", "dataset"] = "none"
    """Subtract the mean and divide by the standard deviation of whose steps (our choice; the authors do neither)."""

    epsilon: Annotated[float, Range(1e-4, 10)] = 0.01
    """Weight of the plan's entropy, in the unit of the cost, which is from 0 to 2."""

    iterations: Count = 100
    """Of Sinkhorn's algorithm; with a tolerance at most so many."""

    tolerance: Positive | None = None
    """Stop when the plan's sums over columns are off by no more, in all. None stops after iterations, as the authors'
    code does."""

    dtype: Literal["float32", "float64"] = "float32"
    """Of costs and plans; float64 for epsilon below 0.001."""

    context: Count = 3
    """Steps whose costs are averaged by temporal (TemporalOT's context_num)."""

    mask_k: Count = 10
    """Steps from the diagonal within which temporal may match (TemporalOT's mask_k)."""

    segments: Count = 10
    """Parts of equal length of episode and demonstration, which segment compares one by one (our choice)."""

    squash: Literal["exponential", "linear"] = "exponential"
    """alpha exp(-beta c / beta_divisor), or -alpha c / 1000."""

    alpha: Positive | None = None
    """Greatest reward before scaling; by default 5, with linear 10."""

    beta: Positive | None = None
    """How fast rewards fall with the cost c; by default 5, in antmaze 1."""

    beta_divisor: Positive | None = None
    """What beta is divided by; by default the numbers per observation, in antmaze 1. The paper has the action's."""

    top_k: Count = 1
    """Average over so many demonstrations, those with the greatest sum of an episode's rewards."""

    scale: Literal["auto", "returns", "none"] = "auto"
    """returns: multiply by 1000 / (greatest - least return of an episode). auto: that, but not for the ground truth of
    antmaze."""

    bias: float | None = None
    """What is added to each reward in the end; by default 0, in antmaze -2, with its ground truth -1."""

    seed: Annotated[int, Range(0)] = 0
    """Of shuffled."""

    @property
    def needs_demonstrations(self) -> bool:
        """Whether anything is compared."""
        return self.method not in ("constant", "ground-truth")

    @property
    def transports(self) -> bool:
        """Whether a plan is made."""
        return self.method in ("otr", "temporal", "shuffled")

    def constants(self, env_id: str | None, numbers: int) -> "Constants":
        """Say what the defaults mean for some data.

        :param env_id: the environment's id, if it is known
        :param numbers: per observation
        :return: the constants
        """
        maze = self.domain == "antmaze" or (self.domain == "auto" and "maze" in (env_id or "").lower())
        real = self.method == "ground-truth"
        return Constants(
            alpha=self.alpha or (5.0 if self.squash == "exponential" else 10.0),
            beta=self.beta or (1.0 if maze else 5.0),
            divisor=self.beta_divisor or (1.0 if maze else float(numbers)),
            scaled=self.scale == "returns" or (self.scale == "auto" and not (maze and real)),
            bias=self.bias if self.bias is not None else (-1.0 if real else -2.0) if maze else 0.0,
        )


@dataclass(frozen=True)
class Constants:
    """What follows from a configuration for some data.

    :param alpha: greatest reward before scaling
    :param beta: how fast rewards fall with the cost
    :param divisor: of beta
    :param scaled: whether rewards are multiplied by 1000 over the range of returns
    :param bias: added in the end
    """

    alpha: float
    beta: float
    divisor: float
    scaled: bool
    bias: float
