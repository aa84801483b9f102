"""What batches of tensors share whose episodes have a greatest length: seeds, resets of rows, accounts, snapshots."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .batched import BatchedEnv, Info, check_actions, check_batch, check_state, row_seeds
from .schema import check_numbers


class HorizonBatch(BatchedEnv):
    """``N`` rows whose episodes end after a fixed number of steps, or before, where a batch says so.

    What changes from step to step is in registers, tensors (N, …), which a step replaces and never writes into, and
    which are never given away. Rows may be at different times; the host keeps their clocks, so that nothing waits for
    the device to learn of an end, unless it can come early.

    :param num_envs: N
    :param horizon: steps per episode
    :param device: where the tensors are
    :param dtype: of rewards
    :param autoreset_mode: SAME_STEP, or DISABLED to leave finished rows to ``reset(options={"reset_mask": …})``; until
        then they rest
    :raises ValueError: no rows, or another mode
    """

    truncates: ClassVar[bool] = False
    """Whether the end is a time limit, which truncates episodes, or part of the task, which terminates them."""

    tells: ClassVar[tuple[str, ...]] = ()
    """What ``info`` has of each row that a single environment tells too."""

    def __init__(
        self,
        num_envs: int,
        horizon: int,
        device: torch.device | str,
        dtype: torch.dtype,
        autoreset_mode: AutoresetMode,
    ) -> None:
        autoreset_mode = check_batch(num_envs, autoreset_mode)
        self.num_envs, self.horizon, self.dtype = num_envs, horizon, dtype
        self.device = torch.device(device)
        self.metadata = {"autoreset_mode": autoreset_mode, "render_modes": []}  # type: ignore[misc]
        self.render_mode = None
        self._autoreset = autoreset_mode is AutoresetMode.SAME_STEP
        self._needs_reset = True
        self._clock, self._early = np.zeros(num_envs, np.int64), np.zeros(num_envs, bool)
        self.final_info: Info = {}
        """What the last step led to, by the names that ``info`` has for what goes with ``obs``."""
        self._registers = {
            "times": torch.zeros(num_envs, dtype=torch.int64, device=self.device),
            "returns": torch.zeros(num_envs, dtype=torch.float64, device=self.device),
        }

    def _set_spaces(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space = batch_space(observation, self.num_envs)
        self.action_space = batch_space(action, self.num_envs)

    # -- what a concrete batch fills in ------------------------------------------------------------------------------

    @abstractmethod
    def _seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        """Start the random streams of some rows, from entropy where the seed is None."""

    @abstractmethod
    def _begin(self, rows: np.ndarray[Any, Any], mask: Tensor) -> None:
        """Start new episodes in the registers of some rows, given as (N,) bool on the host and on the device."""

    @abstractmethod
    def _move(self, actions: Tensor, times: Tensor) -> tuple[Tensor, Info]:
        """Step the registers.

        :param actions: of the right shape, (N, *A)
        :param times: of the decisions, (N,), each below the horizon
        :return: rewards (N,), and what is to be told of the transition
        """

    @abstractmethod
    def _observed(self) -> Tensor:
        """:return: observations of the registers, (N, D)."""

    def _over(self) -> Tensor | None:
        """:return: which rows' tasks have ended before the horizon, (N,) bool; None: none's can."""
        return None

    def told(self) -> Info:
        """:return: what is to be told of the registers, with whichever observation belongs to them."""
        return {}

    # -- the protocol ------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Tensor, Info]:
        """See :meth:`BatchedEnv.reset`.

        ``options={"reset_mask": (N,) bool}`` starts new episodes in these rows only, and seeds only them.
        """
        given = (options or {}).get("reset_mask")
        rows = np.ones(self.num_envs, bool) if given is None else torch.as_tensor(given).bool().cpu().numpy()
        if rows.shape != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {rows.shape}, for {self.num_envs} rows")
        if seed is not None:
            seeds = row_seeds(seed, self.num_envs)
            chosen = [row for row in np.flatnonzero(rows).tolist() if seeds[row] is not None]
            self._seed(chosen, [seeds[row] for row in chosen])
        self._start(rows)
        if rows.all():
            self._needs_reset = False
        return self._observed(), self.told()

    def _start(self, rows: np.ndarray[Any, Any]) -> None:
        mask = torch.from_numpy(rows.copy()).to(self.device)
        self._clock[rows], self._early[rows] = 0, False
        for name in ("times", "returns"):
            self._registers[name] = self._registers[name].masked_fill(mask, 0)
        self._begin(rows, mask)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`.

        :raises gymnasium.error.ResetNeeded: there was no ``reset`` before the first step
        :raises ValueError: actions of a wrong shape, or on another device
        """
        if self._needs_reset:
            raise ResetNeeded("call reset() before the first step()")
        check_actions(self, actions)
        resting = (self._clock >= self.horizon) | self._early
        before, times = dict(self._registers), self._registers["times"]
        rewards, info = self._move(actions, times.clamp(max=self.horizon - 1) if resting.any() else times)
        self._registers["times"] = times + 1
        self._registers["returns"] = self._registers["returns"] + rewards
        if resting.any():
            rewards = self._rest(before, torch.from_numpy(resting).to(self.device), rewards)
        self._clock += ~resting
        ended = self._clock >= self.horizon
        at_end = torch.from_numpy(ended).to(self.device)
        terminated, truncated = at_end & (not self.truncates), at_end & self.truncates
        if (over := self._over()) is not None:
            terminated, truncated = terminated | over, truncated & ~over
            self._see_early()
            ended = ended | self._early
        final_obs = self._observed()
        self.final_info = told = self.told()
        info |= {
            "final_obs": final_obs,
            "episode": {"r": self._registers["returns"].clone(), "l": self._registers["times"].clone()},
        }
        obs = final_obs
        if self._autoreset and ended.any():
            self._start(ended)
            obs, told = self._observed(), self.told()
        return obs, rewards.to(self.dtype), terminated, truncated, info | told

    def _rest(self, before: dict[str, Tensor], resting: Tensor, rewards: Tensor) -> Tensor:
        """Put rows back that had ended before; :return: the rewards without theirs."""
        for name, old in before.items():
            mask = resting.view(-1, *[1] * (old.ndim - 1))
            self._registers[name] = torch.where(mask, old, self._registers[name])
        return rewards.masked_fill(resting, 0)

    def _see_early(self) -> None:
        over = self._over()
        if over is not None:
            self._early = over.cpu().numpy().copy()

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _by_row(self) -> dict[str, Tensor]:
        """:return: everything that changes from step to step, live, (N, …) each."""
        return dict(self._registers)

    def _in_common(self) -> dict[str, Tensor]:
        """:return: what else the future depends on, the same for all rows."""
        return {}

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        parts = {name: part.clone() if rows is None else part[rows] for name, part in self._by_row().items()}
        return parts | {name: part.clone() for name, part in self._in_common().items()}

    def load_state(self, state: dict[str, Tensor], rows: Tensor | None = None) -> None:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        parts, count = self._by_row(), self.num_envs if rows is None else len(rows)
        check_state(state, parts, count, common=self._in_common(), whole=rows is None)
        for name, most in self._limits().items():
            check_numbers(state[name], f"{name!r} of the state", 0, most)
        self._load_in_common(state, rows)
        chosen: Any = slice(None) if rows is None else rows
        for name, part in parts.items():
            part[chosen] = state[name].to(part.device)
        self._clock = self._registers["times"].cpu().numpy().copy()
        self._see_early()
        if count == self.num_envs:
            self._needs_reset = False

    def _limits(self) -> dict[str, int]:
        """:return: the largest number that a register may hold, by name."""
        return {"times": self.horizon}

    def _load_in_common(self, state: dict[str, Tensor], rows: Tensor | None) -> None:
        """Take up what all rows have in common, or raise a ValueError where only some are to be loaded."""

    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        for part in self._by_row().values():
            part[dst] = part[src]
        self._clock = self._registers["times"].cpu().numpy().copy()
        self._see_early()

    def reset_rows(self, mask: Tensor, *, seed: int | list[int | None] | None = None) -> tuple[Tensor, Info]:
        """See :class:`~headway.envs.batched.Resettable`."""
        return self.reset(seed=seed, options={"reset_mask": mask})


