"""Rows of an environment in which to look ahead: given a state and an action, what comes next."""

from typing import Any, NamedTuple

import torch
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from torch import Tensor

from ...envs import BatchedEnv
from ...envs.batched import Obs, RowSnapshots, require
from ...wrappers import verify_snapshot
from ...wrappers.batching import AnyEnv, as_batched


class Outcome(NamedTuple):
    """What steps of B rows led to."""

    obs: Obs
    """Also where the episode ended, (B, *O)"""
    rewards: Tensor
    """(B,)"""
    terminated: Tensor
    """(B,) bool"""
    truncated: Tensor
    """(B,) bool"""


class Simulator:
    """Rows like those of an environment, which is never touched by what happens in them.

    Their random streams are copies, too: of an environment that draws while it steps, they foresee what it will draw.

    :param env: the environment
    :param rows: B
    :raises TypeError: its rows cannot be copied
    :raises ValueError: no other rows of it can be made
    """

    def __init__(self, env: BatchedEnv, rows: int) -> None:
        self.pool: Any = require(env, RowSnapshots).like(rows)
        self.rows = torch.arange(rows, device=env.device)

    def load(self, state: Any) -> None:
        """Put all rows elsewhere.

        :param state: of B rows, as ``state(rows)`` of the environment or :meth:`state` returned it
        """
        self.pool.load_state(state, self.rows)

    def state(self) -> Any:
        """:return: of all rows; of one whose episode has ended, that of the next one"""
        return self.pool.state(self.rows)

    def step(self, actions: Tensor) -> Outcome:
        """Step all rows.

        :param actions: (B, *A)
        :return: what comes
        """
        _, rewards, terminated, truncated, info = self.pool.step(actions.to(self.pool.device))
        return Outcome(info["final_obs"], rewards, terminated, truncated)


def searched(env: AnyEnv) -> BatchedEnv:
    """Find the batch whose rows a search copies.

    :param env: an environment of any kind, perhaps with a ``VecNormalize`` or a ``VecMonitor`` around it
    :return: the batch within
    :raises TypeError: its rows cannot be copied; the message says why
    """
    inner = env
    while isinstance(inner, (VecNormalize, VecMonitor)):
        inner = inner.venv
    batch = as_batched(inner)
    require(batch, RowSnapshots)
    return batch


def check_exact(env: BatchedEnv, steps: int = 20) -> None:
    """See that an environment's rows can be copied bit for bit, by stepping copies of others like it.

    :param env: the batch, which is not touched
    :param steps: to compare
    :raises ValueError: they cannot; the message says what differs
    """
    report = verify_snapshot(lambda: require(env, RowSnapshots).like(1), steps)
    if not report.exact:
        raise ValueError(
            f"this environment cannot be searched, since what is tried would not be what happens: {report}. Give it "
            "state() and load_state(state), or keep all that it changes in attributes of its own"
        )
