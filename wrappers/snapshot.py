"""Bit-exact saving and restoring of environments, however they are wrapped and vectorised.

:func:`capture` walks over an environment's attributes and returns everything that changes as plain data, which needs no
pickle to be written to a file; :func:`restore` writes such data into an environment that was built the same way. The
restored environment goes on exactly as the saved one would have: same observations, rewards and episodes, bit for bit.

What is walked: ``__dict__`` and ``__slots__`` of Python objects, containers, arrays, tensors, random generators (also
those of spaces), what functions and methods are bound to, MuJoCo's ``MjData`` and ``MjModel``, the workers of
``SubprocVecEnv`` and ``AsyncVectorEnv``. A class with ``state()`` and ``load_state(state)`` is asked instead. Whatever
keeps its state out of Python's sight (a lock, a socket, an iterator, a C++ simulator) is refused with its path, and so
is all else that goes wrong on the way: :class:`StateNotSavable` is the one exception of :func:`capture`.

Code is known by its name and compared, not saved: a state in which another function, class or bound method stands is
restored by that name. Objects that are missing are made anew if their class is plain, belongs to the environment's own
package, and is imported already: nothing that a state names is imported or called.

What is left alone, because it is not state or is made again with the environment:

- modules, specs, compiled patterns, the bounds of spaces;
- renderers, windows, loggers, and files that are only written to;
- class attributes, and the process-wide generators, which :func:`global_streams` reads;
- the order in which a set is iterated, and the ``reset_infos`` that workers of ``SubprocVecEnv`` repeat until a reset.

:func:`~headway.wrappers.verify_snapshot` finds out whether something of an environment's state is among these.

Episode statistics that hold durations read the clock, and are the one thing that differs after a restore.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
from gymnasium.core import ActType, ObsType
from gymnasium.utils import RecordConstructorArgs

from .snapshots.arrays import overlapping
from .snapshots.kinds import KINDS
from .snapshots.nodes import State, StateNotSavable, full_name
from .snapshots.streams import global_streams, set_global_streams
from .snapshots.walking import Loader, Saver

__all__ = ["Snapshot", "StateNotSavable", "capture", "global_streams", "restore", "set_global_streams"]


def capture(env: object) -> State:
    """Everything that changes in an environment, as plain data.

    :param env: a Gymnasium or SB3 environment, single or vectorised, with any wrappers; any other mutable object too
    :return: a deep copy, for :func:`restore`. Keep its dicts in order: a shared object is described only once, at first
    :raises StateNotSavable: if part of the environment holds state that cannot be read; the message names the part
    """
    saver = Saver(KINDS)
    state = saver.run(env)
    if pinned := overlapping(saver.seen()):  # known only when everything has been seen
        state = Saver(KINDS, pinned).run(env)
    return state


def restore(env: object, state: State) -> None:
    """Put an environment into a captured state.

    Objects, random generators, MuJoCo's data and networks are written into. Arrays and plain containers are replaced,
    since the environment's caller may hold the old ones (observations, actions, infos). Only arrays that share memory
    with each other or with somebody else are written into, so that views in the environment stay views; a view kept
    outside of it must be taken anew.

    Objects that are missing, or of another class than they were, are made if their class is a plain one of Python's in
    a package of the environment's own, and if it is imported already. Reset an environment first: what it makes in
    ``reset()`` is then there to be written into. After an error the environment is partly restored: reset it again.

    :param env: an environment built like the captured one, new or used
    :param state: what :func:`capture` returned; it can be used again
    :raises ValueError: if the state does not fit; the message names the part
    """
    try:
        Loader(KINDS).run(env, state)
    except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError) as cause:
        what = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        name = full_name(type(env))
        raise ValueError(f"the state cannot be written into {name} ({what}): it is not one of it") from cause


class Snapshot(gym.Wrapper[ObsType, ActType, ObsType, ActType], RecordConstructorArgs):
    """Gives an environment ``state()`` and ``load_state(state)``, which other processes can reach.

    ``SubprocVecEnv`` and ``AsyncVectorEnv`` ask their workers through it, so make it the outermost wrapper there:
    ``make_vec_env(env_id, n_envs, vec_env_cls=SubprocVecEnv, wrapper_class=Snapshot)``. What an episode led to it
    copies, since workers reset an environment, which may reuse its array, before they send it. It changes nothing else.

    :param env: the environment
    """

    def __init__(self, env: gym.Env[ObsType, ActType]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action: ActType) -> tuple[ObsType, Any, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return deepcopy(obs) if terminated or truncated else obs, reward, terminated, truncated, info

    def state(self) -> State:
        """State of the wrapped environment.

        :return: as from :func:`capture`
        :raises StateNotSavable: if part of the environment holds state that cannot be read
        """
        return capture(self.env)

    def load_state(self, state: State) -> None:
        """Put the wrapped environment into a state.

        :param state: what :meth:`state` returned, here or in an environment built the same way
        :raises ValueError: if the state does not fit
        """
        restore(self.env, state)

    def attempt(self, method: str, *arguments: Any) -> tuple[Any, str | None]:
        """Call :meth:`state` or :meth:`load_state` in another process, which an exception would end.

        :param method: its name
        :param arguments: for it
        :return: what it returned, and None; or None, and what went wrong
        """
        try:
            call: Callable[..., Any] = self.state if method == "state" else self.load_state
            return call(*arguments), None
        except Exception as problem:
            return None, str(problem) if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"
