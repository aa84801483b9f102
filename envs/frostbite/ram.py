"""Frostbite's memory: what stands where, and the vector that agents see of it.

Addresses and codes were verified on the ROM that ships with ale-py 0.12.1 by comparison with pixels, by probes and by
changing bytes; the annotations of AtariARI (arXiv 1906.08226) and OCAtari (arXiv 2306.08649) agree where they have an
entry, unless said otherwise. Rows of floes are counted from the top, 1 to 4; 0 is the shore.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atari import Ram

SCORE = (72, 73, 74)
"""Six decimal digits, two in a byte, the highest first."""

LEVEL = 75
"""The level less 1 (in neither annotation)."""

SPARE_LIVES = 76
BLOCKS = 77
"""Blocks of the igloo less 1, modulo 256; 15 is a complete igloo with its door."""

Y, X = 100, 102
"""Of the player: 27 on the shore, 53, 79, 105 and 131 on the rows, 0 in the igloo."""

TEMPERATURE = 101
"""Degrees, two decimal digits; 45 at the beginning of a life."""

BUSY = 103
"""Frames in which input is ignored: 64 to 0 at the beginning of a life, 16 to 0 while a fish is eaten."""

BEAR = 104
"""Its x; 140: there is none."""

JUMP = 106
"""0: on the ground, 15 to 1 during a jump down, 31 to 17 during a jump up, 26 in the igloo."""

SINKING = 107
PHASE = 113
PLAY, FREEZING, DROWNING, WAITING, ENTERED, CHANGING = 0, 16, 128, 32, 64, 8
"""Of :data:`PHASE`: alive; freezing; in water, or caught by the bear; dead; the igloo's bonus is counted; new level."""

COUNTDOWN = 70
"""0 during a game. Other numbers count down after its end, also where the emulator reports none: after freezing on
the last life the game goes on to a demonstration, with lives that count again (openai/gym issue 1539)."""

COLOURS = (46, 45, 44, 43)
WHITE, BLUE = 12, 152
FLOES = (34, 33, 32, 31)
OBSTACLES = (87, 86, 85, 84)
"""Their x, 0 for none."""

SPRITES = (38, 37, 36, 35)
COPIES = (91, 90, 89, 88)
WIDE = 30
"""8: three wide floes in a row, as on levels 1 and 3; 0: six pieces."""

SHORE, FIRST, SPACING = 27, 53, 26
DOOR = 16
"""Blocks of a complete igloo."""

FISH_SPRITES = (*range(109, 114), *range(124, 129))

NAMES: tuple[str, ...] = (
    *("x", "y", "jumping down", "jumping up", "busy", "sinking"),
    *("play", "freezing", "drowning", "waiting", "entered", "changing"),
    *("temperature", "blocks", "door", "level", "spare lives", "score"),
    *(
        f"{what} of row {row}"
        for what in ("claimed", "floe", "obstacle", "danger", "fish", "copies")
        for row in (1, 2, 3, 4)
    ),
    *("wide floes", "bear", "bear's x"),
)
"""Of the numbers that :func:`observe` makes."""

_ROWS = {SHORE + SPACING * row: row for row in range(5)}
_IS_FISH = frozenset(FISH_SPRITES)


DECIMAL = tuple(10 * (byte >> 4) + (byte & 15) for byte in range(256))
"""The number that a byte of two decimal digits spells."""


def score_of(ram: Ram) -> int:
    """:return: points, 0 to 999,999"""
    high, middle, low = SCORE
    return 10_000 * DECIMAL[ram[high]] + 100 * DECIMAL[ram[middle]] + DECIMAL[ram[low]]


def blocks_of(ram: Ram) -> int:
    """:return: blocks of the igloo, 0 to 16"""
    return (ram[BLOCKS] + 1) & 255


def row_of(ram: Ram) -> int | None:
    """:return: where the player stands, 0 for the shore, else the row of floes; None in a jump, water or the igloo"""
    return _ROWS.get(ram[Y]) if ram[JUMP] == 0 else None


_BYTES = np.arange(256)
_BY_NAME: dict[str, tuple[int, NDArray[Any]]] = {
    "x": (X, _BYTES / 160),
    "y": (Y, _BYTES / 160),
    "jumping down": (JUMP, _BYTES * (_BYTES < 16) / 15),
    "jumping up": (JUMP, (_BYTES - 16) * (_BYTES > 16) / 15),
    "busy": (BUSY, _BYTES / 64),
    "sinking": (SINKING, _BYTES / 18),
    **{
        name: (PHASE, np.eye(256)[phase])
        for name, phase in zip(NAMES[6:12], (PLAY, FREEZING, DROWNING, WAITING, ENTERED, CHANGING), strict=True)
    },
    "temperature": (TEMPERATURE, np.array(DECIMAL) / 45),
    "blocks": (BLOCKS, (_BYTES + 1) % 256 / DOOR),
    "door": (BLOCKS, (_BYTES + 1) % 256 >= DOOR),
    "level": (LEVEL, _BYTES / 10),
    "spare lives": (SPARE_LIVES, (_BYTES & 15) / 9),
    "wide floes": (WIDE, _BYTES / 8),
    "bear": (BEAR, _BYTES != 140),
    "bear's x": (BEAR, _BYTES / 160),
}
"""Where each number comes from that one byte tells, and what each value of the byte makes of it."""
for _row in range(4):
    _BY_NAME[f"claimed of row {_row + 1}"] = (COLOURS[_row], _BYTES == BLUE)
    _BY_NAME[f"floe of row {_row + 1}"] = (FLOES[_row], _BYTES / 160)
    _BY_NAME[f"obstacle of row {_row + 1}"] = (OBSTACLES[_row], _BYTES / 160)
    _BY_NAME[f"copies of row {_row + 1}"] = (COPIES[_row], _BYTES / 3)

_PLACES = np.array([NAMES.index(name) for name in _BY_NAME])
_ADDRESSES = np.array([address for address, _ in _BY_NAME.values()])
_TABLES = np.stack([table for _, table in _BY_NAME.values()]).clip(0, 1).astype(np.float32)
_LINES = np.arange(len(_TABLES))
_SCORE, _DANGER, _FISH = (NAMES.index(name) for name in ("score", "danger of row 1", "fish of row 1"))


def observe(ram: Ram) -> NDArray[np.float32]:
    """Make the vector that agents see.

    :param ram: the emulator's memory
    :return: the numbers that :data:`NAMES` names, all in [0, 1], float32
    """
    numbers = np.zeros(len(NAMES), np.float32)
    numbers[_PLACES] = _TABLES[_LINES, np.frombuffer(ram, np.uint8)[_ADDRESSES]]
    numbers[_SCORE] = min(1.0, score_of(ram) / 10_000)
    for row in range(4):
        if ram[OBSTACLES[row]]:
            numbers[(_FISH if ram[SPRITES[row]] in _IS_FISH else _DANGER) + row] = 1
    return numbers
