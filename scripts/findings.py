"""What is found out about an environment by trying it: one function for each finding of ``headway check``."""

import logging
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import Env, spaces
from stable_baselines3.common.callbacks import BaseCallback

from ..agents.core.registry import known_agents
from ..agents.core.spaces.as_json import shown
from ..wrappers import RandomDelay, verify_snapshot
from .options import TrainOptions
from .train import close_env, policy_for, training_env

Make = Callable[[], Env[Any, Any]]
"""Makes the environment, a new one each time."""

Verdict = Literal["good", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """What was found out.

    :param name: about what
    :param verdict: "fault" where training would fail or mislead, "note" where something should be known
    :param text: a sentence for people
    :param short: a few words for a table; empty: not worth a mention there
    :param figures: numbers for machines
    """

    name: str
    verdict: Verdict
    text: str
    short: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def tried(name: str, find: Callable[[], Finding]) -> Finding:
    """Find something out; an exception, the environment's own for one, is a fault that says where it came from.

    :param name: about what
    :param find: does it
    :return: what it returned, or the fault
    """
    try:
        return find()
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        place = traceback.extract_tb(cause.__traceback__)[-1]
        said = " ".join(str(error).split())
        text = f"{type(error).__name__}: {said} ({Path(place.filename).name}:{place.lineno}, in {place.name})"
        return Finding(name, "fault", text, f"{type(error).__name__}: {said}")


def plain(text: object) -> str:
    """:return: a text on one line, without a terminal's colours"""
    return re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(text).split()))


def limit_of(env: Env[Any, Any]) -> int | None:
    """:return: the time limit that an environment is registered or wrapped with"""
    return None if env.spec is None else env.spec.max_episode_steps


# -- spaces ------------------------------------------------------------------------------------------------------------


def able_agents(observations: spaces.Space[Any], actions: spaces.Space[Any]) -> tuple[list[type[Any]], list[str]]:
    """Ask every agent that learns in an environment whether it takes these spaces.

    :param observations: the space of observations
    :param actions: of actions
    :return: the agents that do, and the reasons of the others, each once
    """
    able: list[type[Any]] = []
    reasons: dict[str, None] = {}
    for agent in known_agents().values():
        if agent.arguments:  # of data, without an environment
            continue
        try:
            agent.check_spaces(observations, actions)
            able.append(agent)
        except ValueError as cause:
            reasons[re.sub(r" at 0x[0-9a-f]+", "", str(cause))] = None
    return able, list(reasons)


def brief(space: spaces.Space[Any]) -> str:
    """:return: a space in a few words, without bounds."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{key}: {brief(part)}' for key, part in space.items())})"
    if isinstance(space, spaces.Box):
        return f"Box{space.shape} {space.dtype}"
    known = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))
    return shown(space) if known else type(space).__name__


def check_spaces(env: Env[Any, Any]) -> Finding:
    """:return: which agents take the environment's spaces."""
    what = f"observations {brief(env.observation_space)}, actions {brief(env.action_space)}"
    able, reasons = able_agents(env.observation_space, env.action_space)
    names = [agent.__name__ for agent in able]
    figures: dict[str, Any] = {"observations": shown(env.observation_space), "actions": shown(env.action_space)}
    figures |= {"what": what, "agents": names}
    if not able:
        return Finding("spaces", "fault", f"{what}: no agent takes them. {reasons[0]}", reasons[0], figures)
    return Finding("spaces", "good", f"{what}: {', '.join(names)}", ", ".join(names), figures)


# -- what reset and step return ----------------------------------------------------------------------------------------


