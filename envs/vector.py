"""A batch as the vector environment that users of Gymnasium expect: NumPy arrays in, NumPy arrays out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from .batched import BatchedEnv

Array = np.ndarray[Any, Any]


class NumpyVectorEnv(VectorEnv[Any, Any, Any]):
    """The array face of a :class:`BatchedEnv`, following Gymnasium's rules for vector environments that reset within
    the step (SAME_STEP) or leave that to the caller (DISABLED).

    ``info`` has the form that ``SyncVectorEnv`` gives it: an array per key, zero where it does not hold, with the rows
    it holds for under ``_key``. Of rows that ended, ``final_obs`` and ``final_info`` hold what the step led to, while
    the rest of ``info`` is that of their resets. What the batch tells in ``info["episode"]`` is left to Gymnasium's
    ``RecordEpisodeStatistics``.

    :param batched: the batch
    :param reset_info: gives what a reset just done tells in its info, (N, …) each, of which only reset rows are read
    """

    def __init__(self, batched: BatchedEnv, reset_info: Callable[[], dict[str, Tensor]] = dict) -> None:
        self.batched, self._reset_info = batched, reset_info
        self.num_envs, self.metadata, self.render_mode = batched.num_envs, batched.metadata, batched.render_mode
        self.single_observation_space = batched.single_observation_space
        self.observation_space = batched.observation_space
        self.single_action_space, self.action_space = batched.single_action_space, batched.action_space

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.vector.VectorEnv.reset``."""
        obs, parts = self.batched.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        info: dict[str, Any] = {}
        _put(info, _arrays(parts), np.ones(self.num_envs, bool) if mask is None else np.array(mask, bool))
        return _array(obs), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See ``gymnasium.vector.VectorEnv.step``."""
        # copied, since PyTorch warns of arrays that are not writeable, and refuses reversed ones
        tensor = actions if isinstance(actions, Tensor) else torch.from_numpy(np.array(actions))
        obs, rewards, terminated, truncated, told = self.batched.step(tensor.to(self.batched.device))
        ended = _array(terminated | truncated)
        final_obs = told["final_obs"]
        parts = _arrays({name: part for name, part in told.items() if name not in ("final_obs", "episode")})
        info: dict[str, Any] = {}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and ended.any():
            final_info: dict[str, Any] = {}
            _put(final_info, parts, ended)
            _put(info, {"final_obs": _by_row(_array(final_obs), ended)}, ended)
            info |= {"final_info": final_info, "_final_info": ended.copy()}
            _put(info, _arrays(self._reset_info()), ended)
            _put(info, parts, ~ended)
        else:
            _put(info, parts, np.ones(self.num_envs, bool))
        return _array(obs), _array(rewards), _array(terminated), _array(truncated), info

    def render(self) -> Any:
        """See ``gymnasium.vector.VectorEnv.render``."""
        return self.batched.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the batch."""
        self.batched.close(**kwargs)

    def state(self) -> Any:
        """See :meth:`BatchedEnv.state`."""
        return self.batched.state()

    def load_state(self, state: Any) -> None:
        """See :meth:`BatchedEnv.load_state`."""
        self.batched.load_state(state)


def face(
    batch: Callable[..., BatchedEnv], num_envs: int, device: torch.device | str | None, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """Make what ``gymnasium.make_vec`` returns of a batch of tensors: NumPy arrays in float64; tensors given a device.

    :param batch: makes it, from N, ``device``, ``dtype`` and options
    :param num_envs: N
    :param device: where the tensors are; None: arrays
    :param options: of the batch
    :return: the vector environment
    """
    if device is not None:
        return batch(num_envs, device=device, **options)
    return NumpyVectorEnv(batch(num_envs, **{"dtype": torch.float64, **options}))


def _array(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _array(value) for name, value in part.items()}
    return part.cpu().numpy()


def _arrays(parts: dict[str, Any]) -> dict[str, Array]:
    """What there is a row of for every row; a batch may tell other things, for those who know it."""
    return {name: _array(part) for name, part in parts.items() if isinstance(part, Tensor)}


def _by_row(obs: Any, rows: Array) -> Array:
    """The form of ``final_obs``: an observation per row, None where there is none."""
    separate = np.full(len(rows), None, dtype=object)
    for row in np.flatnonzero(rows):
        separate[row] = {key: part[row] for key, part in obs.items()} if isinstance(obs, dict) else obs[row]
    return separate


def _put(info: dict[str, Any], parts: dict[str, Array], rows: Array) -> None:
    """Enter what holds for some rows, as ``VectorEnv._add_info`` enters what holds for one."""
    if not rows.any():
        return
    for name, part in parts.items():
        for key, value in ((name, part), (f"_{name}", rows)):
            info.setdefault(key, np.full_like(value, None if value.dtype == object else 0))[rows] = value[rows]
