"""Ids of what wrappers make: any environment behind random delays (``headway/Delayed-v0``), Frostbite with missions."""

from functools import partial
from itertools import product
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from ..envs import NumpyVectorEnv, is_batched, make, make_batched
from .batching import VectorEnvBatch
from .missions import GAMES
from .random_delay import BatchedRandomDelay, DelayLike, Form, RandomDelay


def make_delayed(
    env_id: str,
    observation_delay: DelayLike,
    action_delay: DelayLike,
    initial_action: Any = None,
    form: Form = "dict",
    **kwargs: Any,
) -> RandomDelay:
    """Make one environment behind random delays; what ``gymnasium.make("headway/Delayed-v0", …)`` calls.

    The environment's own time limit stays inside. A ``max_episode_steps`` given to ``gymnasium.make`` comes on top of
    it, counts the agent's ticks, and loses what is on its way: call this function with it instead.

    :param env_id: as for :func:`headway.envs.make`
    :param observation_delay: see :class:`RandomDelay`
    :param action_delay: see :class:`RandomDelay`
    :param initial_action: see :class:`RandomDelay`
    :param form: see :class:`RandomDelay`
    :param kwargs: for the environment
    :return: the delayed environment
    :raises ValueError: see :func:`headway.envs.make` and :class:`RandomDelay`
    """
    return RandomDelay(make(env_id, **kwargs), observation_delay, action_delay, initial_action, form)


def make_delayed_vector(
    num_envs: int,
    env_id: str,
    observation_delay: DelayLike,
    action_delay: DelayLike,
    initial_action: Any = None,
    form: Form = "dict",
    terminal_delivery: Literal["delayed", "immediate"] = "delayed",
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make many rows behind random delays; what ``gymnasium.make_vec("headway/Delayed-v0", …)`` calls.

    :param num_envs: rows
    :param env_id: one that :func:`headway.envs.is_batched` knows steps as a batch; of others, one environment per row
    :param observation_delay: see :class:`RandomDelay`
    :param action_delay: see :class:`RandomDelay`
    :param initial_action: see :class:`RandomDelay`
    :param form: see :class:`RandomDelay`
    :param terminal_delivery: see :class:`BatchedRandomDelay`; "immediate" is for batches
    :param device: where tensors are; None: NumPy arrays
    :param kwargs: for the environment or batch
    :return: the vector environment; a :class:`~headway.envs.BatchedEnv` given a device
    :raises ValueError: see :func:`headway.envs.make_batched` and :class:`BatchedRandomDelay`
    """
    if is_batched(env_id):
        if device is None:
            kwargs = {"dtype": torch.float64, **kwargs}
        batch = make_batched(env_id, num_envs, device=device or "cpu", autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        delayed = BatchedRandomDelay(batch, observation_delay, action_delay, initial_action, form, terminal_delivery)
        return NumpyVectorEnv(delayed) if device is None else delayed
    if terminal_delivery != "delayed" or (device is not None and torch.device(device).type != "cpu"):
        raise ValueError(
            f"environment {env_id!r} has no batched form: its rows step one by one, on the CPU, and deliver their ends "
            f"delayed; got device {device} and terminal_delivery {terminal_delivery!r}"
        )
    row = partial(make_delayed, env_id, observation_delay, action_delay, initial_action, form, **kwargs)
    rows = SyncVectorEnv([row] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    return rows if device is None else VectorEnvBatch(rows)


def register_all() -> None:
    """Register the ids; importing ``headway.wrappers`` has done it."""
    gym.register(
        "headway/Delayed-v0",
        entry_point=f"{__name__}:make_delayed",
        vector_entry_point=f"{__name__}:make_delayed_vector",
        order_enforce=False,  # the environment inside has its own
        disable_env_checker=True,
    )
    named: dict[str, dict[str, Any]] = {"Text": {}, "Numbered": {"include_task": True}}
    for game, (name, options), obs in product(GAMES, named.items(), ("ram", "pixels")):
        gym.register(
            f"headway/{name}{game.capitalize()}{'-pixels' * (obs == 'pixels')}-v0",
            entry_point=f"{__package__}.missions:make_text_game",
            vector_entry_point=f"{__package__}.missions:make_text_game_vector",
            kwargs={"game": game, "obs": obs, **options},
        )
