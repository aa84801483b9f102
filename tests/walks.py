"""Recorded episodes of an environment that there is not."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from headway.agents.core.data.dataset import Dataset
from torch import Tensor

WIDTH = 5


def walk(steps: int, seed: int, width: int = WIDTH) -> Tensor:
    """States of an episode: they move a little at each step, as states do."""
    generator = torch.Generator().manual_seed(seed)
    return 1 + torch.randn(steps, width, generator=generator, dtype=torch.float64).cumsum(0) / 3


def recorded(episodes: Sequence[Tensor], rewards: Sequence[float] | None = None, **fields: Any) -> Dataset:
    """A data set of these states; each step of an episode has the reward that is given for it."""
    lengths = torch.tensor([len(states) for states in episodes])
    steps, width = int(lengths.sum()), episodes[0].shape[1]
    paid = torch.arange(len(episodes)) if rewards is None else torch.tensor(rewards)
    known: dict[str, Any] = {"name": "toy/walks-v0", "env_id": "Toy-v0"} | fields
    return Dataset(
        observation_space=spaces.Box(-math.inf, math.inf, (width,), np.float64),
        action_space=spaces.Box(-1, 1, (2,), np.float32),
        obs=torch.cat(list(episodes)),
        final_obs=torch.stack([states[-1] for states in episodes]),
        actions=torch.zeros(steps, 2),
        rewards=torch.repeat_interleave(paid.double(), lengths),
        lengths=lengths,
        terminated=torch.zeros(len(episodes), dtype=torch.bool),
        **known,
    )
