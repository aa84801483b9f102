"""What episodes and demonstrations are compared by."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from gymnasium import spaces
from torch import Tensor

from ..core.data.dataset import Dataset
from ..core.spaces import ObservationCodec
from .config import RelabelConfig
from .sinkhorn import unit


@dataclass(frozen=True)
class Problem:
    """Episodes beside demonstrations.

    :param states: what is compared of each step, of length 1, (R, D)
    :param lengths: steps of each episode, (E,) int64
    :param demonstrations: states of each, (M, D)
    :param numbers: per observation
    :param config: how they are compared
    """

    states: Tensor
    lengths: Tensor
    demonstrations: Sequence[Tensor]
    numbers: int
    config: RelabelConfig

    def episodes(self) -> tuple[Tensor, ...]:
        """:return: states of each episode, (N, D)."""
        return torch.split(self.states, self.lengths.tolist())

    def fingerprint(self) -> str:
        """:return: 16 digits that tell this problem from others."""
        digest = hashlib.sha256(repr(sorted(self.config.to_dict().items())).encode())
        for tensor in (self.states, self.lengths, *self.demonstrations):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def best(dataset: Dataset, count: int) -> Dataset:
    """Take the episodes of highest return as demonstrations.

    :param dataset: with true rewards
    :param count: how many
    :return: these episodes, the best one first; ``about["episodes"]`` are their numbers
    :raises ValueError: it has fewer
    """
    if not 1 <= count <= dataset.episodes:
        raise ValueError(f"best:{count}: {dataset.name or 'the data set'} has {dataset.episodes} episodes")
    chosen = dataset.returns.argsort(descending=True, stable=True)[:count]
    return replace(dataset.select(chosen), about={"episodes": chosen.tolist()})


def prepare(dataset: Dataset, demonstrations: Dataset | None, config: RelabelConfig) -> Problem:
    """Make states comparable.

    :param dataset: what shall be labelled
    :param demonstrations: what it is compared with; None where nothing is
    :param config: how
    :return: both, in one form
    :raises ValueError: they do not fit each other or the configuration
    """
    if not config.needs_demonstrations:
        empty = torch.zeros(len(dataset), 0)
        return Problem(empty, dataset.lengths, (), 0, config)
    if demonstrations is None:
        raise ValueError(f"method {config.method} needs at least one demonstration")
    _check_fit(dataset, demonstrations)
    if config.top_k > demonstrations.episodes:
        raise ValueError(f"top_k {config.top_k}: there are only {demonstrations.episodes} demonstrations")
    states, numbers = _vectors(dataset, config)
    targets, _ = _vectors(demonstrations, config)
    if config.standardize != "none":
        of = states if config.standardize == "dataset" else targets
        mean, std = of.mean(0), of.std(0, correction=0)
        std = torch.where(std > 0, std, 1.0)  # what never changes says nothing
        states, targets = (states - mean) / std, (targets - mean) / std
    dtype = getattr(torch, config.dtype)
    apart = torch.split(unit(targets).to(dtype), demonstrations.lengths.tolist())
    return Problem(unit(states).to(dtype), dataset.lengths, apart, numbers, config)


def _check_fit(dataset: Dataset, demonstrations: Dataset) -> None:
    names = demonstrations.name or "the demonstrations", dataset.name or "the data set"
    envs = demonstrations.env_id, dataset.env_id
    if None not in envs and envs[0] != envs[1]:
        raise ValueError(f"{names[0]} is of {envs[0]}, {names[1]} of {envs[1]}: record demonstrations in {envs[1]}")
    for what in ("observation", "action"):
        theirs, ours = getattr(demonstrations, f"{what}_space"), getattr(dataset, f"{what}_space")
        if _shapes(theirs) != _shapes(ours):
            raise ValueError(
                f"{names[0]} has the {what} space {theirs}, {names[1]} has {ours}: record demonstrations in the same "
                "environment"
            )


def _shapes(space: spaces.Space[object]) -> object:
    """What two spaces must have in common; bounds may differ."""
    if isinstance(space, spaces.Dict):
        return {key: _shapes(part) for key, part in space.spaces.items()}
    return type(space), space.shape, getattr(space, "n", None)


def _vectors(dataset: Dataset, config: RelabelConfig) -> tuple[Tensor, int]:
    """:return: what is compared of each step, (R, D) float64, and the numbers per observation."""
    space, obs, name = dataset.observation_space, dataset.obs, dataset.name or "the data set"
    if config.keys:
        if not isinstance(space, spaces.Dict) or isinstance(obs, Tensor):
            raise ValueError(f"keys {', '.join(config.keys)}: observations of {name} have no parts, leave it out")
        if missing := [key for key in config.keys if key not in space.spaces]:
            raise ValueError(f"keys {missing[0]}: observations of {name} have the parts {', '.join(space.spaces)}")
        space, obs = spaces.Dict({key: space[key] for key in config.keys}), {key: obs[key] for key in config.keys}
    leaves = tuple(space.spaces) if isinstance(space, spaces.Dict) else ("",)
    codec = ObservationCodec(space, flatten=True, normalised=leaves)  # which keeps float64
    vectors = codec.encode(obs, torch.device("cpu"), raw=True)
    if not isinstance(vectors, Tensor) or vectors.ndim != 2:
        raise ValueError(f"observations of {name} contain images, whose cosine says little: name other parts by keys")
    numbers, vectors = vectors.shape[1], vectors.double()
    if config.states == "obs-action":
        actions = ObservationCodec(dataset.action_space, flatten=True).encode(dataset.actions, torch.device("cpu"))
        assert isinstance(actions, Tensor)
        vectors = torch.cat((vectors, actions.double()), 1)
    return vectors, numbers
