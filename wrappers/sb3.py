"""A :class:`~headway.envs.BatchedEnv` as a Stable-Baselines3 ``VecEnv``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Wrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ..envs import BatchedEnv
from ..envs.batched import Info, Obs


def to_numpy(obs: Obs) -> Any:
    """:return: a batch of observations as arrays of their own memory, by key for a dict."""
    if isinstance(obs, dict):
        return {key: part.cpu().numpy().copy() for key, part in obs.items()}
    return obs.cpu().numpy().copy()


DUMMY = "Autoreset.dummy"
"""Key that marks, in a row's info dict, what ``info["dummy"]`` marks in a batch; not there otherwise."""


def row_infos(info: Info, terminated: Tensor, truncated: Tensor) -> list[dict[str, Any]]:
    """Build Stable-Baselines3's list of info dicts.

    Only rows that ended, or only did a delayed reset, get entries, so a large batch stays cheap.

    :param info: what a batch's ``step`` returned
    :param terminated: (N,)
    :param truncated: (N,)
    :return: one dict per row
    """
    native = "sb3" in info
    infos: list[dict[str, Any]] = list(info["sb3"]) if native else [{} for _ in range(len(terminated))]
    ended = (terminated | truncated).nonzero().flatten().tolist()
    final: Any = to_numpy(info["final_obs"]) if ended and not native else None
    if not native and "dummy" in info:
        for row in info["dummy"].nonzero().flatten().tolist():
            infos[row][DUMMY] = True
    for row in ended:
        episode = {"r": float(info["episode"]["r"][row]), "l": int(info["episode"]["l"][row]), "t": 0.0}
        infos[row].setdefault("episode", episode)
        if not native:
            infos[row]["TimeLimit.truncated"] = bool(truncated[row] & ~terminated[row])
            infos[row]["terminal_observation"] = (
                {k: v[row] for k, v in final.items()} if isinstance(final, dict) else final[row]
            )
    return infos


class BatchedVecEnv(VecEnv):
    """The adapter back: any batch for Stable-Baselines3's agents, callbacks and ``evaluate_policy``.

    This interface has no word for a delayed reset: of a batch that has them (``info["dummy"]``), a foreign agent would
    store a step of zero reward between two episodes. Headway's agents read the batch itself, or find the row marked in
    its info dict where another wrapper stands between, and do not.

    :param batched: the batch
    """

    def __init__(self, batched: BatchedEnv) -> None:
        self.batched = batched
        super().__init__(batched.num_envs, batched.single_observation_space, batched.single_action_space)
        self._actions: Tensor | None = None

    def reset(self) -> Any:
        """Reset every row, with the seeds given to :meth:`seed` if any."""
        obs, _ = self.batched.reset(seed=self.take_seeds(), options=self._options[0] or None)
        self._reset_options()
        return to_numpy(obs)

    def take_seeds(self) -> list[int | None] | None:
        """:return: the seeds that :meth:`seed` left for the next reset, once; None if there are none."""
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        self._reset_seeds()
        return seeds

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        """Take the actions for the next :meth:`step_wait`."""
        self._actions = torch.as_tensor(actions, device=self.batched.device)

    def step_wait(self) -> Any:
        """Step the batch."""
        assert self._actions is not None
        obs, rewards, terminated, truncated, info = self.batched.step(self._actions)
        infos = row_infos(info, terminated, truncated)
        return to_numpy(obs), to_numpy(rewards), (terminated | truncated).cpu().numpy(), infos

    def state(self) -> Any:
        """See :meth:`BatchedEnv.state`."""
        return {"batched": self.batched.state(), "seeds": list(self._seeds)}

    def load_state(self, state: Any) -> None:
        """See :meth:`BatchedEnv.load_state`."""
        self.batched.load_state(state["batched"])
        self._seeds = list(state["seeds"])

    def close(self) -> None:
        """Close the batch."""
        self.batched.close()

    def get_images(self) -> Sequence[np.ndarray[Any, Any] | None]:
        """:return: one frame per row."""
        frames: Any = self.batched.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """:return: an attribute of the batch, once per row asked for."""
        value = getattr(self.batched, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the batch; it has no rows of its own to set it on."""
        setattr(self.batched, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the batch once; :return: its result, once per row asked for."""
        result = getattr(self.batched, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """:return: whether rows are wrapped: never, but a batch gives the ``info["episode"]`` that a Monitor would."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
