"""The tasks of Frostbite: when each counts as done, and how far it is.

Rules, horizons, tiers and sentences (``sentences.yaml``) are our choice; families are those of the published benchmark
(Putterman, Lu, Mordatch, Abbeel: "Pretraining for Language-Conditioned Imitation with Transformers", OpenReview
eCPCn25gat), whose own formulas are in :mod:`.published`. Shares are of the whole horizon, so that an early death costs
what is left of it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ..missions import Reference, Task, register_references, register_task, told
from .monitor import FrostbiteMonitor
from .published import FORMULAS

GAME = "frostbite"

Count = Callable[[FrostbiteMonitor], float]
Rule = tuple[Count, Callable[[FrostbiteMonitor], bool]]
"""How far a task is, in [0, 1], and whether it is done."""

ROWS: tuple[tuple[str, ...], ...] = ((), ("first", "top"), ("second",), ("third",), ("fourth", "bottom"))
"""Names of rows of floes."""

NEW_ROWS: tuple[tuple[str, ...], ...] = ((), ("uppermost", "1st"), ("2nd",), ("3rd",), ("lowest", "4th"))
"""Further ones, which no sentence of training has."""

KEPT_UP = ("dont_move", "survive", "stay_left", "stay_right", "camp_row-1", "camp_row-4", "below_first")
"""Tasks that no moment finishes, whose score is a share of frames; held-out ones left out."""

NUMBERS = {1: ("1", "one"), 3: ("3", "three"), 4: ("4", "four"), 8: ("8", "eight"), 12: ("12", "twelve")}

_SENTENCES: dict[str, dict[str, list[str]]] = yaml.safe_load(
    (Path(__file__).parent / "sentences.yaml").read_text(encoding="utf-8")
)


def _add(
    task_id: str,
    tier: Literal["easy", "medium", "hard"],
    horizon: int,
    rule: Rule,
    *,
    ends: bool = True,
    held_out: bool = False,
    family: str | None = None,
    new: dict[str, Sequence[str]] | None = None,
    **slots: Sequence[str],
) -> None:
    """Register a task with the sentences of its family, by default what stands before the hyphen of its id.

    :param new: what stands in the slots of ``text_new``, where it differs
    """
    sentences = _SENTENCES[family or task_id.partition("-")[0]]
    options: dict[str, Any] = {name: told(templates, **slots) for name, templates in sentences.items()}
    options["text_new"] = told(sentences["text_new"], **(slots | (new or {})))
    score, success = rule
    options |= {"score": score, "success": success, "ends": ends, "held_out": held_out}
    if (formula := FORMULAS.get(task_id)) is not None:
        options["published"] = lambda s: formula(s.published)
    register_task(Task(id=task_id, game=GAME, tier=tier, horizon=horizon, **options))


# -- kinds of rules ----------------------------------------------------------------------------------------------------


def reaches(count: Count, goal: float) -> Rule:
    """:return: a count that is to reach a goal"""
    return lambda s: min(1.0, count(s) / goal), lambda s: count(s) >= goal


def fills(frames: Count, horizon: int, least: float, *, unhurt: bool = False) -> Rule:
    """:return: frames that are to fill a share of the horizon, without a death if that is asked for"""
    return lambda s: frames(s) / horizon, lambda s: frames(s) >= least * horizon and not (unhurt and s.deaths)


def comes_close(points: int) -> Rule:
    """:return: a score that is to be near in the end"""
    return lambda s: max(0.0, 1 - abs(s.score - points) / points), lambda s: abs(s.score - points) <= 0.1 * points


def drowns(horizon: int) -> Rule:
    """:return: a life that is to be lost in water, soon"""

    def score(s: FrostbiteMonitor) -> float:
        return next((1 - frame / horizon for frame, _, kind in s.deaths if kind == "water"), 0.0)

    return score, lambda s: any(kind == "water" for _, _, kind in s.deaths)


def lives(horizon: int) -> Rule:
    """:return: no death before the horizon"""
    return fills(lambda s: s.deaths[0][0] if s.deaths else s.frames, horizon, 1.0, unhurt=True)


def climbs(level: int, *, unhurt: bool = False) -> Rule:
    """:return: a level that is to be reached; blocks of the igloo are steps on the way"""

    def score(s: FrostbiteMonitor) -> float:
        return 0.0 if unhurt and s.deaths else min(1.0, s.progress / 16 / (level - 1))

    return score, lambda s: s.level >= level and not s.over and not (unhurt and s.deaths)


def ends_on(level: int) -> Rule:
    """:return: a game that is to end on a level"""
    return lambda s: float(s.over and s.level == level), lambda s: s.over and s.level == level


def far_then_still(s: FrostbiteMonitor) -> float:
    """:return: half for the points of the first life, half for the share of what followed that was spent at home"""
    reached = s.score_at_first_death if s.deaths else s.score
    return 0.5 * min(1.0, reached / 3_000) + 0.5 * s.home_after_first_death / max(1, s.active_after_first_death)


def _rests(row: int) -> Count:
    return lambda s: s.resting[row]


def _lands(row: int) -> Count:
    return lambda s: s.landings[row]


def _alternates(a: int, b: int) -> Count:
    return lambda s: s.alternated(a, b)


# -- the tasks ---------------------------------------------------------------------------------------------------------

_add("dont_move", "easy", 2_800, fills(lambda s: s.home, 2_800, 0.95), ends=False)
_add("survive", "easy", 2_800, lives(2_800), ends=False)
for _side, _least in (("left", 0.9), ("right", 0.85)):
    _frames: Count = (lambda s: s.left) if _side == "left" else (lambda s: s.right)
    _rule = fills(_frames, 2_800, _least, unhurt=True)
    _add(f"stay_{_side}", "easy", 2_800, _rule, ends=False, family="side", side=(_side,))
for _row in (1, 2, 3, 4):
    _add(
        f"land_row-{_row}",
        "easy",
        600,
        reaches(_lands(_row), 1),
        new={"row": (*ROWS[_row], *NEW_ROWS[_row])},
        row=ROWS[_row],
    )
_add("lose_life", "easy", 1_200, drowns(1_200))

_add("visit_all_rows", "medium", 3_000, reaches(lambda s: sum(count > 0 for count in s.landings[1:]), 4))
for _row in (1, 4, 2, 3):
    _add(
        f"camp_row-{_row}",
        "medium",
        4_000,
        fills(_rests(_row), 4_000, 0.3),
        ends=False,
        held_out=_row in (2, 3),
        new={"row": (*ROWS[_row], *NEW_ROWS[_row])},
        row=ROWS[_row],
    )
_add("below_first", "medium", 4_000, fills(lambda s: s.below_first, 4_000, 0.6), ends=False)
for _a, _b in ((2, 3), (1, 3), (2, 4), (1, 2), (3, 4)):
    _held_out = (_a, _b) in ((1, 2), (3, 4))
    _rule = reaches(_alternates(_a, _b), 50)
    _add(f"alternate-{_a}-{_b}", "medium", 6_000, _rule, held_out=_held_out, a=ROWS[_a][:1], b=ROWS[_b][:1])
for _n in (4, 8, 12):
    _add(f"build-{_n}", "medium", 3_000, reaches(lambda s: s.most_blocks, _n), held_out=_n == 12, n=NUMBERS[_n])
for _points in (500, 1_000, 1_500, 750):
    _held_out = _points == 750
    _add(
        f"close_to-{_points}", "medium", 6_000, comes_close(_points), ends=False, held_out=_held_out, t=(str(_points),)
    )

_add("finish_igloo", "hard", 4_000, reaches(lambda s: s.most_blocks, 16))
for _level in (2, 3, 5, 4):
    _horizon, _name = 3_000 * (_level - 1), (str(_level),)
    _add(f"reach_level-{_level}", "hard", _horizon, climbs(_level), held_out=_level == 4, level=_name)
    if _level < 4:
        _add(f"no_loss_level-{_level}", "hard", _horizon, climbs(_level, unhurt=True), level=_name)
for _degrees in (10, 20):
    _add(f"warm_entry-{_degrees}", "hard", 3_000, reaches(lambda s: s.warmest_entry, _degrees), d=(str(_degrees),))
for _n in (1, 3):
    _add(f"fish-{_n}", "hard", 6_000, reaches(lambda s: s.fish, _n), n=NUMBERS[_n])
_add("max_points", "hard", 12_000, reaches(lambda s: s.score, 3_000))
for _level in (1, 2):
    _add(f"die_on_level-{_level}", "hard", 12_000, ends_on(_level), ends=False, level=ROWS[_level][:1])
_add("far_then_still", "hard", 12_000, (far_then_still, lambda s: far_then_still(s) >= 0.7), ends=False)


# -- what scores are worth ---------------------------------------------------------------------------------------------

_MEASURED: dict[str, Any] = json.loads((Path(__file__).parent / "references.json").read_text(encoding="utf-8"))
"""What ``headway frostbite calibrate`` wrote."""

register_references(GAME, {name: Reference(**means) for name, means in _MEASURED["tasks"].items()})