def differs(one: Any, other: Any) -> bool:
    """:return: whether two observations, of whatever kind, differ in a bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differs(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) != len(other) or any(map(differs, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype != other.dtype or differs(one.numpy(force=True), other.numpy(force=True))
    if isinstance(one, (np.ndarray, np.generic, float)) and isinstance(other, (np.ndarray, np.generic, float)):
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype != other.dtype or not np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    return bool(type(one) is not type(other) or one != other)


def outside(space: spaces.Space[Any], obs: Any, where: str = "observation") -> tuple[Verdict, str] | None:
    """Say why an observation is not in its space.

    :param space: the space
    :param obs: the observation
    :param where: what it is called
    :return: how bad it is, and why; None: it is in it
    """
    if isinstance(space, spaces.Dict) and isinstance(obs, dict):
        if space.keys() != obs.keys():
            return "fault", f"{where} has the keys {sorted(obs)}, its space {sorted(space.keys())}"
        parts = (outside(space[key], obs[key], f"{where}[{key!r}]") for key in space)
        return min(filter(None, parts), default=None)  # faults before notes
    if isinstance(space, spaces.Box):
        array = np.asarray(obs)
        if array.shape != space.shape:
            return "fault", f"{where} has shape {array.shape}, its space {space.shape}"
        if array.dtype.kind not in "biuf":
            return "fault", f"{where} is of {array.dtype}, its space of {space.dtype}"
        if not np.isfinite(array).all():
            return "fault", f"{where} holds {array[~np.isfinite(array)][0]}"
        beyond = np.flatnonzero((array < space.low) | (array > space.high))
        if beyond.size:
            place = int(beyond[0])
            low, high = space.low.flat[place], space.high.flat[place]
            return "note", f"{where}[{place}] is {array.flat[place]:g}, outside of [{low:g}, {high:g}]"
        if not isinstance(obs, np.ndarray) or not np.can_cast(array.dtype, space.dtype):
            return "note", f"{where} is {_kind(obs)}, its space an array of {space.dtype}"
        return None
    return None if space.contains(obs) else ("fault", f"{where} is {obs!r}, which is not in {space}")


def _kind(obs: Any) -> str:
    return f"an array of {obs.dtype}" if isinstance(obs, np.ndarray) else f"a {type(obs).__name__}"


@dataclass
class Seen:
    """What was seen while random actions were taken."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reused: bool = False
    touches_actions: bool = False
    lengths: list[int] = field(default_factory=list)
    terminated: int = 0
    truncated: int = 0
    steps: int = 0
    stepping: float = 0.0
    resets: int = 0
    resetting: float = 0.0
    high: float = -np.inf
    low: float = np.inf

    def judge(self, what: str, found: tuple[Verdict, str] | None) -> None:
        """Take up why something is wrong, the first time of its kind."""
        if found is not None:
            texts = self.faults if found[0] == "fault" else self.notes
            if not texts:
                texts.append(f"{what}: {found[1]}")


def explore(env: Env[Any, Any], steps: int, seconds: float, seed: int, seen: Seen) -> None:
    """Take random actions, and look at everything that comes back, up to the first fault.

    :param env: the environment
    :param steps: how many at most
    :param seconds: how long at most
    :param seed: of the environment, and of the actions
    :param seen: where what is seen is kept
    """
    draw = drawn(env.action_space, seed)
    obs, deadline, length = _reset(env, seen, seed), time.perf_counter() + seconds, 0
    while seen.steps < steps and time.perf_counter() < deadline:
        action = next(draw)
        before, kept = deepcopy(action), deepcopy(obs)
        started = time.perf_counter()
        returned: Any = env.step(action)
        seen.stepping += time.perf_counter() - started
        seen.steps, length = seen.steps + 1, length + 1
        what = f"step {seen.steps}"
        if not isinstance(returned, tuple) or len(returned) != 5:
            seen.judge(
                what, ("fault", "step returns no tuple of five: observation, reward, terminated, truncated, info")
            )
            return
        seen.reused |= differs(obs, kept)
        seen.touches_actions |= differs(action, before)
        obs, reward, terminated, truncated, info = returned
        seen.judge(what, outside(env.observation_space, obs))
        seen.judge(what, _odd_reward(reward))
        if not isinstance(info, dict):
            seen.judge(what, ("fault", f"info is a {type(info).__name__}, no dict"))
        if seen.faults:
            return
        seen.low, seen.high = min(seen.low, float(reward)), max(seen.high, float(reward))
        if terminated or truncated:
            seen.lengths.append(length)
            seen.terminated, seen.truncated = seen.terminated + bool(terminated), seen.truncated + bool(truncated)
            kept = deepcopy(obs)
            new, length = _reset(env, seen), 0
            seen.reused |= differs(obs, kept)
            obs = new


