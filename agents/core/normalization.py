"""Stable-Baselines3's ``VecNormalize`` on stored transitions: stored raw, normalised when sampled, as the peer does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from ...envs.schema import Check, array, by_name, each, either, flag, group, maybe, real, text
from .spaces import ObservationCodec


class BatchNormalizer:
    """Reads the running statistics of a ``VecNormalize`` and applies them to encoded observations and to rewards.

    :param vec_normalize: the wrapper whose statistics count
    :param codec: how observations are encoded
    :param device: where batches are
    """

    def __init__(self, vec_normalize: VecNormalize, codec: ObservationCodec, device: torch.device) -> None:
        self.source, self.codec, self.device = vec_normalize, codec, device

    def obs(self, obs: Any) -> Any:
        """Normalise encoded observations, what has statistics of them.

        :param obs: raw, (B, D), or several tensors by name
        :return: normalised with the current statistics, float32
        """
        if not self.source.norm_obs:
            return obs
        if isinstance(obs, dict):
            return {name: self._field(name, part) for name, part in obs.items()}
        return self._field(next(iter(self.codec.fields)), obs)

    def _field(self, name: str, values: Tensor) -> Tensor:
        if name in self.codec.kept:
            return self.part(name, values)
        parts = zip(self.codec.parts, torch.split(values, self.codec.sizes, 1), strict=True)
        columns = [self.part(key, part) for key, part in parts]
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def part(self, key: str, values: Tensor) -> Tensor:
        """Normalise one part of Dict observations.

        :param key: the part
        :param values: raw, (…, D)
        :return: normalised with the current statistics, (…, D) float32
        """
        statistics = self._statistics().get(key) if self.source.norm_obs else None
        if statistics is None:
            return values.float() if values.dtype is torch.float64 else values
        return self._apply(values, statistics)

    def rewards(self, rewards: Tensor) -> Tensor:
        """Normalise rewards.

        :param rewards: raw, (B,)
        :return: scaled with the current statistics, (B,)
        """
        if not self.source.norm_reward:
            return rewards
        scale = 1 / np.sqrt(self.source.ret_rms.var + self.source.epsilon)
        return (rewards * float(scale)).clamp(-self.source.clip_reward, self.source.clip_reward)

    def _statistics(self) -> dict[str, RunningMeanStd]:
        statistics = self.source.obs_rms
        return dict(statistics) if isinstance(statistics, dict) else {"": statistics}

    def _apply(self, part: Tensor, statistics: RunningMeanStd) -> Tensor:
        """As ``VecNormalize`` does it, in float64 up to the end: of large numbers, float32 would leave nothing."""
        mean, std = statistics.mean, np.sqrt(statistics.var + self.source.epsilon)
        if part.shape[-mean.ndim :] != mean.shape:  # flattened
            mean, std = mean.ravel(), std.ravel()
        shift, scale = (torch.as_tensor(x, dtype=torch.float64, device=self.device) for x in (mean, std))
        return ((part - shift) / scale).clamp(-self.source.clip_obs, self.source.clip_obs).float()


def normalised_keys(state: Mapping[str, Any] | None) -> tuple[str, ...]:
    """:return: keys that a ``VecNormalize`` of this state normalises; "" of observations that are no Dict."""
    if state is None or not state["norm_obs"]:
        return ()
    return tuple(state["norm_obs_keys"] or ("",))


def is_fresh(source: VecNormalize) -> bool:
    """:return: whether a ``VecNormalize`` has seen nothing yet."""
    rms = [source.ret_rms]
    if source.norm_obs:
        rms += source.obs_rms.values() if isinstance(source.obs_rms, dict) else [source.obs_rms]
    return all(one.count < 1 for one in rms)  # it begins with 1e-4


SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


def normalizer_state(source: VecNormalize) -> dict[str, Any]:
    """Copy the statistics and settings of a ``VecNormalize``.

    :param source: the wrapper
    :return: plain data
    """
    state: dict[str, Any] = {name: getattr(source, name) for name in SETTINGS}
    state["ret_rms"] = _moments(source.ret_rms)
    if source.norm_obs:
        rms = source.obs_rms
        state["obs_rms"] = {k: _moments(v) for k, v in rms.items()} if isinstance(rms, dict) else _moments(rms)
    return state


def load_normalizer_state(target: VecNormalize, state: Mapping[str, Any]) -> None:
    """Put back what :func:`normalizer_state` copied.

    :param target: a wrapper around the same observation space
    :param state: statistics and settings
    :raises ValueError: ``target`` normalises other observations; it is then as it was
    """
    live: Any = getattr(target, "obs_rms", None)
    _check_settings(state)
    if state["norm_obs"]:
        missing = sorted(state["obs_rms"].keys() - live.keys()) if isinstance(live, dict) else live is None
        if missing:
            which = f" {', '.join(missing)}" if isinstance(missing, list) else ""
            raise ValueError(
                f"this VecNormalize keeps no statistics of the observations{which}, the saved one did: "
                "build it with the same norm_obs and norm_obs_keys"
            )
    for moments, rms in _pairs(target, state):
        _moments_of(np.shape(rms.mean))(moments, "statistics of the VecNormalize")
    for name in SETTINGS:
        setattr(target, name, state[name])
    for moments, rms in _pairs(target, state):
        _set_moments(rms, moments)


def checked_state(state: Any) -> dict[str, Any]:
    """See that something is the state of a ``VecNormalize``, of whatever observations.

    :param state: as of :func:`normalizer_state`
    :return: it
    :raises ValueError: it is none
    """
    _check_settings(state)
    return dict(state)


def _moments_of(shape: tuple[int, ...] | None) -> Check:
    kinds = ("float64", "float32")
    fields = {"mean": array(shape, *kinds), "var": array(shape, *kinds, low=0), "count": real(0, above=True)}
    return group(fields)


def _check_settings(state: Any) -> None:
    clip = real(0, finite=False, above=True)
    settings = {"norm_obs": flag, "norm_reward": flag, "clip_obs": clip, "clip_reward": clip}
    settings |= {"gamma": real(0, 1), "epsilon": real(0), "norm_obs_keys": maybe(each(text()))}
    moments = _moments_of(None)
    statistics = {"ret_rms": _moments_of(()), "obs_rms": either(moments, by_name(moments))}
    group({**settings, **statistics}, optional=("obs_rms",))(state, "the VecNormalize")
    if state["norm_obs"] != ("obs_rms" in state):
        raise ValueError("the VecNormalize must hold statistics of observations just if it normalises them")


def _pairs(target: VecNormalize, state: Mapping[str, Any]) -> list[tuple[Any, RunningMeanStd]]:
    """:return: saved statistics beside those that they are of"""
    pairs: list[tuple[Any, RunningMeanStd]] = [(state["ret_rms"], target.ret_rms)]
    if state["norm_obs"]:
        live: Any = target.obs_rms
        several = isinstance(live, dict)
        pairs += [(part, live[k]) for k, part in state["obs_rms"].items()] if several else [(state["obs_rms"], live)]
    return pairs


def _moments(rms: RunningMeanStd) -> dict[str, Any]:
    return {"mean": np.array(rms.mean), "var": np.array(rms.var), "count": float(rms.count)}


def _set_moments(rms: RunningMeanStd, moments: Mapping[str, Any]) -> None:
    rms.mean, rms.var, rms.count = np.array(moments["mean"]), np.array(moments["var"]), moments["count"]


def moments_of(normalizer: BatchNormalizer | None) -> list[tuple[RunningMeanStd, dict[str, Any]]]:
    """:return: the statistics of a normaliser as they are, to be put back; an update replaces their arrays."""
    if normalizer is None:
        return []
    source, statistics = normalizer.source, [normalizer.source.ret_rms]
    if source.norm_obs:
        statistics += source.obs_rms.values() if isinstance(source.obs_rms, dict) else [source.obs_rms]
    return [(rms, dict(vars(rms))) for rms in statistics]


def put_back(moments: list[tuple[RunningMeanStd, dict[str, Any]]]) -> None:
    """Undo what a step made of statistics.

    :param moments: as of :func:`moments_of`, from before it
    """
    for rms, before in moments:
        vars(rms).update(before)