def first_row(info: Info) -> dict[str, Any]:
    """:return: what a batch of one row told, as arrays and NumPy's scalars."""
    return {name: np.array(part[0].cpu().numpy())[()] for name, part in info.items() if isinstance(part, Tensor)}


class RowEnv(gym.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]):
    """A row of a batch by itself. Seeded ``s + i`` it draws what row ``i`` of a batch seeded ``s`` draws.

    :param limit: where the batch cuts episodes; 0 leaves that to the ``TimeLimit`` wrapper, which gymnasium.make adds
    :param options: of the batch
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]
    batch_class: ClassVar[Callable[..., HorizonBatch]]

    def __init__(self, limit: int | None = 0, **options: Any) -> None:
        mode = AutoresetMode.DISABLED
        self.batch = type(self).batch_class(1, limit, dtype=torch.float64, autoreset_mode=mode, **options)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.Env.reset``."""
        super().reset(seed=seed)
        obs, _ = self.batch.reset(seed=None if seed is None else [seed])
        return obs[0].numpy(), {}

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``."""
        pushed = torch.from_numpy(np.array(action, np.float32)).unsqueeze(0)
        obs, reward, terminated, truncated, info = self.batch.step(pushed)
        ends = bool(terminated), bool(truncated)
        return obs[0].numpy(), float(reward), *ends, first_row({name: info[name] for name in self.batch.tells})

    def state(self) -> dict[str, Tensor]:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        return self.batch.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        self.batch.load_state(state)
