"""A task: a MuJoCo model, and what to observe, reward and end, written once on tensors with a leading batch axis."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium.envs.mujoco
import mujoco
from gymnasium import spaces
from torch import Tensor

if TYPE_CHECKING:
    from ..streams import Draws
    from .engine import Sim

Model = str | Path | Callable[[], mujoco.MjSpec]


@dataclass(frozen=True, kw_only=True)
class MujocoTask(ABC):
    """One task on one robot. Subclasses are frozen dataclasses whose fields are the task's options.

    The functions see the simulation through :class:`~headway.envs.mujoco.Sim`: ``sim.qpos`` is (N, nq), ``sim.xpos``
    is (N, nbody, 3), whatever engine runs it. They are plain torch, must not branch on values, and must return tensors
    of their own (``sim.qpos`` changes with the next step, ``sim.qpos.clone()`` does not).

    As in Gymnasium, fields derived from positions and velocities (``xpos``, ``cinert``, …) are those of the last
    substep, while ``qpos`` and ``qvel`` are already one substep further.
    """

    model: Model
    """The robot: a file (a bare name is one of Gymnasium's assets), XML in a string, or a function that makes an
    ``MjSpec``."""

    frame_skip: int = 1
    """Substeps of physics per step of the environment."""

    max_episode_steps: ClassVar[int | None] = None
    """After how many steps an episode is truncated; None: never."""

    reward_threshold: ClassVar[float | None] = None
    """Return at which the task counts as solved, for the registry."""

    camera: ClassVar[dict[str, Any] | None] = None
    """Where to draw it from: ``trackbodyid``, ``distance``, ``lookat``, ``azimuth``, ``elevation``."""

    observation_space: ClassVar[spaces.Box | None] = None
    """None: unbounded, of the width that :meth:`observation` returns."""

    def before(self, sim: "Sim") -> Any:
        """Keep what :meth:`reward` needs of the state before the step, as tensors of its own."""
        return None

    @abstractmethod
    def observation(self, sim: "Sim") -> Tensor:
        """:return: what the agent sees, (N, D)."""

    @abstractmethod
    def reward(self, sim: "Sim", action: Tensor, before: Any) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Judge the step just taken.

        :param sim: the simulation after the step
        :param action: as the agent gave it, (N, A)
        :param before: what :meth:`before` returned
        :return: the reward (N,), alone or with named parts (N, …) for ``info``
        """

    def terminated(self, sim: "Sim") -> Tensor | None:
        """:return: which rows are over, (N,) bool; None if the task never ends by itself."""
        return None

    def reset(self, sim: "Sim", random: "Draws") -> dict[str, Tensor]:
        """Draw the start of an episode; the model's default state unless overridden.

        :param sim: for its constants: ``sim.init_qpos`` (nq,), ``sim.init_qvel`` (nv,), ``sim.model``
        :param random: draws (N, …) from each row's own stream; only rows that start anew are drawn, the others are 0
        :return: state fields to write, by their names in MjData: ``{"qpos": (N, nq), "qvel": (N, nv)}``
        """
        return {}

    def reset_info(self, sim: "Sim") -> dict[str, Tensor]:
        """:return: what ``reset`` tells in its info, each (N, …)."""
        return {}

    def spec(self) -> mujoco.MjSpec:
        """:return: the model, not yet compiled.

        :raises FileNotFoundError: its file does not exist
        """
        if not isinstance(self.model, (str, Path)):
            return self.model()
        if isinstance(self.model, str) and self.model.lstrip().startswith("<"):
            return mujoco.MjSpec.from_string(self.model)
        path = Path(self.model).expanduser()
        if path.parent == Path() and not path.exists():
            path = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / path.name
        if not path.is_file():
            raise FileNotFoundError(f"{type(self).__name__}: there is no model file {str(self.model)!r} (nor {path})")
        return mujoco.MjSpec.from_file(str(path))


def compiled(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """:return: the compiled model."""
    with warnings.catch_warnings():
        # Gymnasium's HalfCheetah uses it, and nobody who takes that model can do anything about it.
        warnings.filterwarnings("ignore", "compiler attribute 'settotalmass' is deprecated")
        return spec.compile()
