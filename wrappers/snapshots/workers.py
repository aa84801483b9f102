"""Vector environments whose environments live in other processes, which are asked through a ``Snapshot`` there."""

from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from stable_baselines3.common.vec_env import SubprocVecEnv

from .nodes import State, StateNotSavable, full_name, is_alike, mismatch, plain_copy
from .objects import fill_object, load_object, save_object
from .walking import Kind, Kinds, Loader, Saver, is_a


def _check(venv: Any, path: str) -> None:
    busy = venv._state is not AsyncState.DEFAULT if isinstance(venv, AsyncVectorEnv) else venv.waiting
    if busy:
        raise StateNotSavable(f"{path} is in the middle of a step; wait for its result first")
    if isinstance(venv, AsyncVectorEnv) and venv.autoreset_mode is not AutoresetMode.SAME_STEP:
        remedy = "build it with autoreset_mode=AutoresetMode.SAME_STEP"
        raise StateNotSavable(f"{path}: its workers remember which episodes ended where nothing can reach it; {remedy}")
    # The names of the outermost wrapper: what a wrapper around a Snapshot holds would be lost without a word.
    if not all("attempt" in names for names in _ask(venv, path, "__dir__")):
        what = f"{path} is a {full_name(type(venv))}, whose environments live in other processes"
        raise StateNotSavable(f"{what}; wrap each environment in headway.wrappers.Snapshot, as the outermost wrapper")


def _ask(venv: Any, path: str, method: str, *arguments: Any) -> list[Any]:
    try:
        return list((venv.env_method if isinstance(venv, SubprocVecEnv) else venv.call)(method, *arguments))
    except (EOFError, OSError) as error:  # SB3's worker ends with its environment's exception
        raise StateNotSavable(f"{path}: a worker ended in {method}(); its error output says why") from error


def _tell(venv: Any, path: str, states: list[Any]) -> None:
    try:
        if isinstance(venv, SubprocVecEnv):
            answers = [venv.env_method("attempt", "load_state", s, indices=i)[0] for i, s in enumerate(states)]
        else:  # call() sends the same arguments to everyone, so this is its own protocol with one state for each
            for pipe, state in zip(venv.parent_pipes, states, strict=True):
                pipe.send(("_call", ("attempt", ("load_state", state), {})))
            venv._state = AsyncState.WAITING_CALL
            answers = list(venv.call_wait())
    except (EOFError, OSError) as error:
        raise ValueError(f"{path}: a worker ended in load_state(); its error output says why") from error
    for i, (_, problem) in enumerate(answers):
        if problem is not None:
            raise ValueError(f"{path}, in worker {i}: {problem}")


def _save_workers(saver: Saver, value: Any, path: str) -> State:
    _check(value, path)
    answers = _ask(value, path, "attempt", "state")
    for i, (_, problem) in enumerate(answers):
        if problem is not None:
            raise StateNotSavable(f"{path}, in worker {i}: {problem}")
    states = plain_copy([state for state, _ in answers], path)
    return {**save_object(saver, value, path), "kind": "workers", "states": states}


def _load_workers(loader: Loader, node: State, live: Any, path: str) -> Any:
    if not is_alike(node, live):
        mismatch(path, node["type"], live)
    if len(node["states"]) != live.num_envs:
        raise ValueError(f"{path} was saved with {len(node['states'])} environments, but has {live.num_envs}")
    _check(live, path)
    target = load_object(loader, node, live, path)
    fill_object(loader, node, live, target, path)
    _tell(target, path, node["states"])
    return target


KINDS: Kinds = {"workers": Kind(is_a(SubprocVecEnv, AsyncVectorEnv), _save_workers, _load_workers, made=False)}
