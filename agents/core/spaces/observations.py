"""Observations of Gymnasium's spaces as tensors that networks read."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn
from torch.nn import functional as F

from .as_json import shown
from .fields import Fields, FieldSpec, Obs

Observation = Tensor | Mapping[str, Tensor]

VECTOR = "vector"
"""Name of the field that holds all that is flattened, beside others."""

DELAYED = ("action_buffer", "observation_age", "action_age", "applied_action_age")
"""Keys by which observations of a delayed environment are known, see :class:`headway.wrappers.RandomDelay`."""

FLAT = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class ObservationCodec:
    """Turns observations of a space into the form in which they are stored and read.

    Vectors and other Boxes of floats become (N, D) float32; Discrete and MultiDiscrete become one-hot, as in
    Stable-Baselines3. All of these in a Dict are flattened into one tensor, in the space's order of keys. Images, by
    Stable-Baselines3's definition, and Boxes of integers (tokens, counts) keep their shape and their dtype: each is a
    tensor of its own. Where that makes several, an encoded observation is a dict of tensors.

    :param flatten: flatten Boxes of integers too, for agents that read one vector
    :param normalised: keys that a ``VecNormalize`` normalises; "" of a space that is no Dict
    :param scale_buffer: map the action buffer of a delayed environment from the actions' bounds to [-1, 1]
    :raises ValueError: any other space; the remedy is named
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        *,
        flatten: bool = False,
        normalised: Collection[str] = (),
        scale_buffer: bool = False,
    ) -> None:
        self.space = space
        leaves: dict[str, Any] = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        for key, leaf in leaves.items():
            if not isinstance(leaf, FLAT):
                where = f"observation key {key!r}" if key else "the observation space"
                raise ValueError(
                    f"{where} is {shown(leaf)}; only Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these, "
                    "can be read: wrap the environment in gymnasium.wrappers.FlattenObservation"
                )
        self.kept = {key: leaf for key, leaf in leaves.items() if _is_kept(leaf, flatten)}
        """Parts that are tensors of their own."""
        self.parts = {key: leaf for key, leaf in leaves.items() if key not in self.kept}
        """Parts that are flattened into one vector."""
        self.sizes = [_size(part) for part in self.parts.values()]
        self.vector = VECTOR if VECTOR not in self.kept else f"{VECTOR}_"
        raw = {key: FieldSpec(leaf.shape, _dtype(leaf)) for key, leaf in self.kept.items()}
        self.fields: dict[str, FieldSpec] = {
            key: FieldSpec(field.shape, torch.float32 if key in normalised else field.dtype)
            for key, field in raw.items()
        }
        self.is_wide = any(
            key in normalised and not np.can_cast(part.dtype, np.float32) for key, part in self.parts.items()
        )
        """Whether the raw vector is float64."""
        if self.parts:
            self.fields[self.vector] = FieldSpec((sum(self.sizes),), torch.float32)
            raw[self.vector] = FieldSpec((sum(self.sizes),), torch.float64 if self.is_wide else torch.float32)
        self.raw_fields = raw
        self._bounds = _buffer_bounds(self.parts) if scale_buffer and DELAYED[0] not in normalised else None

    @property
    def spec(self) -> Fields:
        """What is read: one field, or several by name."""
        return next(iter(self.fields.values())) if len(self.fields) == 1 else self.fields

    @property
    def raw_spec(self) -> Fields:
        """What is stored before normalisation: one field, or several by name."""
        return next(iter(self.raw_fields.values())) if len(self.raw_fields) == 1 else self.raw_fields

    def encode(self, obs: Observation, device: torch.device, *, raw: bool = False) -> Obs:
        """Encode a batch.

        :param obs: tensors with a leading batch axis, (N, *O), by key for a Dict space
        :param device: where the result shall be
        :param raw: they are to be stored, and normalised when they are sampled
        :return: (N, D) float32, images (N, C, H, W) uint8, or integers (N, …); by name where there are several
        """
        given = obs if isinstance(obs, Mapping) else {"": obs}
        encoded = {key: given[key].to(device, self._kept_dtype(key, given[key], raw)) for key in self.kept}
        if self.parts:
            dtype = torch.float64 if raw and self.is_wide else torch.float32
            columns = [_flattened(part, given[key].to(device), dtype) for key, part in self.parts.items()]
            if self._bounds is not None:
                place = list(self.parts).index(DELAYED[0])
                low, high = (bound.to(device) for bound in self._bounds)
                columns[place] = 2 * (columns[place] - low) / (high - low) - 1
            encoded[self.vector] = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        return encoded if len(encoded) > 1 else next(iter(encoded.values()))

    def decode(self, encoded: Obs) -> Obs:
        """Undo :meth:`encode` of observations that are to be stored.

        :param encoded: as they are stored, (N, …)
        :return: observations of the space, (N, *O), by key for a Dict space; in its dtype, but no more exact than
            what was stored
        """
        fields = {next(iter(self.raw_fields)): encoded} if isinstance(encoded, Tensor) else encoded
        parts: dict[str, Tensor] = {key: fields[key] for key in self.kept}
        if self.parts:
            columns = list(torch.split(fields[self.vector], self.sizes, 1))
            if self._bounds is not None:
                place = list(self.parts).index(DELAYED[0])
                low, high = (bound.to(columns[place].device) for bound in self._bounds)
                columns[place] = low + 0.5 * (columns[place] + 1) * (high - low)
            pairs = zip(self.parts.items(), columns, strict=True)
            parts |= {key: _unflattened(part, column) for (key, part), column in pairs}
        return {key: parts[key] for key in self.space} if isinstance(self.space, spaces.Dict) else parts[""]

    def _kept_dtype(self, key: str, given: Tensor, raw: bool) -> torch.dtype:
        """What a part of its own becomes; integers that somebody has normalised are no longer whole."""
        if given.is_floating_point() and not raw and not is_image_space(self.kept[key]):
            return torch.float32
        return (self.raw_fields if raw else self.fields)[key].dtype

    def narrowed(self, obs: Obs) -> Obs:
        """:return: raw observations as they are read where nothing normalises them."""
        if isinstance(obs, Tensor):
            return obs.float() if obs.dtype is torch.float64 else obs
        return {name: self.narrowed(part) for name, part in obs.items()}  # type: ignore[misc]

    def numbers(self, obs: Obs) -> dict[str, Tensor]:
        """:return: the tensors of encoded observations that hold floats, by field."""
        given = {next(iter(self.fields)): obs} if isinstance(obs, Tensor) else obs
        return {name: part for name, part in given.items() if part.dtype.is_floating_point}

    def locate(self, column: int) -> str:
        """Name the place in the observation that a column of the vector came from, for error messages."""
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
        if len(self.fields) > 1:
            return CombinedFeatures({name: self._features(name, 256) for name in self.fields})
        return self._features(next(iter(self.fields)), 512)

    def _features(self, name: str, width: int) -> nn.Module:
        """:return: what reads one field; of a Dict's images 256 features, of an image alone 512, as the peer does."""
        if name not in self.kept:
            return VectorFeatures(sum(self.sizes))
        part = self.kept[name]
        return ImageFeatures(part, width) if is_image_space(part) else NumberFeatures(_size(part))


