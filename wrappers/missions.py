"""Missions: what to do, told in words that an agent reads beside what it sees."""

import importlib
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from ..envs.missions import (
    CHARACTERS,
    LONGEST,
    SPLITS,
    Split,
    Task,
    check_instruction,
    find_task,
    read_instructions,
    references_of,
    tasks_of,
    vocabulary_of,
    words_of,
)
from ..envs.schema import flag, group, real, text
from .snapshot import capture, restore

PAD, START, END = 0, 1, 2
"""Tokens around the words."""

FIRST_WORD = 3
KNOWN = 4096
"""From here on tokens are not of the vocabulary: such a word's is this plus its hash."""

HASHES = 2**24
"""Different hashes, of which few words share one."""

CAPTION = 84
"""Height of the mission below a rendered screen, in pixels: four lines of it, and one for the score."""

Reward = Literal["delta", "sparse", "game"]


class Tokenizer:
    """Words as numbers, the same in every process.

    :param words: of the vocabulary, in order: they have the tokens from :data:`FIRST_WORD` on
    :param length: tokens of an instruction, W, with its start and its end
    """

    def __init__(self, words: Sequence[str], length: int = 20) -> None:
        if len(words) > KNOWN - FIRST_WORD:
            raise ValueError(f"the vocabulary has {len(words)} words, {KNOWN - FIRST_WORD} are the most")
        self.words, self.length = tuple(words), length
        self._tokens = {word: FIRST_WORD + index for index, word in enumerate(self.words)}

    @property
    def space(self) -> spaces.Box:
        """(W,) int64."""
        return spaces.Box(0, KNOWN + HASHES - 1, (self.length,), np.int64)

    def encode(self, sentence: str) -> NDArray[np.int64]:
        """:return: start, words, end, and padding, (W,)

        :raises ValueError: the sentence is too long, or see :func:`~headway.envs.missions.check_instruction`
        """
        check_instruction(sentence)
        words = words_of(sentence)
        if len(words) > self.length - 2:
            raise ValueError(f"an instruction has at most {self.length - 2} words, this has {len(words)}: {sentence!r}")
        found = [self._tokens.get(word, KNOWN + zlib.crc32(word.encode()) % HASHES) for word in words]
        tokens = np.full(self.length, PAD, np.int64)
        tokens[: len(words) + 2] = [START, *found, END]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """:return: the words, "?" for one that is not of the vocabulary"""
        known = dict(enumerate(self.words, FIRST_WORD))
        return " ".join(known.get(int(token), "?") for token in tokens if token not in (PAD, START, END))


class Watched(Protocol):
    """What missions ask of a game: :class:`~headway.envs.atari.AtariEnv` for one."""

    game: Any
    """With its ``name``."""

    monitor: Any
    """What is counted of the episode, ``frames`` and ``over`` at least, made anew by each reset."""


class Mission(NamedTuple):
    """What is to be done in an episode."""

    task: Task
    instruction: str
    split: str


