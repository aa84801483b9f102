"""Drawing one row of a batch, with Gymnasium's renderer."""

import copy
import ctypes.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

from .engine import Engine


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where from and how large, under the names of Gymnasium's MuJoCo environments."""

    width: int = 480
    """Of a frame, in pixels."""

    height: int = 480
    """Of a frame, in pixels."""

    camera_id: int | None = None
    """One of the model's cameras; None: a free one."""

    camera_name: str | None = None
    """The same, by its name."""

    default_camera_config: Mapping[str, Any] | None = None
    """Of the free camera: trackbodyid, distance, lookat, azimuth, elevation; None: the task's own."""

    max_geom: int = 1000
    """Shapes in a scene."""

    visual_options: Mapping[int, bool] | None = None
    """``mujoco.mjtVisFlag`` to switch on or off."""


def draw_without_screen() -> None:
    """Have Gymnasium draw through EGL where there is no screen and nobody chose; left alone, it tries a window."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not screen and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


class RowRenderer:
    """Draws rows of an engine.

    :param engine: the worlds
    :param camera: where from
    :param default_view: the view where the camera does not say
    """

    def __init__(self, engine: Engine, camera: Camera, default_view: Mapping[str, Any] | None) -> None:
        draw_without_screen()
        self._engine = engine
        self._model = copy.copy(engine.model)
        screen = self._model.vis.global_
        screen.offwidth, screen.offheight = max(screen.offwidth, camera.width), max(screen.offheight, camera.height)
        self._data = mujoco.MjData(self._model)
        view = default_view if camera.default_camera_config is None else camera.default_camera_config
        self._renderer: Any = MujocoRenderer(
            self._model,
            self._data,
            None if view is None else dict(view),
            camera.width,
            camera.height,
            camera.max_geom,
            camera.camera_id,
            camera.camera_name,
            dict(camera.visual_options or {}),
        )

    def draw(self, row: int, mode: str) -> Any:
        """Draw one row as it is.

        :param row: its number
        :param mode: "rgb_array", "depth_array", "rgbd_tuple" or "human"
        :return: a frame (height, width, 3) uint8, depths (height, width), both; None for "human"
        """
        self._engine.drawing(row, self._model, self._data)
        self._renderer._get_viewer(mode).make_context_current()  # another renderer may have drawn since
        return self._renderer.render(mode)

    def close(self) -> None:
        """Close windows and graphics contexts."""
        for viewer in self._renderer._viewers.values():
            # freed later, while another context is current, it would free objects of the same numbers there
            viewer.make_context_current()
            viewer.con.free()
        self._renderer.close()
