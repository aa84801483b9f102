"""``headway frostbite collect``: a data set of Frostbite with a sentence for each episode, that anyone can make again.

Players without learning play whole games: a random one that holds on to its actions for a while, and the look-ahead
player with a task's goal. Each game is kept as a trace, memory by memory, from which the tasks that its stretches show
are found out afterwards. All of it follows from the seed, with any number of workers. What was played is not played
again.
"""

import importlib.util
import logging
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from ...agents.core.config import Range
from ...agents.core.data import Dataset, write_dataset
from ...agents.core.data.dataset_files import check_new_dataset
from ...agents.core.data.episode_files import needs
from ...agents.core.files.contents import versions
from ...agents.core.files.replacing import replacing
from ...agents.core.seeds import spawn_seed
from ...agents.relabelling.workers import Workers
from ...envs.frostbite import FROSTBITE, FrostbiteEnv
from ...envs.frostbite.hindsight import Stretch, Trace, cuts, monitored, play, stretches, usual_shares
from ...envs.frostbite.players import Player, Random, player_for
from ...envs.missions import Task, find_task, tasks_of, vocabulary_of
from ...wrappers.missions import Tokenizer
from ..machine import cores
from ..options import Flags
from ..runs import alone, progress_bar

log = logging.getLogger("headway")

T = TypeVar("T")
R = TypeVar("R")

GAME = FROSTBITE.name
SIZES = {"tiny": 2_000, "small": 200_000, "medium": 1_000_000, "full": 5_000_000}
"""Labelled steps."""

FRAME_SKIP = 4
"""Frames of a step, of all that is recorded."""

LONGEST = 3_000
"""Steps of a game, at most."""

LOOKING_AHEAD = 4
"""One game in so many is played by the look-ahead player; it is the slower the more of them there are (our choice)."""

PLAYERS = ("random, holding each action for some steps", "look-ahead, with a task's goal")
"""By ``policy_id``."""

HELD = (1, 4, 8, 16)
"""Steps that the random player holds an action, in turn."""

CUTS = 2
"""Random stretches of a game that are looked at, besides the whole."""

BYTES = {"ram": 400, "pixels": 7_300}
"""Of a step in a data set, about."""

RANDOM_GAMES = 9
"""First games of the random player, by which it is told what is unusual."""


@dataclass(frozen=True, kw_only=True)
class Options(Flags):
    """Play Frostbite, find out which tasks were shown, and write a data set in Minari's layout."""

    size: Literal["tiny", "small", "medium", "full"] = "small"
    """Labelled steps: 2 thousand, 200 thousand, a million, 5 million."""

    obs: Literal["ram", "pixels"] = "ram"
    """What is seen: numbers from the memory, or screens, drawn anew by playing the games again (7 kB a step)."""

    dataset: str | None = None
    """Id of the new data set, by default frostbite/SIZE-v0, or frostbite/SIZE-pixels-v0. None is overwritten."""

    traces: Path | None = None
    """Folder of the games, by default runs/frostbite/traces-sSEED; those that are in it are not played again."""

    workers: Annotated[int, Range(0)] = 0
    """Processes that play; 0: one per core."""

    seed: Annotated[int, Range(0)] = 0
    """From which everything follows."""

    progress: bool = True
    """Show a progress bar."""

    @property
    def name(self) -> str:
        """The data set's id."""
        return self.dataset or f"frostbite/{self.size}{'-pixels' * (self.obs == 'pixels')}-v0"

    @property
    def folder(self) -> Path:
        """Of the games."""
        return self.traces or Path("runs") / "frostbite" / f"traces-s{self.seed}"


# -- games -------------------------------------------------------------------------------------------------------------


def shown_tasks() -> list[Task]:
    """:return: the tasks of training"""
    return [task for task in tasks_of(GAME).values() if not task.held_out]


def looks_ahead(number: int) -> bool:
    """:return: whether the look-ahead player plays a game"""
    return number % LOOKING_AHEAD == LOOKING_AHEAD - 1


