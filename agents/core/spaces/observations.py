"""Observations of Gymnasium's spaces as tensors that networks read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn
from torch.nn import functional as F

from .as_json import shown

Observation = Tensor | Mapping[str, Tensor]


class ObservationCodec:
    """Turns observations of a space into one tensor per batch, the form in which they are stored and read.

    Vectors and other small Boxes become (N, D) float32; Discrete becomes one-hot, as in Stable-Baselines3. A Dict of
    these is flattened, its keys in the space's order. An image, by Stable-Baselines3's definition, keeps its shape and
    its bytes.

    :param space: a Box, a Discrete, or a Dict of these without images
    :raises ValueError: any other space; the remedy is named
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.is_image = isinstance(space, spaces.Box) and is_image_space(space)
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for key, part in parts.items():
            where = f"observation key {key!r}" if key else "the observation space"
            if not isinstance(part, (spaces.Box, spaces.Discrete)):
                raise ValueError(
                    f"{where} is {shown(part)}; only Box, Discrete, or a Dict of these, can be read: "
                    "wrap the environment in gymnasium.wrappers.FlattenObservation"
                )
            if key and is_image_space(part):
                raise ValueError(
                    f"{where} is an image inside a Dict, which no agent here reads: "
                    "keep one of the two with gymnasium.wrappers.FilterObservation or TransformObservation"
                )
        self.parts: dict[str, Any] = dict(parts)
        self.sizes = [_size(part) for part in self.parts.values()]
        self.shape: tuple[int, ...] = tuple(space.shape) if self.is_image and space.shape else (sum(self.sizes),)
        self.dtype = torch.uint8 if self.is_image else torch.float32

    def encode(self, obs: Observation, device: torch.device) -> Tensor:
        """Encode a batch.

        :param obs: tensors with a leading batch axis, (N, *O), by key for a Dict space
        :param device: where the result shall be
        :return: (N, D) float32, or (N, C, H, W) uint8 for images
        """
        if self.is_image:
            assert isinstance(obs, Tensor)
            return obs.to(device, self.dtype)
        columns = [obs[key] for key in self.parts] if isinstance(obs, Mapping) else [obs]
        flat = [
            self._encode_part(part, column.to(device))
            for part, column in zip(self.parts.values(), columns, strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    def _encode_part(self, part: spaces.Space[Any], column: Tensor) -> Tensor:
        if isinstance(part, spaces.Discrete):
            return F.one_hot(column.long().reshape(len(column)) - int(part.start), int(part.n)).to(self.dtype)
        return column.to(self.dtype).reshape(len(column), _size(part))

    def locate(self, column: int) -> str:
        """Name the place in the observation that a column of the encoded form came from, for error messages."""
        for (key, part), size in zip(self.parts.items(), self.sizes, strict=True):
            if column < size:
                index = ", ".join(str(int(i)) for i in np.unravel_index(column, part.shape)) if part.shape else ""
                return f"observation{f'[{key!r}]' if key else ''}[{index}]"
            column -= size
        raise IndexError(column)

    def features(self) -> nn.Module:
        """Build the first stage of a network: nothing for vectors, Stable-Baselines3's NatureCNN for images.

        :return: a module with an attribute ``features_dim``
        """
        return ImageFeatures(self.space) if self.is_image else VectorFeatures(self.shape[0])


def _size(part: spaces.Space[Any]) -> int:
    """:return: columns that a part of an observation takes when encoded."""
    return int(part.n) if isinstance(part, spaces.Discrete) else int(np.prod(part.shape or ()))


class VectorFeatures(nn.Module):
    """The observation itself.

    :param features_dim: D
    """

    def __init__(self, features_dim: int) -> None:
        super().__init__()
        self.features_dim = features_dim

    def forward(self, obs: Tensor) -> Tensor:
        """:return: ``obs``, (B, D)"""
        return obs


class ImageFeatures(nn.Module):
    """Stable-Baselines3's NatureCNN on bytes scaled to [0, 1].

    :param space: the image space, channels first
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        assert isinstance(space, spaces.Box)
        self.cnn = NatureCNN(space)
        self.features_dim = self.cnn.features_dim

    def forward(self, obs: Tensor) -> Tensor:
        """:return: features of images (B, C, H, W), (B, features_dim)"""
        return self.cnn(obs.float() / 255)  # type: ignore[no-any-return]
