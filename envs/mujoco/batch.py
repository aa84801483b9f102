"""Many rows of one MuJoCo task: tensors in, tensors out, on one device."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import mujoco
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from mujoco.batch import MODEL_FIELDS
from torch import Tensor

from ..batched import BatchedEnv, Info, check_actions, check_batch, check_state, row_seeds
from ..naming import nearest
from ..schema import array
from ..streams import HostStreams
from .cpu import GIB, HostEngine, available_memory, contact_force_sensor
from .engine import CONTACT_FORCES, Engine, Failure, Sim
from .probing import Watched, check_rows_apart, try_functions
from .randomise import Randomise
from .rendering import Camera, RowRenderer
from .task import MujocoTask, compiled

EngineName = Literal["auto", "mujoco", "warp"]


_EDITED = "engine.edited."
"""What begins the names, in a state, of model fields that :meth:`MujocoBatch.edit` has changed."""


def _made_again(task: Any, num_envs: int, options: dict[str, Any], state: Any, needs_reset: bool) -> "MujocoBatch":
    batch = MujocoBatch(task, num_envs, **options)
    batch.load_state(state)
    batch._needs_reset = needs_reset
    return batch


class MujocoBatch(BatchedEnv):
    """``N`` rows of a task, stepped together by MuJoCo on the CPU, or by MuJoCo Warp on a GPU.

    Row ``i`` of a batch seeded ``s`` behaves, bit for bit on the CPU, as Gymnasium's environment seeded ``s + i``.
    Actions are passed on as they are, as there: MuJoCo clamps controls to the actuators' ranges, rewards see what was
    asked for. A step that is terminal and the last allowed is both ``terminated`` and ``truncated``, as there.

    A row whose physics breaks down (NaN, or numbers too large) terminates with reward 0 and a ``RuntimeWarning`` that
    names it, and starts a new episode; the other rows are untouched. ``info["failed"]`` (N,) marks such rows in the
    steps that had any. On a GPU, where asking would wait for the device, it is there in every step, without a warning.

    ``info`` also holds the parts of the reward and whatever else the task tells, each (N, …).

    :param task: what to do on which robot
    :param num_envs: N
    :param device: "cpu", or "cuda" for MuJoCo Warp
    :param dtype: of observations and rewards
    :param num_threads: threads that step on the CPU; 0: one per CPU
    :param max_episode_steps: when to truncate; None: the task's own limit; 0 or less: never
    :param randomise: model fields drawn anew for each row and episode, from streams of their own: the other draws of a
        seed stay as they are
    :param engine: "auto" takes MuJoCo on the CPU and Warp on a GPU; "warp" on the CPU is for tests
    :param autoreset_mode: SAME_STEP, or DISABLED to leave finished rows to ``reset(options={"reset_mask": …})``
    :param render_mode: "rgb_array", "depth_array" or None
    :param render_rows: which rows :meth:`render` draws; None: all
    :param camera: size and view of what is drawn
    :raises ValueError: no rows, more than fit into memory, an unknown field to randomise, or no such device
    :raises TypeError: a function of the task returns what it should not; the message says what
    """

    def __init__(
        self,
        task: MujocoTask,
        num_envs: int = 1,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_threads: int = 0,
        max_episode_steps: int | None = None,
        randomise: Randomise | None = None,
        engine: EngineName = "auto",
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        render_rows: Sequence[int] | None = None,
        camera: Camera | None = None,
    ) -> None:
        autoreset_mode = check_batch(num_envs, autoreset_mode)
        self._options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "num_threads": num_threads,
            "max_episode_steps": max_episode_steps,
            "randomise": randomise,
            "engine": engine,
            "autoreset_mode": autoreset_mode,
            "render_mode": render_mode,
            "camera": camera,
        }
        self.task, self.num_envs, self.dtype = task, num_envs, dtype
        self.device = torch.device(device)
        limit = task.max_episode_steps if max_episode_steps is None else max_episode_steps
        self.max_episode_steps = limit if limit is not None and limit > 0 else None
        self.randomise = dict(randomise or {})
        self.engine = _make_engine(task, num_envs, self.device, engine, num_threads, tuple(self.randomise))
        self.sim = Sim(self.engine)
        self._noise, self._variations = self.engine.streams(), self.engine.streams((1,))
        self._nominal = {name: self.engine.model_field(name)[0].clone() for name in self.randomise}
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._returns = torch.zeros(num_envs, dtype=self.engine.dtype, device=self.device)
        self._needs_reset = True
        try_functions(task, self.sim, self._noise.draw(self._rows([0])))
        self.sim.freeze()
        self._set_spaces()
        self._autoreset = autoreset_mode is AutoresetMode.SAME_STEP
        self.metadata = {  # type: ignore[misc]
            "autoreset_mode": autoreset_mode,
            "render_modes": ["rgb_array", "depth_array"],
            "render_fps": round(1 / self.sim.dt),
        }
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}: it can be {' or '.join(self.metadata['render_modes'])}")
        self.render_mode, self._camera = render_mode, camera or Camera()
        self._renderer: RowRenderer | None = None
        self.render_rows = range(num_envs) if render_rows is None else render_rows
        for row in self.render_rows:
            if not 0 <= row < num_envs:
                raise ValueError(f"render_rows names row {row}, of {num_envs} rows numbered from 0")

    def _set_spaces(self) -> None:
        width = self.task.observation(self.sim).shape[1]
        precision: Any = np.float64 if self.dtype == torch.float64 else np.float32
        box = self.task.observation_space or spaces.Box(-np.inf, np.inf, (width,), precision)
        if box.shape != (width,):
            raise TypeError(f"{_name(self.task)}.observation returns {width} numbers, its observation_space is {box}")
        low, high = self.engine.model.actuator_ctrlrange.astype(np.float32).T
        self.single_observation_space, self.single_action_space = box, spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _rows(self, rows: Sequence[int]) -> Tensor:
        mask = torch.zeros(self.num_envs, dtype=torch.bool)
        mask[list(rows)] = True
        return mask.to(self.device)

    # -- stepping ----------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Tensor, Info]:
        """See :meth:`BatchedEnv.reset`.

        ``options={"reset_mask": (N,) bool}`` starts new episodes in these rows only, and seeds only them.
        """
        mask = (options or {}).get("reset_mask")
        every = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        rows = every if mask is None else torch.as_tensor(mask, device=self.device).bool()
        if rows.shape != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {tuple(rows.shape)}, for {self.num_envs} rows")
        if seed is not None:
            seeds = row_seeds(seed, self.num_envs)
            chosen = rows.nonzero().flatten().tolist()
            for streams in (self._noise, self._variations):
                streams.seed([seeds[row] for row in chosen], chosen)
        self._start(rows)
        # Whether a mask is of all rows is not worth waiting for on a GPU.
        if mask is None or (not rows.is_cuda and bool(rows.all())):
            self._needs_reset = False
        return self.task.observation(self.sim).to(self.dtype), dict(self.task.reset_info(self.sim))

    def reset_rows(self, mask: Tensor, *, seed: int | list[int | None] | None = None) -> tuple[Tensor, Info]:
        """See :class:`~headway.envs.batched.Resettable`."""
        return self.reset(seed=seed, options={"reset_mask": mask})

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`.

        :raises gymnasium.error.ResetNeeded: there was no ``reset`` before the first step
        :raises ValueError: actions of a wrong shape, or on another device
        """
        if self._needs_reset:
            raise ResetNeeded("call reset() before the first step()")
        check_actions(self, actions)
        before = self.task.before(self.sim)
        failure = self.engine.step(actions)
        judged = self.task.reward(self.sim, actions, before)
        reward, parts = judged if isinstance(judged, tuple) else (judged, {})
        terminated = self.task.terminated(self.sim)
        if terminated is None:
            terminated = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        final_obs = self.task.observation(self.sim).to(self.dtype)
        if failure is not None:
            self._warn(failure)
            terminated = terminated | failure.rows
            reward = reward.masked_fill(failure.rows, 0)
            final_obs = final_obs.masked_fill(failure.rows.unsqueeze(1), 0)
            parts = {**parts, "failed": failure.rows}
        self._elapsed += 1
        self._returns += reward
        if self.max_episode_steps is None:
            truncated = torch.zeros_like(terminated)
        else:
            truncated = self._elapsed >= self.max_episode_steps
        info = {
            **parts,
            "final_obs": final_obs,
            "episode": {"r": self._returns.clone(), "l": self._elapsed.clone()},
        }
        obs = self._restart(terminated | truncated, final_obs) if self._autoreset else final_obs
        return obs, reward.to(self.dtype), terminated, truncated, info

    def _restart(self, ended: Tensor, obs: Tensor) -> Tensor:
        """Start anew where a row ended; on a GPU without asking whether one did, since asking waits for the device."""
        if not ended.is_cuda and not ended.any():
            return obs
        self._start(ended)
        return self.task.observation(self.sim).to(self.dtype)

    def _start(self, rows: Tensor) -> None:
        if self.randomise:
            draws = self._variations.draw(rows)
            fields = {name: how.draw(self._nominal[name], draws) for name, how in self.randomise.items()}
            self.engine.set_model(rows, fields)
        self.engine.reset(rows, self.task.reset(self.sim, self._noise.draw(rows)))
        self._elapsed.masked_fill_(rows, 0)
        self._returns.masked_fill_(rows, 0)

    def _warn(self, failure: Failure) -> None:
        if failure.rows.is_cuda or not failure.rows.any():
            return
        rows = failure.rows.nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        warnings.warn(
            f"the physics of row {shown} broke down ({failure.reason}): the episode ended with reward 0. "
            "Look for actions that are not finite, or for a model or time step that is unstable",
            RuntimeWarning,
            stacklevel=3,
        )

    @property
    def physics(self) -> dict[str, Tensor]:
        """The randomised model fields as each row has them now, (N, …) each: what a privileged critic may see."""
        return {name: self.engine.model_field(name).clone() for name in self.randomise}

    def np_random_of(self, row: int) -> np.random.Generator | None:
        """:return: a generator that stands where the row's stream of initial states stands; on the CPU only."""
        return self._noise.generator(row) if isinstance(self._noise, HostStreams) else None

    def set_np_random_of(self, row: int, generator: np.random.Generator) -> None:
        """Put the row's stream of initial states where a generator stands; on the CPU only.

        :raises TypeError: the generator is another than NumPy's PCG64
        """
        if isinstance(self._noise, HostStreams):
            self._noise.put(row, generator)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Copy everything the future depends on: physics, random streams, randomised fields, steps and returns.

        :param rows: row numbers (K,) int64; None: all
        :return: tensors with the rows as leading axis
        """
        own = {name: field.clone() if rows is None else field[rows] for name, field in self._own().items()}
        return {f"engine.{name}": field for name, field in self.engine.state(rows).items()} | own

    def load_state(self, state: dict[str, Tensor], rows: Tensor | None = None) -> None:
        """Write a copy of K rows into K rows, of this batch or of another of the same task.

        :param state: what :meth:`state` returned
        :param rows: row numbers (K,) int64, in any order; None: all
        :raises ValueError: it does not fit; nothing was written
        """
        expected = self.state(self._no_rows())
        count = self.num_envs if rows is None else len(rows)
        edited = {name: part for name, part in state.items() if name.startswith(_EDITED) and name not in expected}
        for name, part in edited.items():
            array(None)(part, f"{name!r} of the state")
        check_state(state, expected | edited, count, whole=rows is None)
        for name, part in edited.items():
            self.edit(name.removeprefix(_EDITED), part[0].numpy()[()])
        self.engine.load_state({n[7:]: field for n, field in state.items() if n.startswith("engine.")}, rows)
        chosen: Any = slice(None) if rows is None else rows
        for name, field in self._own().items():
            field[chosen] = state[name]
        if count == self.num_envs:
            self._needs_reset = False

    def edit(self, name: str, value: Any) -> None:
        """Change a field of the model in all rows; see :meth:`Engine.edit`."""
        self.engine.edit(name, value)
        self.sim.refresh()

    def __reduce__(self) -> Any:
        """Copies and pickles are made anew from the same options, and get this one's state."""
        options = self._options | {"render_rows": list(self.render_rows)}
        return _made_again, (self.task, self.num_envs, options, self.state(), self._needs_reset)

    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """Make rows ``dst`` go on as rows ``src`` will.

        :param src: row numbers (K,) int64
        :param dst: row numbers (K,) int64, each at most once
        """
        self.engine.copy_rows(src, dst)
        for field in self._own().values():
            field[dst] = field[src]

    def like(self, num_envs: int) -> "MujocoBatch":
        """See :class:`~headway.envs.batched.RowSnapshots`; it draws all its rows, if it draws any."""
        return MujocoBatch(self.task, num_envs, **self._options)

    def _no_rows(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64, device=self.device)

    def _own(self) -> dict[str, Tensor]:
        streams = {"streams.noise": self._noise.state, "streams.variations": self._variations.state}
        return {**streams, "elapsed": self._elapsed, "returns": self._returns}

    # -- drawing -----------------------------------------------------------------------------------------------------

    def render(self) -> tuple[Any, ...] | None:
        """:return: a frame (height, width, 3) of every row of ``render_rows``; None without a ``render_mode``."""
        return None if self.render_mode is None else tuple(self.render_row(row) for row in self.render_rows)

    def render_row(self, row: int, mode: str | None = None) -> Any:
        """Draw one row as it is now.

        :param row: its number
        :param mode: "rgb_array", "depth_array", "rgbd_tuple" or "human"; None: the batch's ``render_mode``
        :return: what Gymnasium's renderer gives in that mode
        """
        if self._renderer is None:
            self._renderer = RowRenderer(self.engine, self._camera, self.task.camera)
        return self._renderer.draw(row, mode or self.render_mode or "rgb_array")

    def close_extras(self, **kwargs: Any) -> None:
        """Close what :meth:`render` opened."""
        if self._renderer is not None:
            self._renderer.close()


