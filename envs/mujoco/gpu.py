"""The engine on a GPU: MuJoCo Warp steps all worlds in float32, and nothing leaves the device.

Warp's CPU device runs the same code, slowly, which is how it is tested where there is no GPU.
"""

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from ..splitmix import start, uniforms
from ..streams import Bound, Draws, Streams
from .cpu import GIB, available_memory
from .engine import CONTACT_FORCES, Engine, Failure, State

try:
    import mujoco_warp as mjw  # type: ignore[import-untyped]
    import warp as wp
except ImportError:  # an extra: the constructor says how to get it
    mjw = None

_INTEGRATED = (
    "time",
    "qpos",
    "qvel",
    "act",
    "history",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
)
"""What a step starts from; it computes all else anew (the fields of mjSTATE_INTEGRATION)."""

_CONSTANTS = (
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "tendon_length0",
    "tendon_invweight0",
    "eq_data",
    "actuator_acc0",
    "cam_pos0",
    "cam_poscom0",
    "cam_mat0",
    "light_pos0",
    "light_poscom0",
    "light_dir0",
    "geom_aabb",
    "geom_rbound",
)
"""What ``mjw.set_const`` derives from other fields of the model."""

_FROM_FIRST_STAGE = ("sensordata", "energy", "subtree_linvel", "subtree_angmom")
"""What MuJoCo computes in the first stage of Runge-Kutta only; MuJoCo Warp does in all four."""

_INTERNAL = frozenset({"nisland", "nidof", "qH", "qHDiagInv", "qLD", "qLDiagInv", "qLU"})
"""What bears MuJoCo's names in MuJoCo Warp, but holds something else, or nothing."""

_PRINTED = ("NEFC", "NJMAX_NNZ", "BROADPHASE", "NARROWPHASE")
"""Overflows that Warp prints: physics without some contacts. Others (a solver's iterations) are common and harmless."""


