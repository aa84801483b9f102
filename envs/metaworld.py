"""Meta-World's tasks, version 3, as other environments are: by id, by seed, and paid for success alone where asked to.

Yu et al.: "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning", arXiv 1910.10897.
"""

from typing import Any, SupportsFloat

import gymnasium as gym
import mujoco

_WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)
"""What Meta-World writes into its welds: anchor, relative position and orientation, and how stiff torques are."""


class _Task:
    """Goes in front of the class of a task.

    A model of MuJoCo 3.17 has a twelfth number for each weld, which Meta-World, writing eleven, does not know; it stays
    as it was compiled. Meta-World's ``reset`` does not take the seed that it is given.
    """

    def reset_mocap_welds(self: Any) -> None:
        for weld in (self.model.eq_type == mujoco.mjtEq.mjEQ_WELD).nonzero()[0]:
            self.model.eq_data[weld, : len(_WELD)] = _WELD

    def reset(self: Any, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        if seed is not None:
            self.seed(seed)
        return super().reset()  # type: ignore[misc, no-any-return]

    def step(self: Any, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)  # type: ignore[misc]
        return obs, float(info["success"]) if self.pays_success else reward, terminated, truncated, info


def make_task(task: str, sparse: bool = False, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make a task whose goal is shown, and is drawn anew, like where things lie, with each reset.

    :param task: Meta-World's name for it, ``reach-v3``
    :param sparse: pay for success alone instead of Meta-World's shaped reward
    :param render_mode: as in ``gymnasium.make``
    :return: the environment
    """
    from metaworld import ALL_V3_ENVIRONMENTS

    cls = ALL_V3_ENVIRONMENTS[task]
    env: Any = type(cls.__name__, (_Task, cls), {})(render_mode=render_mode)
    # As Meta-World makes its "goal-observable" tasks; but those keep one goal, drawn from NumPy's global stream.
    env._partially_observable, env._freeze_rand_vec, env.seeded_rand_vec = False, False, True
    del env.sawyer_observation_space
    env._set_task_called = True
    env.observation_space = env.sawyer_observation_space
    env.pays_success = sparse
    return env  # type: ignore[no-any-return]


def register_all() -> None:
    """Register ``metaworld/reach-v3``, ``metaworld/reach_sparse-v3`` and so on; the first such id that is met does it.

    :raises ModuleNotFoundError: Meta-World is not installed
    """
    from metaworld import ALL_V3_ENVIRONMENTS

    for task in ALL_V3_ENVIRONMENTS:
        for suffix, sparse in (("", False), ("_sparse", True)):
            gym.register(
                f"metaworld/{task.removesuffix('-v3')}{suffix}-v3",
                entry_point=f"{__name__}:make_task",
                max_episode_steps=500,
                disable_env_checker=True,  # first observations can be a hair outside of their space
                kwargs={"task": task, "sparse": sparse},
            )
