"""Windows of recorded episodes: consecutive steps of one of them, filled up before its start.

Shapes: R recorded steps, B windows, K steps of a window, W words.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...wrappers.missions import PAD
from ..core.spaces import Obs, map_obs


@dataclass(frozen=True, slots=True)
class Steps:
    """All recorded steps, one episode after the other."""

    obs: Obs
    """States, (R, *O)."""
    mission: Tensor
    """Words (R, W), or a number of the task (R, 1), int64."""
    actions: Tensor
    """(R,) int64."""
    steps: Tensor
    """Place in the episode, from 0, (R,) int64."""
    rewards: Tensor
    """(R,)"""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows, whose last step is always a real one. Those before an episode's start repeat its first observation."""

    obs: Obs
    """States, (B, K, *O)."""
    mission: Tensor
    """That of the episode, (B, W) int64."""
    actions: Tensor
    """(B, K) int64; that of a step which is not real is A, "none"."""
    steps: Tensor
    """Place in the episode, from 0, (B, K) int64."""
    real: Tensor
    """(B, K) bool."""


def step_numbers(ended: Tensor) -> Tensor:
    """:return: the place of each step in its episode, from 0, where these are the last ones, (R,) each"""
    at = torch.arange(len(ended), device=ended.device)
    begins = ended.roll(1)
    begins[0] = True
    return at - at.masked_fill(~begins, 0).cummax(0).values


def trimmed(tokens: Tensor) -> Tensor:
    """:return: sentences (R, W) without the last columns, where all are padding: nobody looks at it"""
    used = (tokens != PAD).any(0).nonzero()
    return tokens[:, : int(used.max()) + 1 if len(used) else 0]


def windows_at(data: Steps, ends: Tensor, length: int, no_action: int) -> Windows:
    """Cut out the windows that end with given steps, these included.

    :param data: all steps
    :param ends: numbers of steps, (B,)
    :param length: K
    :param no_action: what the action before an episode's start is
    :return: them
    """
    back = torch.arange(length - 1, -1, -1, device=ends.device)  # how long before the end, (K,)
    since = data.steps[ends].unsqueeze(1)  # how long after the episode's start the end is, (B, 1)
    real = back <= since
    at = ends.unsqueeze(1) - torch.minimum(back, since)  # (B, K)
    return Windows(
        obs=map_obs(lambda part: part[at], data.obs),
        mission=data.mission[ends],
        actions=data.actions[at].where(real, no_action),
        steps=data.steps[at],
        real=real,
    )


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move images, all of a window by the same, in each direction by up to so many pixels; black comes in.

    :param images: (B, K, C, height, width)
    :param pixels: the most
    :param generator: where the shifts come from
    :return: of the same shape
    """
    rows, height, width = len(images), *images.shape[-2:]
    device = images.device
    by = torch.randint(2 * pixels + 1, (2, rows, 1), generator=generator, device=device)
    padded = F.pad(images.flatten(1, 2), [pixels] * 4)  # (B, K C, height + 2 pixels, width + 2 pixels)
    down = by[0] + torch.arange(height, device=device)  # (B, height)
    right = by[1] + torch.arange(width, device=device)
    window = torch.arange(rows, device=device)
    cut = padded[window[:, None, None], :, down[:, :, None], right[:, None, :]]  # (B, height, width, K C)
    return cut.permute(0, 3, 1, 2).reshape(images.shape)
