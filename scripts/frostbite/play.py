"""``headway frostbite play``: see what a policy makes of a sentence, or play yourself."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import tyro

from ...agents.core.config import Range
from ...envs.frostbite import FROSTBITE
from ...envs.missions import SPLITS, find_task, tasks_of, words_of
from ...wrappers.missions import make_text_game
from ..episodes import evaluation_env, record_video, steps_of_episode
from ..options import Flags
from ..policies import policy_file, read_policy, world_of
from ..runs import check_outputs
from .collect import need_ale

GAME = FROSTBITE.name
ANY_TASK = "max_points"
"""By which a sentence is scored that no task has."""

ARROWS = {"up": 1073741906, "down": 1073741905, "left": 1073741904, "right": 1073741903}
"""SDL's numbers of keys."""


@dataclass(frozen=True, kw_only=True)
class Options(Flags):
    """Tell a policy something in words, and see what it does; or do it yourself, with the arrow keys."""

    text: tyro.conf.Positional[str]
    """The instruction, as "jump onto the first ice floe"."""

    policy: Path | None = None
    """A saved policy, or a run folder; without, a window opens and you play: arrows move and jump, Escape ends."""

    task: str | None = None
    """By whose rule it is scored; by default the task that has this sentence, else max_points."""

    level: Annotated[int, Range(1, 9)] = 1
    """Where to begin."""

    video: Path | None = None
    """Film a policy to this file (.mp4 or .gif), with the mission in the picture."""

    seed: Annotated[int, Range(0)] = 10_000
    """Of the episode."""

    stochastic: bool = False
    """Sample actions instead of taking the likeliest."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Of the policy."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a file that exists."""


def task_saying(text: str) -> str | None:
    """:return: the task that a sentence is of; None: no task has it"""
    told = words_of(text)
    for task in tasks_of(GAME).values():
        if any(words_of(sentence) == told for split in SPLITS for sentence in task.sentences(split)):  # type: ignore[arg-type]
            return task.id
    return None


def run(options: Options) -> None:
    """Run ``headway frostbite play``.

    :param options: its arguments
    :raises ValueError: there is no such task, or the text can be no instruction
    """
    need_ale()
    check_outputs(options.video, overwrite=options.overwrite)
    found = options.task or task_saying(options.text)
    task = find_task(GAME, found or ANY_TASK)
    if found is None:
        print(f"no task has this sentence: it is scored by {ANY_TASK} (--task names another)")
    asked = {"task": task.id, "mission": options.text, "start_level": options.level}
    if options.policy is None:
        if options.video is not None:
            raise ValueError("--video films a policy: name one with --policy")
        _play_by_hand(asked, options.seed)
        return
    policy = read_policy(policy_file(options.policy), None, options.device)
    world, deterministic = world_of(policy, None, False), not options.stochastic
    print(f"{policy.path}: {policy.name} after {policy.agent.num_timesteps:,} steps is told: {options.text}")
    env = policy.in_(evaluation_env(world, 1))
    info: dict[str, Any] = {}
    for info, _ in steps_of_episode(policy.agent, env, options.seed, deterministic, asked):  # noqa: B007
        pass
    env.close()
    _print_end(info)
    if options.video is not None:
        env = policy.in_(evaluation_env(world, 1, render=True))
        options.video.parent.mkdir(parents=True, exist_ok=True)
        frames = record_video(policy.agent, env, options.video, options.seed, deterministic, asked)
        env.close()
        print(f"{frames} frames written to {options.video}")


def _print_end(info: dict[str, Any]) -> None:
    counted = info[GAME]
    done = "done" if info["success"] else "not done"
    points = f"{counted['score']:,} points, level {counted['level']}, {len(counted['deaths'])} lives lost"
    print(f"{info['task']}: score {info['task_score']:.2f}, {done}, after {counted['frames']:,} frames; {points}")


class _Asked(gym.Wrapper[Any, Any, Any, Any]):
    """Begins every episode with the same mission."""

    def __init__(self, env: gym.Env[Any, Any], asked: dict[str, Any]) -> None:
        super().__init__(env)
        self.asked = asked

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={**self.asked, **(options or {})})


def keys() -> dict[tuple[int, ...], int]:
    """:return: actions by the keys that are held"""
    up, down, left, right = ARROWS.values()
    plain = {(up,): 2, (right,): 3, (left,): 4, (down,): 5, (ord(" "),): 1}
    return plain | {(up, right): 6, (up, left): 7, (down, right): 8, (down, left): 9}


def _play_by_hand(asked: dict[str, Any], seed: int) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would like to draw curves, which nobody asks for
            from gymnasium.utils.play import play  # which needs pygame
    except ImportError as cause:
        raise ValueError("playing needs pygame: pip install 'gymnasium[classic-control]'") from cause
    print(f"{asked['mission']}: arrows move and jump, the space bar turns a floe around, Escape ends")

    def tell(*step: Any) -> None:
        *_, terminated, truncated, info = step
        if terminated or truncated:
            _print_end(info)

    env = _Asked(make_text_game(GAME, render_mode="rgb_array"), asked)
    play(env, keys_to_action=keys(), callback=tell, seed=seed, zoom=1.5)
    env.close()
