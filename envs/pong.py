"""Pong with a few tasks that are told in words: all that another Atari game takes.

Addresses are those of AtariARI (arXiv 1906.08226); that points and the paddle are where they say is tested.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .atari import AtariEnv, Game, Ram
from .missions import Task, register_task
from .schema import flag, group, whole

BALL_X, BALL_Y, PADDLE, OPPONENT = 49, 54, 51, 50
"""The first two are 0 where there is no ball; paddles' heights grow downwards."""

SCORE, OPPONENTS_SCORE = 14, 13

MIDDLE = 128
"""Height of a paddle in the middle of the screen (our choice)."""

HORIZON = 4_000


@dataclass
class PongMonitor:
    """What is counted of an episode."""

    frames: int = 0
    over: bool = False
    won: int = 0
    lost: int = 0
    above: int = 0
    """Frames with the paddle above the middle."""

    def update(self, ram: Ram, reward: int) -> None:
        """See :class:`~headway.envs.atari.Monitor`."""
        if not self.over:
            self.frames += 1
            self.won, self.lost = ram[SCORE], ram[OPPONENTS_SCORE]
            self.above += ram[PADDLE] < MIDDLE

    def end_step(self, ram: Ram) -> None:
        """See :class:`~headway.envs.atari.Monitor`."""

    def summary(self) -> dict[str, Any]:
        """See :class:`~headway.envs.atari.Monitor`."""
        return self.state()

    def state(self) -> dict[str, Any]:
        """See :class:`~headway.envs.atari.Monitor`."""
        return asdict(self)

    def load_state(self, state: Any) -> None:
        """See :class:`~headway.envs.atari.Monitor`."""
        group({item.name: flag if item.name == "over" else whole() for item in fields(self)})(state, "the counters")
        for name, value in state.items():
            setattr(self, name, value)


def observe(ram: Ram) -> NDArray[np.float32]:
    """:return: ball, paddles and points, in [0, 1], (6,)"""
    places = [ram[address] / 255 for address in (BALL_X, BALL_Y, PADDLE, OPPONENT)]
    return np.array([*places, ram[SCORE] / 21, ram[OPPONENTS_SCORE] / 21], np.float32).clip(0, 1)


PONG = Game("pong", 6, observe, PongMonitor)


class PongEnv(AtariEnv):
    """Pong; parameters as :class:`~headway.envs.atari.AtariEnv`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(PONG, **options)


def _add(task_id: str, score: Callable[[PongMonitor], float], least: float, ends: bool, *sentences: str) -> None:
    options: dict[str, Any] = {"tier": "easy", "horizon": HORIZON, "train": sentences, "ends": ends}
    register_task(Task(id=task_id, game=PONG.name, score=score, success=lambda s: score(s) >= least, **options))


_add("win_point", lambda s: min(1.0, s.won), 1.0, True, "win a point", "score a point", "beat your opponent once")
_add("lose_point", lambda s: min(1.0, s.lost), 1.0, True, "lose a point", "let your opponent score", "miss the ball")
_add("stay_high", lambda s: s.above / HORIZON, 0.8, False, "stay at the top", "keep the paddle high")
_add("stay_low", lambda s: (s.frames - s.above) / HORIZON, 0.8, False, "stay at the bottom", "keep the paddle low")
