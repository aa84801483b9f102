"""Atari games whose every emulator frame is watched: rules can be kept of what an agent sees one frame in four of.

On ale-py's interface itself, below any frame skip. The random numbers are the environment's own (Gymnasium's ALE
environments leave them to the emulator, where nobody can record what was executed), and its state can be saved exactly.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .generators import read_numpy, write_numpy
from .schema import array, group, maybe, whole

Ram = bytes
"""The emulator's 128 bytes, whose items are plain integers."""

NOOP, ACTIONS = 0, 18
RESET_OPTIONS = ("noops", "start_state")
"""What ``reset(options=…)`` takes."""


class Monitor(Protocol):
    """What is counted of an episode, frame by frame."""

    frames: int
    """Emulator frames since the episode began."""

    over: bool
    """Whether the game has really ended, which the emulator does not always tell; nothing is counted afterwards."""

    def update(self, ram: Ram, reward: int) -> None:
        """See a frame: its memory after it, and the points that it brought."""

    def end_step(self, ram: Ram) -> None:
        """See the memory where a step of the agent, several frames, ends."""

    def summary(self) -> dict[str, Any]:
        """:return: what ``info`` tells, plain numbers"""

    def state(self) -> dict[str, Any]:
        """:return: everything, as plain data"""

    def load_state(self, state: Any) -> None:
        """Take up such a state; raise ``ValueError`` if it does not fit."""


@dataclass(frozen=True)
class Game:
    """What a game's adapter knows.

    :param name: of the ROM that ships with ale-py
    :param size: of the vector that ``observe`` makes
    :param observe: maps the memory to numbers in [0, 1], (size,) float32
    :param monitor: makes a fresh monitor
    """

    name: str
    size: int
    observe: Callable[[Ram], NDArray[np.float32]]
    monitor: Callable[[], Monitor]


def _emulator(name: str) -> Any:
    try:
        import ale_py
    except ImportError as cause:
        raise gym.error.DependencyNotInstalled("ale-py is missing: pip install 'headway-rl[atari]'") from cause
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)  # stickiness is ours
    ale.setInt("random_seed", 0)
    rom = ale_py.roms.get_rom_path(name)
    assert rom is not None
    ale.loadROM(rom)
    return ale