class Missions(gym.Wrapper[dict[str, Any], Any, Any, Any], RecordConstructorArgs):
    """Gives every episode a task, told in a sentence.

    Observations are a dict: ``key``, what the environment shows; ``mission_tokens``, the sentence as numbers, (W,)
    int64; with ``include_text`` also ``mission``, the sentence itself, which Stable-Baselines3 and agents here cannot
    read; with ``include_task`` also ``mission_task``, the number of a registered task. The sentence stays the same for
    an episode. An episode is cut at the task's horizon and, of tasks that can be finished, ends with success.

    ``reset(options=…)`` takes ``task`` (an id, or a :class:`~headway.envs.missions.Task`), ``mission`` (a sentence of
    one's own, which changes no rule), ``split``, and what the environment takes. Of what is not given, a task of the
    split is drawn, each as likely, and a sentence of it, from the environment's ``np_random``.

    ``info`` has in every step ``task``, ``mission``, ``split``, ``tier``, ``task_score`` in [0, 1], ``success``,
    ``is_success`` (the same, by Stable-Baselines3's name) and ``game_reward``; at the end ``normalized_score``, where
    the references of the task are known, and ``published_score``, where another's formula is.

    :param env: a game that is :class:`Watched`
    :param split: which instructions are given
    :param tasks: ids, of which alone tasks are drawn; None: all
    :param reward: "delta", by how much the task's score has grown, whose sum is the score; "sparse", 1 once, when it
        counts as done; "game", the game's own
    :param key: of what the environment shows
    :param include_text: show ``mission``
    :param include_task: show ``mission_task``
    :param length: W
    :param instructions: a file of sentences to be given instead, see :func:`~headway.envs.missions.read_instructions`
    :raises ValueError: an unknown split, task or kind of reward, or a split without any task
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        split: Split = "train",
        tasks: Sequence[str] | None = None,
        reward: Reward = "delta",
        key: str = "observation",
        include_text: bool = False,
        include_task: bool = False,
        length: int = 20,
        instructions: str | Path | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, split=split, tasks=tasks, reward=reward, key=key, include_text=include_text,
            include_task=include_task, length=length, instructions=instructions,
        )  # fmt: skip
        gym.Wrapper.__init__(self, env)
        if reward not in ("delta", "sparse", "game"):
            raise ValueError(f"reward is {reward!r}: it can be 'delta', 'sparse' or 'game'")
        self.reward_mode, self.key, self.include_text, self.include_task = reward, key, include_text, include_task
        self.game: str = self._game.game.name
        self.tokenizer = Tokenizer(vocabulary_of(self.game), length)
        self.tasks: dict[str, Task] = {name: find_task(self.game, name) for name in tasks or tasks_of(self.game)}
        if instructions is not None:
            given = read_instructions(Path(instructions), self.game)
            self.tasks = {name: given[name] for name in self.tasks if name in given}
        self.split = split
        self.of_split(split)
        parts: dict[str, spaces.Space[Any]] = {key: env.observation_space, "mission_tokens": self.tokenizer.space}
        if include_text:
            parts["mission"] = spaces.Text(LONGEST, min_length=1, charset=CHARACTERS)
        if include_task:
            parts["mission_task"] = spaces.Discrete(len(tasks_of(self.game)))
        self.observation_space = spaces.Dict(parts)
        self.mission: Mission | None = None
        self._told: dict[str, Any] = {}
        self.score, self.succeeded = 0.0, False

    @property
    def _game(self) -> Watched:
        game: Any = self.env.unwrapped
        if not hasattr(game, "monitor") or not hasattr(game, "game"):
            raise ValueError(f"{game} counts nothing of its episodes: missions need a headway.envs.atari.AtariEnv")
        return game  # type: ignore[no-any-return]

    def of_split(self, split: str) -> list[Task]:
        """List what may be asked for.

        :param split: of :data:`~headway.envs.missions.SPLITS`
        :return: tasks that have a sentence in it
        :raises ValueError: there is no such split, or no task in it
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: it can be {', '.join(SPLITS)}")
        chosen = [task for task in self.tasks.values() if task.sentences(split)]  # type: ignore[arg-type]
        if not chosen:
            raise ValueError(f"none of the tasks {', '.join(self.tasks)} is in the split {split!r}")
        return chosen

    # -- episodes ----------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; see the class for the options."""
        options = dict(options or {})
        given = {name: options.pop(name, None) for name in ("task", "mission", "split")}
        if given["mission"] is not None:
            self.tokenizer.encode(given["mission"])
        task, split = given["task"], given["split"] or self.split
        if isinstance(task, str):
            task = self.tasks.get(task) or find_task(self.game, task)
        candidates = self.of_split(split) if task is None else [task]
        obs, info = self.env.reset(seed=seed, options=options)
        task = candidates[int(self.np_random.integers(len(candidates)))]
        sentences = task.sentences(split) or task.train
        instruction = given["mission"] or sentences[int(self.np_random.integers(len(sentences)))]
        self._begin(Mission(task, instruction, split))
        return self._seen(obs), info | self._facts(0.0)

    def _begin(self, mission: Mission) -> None:
        self.mission, self.score, self.succeeded = mission, 0.0, False
        self._told = {"mission_tokens": self.tokenizer.encode(mission.instruction)}
        if self.include_text:
            self._told["mission"] = mission.instruction
        if self.include_task:
            number = list(tasks_of(self.game)).index(find_task(self.game, mission.task.id).id)
            self._told["mission_task"] = np.int64(number)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Step the game; see the class for the reward, the end and ``info``."""
        assert self.mission is not None
        obs, game_reward, terminated, truncated, info = self.env.step(action)
        task, monitor = self.mission.task, self._game.monitor
        before, self.score = self.score, float(task.score(monitor))
        success = bool(task.success(monitor))
        reward = {"delta": self.score - before, "sparse": float(success and not self.succeeded)}.get(
            self.reward_mode, float(game_reward)
        )
        self.succeeded |= success
        terminated |= success and task.ends
        truncated |= not terminated and monitor.frames >= task.horizon
        info |= self._facts(float(game_reward), success)
        if terminated or truncated:
            if (reference := references_of(self.game).get(task.id)) is not None:
                info["normalized_score"] = reference.normalised(self.score)
            if task.published is not None:
                info["published_score"] = float(task.published(monitor))
        return self._seen(obs), reward, terminated, truncated, info

    def _seen(self, obs: Any) -> dict[str, Any]:
        told = {name: part.copy() if isinstance(part, np.ndarray) else part for name, part in self._told.items()}
        return {self.key: obs, **told}

    def _facts(self, game_reward: float, success: bool = False) -> dict[str, Any]:
        assert self.mission is not None
        task, instruction, split = self.mission
        facts = {"task": task.id, "mission": instruction, "split": split, "tier": task.tier, "task_score": self.score}
        return facts | {"success": success, "is_success": success, "game_reward": game_reward}

    def render(self) -> Any:
        """:return: the screen at twice its size, mission and score below, (504, 320, 3) uint8; None in other modes"""
        frame: Any = self.env.render()
        if self.mission is None or not isinstance(frame, np.ndarray):
            return frame
        import cv2

        frame = frame.repeat(2, 0).repeat(2, 1)
        strip = np.zeros((CAPTION, frame.shape[1], 3), np.uint8)
        lines = textwrap.wrap(self.mission.instruction, frame.shape[1] // 8)
        for number, line in enumerate([*lines[:4], f"score {self.score:.2f}{', done' * self.succeeded}"]):
            place, grey = (6, 16 + 16 * number), 255 if number < len(lines) else 160
            cv2.putText(strip, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (grey,) * 3, 1, cv2.LINE_AA)
        return np.concatenate((frame, strip))

    # -- states ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """:return: the game's state and the mission, as plain data

        :raises ValueError: the task of the episode is not registered
        """
        mission = None
        if self.mission is not None:
            find_task(self.game, self.mission.task.id)
            mission = {
                "task": self.mission.task.id,
                "instruction": self.mission.instruction,
                "split": self.mission.split,
            }
        return {"env": capture(self.env), "mission": mission, "score": self.score, "succeeded": self.succeeded}

    def load_state(self, state: Any) -> None:
        """Take up a state.

        :param state: what :meth:`state` returned, here or in an environment with the same settings
        :raises ValueError: it does not fit
        """
        fields = {"env": lambda *_: None, "mission": lambda *_: None, "score": real(0, 1), "succeeded": flag}
        group(fields)(state, "the state of a mission")
        mission = state["mission"]
        if mission is not None:
            group({"task": text(), "instruction": text(), "split": text(*SPLITS)})(mission, "the mission")
            task = self.tasks.get(mission["task"]) or find_task(self.game, mission["task"])
            self._begin(Mission(task, mission["instruction"], mission["split"]))
        else:
            self.mission, self._told = None, {}
        self.score, self.succeeded = float(state["score"]), bool(state["succeeded"])
        restore(self.env, state["env"])


GAMES = {"frostbite": ("frostbite", "FrostbiteEnv"), "pong": ("pong", "PongEnv")}
"""Module below ``headway.envs`` and class of games whose tasks are told in words."""


def make_text_game(
    game: str, obs: Literal["ram", "pixels"] = "ram", render_mode: str | None = None, **options: Any
) -> Missions:
    """Make a game with missions; what ``gymnasium.make("headway/TextFrostbite-v0", …)`` calls.

    :param game: of :data:`GAMES`
    :param obs: "ram", shown as ``ram``; or "pixels", shown as ``frames``
    :param render_mode: "rgb_array", or None
    :param options: of :class:`Missions`; all others are the game's, see :class:`~headway.envs.atari.AtariEnv`
    :return: it
    :raises ValueError: one is out of its range
    :raises gymnasium.error.DependencyNotInstalled: ale-py is missing
    """
    module, name = GAMES[game]
    known = ("split", "tasks", "reward", "include_text", "include_task", "length", "instructions")
    mission: dict[str, Any] = {name: options.pop(name) for name in known if name in options}
    made = getattr(importlib.import_module(f"...envs.{module}", __name__), name)
    key = "ram" if obs == "ram" else "frames"
    return Missions(made(obs=obs, render_mode=render_mode, **options), key=key, **mission)


def make_text_game_vector(
    num_envs: int,
    game: str,
    *,
    workers: bool = False,
    autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    **options: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make several; what ``gymnasium.make_vec("headway/TextFrostbite-v0", …)`` calls.

    :param num_envs: how many
    :param game: of :data:`GAMES`
    :param workers: step each in a process of its own. Gymnasium's AsyncVectorEnv hands on wrong text where it shares
        memory (seen with 1.4.0), so that it does not here
    :param autoreset_mode: as of Gymnasium
    :param options: of :func:`make_text_game`
    :return: the vector environment
    """
    rows = [partial(make_text_game, game, **options)] * num_envs
    if workers:
        return AsyncVectorEnv(rows, shared_memory=False, autoreset_mode=autoreset_mode)
    return SyncVectorEnv(rows, autoreset_mode=autoreset_mode)