def _is_kept(leaf: spaces.Space[Any], flatten: bool) -> bool:
    return is_image_space(leaf) or (isinstance(leaf, spaces.Box) and leaf.dtype.kind in "iu" and not flatten)


def _dtype(leaf: spaces.Space[Any]) -> torch.dtype:
    """:return: the space's own; torch can do little with unsigned numbers of more than a byte."""
    wider = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}
    return getattr(torch, wider.get(str(leaf.dtype), str(leaf.dtype)))  # type: ignore[no-any-return]


def _size(part: spaces.Space[Any]) -> int:
    """:return: columns that a part of an observation takes when flattened."""
    if isinstance(part, spaces.Discrete):
        return int(part.n)
    return int(part.nvec.sum()) if isinstance(part, spaces.MultiDiscrete) else int(np.prod(part.shape or ()))


def _buffer_bounds(parts: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Bounds of the buffer of a delayed environment, (K A,) each, where it has finite ones."""
    if not set(DELAYED) <= parts.keys() or not isinstance(buffer := parts[DELAYED[0]], spaces.Box):
        return None
    low, high = (torch.from_numpy(bound.astype(np.float32).ravel()) for bound in (buffer.low, buffer.high))
    return (low, high) if bool((low < high).all() and (high - low).isfinite().all()) else None


def _flattened(part: spaces.Space[Any], column: Tensor, dtype: torch.dtype) -> Tensor:
    """:return: (N, columns) of a dtype"""
    if isinstance(part, spaces.Discrete):
        return F.one_hot(column.long().reshape(len(column)) - int(part.start), int(part.n)).to(dtype)
    if isinstance(part, spaces.MultiDiscrete):
        digits = (column.long() - torch.as_tensor(part.start, device=column.device)).reshape(len(column), -1)
        ones = [F.one_hot(digit, int(n)) for digit, n in zip(digits.unbind(1), part.nvec.ravel(), strict=True)]
        return torch.cat(ones, 1).to(dtype)
    column = column.to(dtype)
    return column.flatten(1) if column.dim() > 1 else column.unsqueeze(1)


def _unflattened(part: spaces.Space[Any], column: Tensor) -> Tensor:
    """:return: (N, columns) as elements of a part, (N, *O)"""
    if isinstance(part, spaces.Discrete):
        return column.argmax(1) + int(part.start)
    if isinstance(part, spaces.MultiDiscrete):
        ones = torch.split(column, [int(n) for n in part.nvec.ravel()], 1)
        digits = torch.stack([one.argmax(1) for one in ones], 1).reshape(-1, *part.shape)
        return digits + torch.as_tensor(part.start, device=column.device)
    return column.reshape(-1, *(part.shape or ())).to(_dtype(part))


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


class NumberFeatures(VectorFeatures):
    """Integers (B, …) as floats (B, D)."""

    def forward(self, obs: Tensor) -> Tensor:
        """:return: (B, D)"""
        return obs.flatten(1).float()


class ImageFeatures(nn.Module):
    """Stable-Baselines3's NatureCNN on bytes scaled to [0, 1].

    :param space: the image space, channels first
    :param features_dim: how many features
    """

    def __init__(self, space: spaces.Space[Any], features_dim: int = 512) -> None:
        super().__init__()
        assert isinstance(space, spaces.Box)
        self.cnn = NatureCNN(space, features_dim)
        self.features_dim = features_dim

    def forward(self, obs: Tensor) -> Tensor:
        """:return: features of images (B, C, H, W), (B, features_dim)"""
        return self.cnn(obs.float() / 255)  # type: ignore[no-any-return]


class CombinedFeatures(nn.Module):
    """The features of several fields side by side.

    :param extractors: by field
    """

    def __init__(self, extractors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.extractors = nn.ModuleDict(extractors)
        self.features_dim = sum(int(extractor.features_dim) for extractor in extractors.values())  # type: ignore[arg-type, misc]

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """:return: (B, features_dim)"""
        return torch.cat([extractor(obs[name]) for name, extractor in self.extractors.items()], -1)