class AtariEnv(gym.Env[NDArray[Any], np.int64]):
    """An Atari game, by its memory or by its screen, with all 18 actions.

    A step repeats its action for ``frame_skip`` frames. With ``repeat_action_probability`` the emulator holds on to
    the last frame's action instead, drawn anew for every frame (arXiv 1709.06009); what was executed is in
    ``info["executed"]``. An episode ends when the monitor sees the game's end.

    ``reset(options=…)`` takes ``noops``, frames without an action before the episode begins, otherwise drawn from 0 to
    ``noop_max``; and ``start_state``, the bytes of :meth:`start_state`, which the episode begins with instead of the
    game's own beginning.

    :param game: which
    :param obs: "ram", the adapter's vector, or "pixels", ``(stack, screen_size, screen_size)`` grey levels, of which
        each is the maximum of a step's last two frames
    :param frame_skip: emulator frames in a step
    :param repeat_action_probability: of a frame, see above
    :param noop_max: most frames without an action at the beginning
    :param stack: last screens that are seen
    :param screen_size: width and height of a screen
    :param render_mode: "rgb_array", or None
    :raises ValueError: one of these is out of its range
    :raises gymnasium.error.DependencyNotInstalled: ale-py is missing
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's own spelling)

    def __init__(
        self,
        game: Game,
        *,
        obs: Literal["ram", "pixels"] = "ram",
        frame_skip: int = 4,
        repeat_action_probability: float = 0.0,
        noop_max: int = 30,
        stack: int = 1,
        screen_size: int = 84,
        render_mode: str | None = None,
    ) -> None:
        if obs not in ("ram", "pixels"):
            raise ValueError(f"obs is {obs!r}: it can be 'ram' or 'pixels'")
        if not 0 <= repeat_action_probability < 1:
            raise ValueError(f"repeat_action_probability is {repeat_action_probability}: it must lie in [0, 1)")
        for name, value, least in (("frame_skip", frame_skip, 1), ("noop_max", noop_max, 0), ("stack", stack, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}: at least {least} is needed")
        self.game, self.obs, self.render_mode = game, obs, render_mode
        self.frame_skip, self.repeat_action_probability = frame_skip, repeat_action_probability
        self.noop_max, self.screen_size = noop_max, screen_size
        self.ale = _emulator(game.name)
        self.monitor = game.monitor()
        self.action_space: spaces.Discrete = spaces.Discrete(ACTIONS)
        if obs == "ram":
            self.observation_space: spaces.Box = spaces.Box(0.0, 1.0, (game.size,), np.float32)
        else:
            self.observation_space = spaces.Box(0, 255, (stack, screen_size, screen_size), np.uint8)
        self.watch: Callable[[Ram, int], object] | None = None
        """Told the memory after each frame of a step, and the points that it brought."""
        self._screens: deque[NDArray[np.uint8]] = deque(maxlen=stack)
        self._executed = NOOP

    # -- episodes ----------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode; see the class for the options."""
        super().reset(seed=seed)
        options = dict(options or {})
        if unknown := [name for name in options if name not in RESET_OPTIONS]:
            raise ValueError(f"reset has no option {unknown[0]!r}: it takes {', '.join(RESET_OPTIONS)}")
        noops = options.get("noops")
        if noops is None:
            noops = int(self.np_random.integers(self.noop_max + 1))
        if noops < 0:
            raise ValueError(f"noops is {noops}: at least 0 is needed")
        self.ale.reset_game()
        if (start := options.get("start_state")) is not None:
            self._restore(start)
        for _ in range(noops):
            self.ale.act(NOOP)
        self.monitor, self._executed = self.game.monitor(), NOOP
        self._screens.clear()
        for _ in range(self._screens.maxlen or 1):
            self._screens.append(self._screen())
        return self.observed(), self._info([])

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Repeat an action for some frames; fewer where the game ends."""
        if not self.action_space.contains(action):
            raise ValueError(f"action is {action!r}: it must be a whole number from 0 to {ACTIONS - 1}")
        reward, executed = 0, []
        screens: list[NDArray[np.uint8]] = []
        for left in range(self.frame_skip - 1, -1, -1):
            sticks = self.repeat_action_probability and self.np_random.random() < self.repeat_action_probability
            self._executed = self._executed if sticks else int(action)
            points = self.ale.act(self._executed)
            reward += points
            executed.append(self._executed)
            ram = self.ram()
            self.monitor.update(ram, points)
            if self.watch is not None:
                self.watch(ram, points)
            self.monitor.over |= self.ale.game_over()  # after which the emulator stands still
            if self.obs == "pixels" and left < 2:
                screens.append(self.ale.getScreenGrayscale())
            if self.monitor.over:
                break
        self.monitor.end_step(self.ram())
        if self.obs == "pixels":
            self._screens.append(self._shrunk(screens or [self.ale.getScreenGrayscale()]))
        return self.observed(), float(reward), self.monitor.over, False, self._info(executed)

    def ram(self) -> Ram:
        """:return: the emulator's memory"""
        memory: bytes = self.ale.getRAM().tobytes()
        return memory

    def _info(self, executed: list[int]) -> dict[str, Any]:
        return {"executed": np.array(executed, np.uint8), self.game.name: self.monitor.summary()}

    def observed(self) -> NDArray[Any]:
        """:return: what it shows now, as :meth:`step` did"""
        return self.game.observe(self.ram()) if self.obs == "ram" else np.stack(self._screens)

    def _screen(self) -> NDArray[np.uint8]:
        return self._shrunk([self.ale.getScreenGrayscale()]) if self.obs == "pixels" else np.zeros(0, np.uint8)

    def _shrunk(self, screens: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        import cv2

        size = (self.screen_size, self.screen_size)
        shrunk = cv2.resize(np.maximum(screens[0], screens[-1]), size, interpolation=cv2.INTER_AREA)
        return shrunk.astype(np.uint8)

    def render(self) -> NDArray[np.uint8] | None:
        """:return: the screen, (210, 160, 3), in mode "rgb_array\""""
        return self.ale.getScreenRGB() if self.render_mode == "rgb_array" else None

    # -- states ------------------------------------------------------------------------------------------------------

    def start_state(self) -> bytes:
        """:return: the emulator as it is, for ``reset(options={"start_state": …})``"""
        held: bytes = self.ale.cloneState(include_rng=True).serialize()
        return held

    def _restore(self, start: bytes) -> None:
        from ale_py import ALEState

        try:
            self.ale.restoreState(ALEState(bytes(start)))
        except (RuntimeError, SystemError, TypeError, ValueError, MemoryError) as cause:
            raise ValueError(f"this is no state of the emulator ({' '.join(str(cause).split())})") from cause

    def state(self) -> dict[str, Any]:
        """:return: everything that changes, as plain data"""
        return {
            "emulator": np.frombuffer(self.start_state(), np.uint8).copy(),
            "monitor": self.monitor.state(),
            "executed": self._executed,
            "screens": np.stack(self._screens) if self._screens and self.obs == "pixels" else None,
            "random": read_numpy(self.np_random),
        }

    def load_state(self, state: Any) -> None:
        """Take up a state.

        :param state: what :meth:`state` returned, here or in an environment with the same settings
        :raises ValueError: it does not fit
        """
        shown = None if self.obs == "ram" else array((None, self.screen_size, self.screen_size), "uint8")
        checks: dict[str, Any] = {"emulator": array((None,), "uint8"), "executed": whole(0, ACTIONS - 1)}
        checks |= {"screens": maybe(shown or array((0,))), "monitor": lambda *_: None, "random": lambda *_: None}
        group(checks)(state, "the game's state")
        monitor = self.game.monitor()
        monitor.load_state(state["monitor"])
        self._restore(np.asarray(state["emulator"], np.uint8).tobytes())
        write_numpy(self.np_random, state["random"])
        self.monitor, self._executed = monitor, int(state["executed"])
        self._screens.clear()
        self._screens.extend(() if state["screens"] is None else np.array(state["screens"], np.uint8))
