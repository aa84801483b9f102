"""Between Gymnasium's spaces and the tensors of networks: observations encoded, actions scaled, spaces as JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn
from torch.nn import functional as F

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
                    f"{where} is {_shown(part)}; only Box, Discrete, or a Dict of these, can be read: "
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


class ActionScaler:
    """Between an agent's actions, in [-1, 1], and the environment's Box.

    :param space: a bounded Box
    :param device: where actions are computed
    """

    def __init__(self, space: spaces.Box, device: torch.device) -> None:
        self.shape = tuple(space.shape)
        self.size = int(np.prod(self.shape))
        bounds = (_inner_float32(space.low, np.inf), _inner_float32(space.high, -np.inf))
        self.low, self.high = (torch.as_tensor(bound, device=device).flatten() for bound in bounds)

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: actions (N, A) in [-1, 1] mapped to the environment's bounds, (N, *A)"""
        scaled = self.low + 0.5 * (actions + 1) * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high).reshape(-1, *self.shape)

    def from_env(self, actions: Tensor) -> Tensor:
        """:return: actions in the environment's bounds, (…, A), mapped to [-1, 1], (…, A)"""
        return 2 * (actions - self.low) / (self.high - self.low) - 1


def _inner_float32(bound: np.ndarray[Any, Any], inwards: float) -> np.ndarray[Any, Any]:
    """Round a float64 bound to the nearest float32 that is not outside of it."""
    rounded = np.asarray(bound).astype(np.float32)
    outside = rounded < bound if inwards > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(inwards)), rounded)


def _shown(space: spaces.Space[Any]) -> str:
    return " ".join(str(space).split())


def check_action_space(space: spaces.Space[Any], agent: str, alternatives: str) -> None:
    """Refuse what a continuous agent cannot act in.

    :param space: the environment's action space
    :param agent: the agent's name
    :param alternatives: what to say about agents that could
    :raises ValueError: not a Box, or one whose bounds are not finite in float32 or leave no room
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{agent} needs a Box action space, got {_shown(space)}: {alternatives}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        spans = np.abs([low, high, high - low])
    if not (spans <= np.finfo(np.float32).max).all():  # NaN and infinity fail as well as what float32 cannot hold
        raise ValueError(
            f"{agent} needs an action space with finite bounds, got {_shown(space)}: "
            "declare the bounds, or wrap the environment in gymnasium.wrappers.TransformAction with a bounded space"
        )
    if not (space.low < space.high).all():
        raise ValueError(f"{agent} needs action bounds with low < high in every dimension, got {_shown(space)}")


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a Box, Discrete or Dict space in JSON.

    :param space: the space
    :return: its description, from which :func:`space_from_json` builds an equal space
    :raises ValueError: another kind of space
    """
    if isinstance(space, spaces.Box):
        bounds = {name: _bound_to_json(getattr(space, name)) for name in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    raise ValueError(f"a {type(space).__name__} space cannot be saved: use Box, Discrete or a Dict of these")


def space_from_json(description: Mapping[str, Any]) -> spaces.Space[Any]:
    """Build a space from its description.

    :param description: what :func:`space_to_json` returned
    :return: the space
    :raises ValueError: the description is not of a space
    """
    try:
        kind = description["type"]
        if kind == "Box":
            shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
            low, high = (_bound_from_json(description[name], shape, dtype) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        if kind == "Discrete":
            dtype = np.dtype(description.get("dtype", "int64"))
            return spaces.Discrete(description["n"], start=description["start"], dtype=dtype.type)
        if kind == "Dict":
            return spaces.Dict([(key, space_from_json(part)) for key, part in description["spaces"]])  # order is kept
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, OverflowError) as error:
        raise ValueError(f"not the description of a space: {error}") from error
    raise ValueError(f"not the description of a space: type {kind!r}")


def _bound_to_json(bound: np.ndarray[Any, Any]) -> Any:
    """One number where all are equal (an image has thousands), else nested lists; infinities as strings."""
    equal = bound.size > 0 and bool((bound == bound.flat[0]).all())
    return _plain(bound.flat[0].item() if equal else bound.tolist())


def _plain(bound: Any) -> Any:
    if isinstance(bound, list):
        return [_plain(item) for item in bound]
    return str(bound) if bound in (float("inf"), float("-inf")) else bound


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.array(bound, dtype), shape).copy()  # reads the strings that stand for infinities too
