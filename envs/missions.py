"""Tasks that are told in words: what is to be done, how well it was done, and sentences that say so.

Nothing here knows a game. A task's rules are functions of the counters that a game's monitor keeps
(:class:`~headway.envs.atari.Monitor`), so that a new task is a line; :func:`register_task` enters it.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from .naming import nearest

Split = Literal["train", "text_known", "text_new", "task"]
"""Which instructions are given. train: those of training. text_known: sentences that training has not shown, of words
that it has. text_new: sentences with words that it has not shown. task: tasks that it has not shown."""

SPLITS: tuple[str, ...] = get_args(Split)

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 '-,"
"""What instructions are written in."""

LONGEST = 128
"""Characters of an instruction, at most."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to do in a game.

    :param id: its name, as ``camp_row-4``
    :param game: of which game, the name of its ROM
    :param tier: how hard it is: "easy", "medium" or "hard"
    :param horizon: emulator frames after which an episode of it is cut
    :param score: maps the monitor to how well it is done so far, in [0, 1]
    :param success: maps the monitor to whether it counts as done
    :param ends: whether an episode ends with success
    :param published: another's formula for its score, of the monitor, to be compared with it
    :param train: sentences that say it, for training
    :param text_known: further ones, of words that are in some sentence of training
    :param text_new: further ones, with words that are in none
    :param held_out: whether the task is in the split "task", and not in training
    """

    id: str
    game: str
    tier: Literal["easy", "medium", "hard"]
    horizon: int
    score: Callable[[Any], float]
    success: Callable[[Any], bool]
    train: tuple[str, ...]
    text_known: tuple[str, ...] = ()
    text_new: tuple[str, ...] = ()
    ends: bool = False
    published: Callable[[Any], float] | None = None
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"task {self.id!r} has a horizon of {self.horizon} frames: at least 1 is needed")
        if not self.train:
            raise ValueError(f"task {self.id!r} has no sentence for training")
        for sentence in (*self.train, *self.text_known, *self.text_new):
            check_instruction(sentence)

    def sentences(self, split: Split) -> tuple[str, ...]:
        """:return: those of a split; a held-out task has its own, in the words of its ``train``, in "task" alone"""
        if self.held_out or split == "task":
            return self.train if self.held_out and split == "task" else ()
        return self.train if split == "train" else self.text_known if split == "text_known" else self.text_new


class Reference(NamedTuple):
    """What scores of a task are worth.

    :param random: the mean score of uniformly random actions
    :param oracle: that of a player who knows the task and may look ahead
    """

    random: float
    oracle: float

    def normalised(self, score: float) -> float:
        """:return: 0 for the random one, 1 for the oracle's and above"""
        return min(1.0, max(0.0, (score - self.random) / (self.oracle - self.random)))


_REFERENCES: dict[str, Mapping[str, Reference]] = {}


def register_references(game: str, references: Mapping[str, Reference]) -> None:
    """Say what scores of a game's tasks are worth.

    :param references: by task; of one whose two are alike nothing can be said, it is left out
    """
    _REFERENCES[game] = {name: one for name, one in references.items() if one.oracle > one.random}


def references_of(game: str) -> Mapping[str, Reference]:
    """:return: what is known of a game's tasks, by task"""
    return _REFERENCES.get(game, {})


_TASKS: dict[str, dict[str, Task]] = {}
"""By game and id."""


def register_task(task: Task) -> None:
    """Enter a task, so that missions of its game may be it.

    :param task: it
    :raises ValueError: its game has another of this id
    """
    known = _TASKS.setdefault(task.game, {})
    if task.id in known:
        raise ValueError(f"{task.game} has a task {task.id!r} already: choose another id")
    known[task.id] = task


def tasks_of(game: str) -> Mapping[str, Task]:
    """:return: the tasks of a game by id, in the order in which they were entered

    :raises ValueError: there are none
    """
    if game not in _TASKS:
        raise ValueError(f"there are no tasks in {game!r}: {nearest(game, _TASKS)} register_task enters them")
    return _TASKS[game]


