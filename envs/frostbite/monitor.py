"""What is counted of an episode of Frostbite, frame by frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any, Self

from ..atari import Ram
from ..schema import each, flag, group, row, text, whole
from . import ram as m
from .published import Published

FISH = 200
"""Points of a fish."""

PAIRS = tuple(combinations(range(1, 5), 2))
"""Of rows."""

_PAIRS_WITH = [[index for index, pair in enumerate(PAIRS) if row in pair] for row in range(5)]

Death = tuple[int, int, str]
"""Frame, level, and "water", "bear" or "cold"."""


@dataclass
class FrostbiteMonitor:
    """Plain counters, from which any rule can be told.

    A frame is *active* when the player is alive and can move: not in the animations of deaths, of the igloo's bonus and
    of a new level, and not in the second before a life begins. A landing counts once the game has kept it for a frame,
    since one that misses shows the same for a moment.
    """

    frames: int = 0
    active: int = 0
    over: bool = False

    left: int = 0
    """Active frames with x <= 75."""
    right: int = 0
    home: int = 0
    """Active frames at the place where lives begin."""
    below_first: int = 0
    """Active frames below the first row, in the air or not."""
    resting: list[int] = field(default_factory=lambda: [0] * 5)
    """Active frames at rest on the shore and on each row, from the one after a landing."""
    landings: list[int] = field(default_factory=lambda: [0] * 5)
    alternations: list[int] = field(default_factory=lambda: [0] * len(PAIRS))
    """By pair of rows, landings on one after which the other was the last of the two, whatever came between: from the
    first row to the third the way is over the second."""

    level: int = 1
    blocks: int = 0
    most_blocks: int = 0
    progress: int = 0
    """Sixteenths of a level that were passed, the most: blocks of the igloo, and 16 for each level before."""
    temperature: int = 45
    score: int = 0
    spare_lives: int = 3
    x: int = 64
    y: int = m.SHORE
    fish: int = 0
    warmest_entry: int = 0
    """Degrees with which an igloo was entered, the most."""
    deaths: list[Death] = field(default_factory=list)
    score_at_first_death: int = 0
    active_after_first_death: int = 0
    home_after_first_death: int = 0

    recent: list[int] = field(default_factory=lambda: [0] * len(PAIRS))
    """By pair of rows, the one of them that was landed on last in this life; 0: neither was."""
    pending: int = 0
    """A landing that is not confirmed yet."""
    phase: int = m.PLAY
    jump: int = 0
    white: int = 0
    """Rows that are not claimed, as bits."""
    extra: int = 0
    """Points during the game that no claimed row explains: fish bring them."""

    published: Published = field(default_factory=Published)
    """The counters of the published benchmark."""

    @classmethod
    def beginning(cls, ram: Ram) -> Self:
        """:return: the counters of an episode that begins in the middle of a game, at this memory"""
        monitor = cls()
        monitor.update(ram, 0)
        begun = {name: getattr(monitor, name) for name in ("level", "score", "spare_lives", "x", "y", "white", "over")}
        begun |= {"phase": ram[m.PHASE], "jump": ram[m.JUMP], "blocks": m.blocks_of(ram)}
        begun |= {"most_blocks": monitor.most_blocks, "progress": monitor.progress, "temperature": monitor.temperature}
        return cls(**begun)

    def update(self, ram: Ram, reward: int) -> None:
        """See a frame.

        :param ram: the memory after it
        :param reward: points that it brought
        """
        if self.over:
            return
        self.frames += 1
        phase, jump = ram[m.PHASE], ram[m.JUMP]
        self.x, self.y, self.level = ram[m.X], ram[m.Y], ram[m.LEVEL] + 1
        self.score, self.spare_lives = m.score_of(ram), ram[m.SPARE_LIVES] & 15
        live = phase == m.PLAY and ram[m.COUNTDOWN] == 0
        self._see_landing(ram, jump, live)
        if live:
            self.blocks, self.temperature = m.blocks_of(ram), m.DECIMAL[ram[m.TEMPERATURE]]
            self.most_blocks = max(self.most_blocks, self.blocks)
            self.progress = max(self.progress, 16 * (self.level - 1) + self.blocks)
            if not (ram[m.BUSY] > 0 and self._is_home):
                self._see_place(ram)
        self._see_points(ram, reward, live)
        if self.phase == m.PLAY and phase != m.PLAY:
            self._see_change(phase)
        self.phase, self.jump = phase, jump
        self.over = ram[m.COUNTDOWN] != 0

    def end_step(self, ram: Ram) -> None:
        """See :class:`~headway.envs.atari.Monitor`."""
        self.published.update(ram)

    @property
    def _is_home(self) -> bool:
        return self.x == 64 and self.y == m.SHORE

    def _see_landing(self, ram: Ram, jump: int, live: bool) -> None:
        landed, self.pending = self.pending, 0
        if landed and live:
            self.landings[landed] += 1
            for index in _PAIRS_WITH[landed]:
                self.alternations[index] += self.recent[index] not in (0, landed)
                self.recent[index] = landed
        row = m.row_of(ram)
        if self.jump > 0 and jump == 0 and row:
            self.pending = row

    def _see_place(self, ram: Ram) -> None:
        after = int(bool(self.deaths))
        self.active += 1
        self.active_after_first_death += after
        self.left += self.x <= 75
        self.right += self.x > 75
        self.home += self._is_home
        self.home_after_first_death += after * self._is_home
        self.below_first += self.y > m.FIRST
        if (row := m.row_of(ram)) is not None and not self.pending:
            self.resting[row] += 1

    def _see_points(self, ram: Ram, reward: int, live: bool) -> None:
        first, second, third, fourth = m.COLOURS
        white = (
            (ram[first] == m.WHITE)
            | (ram[second] == m.WHITE) << 1
            | (ram[third] == m.WHITE) << 2
            | (ram[fourth] == m.WHITE) << 3
        )
        if live and self.phase == m.PLAY:
            claimed = (self.white & ~white).bit_count()
            self.extra += reward - 10 * self.level * claimed
            self.fish = max(self.fish, self.extra // FISH)  # its points come in twenty parts
        self.white = white

    def _see_change(self, phase: int) -> None:
        if phase == m.ENTERED:
            self.warmest_entry = max(self.warmest_entry, self.temperature)
        elif phase in (m.FREEZING, m.DROWNING):
            if not self.deaths:
                self.score_at_first_death = self.score
            kind = "cold" if phase == m.FREEZING else "bear" if self.y == m.SHORE else "water"
            self.deaths.append((self.frames, self.level, kind))
        self.recent, self.pending = [0] * len(PAIRS), 0

    def alternated(self, a: int, b: int) -> int:
        """:return: alternations between two rows, see ``alternations``"""
        return self.alternations[_pair(a, b)]

    def last_of(self, a: int, b: int) -> int:
        """:return: which of two rows was landed on last in this life; 0: neither was"""
        return self.recent[_pair(a, b)]

    def summary(self) -> dict[str, Any]:
        """:return: what ``info["frostbite"]`` tells"""
        shown = (
            "frames",
            "active",
            "level",
            "blocks",
            "temperature",
            "score",
            "spare_lives",
            "x",
            "y",
            "fish",
            "phase",
        )
        return {name: getattr(self, name) for name in shown} | {
            "landings": list(self.landings),
            "alternations": list(self.alternations),
            "deaths": list(self.deaths),
        }

    def state(self) -> dict[str, Any]:
        """See :class:`~headway.envs.atari.Monitor`."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "published"}
        plain = {name: list(value) if isinstance(value, list) else value for name, value in values.items()}
        return plain | {"published": self.published.state()}

    def load_state(self, state: Any) -> None:
        """See :class:`~headway.envs.atari.Monitor`."""
        group(_CHECKS)(state, "the counters of the episode")
        assert isinstance(state, Mapping)
        self.published.load_state(state["published"])
        for name, value in state.items():
            if name != "published":
                setattr(self, name, list(value) if isinstance(value, (list, tuple)) else value)
        self.deaths = [(frame, level, kind) for frame, level, kind in self.deaths]


def _pair(a: int, b: int) -> int:
    return PAIRS.index((min(a, b), max(a, b)))


_CHECKS: dict[str, Any] = {item.name: whole() for item in fields(FrostbiteMonitor)}
_CHECKS |= {"over": flag, "extra": whole(-(10**6), 10**7), "pending": whole(0, 4)}
_CHECKS |= {"resting": each(whole(), 5), "landings": each(whole(), 5), "alternations": each(whole(), len(PAIRS))}
_CHECKS["recent"] = each(whole(0, 4), len(PAIRS))
_CHECKS["published"] = lambda *_: None
_CHECKS |= {"deaths": each(row(whole(), whole(), text("water", "bear", "cold")))}
