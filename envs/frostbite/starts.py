"""Where levels begin: what the look-ahead player did to get there, which is played again when it is asked for.

Actions are kept and not states of the emulator, whose form changes with its version; that they lead there is checked.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml

from ..atari import AtariEnv, Game

_FILE = Path(__file__).parent / "starts.yaml"


def _read() -> dict[int, str]:
    """:return: by level, actions from where the level before begins: letters from "a" for 0, and how many steps each"""
    found: dict[int, str] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return found


def encode(actions: Iterable[int]) -> str:
    """:return: actions as they are kept, see :func:`~headway.envs.frostbite.players.way_to_next_level`"""
    return re.sub(r"(.)\1*", lambda run: f"{run[1]}{len(run[0])}", "".join(chr(97 + action) for action in actions))


def decode(kept: str) -> list[int]:
    """:return: the actions of :func:`encode`"""
    return [ord(letter) - 97 for letter, count in re.findall(r"([a-r])(\d+)", kept) for _ in range(int(count))]


@cache
def start_of_level(game: Game, level: int) -> bytes:
    """Go where a level begins.

    :param game: Frostbite
    :param level: from 1 on
    :return: the emulator's state when its player can first move there
    :raises ValueError: nobody has got there; or this version of the emulator leads elsewhere
    """
    known = _read()
    if level not in (1, *known):
        raise ValueError(f"start_level is {level}: it can be 1 to {max(known)}")
    env = AtariEnv(game)
    env.reset(seed=0, options={"noops": 0})
    for action in [action for number in range(2, level + 1) for action in decode(known[number])]:
        env.step(action)
    if env.monitor.summary()["level"] != level or env.monitor.over:
        raise ValueError(
            f"this emulator does not reach level {level} by the actions recorded with ale-py 0.12.1: "
            "pip install 'ale-py==0.12.1'"
        )
    return env.start_state()
