"""The published benchmark's own formulas, for comparison with it: what they count, they count once per agent's step.

As the program released with Putterman, Lu, Mordatch, Abbeel (OpenReview eCPCn25gat) has them, read in its code. They
can be gamed: sinking counts as standing on a floe, frame skips hide landings, a policy that does nothing stays on the
left side, and shares of an episode's own length reward an early death. Ours are in :mod:`.tasks`. Of the game's
demonstration, which the program took for levels that were reached, nothing is counted here, since it is never seen.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..atari import Ram
from ..schema import group, whole
from . import ram as m

FIRST_STEPS = 4_000
"""Steps of which "dont move" is a share."""

UNCOUNTED = 200
"""First steps, in which the player's height is not yet read for levels."""


@dataclass
class Published:
    """Counters of an episode, by agent's steps."""

    steps: int = 0
    left: int = 0
    home: int = 0
    lower: int = 0
    on_first: int = 0
    on_fourth: int = 0
    entries: int = 0
    alternations: int = 0
    last: int = 0
    y: int = m.SHORE
    lives: int = 3
    score: int = 0
    first_life: int = 0
    later: int = 0
    later_home: int = 0

    def update(self, ram: Ram) -> None:
        """See the memory after an agent's step."""
        x, y, before = ram[m.X], ram[m.Y], self.y
        at_home, lives = x == 64 and y == m.SHORE, ram[m.SPARE_LIVES] & 15
        self.steps += 1
        self.left += x <= 75
        self.home += at_home and self.steps <= FIRST_STEPS
        self.lower += y > m.FIRST
        self.on_first += y == m.FIRST
        self.on_fourth += y == m.FIRST + 3 * m.SPACING
        self.entries += self.steps > UNCOUNTED and y == 0 != before
        if y in (79, 105):
            self.alternations += self.last not in (0, y)
            self.last = y
        self.score = m.score_of(ram) % 10_000
        if self.later or lives < self.lives:
            self.first_life = self.first_life if self.later else self.score
            self.later += 1
            self.later_home += at_home
        self.y, self.lives = y, lives

    def state(self) -> dict[str, Any]:
        """:return: everything, as plain data"""
        return asdict(self)

    def load_state(self, state: Any) -> None:
        """Take up a state; raise ``ValueError`` if it does not fit."""
        group({item.name: whole() for item in fields(self)})(state, "the published counters")
        for name, value in state.items():
            setattr(self, name, int(value))


Formula = Callable[[Published], float]


def _share(count: Formula) -> Formula:
    return lambda p: count(p) / max(1, p.steps)


def _level(level: int) -> Formula:
    return lambda p: float(1 + p.entries >= level)


def _died_on(level: int) -> Formula:
    return lambda p: float(1 + p.entries == level)


def _close(points: int) -> Formula:
    return lambda p: max(0.0, 1 - abs(p.score - points) / points)


FORMULAS: Mapping[str, Formula] = {
    "stay_left": _share(lambda p: p.left),
    "stay_right": _share(lambda p: p.steps - p.left),
    "dont_move": lambda p: p.home / FIRST_STEPS,
    "alternate-2-3": lambda p: min(1.0, p.alternations / 50),
    "below_first": _share(lambda p: p.lower),
    "camp_row-1": _share(lambda p: p.on_first),
    "camp_row-4": _share(lambda p: p.on_fourth),
    "max_points": lambda p: min(1.0, p.score / 3_000),
    "far_then_still": lambda p: 0.5 * min(1.0, p.first_life / 3_000) + 0.5 * p.later_home / max(1, p.later),
    **{f"reach_level-{level}": _level(level) for level in (2, 3, 4, 5)},
    **{f"die_on_level-{level}": _died_on(level) for level in (1, 2)},
    **{f"close_to-{points}": _close(points) for points in (500, 1_000, 1_500)},
}
"""By the task of ours that is of the same words."""