def find_task(game: str, task_id: str) -> Task:
    """:return: a task of a game

    :raises ValueError: there is none of this id; all are listed
    """
    tasks = tasks_of(game)
    if task_id not in tasks:
        raise ValueError(f"{game} has no task {task_id!r}: it has {', '.join(tasks)}")
    return tasks[task_id]


# -- words -------------------------------------------------------------------------------------------------------------


def words_of(sentence: str) -> tuple[str, ...]:
    """:return: the words of an instruction: in lower case, without punctuation and apostrophes"""
    return tuple(re.sub(r"[^a-z0-9 ]+", " ", sentence.lower().replace("'", "")).split())


def check_instruction(sentence: str) -> None:
    """See that a sentence can be an instruction.

    :raises ValueError: it is empty or too long, or has other characters than :data:`CHARACTERS`
    """
    if not words_of(sentence):
        raise ValueError(f"an instruction needs a word, got {sentence!r}")
    if len(sentence) > LONGEST:
        raise ValueError(f"an instruction has at most {LONGEST} characters, this has {len(sentence)}: {sentence!r}")
    if odd := sorted({character for character in sentence if character not in CHARACTERS}):
        raise ValueError(
            f"instruction {sentence!r} has {', '.join(map(repr, odd))}: only small letters, digits, blanks, "
            "apostrophes, hyphens and commas may be in it"
        )


def vocabulary_of(game: str) -> tuple[str, ...]:
    """:return: the words of a game's sentences for training, in alphabetical order"""
    told = (sentence for task in tasks_of(game).values() for sentence in task.sentences("train"))
    return tuple(sorted({word for sentence in told for word in words_of(sentence)}))


def read_instructions(path: Path, game: str) -> dict[str, Task]:
    """Read sentences from a file, to be given instead of a game's own, by people or by a language model.

    :param path: a CSV file with the columns ``task``, ``split`` and ``instruction``, or JSON, a list of such objects
    :param game: whose tasks they are of
    :return: its tasks with these sentences, those without any left out
    :raises ValueError: an unknown task or split, a sentence that cannot be one, missing columns; the row is named
    """
    rows: list[Mapping[str, Any]]
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    found: dict[str, dict[str, list[str]]] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or not {"task", "split", "instruction"} <= row.keys():
            raise ValueError(f"{path}, entry {number}: task, split and instruction are needed, got {row!r}")
        try:
            find_task(game, str(row["task"]))
            check_instruction(str(row["instruction"]))
        except ValueError as cause:
            raise ValueError(f"{path}, entry {number}: {cause}") from cause
        if row["split"] not in SPLITS[:3]:
            raise ValueError(f"{path}, entry {number}: split is {row['split']!r}, it can be {', '.join(SPLITS[:3])}")
        found.setdefault(row["task"], {}).setdefault(row["split"], []).append(row["instruction"])
    return {
        name: replace(
            find_task(game, name),
            train=tuple(by_split.get("train", ())) or find_task(game, name).train,
            text_known=tuple(by_split.get("text_known", ())),
            text_new=tuple(by_split.get("text_new", ())),
        )
        for name, by_split in found.items()
    }


def told(templates: Iterable[str], **slots: Iterable[str]) -> tuple[str, ...]:
    """Fill templates in.

    :param templates: sentences with ``{slot}``
    :param slots: what may stand there
    :return: each template with each choice for its slots, without doubles
    """
    sentences: dict[str, None] = {}
    for template in templates:
        filled = [template]
        for name, choices in slots.items():
            place = f"{{{name}}}"
            if place in template:
                filled = [sentence.replace(place, choice) for sentence in filled for choice in choices]
        sentences |= dict.fromkeys(filled)
    return tuple(sentences)
