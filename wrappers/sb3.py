"""A :class:`~headway.envs.BatchedEnv` as a Stable-Baselines3 ``VecEnv``."""

from collections.abc import Sequence
from typing import Any, Protocol

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


def row_infos(
    info: Info, dones: np.ndarray[Any, Any], cut: Tensor, blank: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Build Stable-Baselines3's list of info dicts.

    Only rows that ended, or only did a delayed reset, get entries, and of a batch's tensors only these rows are read:
    a large batch stays cheap, and where no row ended nothing waits for the device.

    :param info: what a batch's ``step`` returned
    :param dones: rows that ended, (N,) bool
    :param cut: of these, rows that were truncated and not terminated, (N,) bool
    :param blank: N empty dicts to give to rows without entries; None makes new ones, which is slow for thousands
    :return: one dict per row
    """
    native = "sb3" in info
    infos: list[dict[str, Any]] = list(info["sb3"] if native else blank or [{} for _ in range(len(dones))])
    if not native and "dummy" in info:
        for row in info["dummy"].nonzero().flatten().tolist():
            infos[row] = {DUMMY: True}
    if not np.count_nonzero(dones):
        return infos
    ended = np.flatnonzero(dones)
    successes = {} if native or "is_success" not in info else _told(info, ended)
    rows = torch.from_numpy(ended).to(cut.device)
    numbers = (info["episode"]["r"], info["episode"]["l"], cut)
    accounts = torch.stack([part[rows].double() for part in numbers], 1).tolist()
    final: Any = None if native else _rows_to_numpy(info["final_obs"], rows)
    for place, (row, (total, length, was_cut)) in enumerate(zip(ended.tolist(), accounts, strict=True)):
        episode = {"r": total, "l": int(length), "t": 0.0}
        if native:
            infos[row].setdefault("episode", episode)
        else:
            last = {k: v[place] for k, v in final.items()} if isinstance(final, dict) else final[place]
            infos[row] = {"episode": episode, "TimeLimit.truncated": bool(was_cut), "terminal_observation": last}
            if row in successes:
                infos[row]["is_success"] = successes[row]
    return infos


def _told(info: Info, ended: np.ndarray[Any, Any]) -> dict[int, bool]:
    """Whether the rows that ended succeeded, of those that say."""
    success = info["is_success"].cpu()
    says = info["_is_success"].cpu() if "_is_success" in info else torch.ones_like(success, dtype=torch.bool)
    return {row: bool(success[row]) for row in ended.tolist() if says[row]}


def _rows_to_numpy(obs: Obs, rows: Tensor) -> Any:
    if isinstance(obs, dict):
        return {key: part[rows].cpu().numpy() for key, part in obs.items()}
    return obs[rows].cpu().numpy()


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
        self.used = object()
        """Another one after each step or reset through this face."""

    def reset(self) -> Any:
        """Reset every row, with what :meth:`seed` and :meth:`set_options` left for it."""
        self.used = object()
        obs, _ = self.batched.reset(**self.take_seeds_and_options())
        return to_numpy(obs)

    def set_options(self, options: Any = None) -> None:
        """Set what the next reset is told.

        :param options: one dict for all rows, or a list of equal ones: a batch is reset as a whole
        :raises ValueError: rows would be told different things
        """
        if isinstance(options, list) and (len(options) != self.num_envs or any(one != options[0] for one in options)):
            raise ValueError(
                f"a batch of {self.num_envs} rows is reset with one dict of options, got {options}: use a DummyVecEnv"
            )
        super().set_options(options)

    def take_seeds_and_options(self) -> dict[str, Any]:
        """:return: keywords for the batch's next ``reset``, once."""
        seeds, options = self.take_seeds(), self._options[0] or None
        self._reset_options()
        return {"seed": seeds, "options": options}

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
        self.used = object()
        obs, rewards, terminated, truncated, info = self.batched.step(self._actions)
        dones = (terminated | truncated).cpu().numpy()
        return to_numpy(obs), to_numpy(rewards), dones, row_infos(info, dones, truncated & ~terminated)

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
        """:return: an attribute of each row asked for: of its environment, or, where it has none, of the batch."""
        rows, reach = self._rows(indices), self._reach(attr_name)
        if reach is not None:
            return reach.row_attributes(attr_name, rows)
        value = getattr(self.batched, attr_name)
        return [value for _ in rows]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of each row asked for: of its environment, or, where it has none, of the batch.

        :param attr_name: its name; it must exist
        :param value: the same for all rows
        :param indices: rows; of an attribute of the batch, all
        :raises AttributeError: there is no such attribute, or it cannot be set so
        """
        rows, reach = self._rows(indices), self._reach(attr_name)
        if reach is not None:
            reach.set_row_attributes(attr_name, value, rows)
            return
        if not hasattr(self.batched, attr_name):
            raise AttributeError(f"a {type(self.batched).__name__} has no attribute {attr_name!r} to set")
        self._check_all(rows, attr_name)
        setattr(self.batched, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of each row asked for: of its environment, or, where it has none, once of the batch.

        :return: what it returned, for each row
        :raises AttributeError: there is no such method, or it is one for all rows
        """
        rows, reach = self._rows(indices), self._reach(method_name)
        if reach is not None:
            return reach.call_rows(method_name, rows, method_args, method_kwargs)
        method = getattr(self.batched, method_name)
        self._check_all(rows, method_name)
        result = method(*method_args, **method_kwargs)
        return [result for _ in rows]

    def env_is_wrapped(self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """:return: whether rows are wrapped; a batch gives the ``info["episode"]`` that a Monitor would."""
        rows, reach = self._rows(indices), self._reach("step")
        if issubclass(wrapper_class, Monitor) or reach is None:
            return [issubclass(wrapper_class, Monitor) for _ in rows]
        return reach.rows_are_wrapped(wrapper_class, rows)

    def _reach(self, name: str) -> "RowAccess | None":
        """:return: what steps environments of their own that have a name, below wrappers of the batch; None: nothing"""
        batched: Any = self.batched
        while batched is not None and not hasattr(batched, "rows_have"):
            batched = getattr(batched, "env", None)
        return batched if batched is not None and batched.rows_have(name) else None

    def _rows(self, indices: Any) -> list[int]:
        rows = [int(row) for row in self._get_indices(indices)]
        for row in rows:
            if not -self.num_envs <= row < self.num_envs:
                raise IndexError(f"indices name row {row} of {self.num_envs}")
        return [row % self.num_envs for row in rows]

    def _check_all(self, rows: list[int], name: str) -> None:
        if set(rows) != set(range(self.num_envs)):
            raise AttributeError(
                f"{name} of a {type(self.batched).__name__} is one for all its {self.num_envs} rows: leave indices "
                "out, or use a DummyVecEnv"
            )


class RowAccess(Protocol):
    """What a batch has whose rows are environments of their own, that can be reached by name."""

    def rows_have(self, name: str) -> bool:
        """:return: whether the rows' environments can be reached, and have an attribute of that name."""

    def row_attributes(self, name: str, rows: list[int]) -> list[Any]:
        """:return: the attribute of each row's environment."""

    def set_row_attributes(self, name: str, value: Any, rows: list[int]) -> None:
        """Set the attribute of each row's environment."""

    def call_rows(self, name: str, rows: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """:return: what the method of each row's environment returns."""

    def rows_are_wrapped(self, wrapper_class: type[Any], rows: list[int]) -> list[bool]:
        """:return: whether each row's environment is in such a wrapper."""