def drawn(space: spaces.Space[Any], seed: int) -> Iterator[Any]:
    """Draw actions for ever.

    :param space: that they are of
    :param seed: of the draws
    :return: the actions
    """
    space = deepcopy(space)  # whose generator the environment may use
    space.seed(seed)
    while True:
        yield space.sample()


def _reset(env: Env[Any, Any], seen: Seen, seed: int | None = None) -> Any:
    started = time.perf_counter()
    returned: Any = env.reset(seed=seed)
    seen.resetting += time.perf_counter() - started
    seen.resets += 1
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError("reset returns no pair of observation and info")
    seen.judge("reset", outside(env.observation_space, returned[0]))
    return returned[0]


def _odd_reward(reward: Any) -> tuple[Verdict, str] | None:
    array = np.asarray(reward)
    if array.ndim or array.dtype.kind not in "biuf":
        return "fault", f"the reward is {reward!r}, not a number"
    return None if np.isfinite(array) else ("fault", f"the reward is {float(array)}")


def check_values(seen: Seen) -> Finding:
    """:return: whether what came back is what the spaces promise, and finite."""
    figures = {"reward_low": seen.low, "reward_high": seen.high} if seen.steps and not seen.faults else {}
    if seen.faults:
        return Finding("values", "fault", seen.faults[0], seen.faults[0], figures)
    span = f"rewards from {seen.low:.4g} to {seen.high:.4g}"
    notes = seen.notes + ["step writes into the action that it is given"] * seen.touches_actions
    if notes:
        return Finding("values", "note", f"{'; '.join(notes)}; all finite, {span}", notes[0], figures)
    return Finding("values", "good", f"finite and in their spaces in {seen.steps:,} steps, {span}", "", figures)


def check_arrays(seen: Seen) -> Finding:
    """:return: whether arrays that were handed out are written into later."""
    if not seen.reused:
        return Finding("arrays", "good", "observations stay as they were handed out", "", {"reused": False})
    text = "observations are written into by later steps: Headway copies them, and so should your own code"
    return Finding("arrays", "note", text, "reuses its arrays", {"reused": True})


def check_ends(seen: Seen, limit: int | None) -> Finding:
    """:return: whether episodes end, and how."""
    lengths = seen.lengths
    figures: dict[str, Any] = {
        "episodes": len(lengths),
        "terminated": seen.terminated,
        "truncated": seen.truncated,
        "limit": limit,
    }
    if lengths:
        figures |= {"shortest": min(lengths), "median": float(np.median(lengths)), "longest": max(lengths)}
        span = f"{min(lengths):,}" if min(lengths) == max(lengths) else f"{min(lengths):,} to {max(lengths):,}"
        text = f"{count(len(lengths), 'episode')} of {span} steps: {seen.terminated} terminated, "
        text += f"{seen.truncated} truncated"
        unlimited = limit is None and not seen.truncated
        text += "; no time limit, which a policy that avoids its ends would need" * unlimited
        return Finding("ends", "good", text, "", figures)
    none = f"no episode ended in {count(seen.steps, 'step')} of random actions"
    if limit is not None:
        return Finding("ends", "good", f"{none}; its id ends them after {limit:,}", "", figures)
    remedy = "register it with max_episode_steps=…, or have it truncate: an evaluation waits for the end of episodes"
    return Finding("ends", "note", f"{none}, and no time limit is set: {remedy}", "no end seen, no time limit", figures)


