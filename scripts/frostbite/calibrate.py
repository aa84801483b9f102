"""``headway frostbite calibrate``: what scores of the tasks are worth.

The random player's mean score of a task counts as 0, that of the player who looks ahead with the task's goal as 1.
Those that come with Headway were made by this command.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ...agents.core.config import Range
from ...agents.core.files.replacing import replacing
from ...agents.core.seeds import spawn_seed
from ...envs.frostbite import FROSTBITE, FrostbiteEnv
from ...envs.frostbite.players import Player, Random, player_for
from ...envs.missions import find_task, tasks_of
from ..machine import cores
from ..options import Flags
from ..runs import alone, check_outputs, progress_bar
from .collect import FRAME_SKIP, ale_version, in_order, kept_in, need_ale

GAME = FROSTBITE.name
SIDES = ("random", "oracle")
COLUMNS = ("task", "player", "episode", "score", "success", "frames")

Job = tuple[str, str, int]
"""Task, player and number of an episode."""


@dataclass(frozen=True, kw_only=True)
class Options(Flags):
    """Measure what scores of Frostbite's tasks are worth: a random player's and one's that looks ahead."""

    output: Path = Path("references.json")
    """The file to write."""

    episodes: Annotated[int, Range(1)] = 20
    """Of the random player, with each task."""

    oracle_episodes: Annotated[int, Range(1)] = 5
    """Of the player who looks ahead; each takes some seconds."""

    tasks: tuple[str, ...] = ()
    """Only these."""

    games: Path = Path("runs") / "frostbite" / "references"
    """Folder where every episode's score is kept; those that are in it are not played again. Delete it when the rule of
    a task has changed."""

    workers: Annotated[int, Range(0)] = 0
    """Processes that play; 0: one per core."""

    seed: Annotated[int, Range(0)] = 0
    """Of the episodes."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a file that exists."""


def play_episode(seed: int, job: Job) -> tuple[float, bool, int]:
    """Play one episode of a task.

    :param seed: of all
    :param job: which
    :return: its score, whether it counts as done, and its frames
    """
    name, side, number = job
    task, index = find_task(GAME, name), list(tasks_of(GAME)).index(name)
    env = FrostbiteEnv(frame_skip=FRAME_SKIP)
    env.reset(seed=spawn_seed(seed, "evaluation", index, number))
    rng = np.random.default_rng(spawn_seed(seed, "evaluation", index, number, SIDES.index(side)))
    player: Player = Random(rng) if side == "random" else player_for(env, task, rng)
    over = False
    while not over and env.monitor.frames < task.horizon:
        _, _, over, _, _ = env.step(player.act())
        over |= task.ends and task.success(env.monitor)
    return float(task.score(env.monitor)), bool(task.success(env.monitor)), env.monitor.frames


def _played(path: Path) -> dict[Job, list[str]]:
    """:return: what was played already, its score first"""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in COLUMNS)]
    return {(row["task"], row["player"], int(row["episode"])): [row[name] for name in COLUMNS[3:]] for row in rows}


def run(options: Options) -> None:
    """Run ``headway frostbite calibrate``.

    :param options: its arguments
    """
    need_ale()
    check_outputs(options.output, overwrite=options.overwrite)
    names = [find_task(GAME, name).id for name in options.tasks] or list(tasks_of(GAME))
    counts = {"random": options.episodes, "oracle": options.oracle_episodes}
    jobs: list[Job] = [(name, side, n) for side in SIDES for name in names for n in range(counts[side])]
    options.games.mkdir(parents=True, exist_ok=True)
    path = options.games / f"ale-{ale_version()}-s{options.seed}.csv"
    with alone(options.games, "playing"), kept_in(path):
        played = _played(path)
        waiting = [job for job in jobs if job not in played]
        print(f"{len(names)} tasks, {len(jobs)} episodes, {len(jobs) - len(waiting)} of them played before: {path}")
        is_new = not path.exists()
        with (
            path.open("a", newline="", buffering=1) as file,
            progress_bar(len(jobs), len(jobs) - len(waiting), "episodes") as bar,
        ):
            write = csv.writer(file).writerow
            if is_new:
                write(COLUMNS)
            done: Iterator[Any] = in_order(partial(play_episode, options.seed), waiting, options.workers or cores())
            for job, result in zip(waiting, done, strict=True):
                bar.set_description_str(f"{job[0]}, {job[1]} · ", refresh=False)
                write([*job, *result])
                bar.update()
        played = _played(path)
    _print_and_write(options, names, {job: played[job] for job in jobs})


def _print_and_write(options: Options, names: list[str], played: dict[Job, list[str]]) -> None:
    scores: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    done: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for (name, side, _), (score, success, _) in played.items():
        scores[name, side].append(float(score))
        done[name, side].append(success == "True")
    print(f"\n{'task':<18} {'random':>7} {'done':>5} {'oracle':>7} {'done':>5}")
    found: dict[str, dict[str, float]] = {}
    for name in names:
        means = {side: float(np.mean(scores[name, side])) for side in SIDES}
        shares = {side: float(np.mean(done[name, side])) for side in SIDES}
        print(f"{name:<18} " + " ".join(f"{means[side]:7.3f} {shares[side]:5.0%}" for side in SIDES))
        found[name] = {side: round(means[side], 4) for side in SIDES}
    about = {"game": GAME, "ale-py": ale_version(), "seed": options.seed}
    about |= {"random_episodes": options.episodes, "oracle_episodes": options.oracle_episodes}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output) as temporary:
        temporary.write_text(json.dumps(about | {"tasks": found}, indent=1) + "\n")
    print(f"written to {options.output}")
