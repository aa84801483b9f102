"""What tests of several folders share besides the worlds in :mod:`toys`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback


class Stop(BaseCallback):
    """Stop at a step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.num_timesteps < self.at


def same_tree(first: Any, second: Any, where: str = "") -> None:
    """Assert that two nests of plain data are equal."""
    assert type(first) is type(second), where
    if isinstance(first, Mapping):
        assert first.keys() == second.keys(), where
        for key in first:
            same_tree(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            same_tree(one, other, f"{where}/{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second), where
    else:
        assert first == second, where