def check_speed(seen: Seen) -> Finding:
    """:return: how fast one environment steps and resets."""
    rate, pause = seen.steps / max(seen.stepping, 1e-9), seen.resetting / max(seen.resets, 1)
    figures = {"steps_per_second": rate, "seconds_per_reset": pause, "steps": seen.steps}
    text = f"{rate:,.0f} steps/s of one environment, {1000 * pause:,.3g} ms per reset"
    return Finding("speed", "good", text, "", figures)


def count(number: int, noun: str) -> str:
    """:return: "1 step", "2 steps\""""
    return f"{number:,} {noun}{'s' * (number != 1)}"


# -- seeds and copies --------------------------------------------------------------------------------------------------

Step = tuple[Any, ...]


def rollout(env: Env[Any, Any], actions: Sequence[Any], seed: int | None = None) -> list[Step]:
    """Take given actions, and reset whenever an episode ends.

    :param env: the environment
    :param actions: to take
    :param seed: to reset with first; None: go on from where it stands
    :return: copies of what came back, the observation of a reset at the end of the step that led to it
    """
    steps: list[Step] = [] if seed is None else [(deepcopy(env.reset(seed=seed)[0]),)]
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(deepcopy(action))
        seen = (deepcopy(obs), float(reward), bool(terminated), bool(truncated))
        steps.append((*seen, deepcopy(env.reset()[0])) if terminated or truncated else seen)
    return steps


def first_difference(one: Sequence[Step], other: Sequence[Step]) -> int | None:
    """:return: the number of the first step in which two rollouts differ; None: they do not."""
    return next((number for number, pair in enumerate(zip(one, other, strict=True)) if differs(*pair)), None)


def check_seeds(make: Make, actions: Sequence[Any], seed: int) -> Finding:
    """:return: whether equal seeds and actions give equal futures, in one environment and in another one."""
    with closing(make) as env, closing(make) as other:
        first = rollout(env, actions, seed)
        for again, where in ((env, "in the same environment"), (other, "in a second one")):
            number = first_difference(first, rollout(again, actions, seed))
            if number is not None:
                place = "the reset" if number == 0 else f"step {number}"
                text = f"two rollouts with seed {seed} differ {where}, from {place} on: draw from self.np_random alone"
                return Finding("seeds", "fault", text, "equal seeds differ", {"equal": False, "first": number})
        varied = first_difference(first, rollout(env, actions, seed + 1)) is not None
    text = f"equal seeds, equal futures ({count(len(actions), 'step')}, twice here and once in a second environment)"
    text += "" if varied else "; other seeds change nothing"
    return Finding("seeds", "good", text, "", {"equal": True, "varied": varied})


@contextmanager
def closing(make: Make) -> Iterator[Env[Any, Any]]:
    """Make an environment, and close it in the end."""
    env = make()
    try:
        yield env
    finally:
        env.close()


def check_snapshot(make: Make, steps: int, seed: int) -> Finding:
    """:return: whether a copy of the environment goes on as the original does."""
    report = verify_snapshot(make, steps, warmup=steps, seed=seed)
    figures = {"exact": report.exact, "stage": report.stage, "differing": list(report.differing)}
    if report.exact:
        text = f"a copy goes on bit for bit as the original ({count(report.steps, 'step')})"
        return Finding("snapshot", "good", text, "", figures)
    if report.stage == "replay":
        return Finding("snapshot", "fault", report.problem, "copies differ", figures)
    return Finding("snapshot", "note", f"cannot be copied: {report.problem}", "", figures)


# -- delays and training -----------------------------------------------------------------------------------------------

DELAYS = ("uniform:0-2", "uniform:0-1")
"""Laws that are tried: short, of both channels."""