def play_game(folder: Path, seed: int, number: int) -> int:
    """Play a game, unless it was played.

    :param folder: of the games
    :param seed: of the data set
    :param number: of the game
    :return: its number
    """
    path = trace_file(folder, number)
    if path.exists():
        check_version(folder, seed, number)
    else:
        env = begun(seed, number)
        rng = np.random.default_rng(spawn_seed(seed, "environments", number, 1))
        player: Player = Random(rng, HELD[number // LOOKING_AHEAD % len(HELD)])
        task = None
        if looks_ahead(number):
            tasks = shown_tasks()
            task = tasks[number // LOOKING_AHEAD % len(tasks)]
            player = player_for(env, task, rng)
        trace = play(env, player, LONGEST, task)
        with replacing(path) as temporary, temporary.open("wb") as file:
            version = np.array(ale_version())
            np.savez_compressed(file, rams=trace.rams, rewards=trace.rewards, actions=trace.actions, ale_py=version)
    return number


def begun(seed: int, number: int, obs: Literal["ram", "pixels"] = "ram") -> FrostbiteEnv:
    """:return: where a game begins"""
    env = FrostbiteEnv(frame_skip=FRAME_SKIP, obs=obs)
    env.reset(seed=spawn_seed(seed, "environments", number))
    return env


def check_version(folder: Path, seed: int, number: int) -> None:
    """See that a game that another version of the emulator has played would be the same with this one.

    :raises ValueError: it would not
    """
    path, trace = trace_file(folder, number), read_trace(folder, number)
    with np.load(path, allow_pickle=False) as parts:
        version = str(parts["ale_py"]) if "ale_py" in parts else "another version"
    if version != ale_version():
        log.warning("%s was played with ale-py %s, this is %s: it is played again", path, version, ale_version())
        for _ in again(begun(seed, number), trace, path):
            pass


def again(env: FrostbiteEnv, trace: Trace, path: Path) -> Iterator[NDArray[Any]]:
    """Play a game again by what was done in it.

    :param env: where it begins
    :param trace: the game
    :param path: its file
    :return: what the environment shows, before each step and after the last
    :raises ValueError: something else happens than did
    """
    yield env.observed()
    for step, action in enumerate(trace.actions.tolist(), 1):
        obs, *_ = env.step(action)
        if env.ram() != trace.rams[trace.frames(step)].tobytes():
            raise ValueError(
                f"{path} was not played by this emulator (ale-py {ale_version()}) or from this seed: step {step} leads "
                "elsewhere; delete it, or install the version that played it"
            )
        yield obs


def trace_file(folder: Path, number: int) -> Path:
    """:return: where a game is"""
    return folder / f"game-{number:06d}.npz"


def read_trace(folder: Path, number: int) -> Trace:
    """:return: a game that was played

    :raises ValueError: its file is broken
    """
    path = trace_file(folder, number)
    try:
        with np.load(path, allow_pickle=False) as parts:
            trace = Trace(parts["rams"], parts["rewards"], parts["actions"], FRAME_SKIP)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as cause:
        raise ValueError(f"{path} is no game that was played ({' '.join(str(cause).split())}): delete it") from cause
    fits = trace.rams.shape == (len(trace.rewards) + 1, 128) and trace.frames(len(trace)) == len(trace.rewards)
    if not fits or trace.rams.dtype != np.uint8 or (trace.actions > 17).any():
        raise ValueError(f"{path} is no game that was played (its parts do not fit each other): delete it")
    return trace


def in_order(work: Callable[[T], R], jobs: Iterable[T], workers: int) -> Iterator[R]:
    """Do one thing after the other, several at once.

    :param work: what is done with each, which other processes can import
    :param jobs: perhaps without end
    :param workers: processes; 1: this one
    :return: what came of them, in their order
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    done: dict[int, R] = {}
    told = 0
    for number, result in Workers[T, R](workers, _prepared, (work,)).map(enumerate(jobs)):
        done[number] = result
        while told in done:
            yield done.pop(told)
            told += 1


def _prepared(work: Callable[[T], R]) -> Callable[[T], R]:
    torch.set_num_threads(1)
    return work


# -- labels ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """A stretch of a game, and which game it is of."""

    game: int
    stretch: Stretch


def label(trace: Trace, number: int, seed: int, usual: Any, seen: Counter[str]) -> Iterator[Labelled]:
    """Choose a task for each cut of a game, the seldom ones more often.

    :param trace: the game
    :param number: of it
    :param seed: of the data set
    :param usual: see :func:`~headway.envs.frostbite.hindsight.usual_shares`
    :param seen: how often each task was shown so far, which is counted on
    """
    rng = np.random.default_rng(spawn_seed(seed, "environments", number, 2))
    for start, stop in cuts(trace, rng, CUTS):
        shown = stretches(trace, start, stop, usual)
        seen.update(one.task for one in shown)
        if shown:
            weights = np.array([1 / seen[one.task] for one in shown])
            yield Labelled(number, shown[int(rng.choice(len(shown), p=weights / weights.sum()))])


def as_dataset(parts: Sequence[tuple[Trace, Labelled]], options: Options) -> Dataset:
    """Make a data set of stretches: each an episode, whose rewards add up to the score of its task.

    :param parts: stretches and the games that they are of
    :param options: of the command
    :return: it
    """
    tokenizer, numbers = Tokenizer(vocabulary_of(GAME)), list(tasks_of(GAME))
    key, shown = {"ram": ("ram", _memories), "pixels": ("frames", _screens)}[options.obs]
    obs: dict[str, list[np.ndarray]] = {key: [], "mission_task": [], "mission_tokens": []}
    final: dict[str, list[np.ndarray]] = {name: [] for name in obs}
    actions, rewards, players, lengths, told = [], [], [], [], []
    for index, (trace, labelled) in enumerate(parts):
        start, stop, task = labelled.stretch.start, labelled.stretch.stop, find_task(GAME, labelled.stretch.task)
        rng = np.random.default_rng(spawn_seed(options.seed, "environments", index, 3))
        instruction = task.train[int(rng.integers(len(task.train)))]
        seen = shown(options, trace, labelled.game, start, stop)
        mission = {"mission_task": np.int64(numbers.index(task.id)), "mission_tokens": tokenizer.encode(instruction)}
        for name, value in mission.items():
            obs[name].append(np.repeat(np.asarray(value)[None], stop - start, 0))
            final[name].append(np.asarray(value))
        obs[key].append(seen[:-1])
        final[key].append(seen[-1])
        scores = [0.0, *(task.score(monitor) for monitor in monitored(trace, start, stop))]
        rewards.append(np.diff(scores))
        actions.append(trace.actions[start:stop].astype(np.int64))
        players.append(np.full(stop - start, int(looks_ahead(labelled.game))))
        lengths.append(stop - start)
        told.append({"task": task.id, "mission": instruction, "game": labelled.game, "start": start})
    space = spaces.Dict(
        {
            key: FrostbiteEnv(obs=options.obs).observation_space,
            "mission_tokens": tokenizer.space,
            "mission_task": spaces.Discrete(len(numbers)),
        }
    )
    about = {"versions": versions() | {"ale-py": ale_version()}, "seed": options.seed, "size": options.size}
    return Dataset(
        observation_space=space,
        action_space=spaces.Discrete(18),
        obs={name: torch.from_numpy(np.concatenate(values)) for name, values in obs.items()},
        final_obs={name: torch.from_numpy(np.stack(values)) for name, values in final.items()},
        actions=torch.from_numpy(np.concatenate(actions)),
        rewards=torch.from_numpy(np.concatenate(rewards)),
        lengths=torch.tensor(lengths),
        terminated=torch.zeros(len(lengths), dtype=torch.bool),
        extras={"policy_id": torch.from_numpy(np.concatenate(players))},
        name=options.name,
        env_id=f"headway/NumberedFrostbite{'-pixels' * (options.obs == 'pixels')}-v0",
        about=about | {"policies": list(PLAYERS), "episodes": told},
    )


def _memories(options: Options, trace: Trace, game: int, start: int, stop: int) -> NDArray[Any]:
    """:return: what is seen of the memory, (stop - start + 1, 45)"""
    return np.stack([FROSTBITE.observe(trace.rams[trace.frames(step)].tobytes()) for step in range(start, stop + 1)])


def _screens(options: Options, trace: Trace, game: int, start: int, stop: int) -> NDArray[Any]:
    """:return: screens, (stop - start + 1, 1, 84, 84)"""
    path = trace_file(options.folder, game)
    return np.stack(list(islice(again(begun(options.seed, game, "pixels"), trace, path), start, stop + 1)))


def need_ale() -> None:
    """See that there is an emulator.

    :raises ValueError: ale-py is missing
    """
    if importlib.util.find_spec("ale_py") is None:
        raise ValueError("Frostbite needs ale-py: pip install 'headway-rl[atari]'")


@contextmanager
def kept_in(place: Path) -> Iterator[None]:
    """Say, when Ctrl-C is pressed, that what was played is kept."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: what was played is kept in {place}, and the same command goes on from there")
        raise


def ale_version() -> str:
    """:return: of ale-py, whose ROM and emulator decide what happens"""
    return metadata.version("ale-py")


def labelled_games(options: Options) -> Iterator[tuple[Trace, Labelled]]:
    """Play and label, game by game, without end.

    :param options: of the command
    :return: stretches, and the games that they are of
    """
    first: list[tuple[int, Trace]] = []
    seen: Counter[str] = Counter()
    usual: Any = None
    play_one = partial(play_game, options.folder, options.seed)
    for number in in_order(play_one, count(), options.workers or cores()):
        waiting = [(number, read_trace(options.folder, number))]
        if usual is None:  # until there are games enough to tell what is usual, none is labelled
            first += waiting
            by_chance = [trace for n, trace in first if not looks_ahead(n)]
            if len(by_chance) < RANDOM_GAMES:
                continue
            rng = np.random.default_rng(spawn_seed(options.seed, "environments"))
            usual, waiting = usual_shares(by_chance, rng), first
        for game, trace in waiting:
            for labelled in label(trace, game, options.seed, usual, seen):
                yield trace, labelled


def run(options: Options) -> None:
    """Run ``headway frostbite collect``.

    :param options: its arguments
    """
    need_ale()
    for module in ("minari", "h5py"):
        needs(module)
    goal = SIZES[options.size]
    check_new_dataset(options.name, BYTES[options.obs] * goal)
    print(f"games: {options.folder}   data set: {options.name}, {goal:,} steps")
    options.folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[Trace, Labelled]] = []
    playing = alone(options.folder, "playing", leftovers=".*.tmp*")
    with playing, kept_in(options.folder), progress_bar(goal, 0) if options.progress else nullcontext() as bar:
        done = 0
        for trace, labelled in labelled_games(options):
            parts.append((trace, labelled))
            new = min(goal - done, labelled.stretch.stop - labelled.stretch.start)
            done += new
            if bar is not None:
                bar.set_description_str(f"game {labelled.game:,} · ", refresh=False)
                bar.update(new)
            if done >= goal:
                break
    data = as_dataset(parts, options)
    place = write_dataset(data)
    print_statistics(data, parts)
    print(f"written to {place}")


def print_statistics(data: Dataset, parts: Sequence[tuple[Trace, Labelled]]) -> None:
    """Print which tasks a data set shows, how often and for how long.

    :param data: it
    :param parts: what it was made of
    """
    counts, steps = Counter(labelled.stretch.task for _, labelled in parts), Counter[str]()
    scores: Counter[str] = Counter()
    for (_, labelled), length, score in zip(parts, data.lengths.tolist(), data.returns.tolist(), strict=True):
        steps[labelled.stretch.task] += length
        scores[labelled.stretch.task] += score
    print(f"\n{'task':<18} {'episodes':>8} {'steps':>9} {'mean length':>12} {'mean score':>11}")
    for task in tasks_of(GAME):
        if counts[task]:
            mean, score = steps[task] / counts[task], scores[task] / counts[task]
            print(f"{task:<18} {counts[task]:>8,} {steps[task]:>9,} {mean:>12.0f} {score:>11.2f}")
    missing = [task.id for task in shown_tasks() if not counts[task.id]]
    tokens: Any = data.obs["mission_tokens"]  # type: ignore[index]
    words = set(tokens.flatten().tolist())
    print(f"{data.episodes:,} episodes, {len(data):,} steps, {len(words) - 3} different words")
    if missing:
        print(f"not shown: {', '.join(missing)}")
