"""Hyper-parameters of the Text Decision Transformer.

The paper itself could not be read. Where not said otherwise, a default is that of its authors' public code,
Louiealbp/TDT, in the variant built on minGPT; sizes are our choice for a CPU, and the preset "paper" has the code's.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from ...wrappers.missions import KNOWN
from ..core.config import Count, Fraction, LearningRate, Positive, Range
from ..core.offline import OfflineConfig
from .text import MOST_HASHES

LOWEST = 0.1
"""What a cosine leaves of the learning rate."""

Scope = Literal["encoder", "all", "all_but_text"]
"""What one network takes over of another."""

Dropout = Annotated[float, Range(0, 1, open_high=True)]


@dataclass(frozen=True, kw_only=True)
class TDTConfig(OfflineConfig):
    """Hyper-parameters of TDT."""

    live = OfflineConfig.live - {"gamma"} | {"dropout", "label_smoothing", "weight_decay"}
    unused = frozenset({"gamma"})

    mode: Literal["tdt", "tdt_k1", "tdt_sentence_token", "tdt_no_text", "tdt_task_id", "bc_text", "bc_mlp"] = "tdt"
    """What reads the instruction. tdt: a transformer over words, states and actions. tdt_k1: the same over one step.
    tdt_sentence_token: each sentence is one token. tdt_no_text: no word is read, a lower bound, and for pretraining.
    tdt_task_id: the number of the task in the place of the text, an upper bound. bc_text: a perceptron over the last
    states, which the mean of the words modulates (FiLM), of as many parameters as tdt (our choice). bc_mlp: a
    perceptron over the last state and the mean of the words."""

    context: Count = 10
    """K: steps of a window of one episode, each of which is imitated (the code: 20). Where one step is looked at, it is
    each of them by itself, so that all modes learn from the same batches (our choice)."""

    width: Count = 64
    """d: numbers of a token (the code: 128)."""

    layers: Count = 3
    """Blocks of the transformer, and of bc_text (the code: 6)."""

    heads: Count = 4
    """Of attention in each block; width is a multiple of it (the code: 8)."""

    activation: Literal["relu", "tanh", "elu", "gelu"] = "gelu"  # type: ignore[assignment]  # one more
    """Non-linearity of the blocks; that of bc_mlp is relu."""

    net_arch: tuple[Count, ...] = (176, 176, 176, 176, 176)
    """Hidden layer widths of bc_mlp: about as many parameters as tdt has, as the code's 512 make in its size."""

    vocabulary: Annotated[int, Range(3, KNOWN)] | None = None
    """Words that have a vector of their own, those of the least ids; None: up to the largest known id in the data."""

    hashes: Annotated[int, Range(1, MOST_HASHES)] = 3
    """Rows of a shared table that make up the vector of any other word, or of a sentence (our choice)."""

    buckets: Count = 256
    """Rows of that table (our choice)."""

    causal_text: bool = False
    """Words attend to those before them alone, as in the code, and not to all (our choice)."""

    step_embedding: Annotated[int, Range(0, unit="steps")] = 0
    """Rows of a learned table of the step in its episode, later ones having the last row; 0: there is none. Recorded
    episodes are often pieces, whose steps are not those of the world, so there is none by default (our choice). The
    code has one, of the window's first step in training and of the newest in evaluation."""

    keep_best: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    """Share of the episodes of each mission, those of the highest return, that is imitated; at least one."""

    transfer_scope: Scope = "all"
    """What is taken over of the agent that it starts from: what reads states; everything; everything but the vectors of
    words or tasks and their places."""

    freeze: Literal["nothing", "encoder", "text"] = "nothing"
    """What is not trained: what reads states, or the vectors of words, for which transfer() brings weights."""

    batch_size: Count = 32
    """B: windows per gradient step (the code: 128)."""

    learning_rate: LearningRate = 6e-4
    """Step size of AdamW, whose betas are 0.9 and 0.95."""

    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "cosine"  # type: ignore[assignment]  # one more
    """Keep the learning rate, or let it fall over total_timesteps: linearly to zero, or by a half cosine to a tenth."""

    warmup_steps: Annotated[int, Range(0, unit="gradient steps")] = 0
    """Over which the learning rate rises from zero (the code: four; blocks that normalise what they read need none)."""

    weight_decay: Annotated[float, Range(0)] = 0.1
    """Decoupled decay of the matrices of linear layers and convolutions, times the learning rate per step."""

    max_grad_norm: Positive | None = 1.0
    """Clip the gradient to this Euclidean norm; none does not clip."""

    dropout: Dropout = 0.1
    """Share of numbers that are dropped: of the tokens, and of what each block adds; the code also drops attention."""

    label_smoothing: Fraction = 0.0
    """Share of the target that is spread over all actions."""

    shift: Annotated[int, Range(0, unit="pixels")] = 0
    """Images are moved by up to so much in training, all of a window alike; what comes in is black (the code: 8)."""

    top_k: Count | None = 2
    """Likeliest actions among which one that is not deterministic is drawn; none draws among all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"{self._label('width')} must be a multiple of heads, {self.heads}, got {self.width}")

    def rate_left(self, remaining: float) -> float:
        """See :meth:`AgentConfig.rate_left`; a cosine leaves a tenth in the end."""
        if self.learning_rate_schedule == "cosine":
            return LOWEST + (1 - LOWEST) * 0.5 * (1 - math.cos(math.pi * remaining))
        return super().rate_left(remaining)

    @property
    def window(self) -> int:
        """Steps that the mode looks at to choose an action."""
        return 1 if self.mode in ("tdt_k1", "bc_mlp") else self.context