def check_delays(make: Make, actions: Sequence[Any], seed: int) -> Finding:
    """:return: whether random delays can stand around the environment, and which agents take what they show."""
    with closing(make) as env:
        try:
            delayed = RandomDelay(env, *DELAYS)
        except ValueError as cause:
            return Finding("delays", "note", str(cause), "no", {"possible": False})
        rollout(delayed, actions[:40], seed)
        able, reasons = able_agents(delayed.observation_space, delayed.action_space)
    names = [agent.__name__ for agent in able]
    figures = {"possible": True, "agents": names}
    if not able:
        return Finding("delays", "note", f"RandomDelay works, but no agent reads it. {reasons[0]}", "no agent", figures)
    return Finding("delays", "good", f"--delay works: {', '.join(names)}", "yes", figures)


class _SaveOnce(BaseCallback):
    def __init__(self, step: int, folder: str) -> None:
        super().__init__()
        self.step, self.folder = step, folder

    def _on_step(self) -> bool:
        if self.num_timesteps == self.step:
            self.model.save_checkpoint(self.folder)  # type: ignore[attr-defined]
        return True


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what Headway logs, instead of printing it."""
    logger, handler = logging.getLogger("headway"), _Messages()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


SMALL = {"learning_starts": 30, "buffer_size": 1000, "batch_size": 16, "net_arch": (16, 16), "n_steps": 32}
"""Hyper-parameters of a trial, of those that an agent has."""

TRIAL = 128
"""Steps of a trial."""


def check_training(env_id: str, delay: str | None, seed: int, env: Env[Any, Any]) -> list[Finding]:
    """Train a small agent, resume it from the middle, and compare.

    :param env_id: the environment
    :param delay: laws of its delays
    :param seed: of the trial
    :param env: one of it, for its spaces
    :return: findings on training and on resuming
    """
    able, _ = able_agents(env.observation_space, env.action_space)
    if not able:
        return []
    agent = next((agent for agent in able if agent.__name__ in ("SAC", "DQN")), able[0])
    options, policy = TrainOptions(env=env_id, delay=delay, seed=seed), policy_for(env.observation_space)
    hyper = {name: SMALL[name] for name in (f.name for f in fields(agent.config_class)) if name in SMALL}
    trained: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, logged() as messages:

        def train() -> Finding:
            trained.append(agent(policy, training_env(options), seed=seed, device="cpu", **hyper))
            trained[0].learn(TRIAL, _SaveOnce(TRIAL // 2, folder))
            text = f"{agent.__name__}: {TRIAL} steps, {count(trained[0]._n_updates, 'gradient step')}, a checkpoint"
            return Finding("trains", "good", text, agent.__name__, {"agent": agent.__name__})

        def resume() -> Finding:
            trained.append(agent.resume(folder, training_env(options), device="cpu"))
            trained[1].learn(trained[1].remaining_timesteps, reset_num_timesteps=False)
            return _compared(_content(trained[0]), _content(trained[1]), messages)

        try:
            findings = [tried("trains", train)]
            return findings if findings[0].verdict == "fault" else [*findings, tried("resumes", resume)]
        finally:
            for one in trained:
                close_env(one.get_env())


def _content(agent: Any) -> dict[str, Any]:
    """What an agent has learnt, and from what."""
    parts = {name: agent.parts[name].state() for name in ("store", "rollout") if name in agent.parts}
    return {"networks": agent.modules.state(), "last": agent.last_obs, **parts}


def _compared(one: dict[str, Any], other: dict[str, Any], messages: Sequence[str]) -> Finding:
    if not differs(one, other):
        return Finding("resumes", "good", "as if it had never stopped, bit for bit", "exactly", {"exact": True})
    why = [re.split(r"restart its episode: |episode it was saved in is restarted: ", text)[-1] for text in messages]
    if not why:
        text = "a resumed run differs from one that went on, without a warning"
        return Finding("resumes", "fault", text, "inexactly", {"exact": False})
    short = f"restarts its episode: {why[0].partition(';')[0]}"
    return Finding("resumes", "note", f"restarts its episode: {why[0]}", short, {"exact": False})
