"""A vector environment that cannot be stepped, for agents that learn from data."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from gymnasium import Wrapper, spaces
from stable_baselines3.common.vec_env import VecEnv


class SpacesOnlyVecEnv(VecEnv):
    """What an agent must know of an environment, without the environment: spaces, and a number of rows.

    Everything that Stable-Baselines3 asks for besides steps works: ``set_env``, ``load``, callbacks, the progress bar.

    :param observation_space: what a row shows
    :param action_space: what it would take
    :param num_envs: rows
    :raises ValueError: no rows
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], num_envs: int = 1
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: a vector environment needs at least one row")
        super().__init__(num_envs, observation_space, action_space)

    def reset(self) -> Any:
        """:return: for each row zeros, or what is nearest to them in the space."""
        self._reset_seeds()
        self._reset_options()
        return _blank(self.observation_space, self.num_envs)

    def step_async(self, actions: np.ndarray[Any, Any]) -> NoReturn:
        """Refuse.

        :raises RuntimeError: always
        """
        raise RuntimeError(
            "a SpacesOnlyVecEnv has observation and action spaces, but no simulator to step: give set_env() or load() "
            "the environment itself to act in it"
        )

    def step_wait(self) -> NoReturn:
        """Refuse, as :meth:`step_async`."""
        raise RuntimeError("there is no step to wait for")

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def get_images(self) -> Sequence[np.ndarray[Any, Any] | None]:
        """:return: no frames."""
        return [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """:return: ``render_mode``, which is None in every row.

        :raises AttributeError: any other attribute
        """
        if attr_name == "render_mode":
            return [None for _ in self._get_indices(indices)]
        raise AttributeError(f"a SpacesOnlyVecEnv has no environments, which might have an attribute {attr_name!r}")

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> NoReturn:
        """Refuse.

        :raises AttributeError: always
        """
        raise AttributeError(f"a SpacesOnlyVecEnv has no environments to set {attr_name!r} on")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> NoReturn:
        """Refuse.

        :raises AttributeError: always
        """
        raise AttributeError(f"a SpacesOnlyVecEnv has no environments to call {method_name!r} of")

    def env_is_wrapped(self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """:return: False in every row."""
        return [False for _ in self._get_indices(indices)]


def _blank(space: spaces.Space[Any], rows: int) -> Any:
    """:return: a batch of the element nearest to zero."""
    if isinstance(space, spaces.Dict):
        return {key: _blank(part, rows) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_blank(part, rows) for part in space.spaces)
    zero: Any = np.zeros(space.shape or (), space.dtype)
    if isinstance(space, spaces.Box):
        zero = np.clip(zero, space.low, space.high)
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        zero = zero + space.start
    return np.stack([zero] * rows).astype(space.dtype)
