"""What the simulators offer to a batch of tasks, and the view of them that a task's functions get."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import mujoco
import torch
from mujoco.batch import DATA_FIELDS, MODEL_FIELDS
from torch import Tensor

from ..naming import nearest
from ..streams import Streams

State = dict[str, Tensor]

CONTACT_FORCES = frozenset({"cacc", "cfrc_int", "cfrc_ext"})
"""Fields that MuJoCo computes only where they are asked for, and that read zero after a reset, as in Gymnasium."""


class Failure(NamedTuple):
    """Rows whose physics broke down in a step."""

    rows: Tensor
    """(N,) bool."""

    reason: str
    """What the simulator said of the first of them; empty where asking would wait for the device."""


class Engine(ABC):
    """The physics of ``N`` worlds of one model, on one device.

    :param model: the compiled model
    :param num_envs: N
    :param frame_skip: substeps per step
    :param varied: names of model fields with a value of its own in each world
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, frame_skip: int, varied: tuple[str, ...]) -> None:
        self.model, self.num_envs, self.frame_skip, self.varied = model, num_envs, frame_skip, varied

    device: torch.device
    dtype: torch.dtype
    """Of the simulation: float64 on the CPU, float32 in Warp."""

    @abstractmethod
    def bind(self, name: str) -> Tensor:
        """:return: a field of MjData in all worlds, (N, …): live, the same tensor for the life of the engine."""

    @abstractmethod
    def model_field(self, name: str) -> Tensor:
        """:return: a field of MjModel in all worlds, (N, …): live if varied, else one value seen N times."""

    @abstractmethod
    def step(self, actions: Tensor) -> Failure | None:
        """Advance every world by ``frame_skip`` substeps.

        :param actions: controls, (N, nu)
        :return: rows whose physics failed; they stand at the model's default state. None: no row, for certain
        """

    @abstractmethod
    def reset(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Put rows at the model's defaults, write state fields, and compute what derives from them.

        :param rows: (N,) bool; the other rows keep every bit
        :param values: state fields by name, each (N, …), read where ``rows``
        """

    @abstractmethod
    def set_model(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Give rows model fields of their own, and recompute the constants that MuJoCo derives from them.

        :param rows: (N,) bool
        :param values: varied fields by name, each (N, …), read where ``rows``
        """

    def edit(self, name: str, value: Any) -> None:
        """Change a field of MjModel in all worlds, as writing to the model of Gymnasium's environments does: what
        MuJoCo derives from it when it compiles a model stays as it is.

        :param name: of :data:`MODEL_FIELDS`
        :param value: of one world
        :raises ValueError: this engine cannot
        """
        raise ValueError(
            f"the model's {name} cannot be changed on {self.device} once the environment is made: pass the changed "
            "model as xml_file, or randomise="
        )

    @abstractmethod
    def streams(self, spawn_key: tuple[int, ...] = ()) -> Streams:
        """:return: random streams for N rows on this engine's device."""

    @abstractmethod
    def state(self, rows: Tensor | None) -> State:
        """:return: copies of everything the future of the rows depends on; all rows for None. ``rows`` (K,) int64."""

    @abstractmethod
    def load_state(self, state: State, rows: Tensor | None) -> None:
        """Write what :meth:`state` copied into rows (K,) int64, or into all."""

    @abstractmethod
    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """Make worlds ``dst`` (K,) int64 copies of worlds ``src`` (K,) int64."""

    @abstractmethod
    def drawing(self, row: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Write one world into a model and data to draw it from."""


class Sim:
    """A simulation as a task's functions see it: every field of MjData and MjModel as a tensor (N, …).

    ``sim.qpos`` (N, nq), ``sim.xpos`` (N, nbody, 3), ``sim.body_mass`` (N, nbody). Only fields that some function reads
    are copied out of the physics; they are found by calling the functions once, when the batch is made.
    """

    dt: float
    """Seconds per step of the environment."""

    init_qpos: Tensor
    """Default positions, (nq,)."""

    init_qvel: Tensor
    """Default velocities, (nv,)."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._frozen = engine, False
        self._bodies: dict[str, int] = {}
        self.model, self.num_envs, self.device = engine.model, engine.num_envs, engine.device
        self.refresh()
        options: Any = {"dtype": engine.dtype, "device": engine.device}
        self.init_qpos = torch.tensor(engine.model.qpos0, **options)
        self.init_qvel = torch.zeros(engine.model.nv, **options)

    def refresh(self) -> None:
        """Read fields of the model anew: somebody has changed it."""
        self.dt = self._engine.model.opt.timestep * self._engine.frame_skip
        for name in MODEL_FIELDS & self.__dict__.keys():
            del self.__dict__[name]

    def body(self, name: str | int) -> int:
        """:return: a body's number, from its name.

        :raises KeyError: there is none of that name; MuJoCo lists those there are
        """
        if isinstance(name, int):
            return name
        if name not in self._bodies:
            self._bodies[name] = self.model.body(name).id
        return self._bodies[name]

    def freeze(self) -> None:
        """Bind no more fields: one bound late would be zero until the next step."""
        self._frozen = True

    def __getattr__(self, name: str) -> Tensor:
        # consulted only for what is not there yet: the first access of a field
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in DATA_FIELDS and name not in MODEL_FIELDS:
            hint = nearest(name, [*DATA_FIELDS, *MODEL_FIELDS], "see MuJoCo's mjData and mjModel")
            raise AttributeError(f"there is no field {name!r} in MjData or MjModel: {hint}")
        if name in MODEL_FIELDS:
            field = self._engine.model_field(name)
        elif self._frozen:
            raise AttributeError(
                f"sim.{name} is read for the first time after the batch was made: read it in every call of the task's "
                "functions, not only in a branch of one"
            )
        else:
            field = self._engine.bind(name)
        self.__dict__[name] = field
        return field
