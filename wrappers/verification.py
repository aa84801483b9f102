"""Whether an environment's state can be copied bit for bit: found out by stepping a copy beside the original."""

import copy
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..envs import BatchedEnv
from .batching import AnyEnv, as_batched
from .snapshot import StateNotSavable, global_streams, set_global_streams

Stage = Literal["save", "restore", "replay", "exact"]
# What Monitor, VecMonitor and RecordEpisodeStatistics read from the clock, and infos that a DummyVecEnv only hands out.
_IGNORED = frozenset({"t", "t_start", "episode_times", "episode_start_time", "episode_start_times", "time_queue"})
_IGNORED |= {"buf_infos", "reset_infos"}
_ABSENT = object()


@dataclass(frozen=True)
class SnapshotReport:
    """What :func:`verify_snapshot` found.

    :param stage: what went wrong: "save" (the state cannot be read), "restore" (it cannot be put back), "replay" (it
        was put back, and the copy went on in another way), or nothing, "exact"
    :param steps: how many steps were compared, up to the one that differs
    :param problem: what is wrong, in words, with the path to it; empty where all is exact
    :param differing: paths in the state at which original and copy differ after these steps
    """

    stage: Stage
    steps: int = 0
    problem: str = ""
    differing: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether a run that is resumed goes on bit for bit."""
        return self.stage == "exact"

    def __str__(self) -> str:
        if self.stage == "exact":
            return f"the environment's state is saved exactly ({self.steps} steps of a copy are equal bit for bit)"
        if self.stage == "save":
            return f"the environment's state cannot be saved, a resumed run restarts its episode: {self.problem}"
        if self.stage == "restore":
            return f"the environment's state cannot be put back, a resumed run restarts its episode: {self.problem}"
        return f"the environment's state is not saved exactly: {self.problem}"


def verify_snapshot(
    env: AnyEnv | Callable[[], Any], steps: int = 20, *, warmup: int = 20, seed: int = 0, state: Any = None
) -> SnapshotReport:
    """Save an environment, put its state into another one, step both alike, and compare all that they answer.

    Observations, rewards and ends are compared bit for bit, and then the states that both have come to. It finds state
    that :func:`~headway.wrappers.capture` does not see: behind the handle of a C library, in a class, in a module.
    Actions are drawn as from the environment's action space. Global random streams are left as they were.

    :param env: what makes the environment: an id, or a function that returns an environment of any kind; it is called
        twice, and what it makes is closed. An environment itself is saved and put back in place, which finds less, and
        is left reset.
    :param steps: to compare; episodes that end in them go on with the next
    :param warmup: steps before the state is saved, so that there is something in it
    :param seed: of the first reset and of the actions
    :param state: what ``as_batched(env).state()`` returned elsewhere, to start from instead of a reset and the warm-up
    :return: the report
    :raises ValueError: ``steps`` is below 1 or ``warmup`` below 0
    """
    if steps < 1 or warmup < 0:
        raise ValueError(f"steps is {steps} and warmup {warmup}: give at least 1 step, and a warm-up of at least 0")
    streams = global_streams()
    made: list[BatchedEnv] = []

    def make() -> BatchedEnv:
        made.append(as_batched(env() if callable(env) else env))
        return made[-1]

    try:
        return _verify(make, steps, warmup, seed, state)
    finally:
        for one in made:
            one.close() if isinstance(env, str) or callable(env) else one.reset()
        set_global_streams(streams)


def _verify(make: Callable[[], BatchedEnv], steps: int, warmup: int, seed: int, state: Any) -> SnapshotReport:
    original = make()
    drawn = copy.deepcopy(original.action_space)
    drawn.seed(seed)
    actions = [torch.as_tensor(np.asarray(drawn.sample()), device=original.device) for _ in range(warmup + steps)]
    original.reset(seed=seed)
    if state is None:
        for action in actions[:warmup]:
            original.step(action)
    elif problem := _problem(original.load_state, state):
        return SnapshotReport("restore", problem=problem)
    try:
        state, streams = original.state(), global_streams()
        expected = [_answer(original, action) for action in actions[warmup:]]
        after = original.state()
    except StateNotSavable as cause:
        return SnapshotReport("save", problem=str(cause))
    other = make()
    other.reset()
    if problem := _problem(other.load_state, state):
        return SnapshotReport("restore", problem=problem)
    put_back = _first(_differences(state, other.state(), ""))
    set_global_streams(streams)
    for i, action in enumerate(actions[warmup:]):
        if what := next(_differences(expected[i], _answer(other, action), ""), None):
            known = f"these were put back wrongly: {_list(put_back)}" if put_back else _ELSEWHERE
            return SnapshotReport("replay", i + 1, f"step {i + 1} of a copy differs in {what}; {known}", put_back)
    if differing := put_back or _first(_differences(after, other.state(), "")):
        problem = f"after {steps} steps of a copy these differ, though nothing was observed of it: {_list(differing)}"
        return SnapshotReport("replay", steps, problem, differing)
    return SnapshotReport("exact", steps)


_ELSEWHERE = (
    "all that was saved was put back, so there is state elsewhere: in a class, in a module, behind the handle of a "
    "library, or in the clock"
)


def _problem(load_state: Callable[[Any], None], state: Any) -> str:
    try:
        load_state(state)
    except Exception as cause:  # of the environment's own code, perhaps
        return _say(cause)
    return ""


def _say(cause: Exception) -> str:
    return str(cause) if isinstance(cause, (StateNotSavable, ValueError)) else f"{type(cause).__name__}: {cause}"


def _answer(env: BatchedEnv, action: Tensor) -> dict[str, Any]:
    obs, rewards, terminated, truncated, info = env.step(action)
    answer = {"observations": obs, "rewards": rewards, "terminated": terminated, "truncated": truncated}
    return copy.deepcopy(answer | {"last observations": info["final_obs"]})


def _first(paths: Iterator[str]) -> tuple[str, ...]:
    return tuple(itertools.islice(paths, 20))


def _list(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """Paths at which nested data differ, named as :func:`~headway.wrappers.capture` names them."""
    if type(one) is not type(other):
        yield path
    elif isinstance(one, dict):
        one, other = _entries(one), _entries(other)
        for key in [key for key in {**one, **other} if key not in _IGNORED]:
            pair = one.get(key, _ABSENT), other.get(key, _ABSENT)
            yield from _differences(*pair, one.get("path") or _below(path, one, key))
    elif isinstance(one, list | tuple):
        for i, (a, b) in enumerate(itertools.zip_longest(one, other, fillvalue=_ABSENT)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif not _equal(one, other):
        yield path


def _entries(node: dict[str, Any]) -> dict[str, Any]:
    """What there is to compare of a dict, which may be a node of :func:`~headway.wrappers.capture`'s."""
    match node.get("kind"):
        case "space":  # its stream was put back; one that nobody seeds or asks may begin anew at a reset
            return {}
        case "set":  # its order is not state
            return {"kind": "set", "items": sorted(node["items"], key=repr)}
        case "dict":
            return {str(key): value for key, value in node["items"]}
    return node


def _below(path: str, node: dict[str, Any], key: str) -> str:
    """The path of an entry: what describes a node is no part of it."""
    return path if "kind" in node else f"{path}.{key}".removeprefix(".")


def _equal(one: Any, other: Any) -> bool:
    """Equality of bits, so that NaN equals itself and 0.0 differs from -0.0."""
    if isinstance(one, Tensor):
        # contiguous() leaves the strides of a single row as they are, and then its bytes cannot be viewed
        one, other = (tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for tensor in (one, other))
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and bool(torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8)))
    if isinstance(one, np.ndarray | np.generic):
        one, other = np.asarray(one), np.asarray(other)
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)