# -- construction ----------------------------------------------------------------------------------------------------


def _make_engine(
    task: MujocoTask, num_envs: int, device: torch.device, name: EngineName, threads: int, varied: tuple[str, ...]
) -> Engine:
    if name not in get_args(EngineName):
        raise ValueError(f"engine is {name!r}: it can be {', '.join(get_args(EngineName))}")
    spec = task.spec()
    model = compiled(spec)
    _check_fields(varied)
    if name == "warp" or (name == "auto" and device.type == "cuda"):
        from .gpu import WarpEngine  # an extra, and seconds to import

        return WarpEngine(model, num_envs, task.frame_skip, varied, device)
    if device.type != "cpu":
        raise ValueError(f"device is {device}: MuJoCo itself runs on the CPU, engine='warp' on a CUDA device")
    trial = _tried(task, model, varied)
    _check_memory(num_envs, trial.nbytes // trial.num_envs)
    if trial.bound & CONTACT_FORCES:
        contact_force_sensor(spec)
        model = compiled(spec)
    threads = threads or min(len(os.sched_getaffinity(0)), num_envs)
    return HostEngine(model, num_envs, task.frame_skip, varied, threads)


def _check_fields(varied: tuple[str, ...]) -> None:
    for name in varied:
        if name == "opt.timestep":
            raise ValueError("randomise: opt.timestep cannot differ between rows, which step together")
        if name not in MODEL_FIELDS:
            hint = nearest(name, MODEL_FIELDS, "see MuJoCo's mjModel")
            raise ValueError(f"randomise: {name!r} is no field of MjModel that rows can differ in: {hint}")


def _tried(task: MujocoTask, model: mujoco.MjModel, varied: tuple[str, ...]) -> HostEngine:
    """:return: an engine of two worlds that has bound the fields of MjData that the task's functions read."""
    engine = HostEngine(model, 2, task.frame_skip, varied, num_threads=1)
    try_functions(task, Watched(engine), engine.streams().draw(torch.tensor([True, False])))
    check_rows_apart(task, engine)
    return engine


def _check_memory(num_envs: int, bytes_per_row: int) -> None:
    """Tell of a large batch before it is allocated, and refuse one that does not fit."""
    needed, free = num_envs * bytes_per_row / GIB, available_memory() / GIB
    if needed > free:
        raise ValueError(
            f"num_envs is {num_envs}: these rows take about {needed:.1f} GiB of memory, {free:.1f} GiB are free; "
            f"{int(free * GIB / bytes_per_row):,} would fit"
        )
    if needed > 1:
        print(f"{num_envs:,} rows take about {needed:.1f} GiB of memory, {free:.1f} GiB are free", file=sys.stderr)


def _name(task: MujocoTask) -> str:
    return type(task).__name__