class WarpEngine(Engine):
    """See :class:`Engine`. Tensors are views of Warp's arrays: nothing is copied in or out.

    Each kind of call is run once, which compiles its kernels (a minute or so for a new kind of model, then kept on
    disk), captured into a graph in the second call, and replayed from then on, in Torch's current stream. No call
    waits for the device, but for :meth:`drawing` and seeding.

    On the GPU equal states give nearly equal futures only, as sums run in any order; with
    ``torch.use_deterministic_algorithms(True)`` set before, MuJoCo Warp sums in a fixed order, more slowly.

    Where it differs from MuJoCo on the CPU:

    - Numbers are float32, and solver tolerances at least 1e-6.
    - The PGS solver, which MuJoCo Warp lacks, is replaced by Newton's method (Humanoid).
    - The pyramid of friction on a plane is turned about its axis where a capsule stands on it steeply (Ant).
    - Room for contacts and constraints is fixed: MuJoCo Warp's own guess, or twice what 1,000 substeps of random
      controls met on the CPU if that is more. Where it does not suffice, constraints are left out, Warp prints so, and
      :attr:`overflow` marks the rows.
    - Fields of the model are read anew in each step, but the places of geoms fixed to the world are not.

    :param device: "cuda", or "cpu" for tests
    :raises ValueError: MuJoCo Warp or the device is not there, the worlds do not fit into its memory, or MuJoCo Warp
        cannot simulate the model, or let a field vary
    """

    dtype = torch.float32

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        frame_skip: int,
        varied: tuple[str, ...] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(model, num_envs, frame_skip, varied)
        self.device = _checked_device(torch.device(device))
        self._on_cpu = self.device.type == "cpu"
        self._warp_streams: dict[int, Any] = {}
        self._recorder = None if self._on_cpu else wp.Stream(wp.device_from_torch(self.device))
        self._graphs: dict[str, Any] = {}
        solvable = _solvable(model)
        room = _room(solvable, num_envs, self.device)
        with self._scope():
            self._wp_model = self._put_model(solvable)
            self._data = mjw.make_data(solvable, num_envs, **room)
            self._mask = wp.zeros(num_envs, dtype=bool)
        self._host = mujoco.MjData(model)
        self._resets = wp.to_torch(self._mask)
        self._state = {name: self._view(self._data, name, np.shape(getattr(self._host, name))) for name in _INTEGRATED}
        self._overflow: Tensor = wp.to_torch(self._data.overflow)
        self._acceleration = self._view(self._data, "qacc", (model.nv,))
        self._derived: dict[str, Tensor] = {}

    def _put_model(self, model: mujoco.MjModel) -> Any:
        options = [name[4:] for name in self.varied if name.startswith("opt.")]
        names = [name for name in self.varied if not name.startswith("opt.")]
        if set(names) & set(mujoco.MjModel._setconst_inputs):
            names = list(dict.fromkeys([*names, *_CONSTANTS]))
            self._needs_constants = True
        else:
            self._needs_constants = False
        try:
            put = mjw.put_model(model, batch_sizes=dict.fromkeys(names, self.num_envs))
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"MuJoCo Warp cannot simulate this: {error}; engine='mujoco' can, on the CPU") from error
        self._fields = {name: self._view(put, name, getattr(model, name).shape) for name in names}
        for name in options:
            shared = getattr(put.opt, name, None)
            if not isinstance(shared, wp.array):
                raise ValueError(f"MuJoCo Warp cannot let opt.{name} differ between worlds; engine='mujoco' can")
            own = wp.zeros((self.num_envs, *shared.shape[1:]), dtype=shared.dtype)
            wp.to_torch(own).copy_(wp.to_torch(shared).expand_as(wp.to_torch(own)))
            setattr(put.opt, name, own)
            self._fields[f"opt.{name}"] = wp.to_torch(own)
        put.opt.deterministic = torch.are_deterministic_algorithms_enabled()
        put.opt.warn_overflow = sum(int(mjw.OverflowType[name]) for name in _PRINTED)
        return put

    def _view(self, holder: Any, name: str, shape: tuple[int, ...]) -> Tensor:
        array = None if name in _INTERNAL else getattr(holder, name, None)
        if not isinstance(array, wp.array) or prod(_per_world(array)) != prod(shape):
            raise ValueError(f"MuJoCo Warp does not have {name!r}, not as MuJoCo has: take engine='mujoco', on the CPU")
        if not array.size:  # no memory to look at
            return torch.zeros(self.num_envs, *shape, dtype=self.dtype, device=self.device)
        field: Tensor = wp.to_torch(array).view(self.num_envs, *shape)
        return field

    @property
    def overflow(self) -> Tensor:
        """``mujoco_warp.OverflowType`` bits of what did not fit since the row was reset, (N,) int32, live."""
        return self._overflow

    # -- fields ------------------------------------------------------------------------------------------------------

    def bind(self, name: str) -> Tensor:
        """See :class:`Engine`.

        :raises ValueError: MuJoCo Warp does not have it, or not as MuJoCo has
        """
        if name in self._state:
            return self._state[name]
        if name not in self._derived:
            self._derived[name] = self._view(self._data, name, np.shape(getattr(self._host, name)))
            self._graphs.clear()  # a step may have to compute it
        return self._derived[name]

    def model_field(self, name: str) -> Tensor:
        """See :class:`Engine`."""
        if name in self._fields:
            return self._fields[name]
        holder, field = _holder(self.model, name)
        value = torch.as_tensor(np.array(getattr(holder, field)))
        if value.is_floating_point():
            value = value.to(self.dtype)
        return value.to(self.device).expand(self.num_envs, *value.shape)

    # -- physics -----------------------------------------------------------------------------------------------------

    def step(self, actions: Tensor) -> Failure | None:
        """See :class:`Engine`."""
        self._state["ctrl"].copy_(actions)
        self._run(self._advance)
        failed = self._broken()
        if self._on_cpu and not failed.any():
            return None
        self._clear(failed)
        for field in self._derived.values():
            field.masked_fill_(_along(failed, field), 0)
        return Failure(failed, "not finite, or too large" if self._on_cpu else "")

    def _advance(self) -> None:
        for substep in range(1, self.frame_skip + 1):
            # The flag is read as the launches are issued, so only the last substep computes forces.
            wanted = substep == self.frame_skip and not CONTACT_FORCES.isdisjoint(self._derived)
            self._wp_model.opt.run_rne_postconstraint = wanted
            if self._wp_model.opt.integrator == mjw.IntegratorType.RK4:
                self._runge_kutta()
            else:
                mjw.step(self._wp_model, self._data)
        self._wp_model.opt.run_rne_postconstraint = False

    def _runge_kutta(self) -> None:
        mjw.forward(self._wp_model, self._data)
        held = [getattr(self._data, name) for name in _FROM_FIRST_STAGE if name in self._derived]
        first = [(array, wp.clone(array)) for array in held]
        mjw.rungekutta4(self._wp_model, self._data)
        for array, value in first:
            wp.copy(array, value)

    def _broken(self) -> Tensor:
        """Rows that MuJoCo would call unstable; a comparison with NaN is False. ``ctrl`` too, since Warp clamps NaN."""
        checked = (self._state["qpos"], self._state["qvel"], self._acceleration, self._state["ctrl"])
        return ~torch.cat([field.abs() <= mujoco.mjMAXVAL for field in checked], 1).all(1)

    def reset(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """See :class:`Engine`."""
        self._clear(rows)
        for name, value in values.items():
            _write(self.bind(name), rows, value)
        if self._derived.keys() - CONTACT_FORCES:
            with _only(rows, self._derived.values()):
                self._run(self._forward)
        for name in CONTACT_FORCES & self._derived.keys():
            self._derived[name].masked_fill_(_along(rows, self._derived[name]), 0)

    def _clear(self, rows: Tensor) -> None:
        self._resets.copy_(rows)
        self._run(self._reset_masked)

    def _reset_masked(self) -> None:
        mjw.reset_data(self._wp_model, self._data, self._mask)

    def _forward(self) -> None:
        mjw.forward(self._wp_model, self._data)

    def set_model(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """See :class:`Engine`."""
        for name, value in values.items():
            _write(self._fields[name], rows, value)
        if self._needs_constants:
            # It computes all worlds' constants, and leaves the derived fields at the default state.
            nowhere = torch.zeros_like(rows)
            with _only(rows, self._fields.values()), _only(nowhere, self._derived.values()):
                self._run(self._set_constants)

    def _set_constants(self) -> None:
        mjw.set_const(self._wp_model, self._data, restore=False)

    # -- running Warp ------------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[], None]) -> None:
        """Do what consists of Warp's launches alone: itself at first, to compile it; then captured; then replayed."""
        name = work.__name__
        if name not in self._graphs:
            with self._scope():
                work()
            self._graphs[name] = None
            return
        if self._graphs[name] is None:
            self._graphs[name] = self._capture(work)
        wp.capture_launch(self._graphs[name], None if self._on_cpu else self._stream())

    def _capture(self, work: Callable[[], None]) -> Any:
        # CUDA cannot capture Torch's default stream, so the launches are recorded in another one.
        scope = self._scope() if self._on_cpu else wp.ScopedStream(self._recorder)
        with scope, wp.ScopedCapture() as capture:
            work()
        return capture.graph

    def _scope(self) -> AbstractContextManager[Any]:
        return wp.ScopedDevice("cpu") if self._on_cpu else wp.ScopedStream(self._stream())

    def _stream(self) -> Any:
        """Torch's current stream, so that Warp and Torch take turns on the device and the host waits for neither."""
        stream = torch.cuda.current_stream(self.device)
        if stream.cuda_stream not in self._warp_streams:
            self._warp_streams[stream.cuda_stream] = wp.stream_from_torch(stream)  # type: ignore[no-untyped-call]
        return self._warp_streams[stream.cuda_stream]

    # -- snapshots, streams, drawing ---------------------------------------------------------------------------------

    def streams(self, spawn_key: tuple[int, ...] = ()) -> "DeviceStreams":
        """See :class:`Engine`."""
        return DeviceStreams(self.num_envs, self.device, spawn_key)

    def state(self, rows: Tensor | None) -> State:
        """See :class:`Engine`."""
        return {name: field.clone() if rows is None else field[rows] for name, field in self._world().items()}

    def load_state(self, state: State, rows: Tensor | None) -> None:
        """See :class:`Engine`."""
        chosen: Any = slice(None) if rows is None else rows
        for name, field in self._world().items():
            field[chosen] = state[name]

    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """See :class:`Engine`."""
        for field in self._world().values():
            field[dst] = field[src]

    def _world(self) -> dict[str, Tensor]:
        """What a step starts from, the derived fields as the last call left them, and the world's own model."""
        return {**self._state, **self._derived, **{f"model.{name}": field for name, field in self._fields.items()}}

    def drawing(self, row: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """See :class:`Engine`. Waits for the device."""
        targets = [(*_holder(model, name), field) for name, field in self._fields.items()]
        targets += [(data, name, field) for name, field in self._state.items()]
        for holder, name, field in targets:
            value = field[row].cpu().numpy()
            if value.ndim:
                getattr(holder, name)[...] = value
            else:
                setattr(holder, name, value.item())
        mujoco.mj_forward(model, data)


def _per_world(array: Any) -> tuple[int, ...]:
    """:return: the shape of one world's part; vectors and matrices are data types in Warp."""
    return (*array.shape[1:], *getattr(array.dtype, "_shape_", ()))


def _along(rows: Tensor, field: Tensor) -> Tensor:
    """:return: rows (N,) as a view that broadcasts against a field (N, …)."""
    return rows.view(-1, *[1] * (field.ndim - 1))


def _write(field: Tensor, rows: Tensor, value: Tensor) -> None:
    """Write values (N, …) into a field where ``rows``, without asking the device which rows those are."""
    field.copy_(torch.where(_along(rows, field), value, field))


@contextmanager
def _only(rows: Tensor, fields: Iterable[Tensor]) -> Iterator[None]:
    """Undo what is done meanwhile to fields (N, …) of other rows."""
    before = [(field, field.clone()) for field in fields]
    yield
    for field, value in before:
        _write(field, ~rows, value)


def _holder(model: mujoco.MjModel, name: str) -> tuple[Any, str]:
    return (model.opt, name[4:]) if name.startswith("opt.") else (model, name)


# -- construction ----------------------------------------------------------------------------------------------------


def _checked_device(device: torch.device) -> torch.device:
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device}: MuJoCo Warp runs on 'cuda', and on 'cpu' for tests")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise _no_cuda(device, "PyTorch")
    if mjw is None:
        raise ValueError(
            f"device is {device}: MuJoCo Warp, which steps there, is not installed: pip install 'headway-rl[gpu]'"
        )
    if wp.config.log_level == wp.LOG_INFO:
        wp.config.log_level = wp.LOG_WARNING  # else a line on stdout for each of its fifty modules
    if device.type == "cpu":
        return device
    if not wp.is_cuda_available():
        raise _no_cuda(device, "Warp")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _no_cuda(device: torch.device, who: str) -> ValueError:
    return ValueError(
        f"device is {device}: {who} finds no CUDA device. "
        "Take device='cpu', or install a PyTorch and a driver for your GPU"
    )


def _solvable(model: mujoco.MjModel) -> mujoco.MjModel:
    """:return: the model with a solver that MuJoCo Warp has."""
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        raise ValueError("the model lets bodies sleep, which rows in MuJoCo Warp cannot: remove <flag sleep='enable'/>")
    if model.opt.solver != mujoco.mjtSolver.mjSOL_PGS:
        return model
    model = copy.copy(model)
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model


def _room(model: mujoco.MjModel, num_envs: int, device: torch.device) -> dict[str, int]:
    """Choose how many contacts and constraints a world has room for, and see that all worlds fit into memory.

    :return: arguments for ``mjw.make_data``
    :raises ValueError: they do not fit
    """
    contacts, rows = _met_at_random(model)
    with wp.ScopedDevice("cpu"):
        guess = mjw.make_data(model)
        room = {"nconmax": max(guess.naconmax, 2 * contacts), "njmax": max(guess.njmax, 2 * rows)}
        bytes_per_world = _size(mjw.make_data(model, **room))
    # A step's scratch arrays come on top: 0.8 (HalfCheetah) to 2.7 times as much (Humanoid) on Warp's CPU device, which
    # keeps those of all substeps and stages; about 0.15 times per stage. Twice as much in all is our choice.
    needed = 2 * num_envs * bytes_per_world
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > free:
        raise ValueError(
            f"{num_envs} rows of this model take about {needed / GIB:.3g} GiB in MuJoCo Warp, and {device} has "
            f"{free / GIB:.3g} GiB free: take num_envs={num_envs * free // needed} or fewer"
        )
    if needed > GIB:
        print(f"{num_envs} worlds in MuJoCo Warp: about {needed / GIB:.1f} GiB on {device}", file=sys.stderr)
    return room


def _met_at_random(model: mujoco.MjModel) -> tuple[int, int]:
    """:return: the most contacts and constraint rows in 1,000 substeps of random controls, each held for five."""
    data, generator = mujoco.MjData(model), np.random.default_rng(0)
    contacts = rows = 0
    for substep in range(1000):
        if substep % 5 == 0:
            data.ctrl[:] = generator.uniform(*model.actuator_ctrlrange.T)
        mujoco.mj_step(model, data)
        contacts, rows = max(contacts, data.ncon), max(rows, data.nefc)
    return contacts, rows


def _size(holder: Any) -> int:
    """:return: bytes in all arrays of a Warp dataclass."""
    values = [getattr(holder, field.name) for field in dataclasses.fields(holder)]
    arrays = sum(int(value.capacity) for value in values if isinstance(value, wp.array))
    return arrays + sum(_size(value) for value in values if dataclasses.is_dataclass(value))


# -- random streams --------------------------------------------------------------------------------------------------

_TRIES = 32


class DeviceStreams(Streams):
    """SplitMix64 streams, one per row: a word of 64 bits each, in a tensor on the device.

    Row ``i`` seeded ``s`` draws the same whatever the other rows do and however many there are, but not what it draws
    on the CPU engine, whose streams are NumPy's.

    :param num_rows: N
    :param device: where the words and the numbers lie
    :param spawn_key: () for initial states; anything else for independent streams
    """

    def __init__(self, num_rows: int, device: torch.device, spawn_key: tuple[int, ...] = ()) -> None:
        self._spawn_key = spawn_key
        self._words = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._begin(range(num_rows), [None] * num_rows)

    def _begin(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        words = [start(seed, *self._spawn_key) for seed in seeds]
        device = self._words.device
        self._words[torch.tensor(rows, dtype=torch.int64, device=device)] = torch.tensor(words, device=device)

    def draw(self, rows: Tensor) -> Draws:
        """See :class:`Streams`."""
        return _DeviceDraws(self, rows)

    @property
    def state(self) -> Tensor:
        """See :class:`Streams`; (N,) int64."""
        return self._words

    def each(self, rows: Tensor, count: int) -> Tensor:
        """Draw evenly from [0, 1).

        :param rows: (N,) bool, whose streams move on
        :param count: numbers per row
        :return: (N, count) float64; what the rows that stay would have drawn, too
        """
        drawn, words = uniforms(self._words, count)
        _write(self._words, rows, words)
        return drawn


class _DeviceDraws(Draws):
    def __init__(self, streams: DeviceStreams, rows: Tensor) -> None:
        self.streams, self.rows = streams, rows

    def uniform(self, low: Bound, high: Bound, size: int, accept: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        # Asking whether all rows are accepted would wait for the device, so each gets a fixed number of tries and
        # keeps the first accepted one. Where half of all draws are refused, a refused one is left in 1 of 4e9 cases.
        tries = 1 if accept is None else _TRIES
        spread = _between(low, high, self.streams.each(self.rows, size * tries).view(-1, tries, size))
        drawn = spread.float().unbind(1)
        chosen = drawn[0]
        if accept is not None:
            for other in drawn[1:]:
                chosen = torch.where(accept(chosen).unsqueeze(1), chosen, other)
        return self._masked(chosen)

    def normal(self, size: int) -> Tensor:
        radius, angle = self.streams.each(self.rows, 2 * size).chunk(2, 1)  # Box and Muller's method
        return self._masked(((-2 * (-radius).log1p()).sqrt() * (2 * torch.pi * angle).cos()).float())

    def _masked(self, drawn: Tensor) -> Tensor:
        return drawn.masked_fill(~self.rows.unsqueeze(1), 0)


def _between(low: Bound, high: Bound, unit: Tensor) -> Tensor:
    """Spread numbers (…, size) from [0, 1) between bounds, which stay on the host: sending them would wait."""
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return low + (high - low) * unit
    lower, upper = (np.broadcast_to(bound, unit.shape[-1:]).tolist() for bound in (low, high))
    columns = zip(lower, upper, unit.unbind(-1), strict=True)
    return torch.stack([bottom + (top - bottom) * column for bottom, top, column in columns], -1)
