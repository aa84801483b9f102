"""The state of a training run: what has to be put back for the run to go on as if it had never stopped."""

import logging
import random
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ....wrappers.snapshot import StateNotSavable
from ..normalization import load_normalizer_state, normalizer_state

if TYPE_CHECKING:
    from ..agent import ActorCriticAgent

log = logging.getLogger("headway")

COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_episode_num",
    "_n_updates",
    "_pending_updates",
    "_current_progress_remaining",
    "seed",
)


def training_state(agent: "ActorCriticAgent[Any]") -> dict[str, Any]:
    """Copy everything but networks and experience, which are saved beside it.

    :param agent: the agent, between two steps
    :return: counters, streams, environment, logs as nested plain data
    """
    return {
        "counters": {name: getattr(agent, name) for name in COUNTERS},
        "episodes": None if agent.ep_info_buffer is None else [dict(info) for info in agent.ep_info_buffer],
        "successes": None if agent.ep_success_buffer is None else list(agent.ep_success_buffer),
        "generators": {name: generator.get_state() for name, generator in agent.generators.items()},
        "global_streams": _global_streams(),
        "last_obs": agent._last_obs,
        "last_original_obs": agent._last_original_obs,
        "metrics": agent.metrics.state(),
        "collector": agent.collector.state(),
        "normalizer": None if agent._vec_normalize_env is None else normalizer_state(agent._vec_normalize_env),
        "env": _env_state(agent),
    }


def load_training_state(agent: "ActorCriticAgent[Any]", state: Mapping[str, Any]) -> None:
    """Go back to what :func:`training_state` copied.

    :param agent: an agent with an environment built the same way
    :param state: the copy
    :raises ValueError: it does not fit the agent or its environment
    """
    for name in COUNTERS:
        setattr(agent, name, state["counters"][name])
    for buffer, saved in (("ep_info_buffer", state["episodes"]), ("ep_success_buffer", state["successes"])):
        setattr(agent, buffer, None if saved is None else deque(saved, maxlen=agent._stats_window_size))
    for name, generator in agent.generators.items():
        generator.set_state(state["generators"][name])
    agent.metrics.load_state(state["metrics"], agent.device)
    agent.collector.load_state(state["collector"])
    if state["env"] is not None:
        agent.batched_env.load_state(state["env"])
        obs, raw_obs = state["last_obs"], state["last_original_obs"]
        agent.observe(obs.to(agent.device), None if raw_obs is None else raw_obs.to(agent.device))
    elif agent.env is not None and agent.num_timesteps:
        log.warning("the checkpoint holds no environment state: the episode it was saved in is restarted")
        agent.env.seed((agent.seed or 0) + agent.num_timesteps)
    if state["normalizer"] is not None and agent._vec_normalize_env is not None:
        load_normalizer_state(agent._vec_normalize_env, state["normalizer"])
    _set_global_streams(state["global_streams"])


def _env_state(agent: "ActorCriticAgent[Any]") -> Any:
    """The environment's state, or None where it must be restarted: broken, not begun, or impossible to copy."""
    if agent.env_is_broken or agent._last_obs is None:
        return None
    try:
        return agent.batched_env.state()
    except StateNotSavable as cause:
        log.warning("a resumed run will restart its episode: %s", cause)
        return None


def _global_streams() -> dict[str, Any]:
    """Python's, NumPy's and torch's global streams: Headway draws nothing from them, but environments may."""
    return {
        "torch": torch.get_rng_state(),
        "numpy": list(np.random.get_state(legacy=True)),  # noqa: NPY002
        "python": list(random.getstate()),
    }


def _set_global_streams(streams: Mapping[str, Any]) -> None:
    torch.set_rng_state(streams["torch"])
    np.random.set_state(tuple(streams["numpy"]))  # noqa: NPY002
    version, internal, gauss = streams["python"]
    random.setstate((version, tuple(internal), gauss))
