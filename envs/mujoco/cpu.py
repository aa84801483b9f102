"""The engine on the CPU: ``mujoco.batch``, whose threads step all worlds of a batch, in float64."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch, SimulationError
from torch import Tensor

from ..streams import HostStreams
from .engine import CONTACT_FORCES, Engine, Failure, State

Array = np.ndarray[Any, Any]

_RK4_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
_FROM_FIRST_STAGE = ("sensordata", "energy", "subtree_linvel", "subtree_angmom")
_UNSTABLE = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}")) for what in ("QPOS", "QVEL", "QACC", "CTRL")]

GIB = 2**30


def available_memory() -> int:
    """:return: bytes of main memory that can be had without swapping; without limit where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return sys.maxsize
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def contact_force_sensor(spec: mujoco.MjSpec) -> None:
    """Add a sensor that makes every step compute :data:`CONTACT_FORCES`, which MuJoCo otherwise leaves out."""
    body = next(body for body in spec.bodies if body.name != "world")
    if not body.name:
        body.name = "headway_contact_forces"
    spec.add_sensor(type=mujoco.mjtSensor.mjSENS_FRAMELINACC, objtype=mujoco.mjtObj.mjOBJ_BODY, objname=body.name)


class HostEngine(Engine):
    """See :class:`Engine`. Tensors are views of the batch's own arrays: nothing is copied in or out.

    Worlds step bit for bit as a loop over ``mj_step`` would, at any number of threads.

    :param num_threads: threads that step, this one included; 0: one per CPU
    """

    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        frame_skip: int,
        varied: tuple[str, ...] = (),
        num_threads: int = 0,
    ) -> None:
        super().__init__(model, num_envs, frame_skip, varied)
        self.batch = Batch(model, num_envs, num_threads)
        self._state = torch.from_numpy(self.batch.state)
        self._ctrl = torch.from_numpy(self.batch.bind("ctrl"))
        self._derived: dict[str, Tensor] = {}
        self._model = {name: torch.from_numpy(self.batch.expand(name)) for name in varied}
        self._stages = False
        self._needs_constants = bool(set(varied) & set(mujoco.MjModel._setconst_inputs))

    @property
    def bound(self) -> set[str]:
        """The derived fields that are copied out of every call."""
        return set(self._derived)

    @property
    def nbytes(self) -> int:
        """Memory of the worlds' states and fields."""
        return sum(field.nbytes for field in (*self._world().values(), *self._model.values()))

    def bind(self, name: str) -> Tensor:
        """See :class:`Engine`."""
        if name in self._derived:
            return self._derived[name]
        array = self.batch.bind(name)
        if np.may_share_memory(array, self.batch.state):
            return torch.from_numpy(array)
        # The batch marks it read-only since every call overwrites it. A snapshot has to put it back.
        array.flags.writeable = True
        self._derived[name] = torch.from_numpy(array)
        if name in CONTACT_FORCES:
            self._stages = self._can_stage()
        return self._derived[name]

    def _can_stage(self) -> bool:
        """:return: whether :meth:`_stage_by_stage` knows all that a step of this model does."""
        options = any(name.startswith("opt.") for name in self.varied)
        runge_kutta = self.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        return bool(runge_kutta and not (options or self.model.na or self.model.nhistory or self.model.nplugin))

    def model_field(self, name: str) -> Tensor:
        """See :class:`Engine`."""
        if name in self._model:
            return self._model[name]
        holder, field = (self.model.opt, name[4:]) if name.startswith("opt.") else (self.model, name)
        value = torch.as_tensor(np.array(getattr(holder, field)))
        return value.expand(self.num_envs, *value.shape)

    def step(self, actions: Tensor) -> Failure | None:
        """See :class:`Engine`. MuJoCo itself puts a world whose state stops being finite back at its defaults."""
        self._ctrl.copy_(actions)
        failed, reason = np.zeros(self.num_envs, np.bool_), ""
        whole = self.frame_skip - int(self._stages)
        calls: list[Callable[[], None]] = [lambda: self.batch.step(nstep=whole)] if whole else []
        if self._stages:
            calls.append(self._last_substep)
        for call in calls:
            try:
                call()
            except SimulationError as error:
                failed[error.ids], reason = True, str(error)
                self.batch.reset(error.ids)
        unstable = self.batch.warning[:, _UNSTABLE, 1]  # how often; beside it is where
        if unstable.any():
            rows = unstable.any(1)
            kind = int(unstable[rows.argmax()].argmax())
            reason = reason or f"{mujoco.mjtWarning(_UNSTABLE[kind]).name}: not finite, or too large"
            failed |= rows
            self.batch.warning[:, _UNSTABLE] = 0
        return Failure(torch.from_numpy(failed), reason) if failed.any() else None

    @np.errstate(over="ignore", invalid="ignore")
    def _last_substep(self) -> None:
        start = self.batch.state.copy()
        try:
            self._stage_by_stage(start)
        except SimulationError:  # the other rows go on, and this one tells in a whole step what is wrong
            self.batch.state[:] = start
            self.batch.step()

    def _stage_by_stage(self, start: Array) -> None:
        """Do one Runge-Kutta step of MuJoCo, with every sum in its order, so that no bit differs.

        MuJoCo evaluates sensors, ours for the contact forces among them, in the first of four stages. Gymnasium has
        these forces computed after the step, hence from the last stage, where most derived fields come from too.
        """
        batch, dt = self.batch, self.model.opt.timestep
        qpos, qvel, qacc = batch.bind("qpos"), batch.bind("qvel"), batch.bind("qacc")

        def move(speed: Array, acceleration: Array) -> None:
            batch.state[:] = start
            qvel[:] += acceleration * dt
            for place, change in zip(qpos, speed, strict=True):
                mujoco.mj_integratePos(self.model, place, change, dt)

        batch.forward()
        first = {name: self._derived[name].clone() for name in _FROM_FIRST_STAGE if name in self._derived}
        speeds, accelerations = [qvel.copy()], [qacc.copy()]
        for part in (0.5, 0.5, 1.0):
            move(speeds[-1] * part, accelerations[-1] * part)
            batch.forward()
            speeds.append(qvel.copy())
            accelerations.append(qacc.copy())
        move(
            sum(weight * speed for weight, speed in zip(_RK4_WEIGHTS, speeds, strict=True)),
            sum(weight * change for weight, change in zip(_RK4_WEIGHTS, accelerations, strict=True)),
        )
        for name, field in first.items():
            self._derived[name].copy_(field)
        batch.bind("time")[:] += dt
        batch.bind("qacc_warmstart")[:] = accelerations[-1]
        bad = ~(np.abs(np.hstack((qpos, qvel, accelerations[0]))) <= mujoco.mjMAXVAL).all(1)
        if bad.any():  # MuJoCo is to judge them, and to put them back at its defaults
            batch.state[bad] = start[bad]
            batch.step(np.flatnonzero(bad))

    def reset(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """See :class:`Engine`."""
        ids = np.flatnonzero(rows.numpy())
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        for name, value in values.items():
            self.bind(name)[rows] = value[rows].to(self.dtype)
        self.batch.forward(ids)
        for name in CONTACT_FORCES & self._derived.keys():
            self._derived[name][rows] = 0

    def set_model(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """See :class:`Engine`."""
        for name, value in values.items():
            self._model[name][rows] = value[rows].to(self._model[name].dtype)
        self._set_constants(rows.nonzero().flatten())

    def edit(self, name: str, value: Any) -> None:
        """See :class:`Engine`."""
        if name in self.varied or (self._stages and name == "opt.integrator"):
            super().edit(name, value)
        if name not in self._model:
            self._model[name] = torch.from_numpy(self.batch.expand(name))
        self._model[name][:] = torch.from_numpy(np.array(value))
        holder, field = (self.model.opt, name[4:]) if name.startswith("opt.") else (self.model, name)
        if np.ndim(value):
            getattr(holder, field)[:] = value
        else:
            setattr(holder, field, value)

    def streams(self, spawn_key: tuple[int, ...] = ()) -> HostStreams:
        """See :class:`Engine`."""
        return HostStreams(self.num_envs, spawn_key)

    def state(self, rows: Tensor | None) -> State:
        """See :class:`Engine`."""
        fields = self._world() | self._model_by_name()
        return {name: field.clone() if rows is None else field[rows] for name, field in fields.items()}

    def load_state(self, state: State, rows: Tensor | None) -> None:
        """See :class:`Engine`."""
        chosen: Any = slice(None) if rows is None else rows
        for name, field in self._model_by_name().items():
            field[chosen] = state[name]
        self._set_constants(rows)
        for name, field in self._world().items():
            field[chosen] = state[name]

    def _model_by_name(self) -> dict[str, Tensor]:
        """Fields of the model that rows have of their own, by their names in states."""
        return {f"{'model' if name in self.varied else 'edited'}.{name}": field for name, field in self._model.items()}

    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """See :class:`Engine`."""
        for field in self._model.values():
            field[dst] = field[src]
        self._set_constants(dst)
        for field in self._world().values():
            field[dst] = field[src]

    def _world(self) -> dict[str, Tensor]:
        """What MuJoCo integrates, and the derived fields as the last call left them."""
        return {"integration": self._state, **self._derived}

    def _set_constants(self, rows: Tensor | None) -> None:
        if self._needs_constants:
            self.batch.set_const(None if rows is None else np.unique(rows.numpy()))

    def drawing(self, row: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """See :class:`Engine`."""
        self.batch.get_model(row, model)
        self.batch.get_data(row, data)
        mujoco.mj_forward(model, data)
