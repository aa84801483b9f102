"""One row of a task as an ordinary ``gymnasium.Env``."""

import copy
from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from mujoco.batch import MODEL_FIELDS
from torch import Tensor

from ..schema import array
from .making import TaskName, make_batch


class MujocoTaskEnv(gym.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]):
    """A task by itself, as ``gymnasium.make`` returns it.

    It does what Gymnasium's environment of the same name does, bit for bit: seeds, observations in float64, rewards,
    info. It is a batch of one row, which :attr:`batch` is. On the CPU, initial states are drawn from ``np_random``, so
    wrappers that draw from it too find the numbers that they find on Gymnasium's environment.

    :param task: the task's class
    :param render_mode: one of the render modes in :attr:`metadata`
    :param options: as for :func:`headway.envs.mujoco.making.make_batch`
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]
    }

    def __init__(self, task: TaskName, render_mode: str | None = None, **options: Any) -> None:
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"render_mode is {render_mode!r}: it can be one of {', '.join(modes)}")
        # the time limit is the TimeLimit wrapper's, which gymnasium.make adds
        fixed: dict[str, Any] = {"max_episode_steps": 0, "autoreset_mode": AutoresetMode.DISABLED}
        self.batch = make_batch(task, 1, **{"dtype": torch.float64, **options}, **fixed)
        self._seen: tuple[mujoco.MjModel, np.ndarray[Any, Any]] | None = None
        """Copies of the model as somebody was shown it, who may write to it; as an object, and as bytes."""
        self.render_mode = render_mode
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space
        fps = self.batch.metadata["render_fps"]
        self.metadata = self.metadata | {"render_fps": fps}  # type: ignore[misc]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.Env.reset``."""
        super().reset(seed=seed)
        self._take_edits()
        self.batch.set_np_random_of(0, self.np_random)
        obs, info = self.batch.reset(seed=None if seed is None else [seed])
        self._take_random_back()
        return self._shown(obs), _first_row(info)

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``."""
        self._take_edits()
        # a copy: PyTorch warns of arrays that are not writeable
        actions = torch.from_numpy(np.array(action)).unsqueeze(0).to(self.batch.device)
        obs, reward, terminated, _, info = self.batch.step(actions)
        del info["final_obs"], info["episode"]
        return self._shown(obs), np.float64(reward.item()), bool(terminated), False, _first_row(info)

    def _shown(self, obs: Tensor) -> Any:
        if self.render_mode == "human":
            self.render()
        return obs[0].cpu().numpy()

    def render(self) -> Any:
        """:return: what Gymnasium's renderer gives in this ``render_mode``."""
        return None if self.render_mode is None else self.batch.render_row(0, self.render_mode)

    def close(self) -> None:
        """Close windows and graphics contexts."""
        self.batch.close()

    @property
    def model(self) -> mujoco.MjModel:
        """The robot; if it is randomised, as it was before. What is written to it counts from the next step or reset
        on, as in Gymnasium; where that cannot be, as of meshes, these raise a ``ValueError``."""
        model = self.batch.engine.model
        if self._seen is None:
            self._seen = _copies(model)
        return model

    def _take_edits(self) -> None:
        """Give the simulation what was written to the model since it was first shown."""
        if self._seen is None:
            return
        model, (before, bytes_before) = self.batch.engine.model, self._seen
        if np.array_equal(_bytes(model), bytes_before):
            return
        edited = [name for name in sorted(MODEL_FIELDS) if not _equal(_field(model, name), _field(before, name))]
        if not edited:
            raise ValueError(
                "the model was changed in what all rows share, such as meshes, height fields or textures: pass the "
                "changed model as xml_file"
            )
        for name in edited:
            self.batch.edit(name, _field(model, name))
        self._seen = _copies(model)

    @property
    def data(self) -> mujoco.MjData:
        """A copy of the simulation as it is now, every field computed anew; writing to it changes nothing."""
        data = mujoco.MjData(copy.copy(self.model))
        self.batch.engine.drawing(0, data.model, data)
        return data

    @property
    def dt(self) -> float:
        """Seconds per step."""
        return self.batch.sim.dt

    def state(self) -> dict[str, Any]:
        """See :meth:`MujocoBatch.state`; ``np_random`` is part of it."""
        self.batch.set_np_random_of(0, self.np_random)
        drawn = self.np_random.bit_generator.state
        return {**self.batch.state(), "spare": torch.tensor([drawn["has_uint32"], drawn["uinteger"]])}

    def load_state(self, state: dict[str, Any]) -> None:
        """See :meth:`MujocoBatch.load_state`.

        :param state: what :meth:`state` returned, or one row of a batch of this task
        """
        spare = state.get("spare", torch.zeros(2, dtype=torch.int64))
        array((2,), "int64", low=0, high=2**32 - 1)(spare, "'spare' of the state")
        self._take_edits()
        edited = {name: part for name, part in self.batch.state().items() if name.startswith("engine.model.")}
        self.batch.load_state(edited | {name: part for name, part in state.items() if name != "spare"})
        self._seen = (
            None if self._seen is None else (copy.copy(self.batch.engine.model), _bytes(self.batch.engine.model))
        )
        self._take_random_back(*spare.tolist())

    def _take_random_back(self, *spare: int) -> None:
        """Put ``np_random`` where the batch's stream is; half a number may be left over from 32-bit draws."""
        stream = self.batch.np_random_of(0)
        if stream is not None:
            halves = dict(zip(("has_uint32", "uinteger"), spare, strict=False))
            bits = self.np_random.bit_generator
            bits.state = {**bits.state, "state": stream.bit_generator.state["state"], **halves}


def _bytes(model: mujoco.MjModel) -> np.ndarray[Any, Any]:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer


def _copies(model: mujoco.MjModel) -> tuple[mujoco.MjModel, np.ndarray[Any, Any]]:
    return copy.copy(model), _bytes(model)


def _field(model: mujoco.MjModel, name: str) -> Any:
    return getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name)


def _equal(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other, equal_nan=True))


def _first_row(info: dict[str, Any]) -> dict[str, Any]:
    """:return: info of the only row, its numbers as NumPy's scalars, which Gymnasium's environments give too."""
    return {name: part[0].cpu().numpy()[()] for name, part in info.items()}
