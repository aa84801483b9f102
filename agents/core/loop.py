"""The training loop: rounds of data, the gradient steps that follow them, counting, logging; stoppable at any step."""

import time
from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, safe_mean
from torch import Tensor

from ...envs.schema import array, each, either, flag, group, maybe, real, row, text, whole
from .config import AgentConfig
from .data import Collector, check_losses, first_broken
from .files.contents import Stateful
from .logging import Metrics
from .nets import TrackedModules


@dataclass(frozen=True)
class Part:
    """Two functions as a :class:`Stateful`.

    :param state: copies
    :param load_state: puts back
    """

    state: Callable[[], Any]
    load_state: Callable[[Any], None]


_COUNTERS = group(
    {
        "num_timesteps": whole(),
        "total_timesteps": whole(),
        "episodes": whole(),
        "updates": whole(),
        "pending": each(row(text(), whole(1))),
        "progress_remaining": real(high=1),
        "seed": maybe(whole(0, 2**32 - 1)),
    }
)
_EPISODES = group(
    {
        "infos": maybe(
            each(group({"r": either(array(()), real()), "l": either(array((), low=0), whole())}, others=True))
        ),
        "successes": maybe(each(either(flag, array(()), real()))),
    }
)


class LearningLoop(BaseAlgorithm):
    """What ``learn`` does. A round of data is gathered, then the gradient steps that it brings are worked off.

    Both keep their place in what :meth:`register` has put into checkpoints, so that a run can be stopped in the middle
    of a round, or between two gradient steps of many.
    """

    config: AgentConfig
    collector: Collector
    modules: TrackedModules
    metrics: Metrics
    last_checkpoint: Path | None
    _pending: list[tuple[str, int]]
    _left_at: Any

    # -- what an agent fills in --------------------------------------------------------------------------------------

    @abstractmethod
    def _make_collector(self) -> Collector:
        """:return: the source of the agent's data."""

    @abstractmethod
    def _update(self, phase: str) -> dict[str, Tensor]:
        """Take one gradient step.

        :param phase: which of those that :meth:`phases` named
        :return: scalars to log, as tensors
        """

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """Say what follows a round of data.

        :param collected: environment steps of the round
        :return: phases in their order, with the number of gradient steps of each
        """
        return self.schedule(collected)

    def describe_round(self) -> str:
        """:return: what a person should be told of the round of data that has just ended; "": nothing"""
        return ""

    def schedule(self, steps: int) -> Sequence[tuple[str, int]]:
        """:return: the phases that so many gradient steps pass through; one phase, unless an agent has several."""
        return [("update", steps)]

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train.

        :param total_timesteps: environment steps, over all rows together; more of them when
            ``reset_num_timesteps`` is False. The last round is finished, and may overstep them.
        :param callback: Stable-Baselines3 callbacks
        :param log_interval: episodes between log lines; None leaves logging to callbacks
        :param tb_log_name: name of the run under ``tensorboard_log``; the class's name by default
        :param reset_num_timesteps: start counting, and a new episode, afresh
        :param progress_bar: show Stable-Baselines3's progress bar
        :return: the agent
        :raises headway.agents.NonFiniteError: the environment returned NaN or infinity
        :raises headway.agents.DivergedError: the agent's own actions or losses did
        """
        self._log_interval = log_interval
        if not float(total_timesteps).is_integer():  # nor are NaN and infinity
            raise ValueError(f"total_timesteps must be a whole number, got {total_timesteps}")
        total_timesteps = int(total_timesteps)  # 1e5, as it is often written
        total_timesteps, callbacks = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callbacks.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps or self.collector.in_progress or self._pending:
            if not self._pending and not self.collector.collect(callbacks):
                break
            if not self._work_off():
                break
        callbacks.on_training_end()
        self._left_at = self._counts()
        return self

    def train(self, steps: int) -> Self:
        """Take gradient steps on the data that are there, outside of ``learn``.

        :param steps: how many
        :return: the agent
        """
        self.stop_requested = False
        self._pending += self.schedule(steps)
        self._work_off()
        return self

    def end_round(self, collected: int) -> None:
        """Set what follows a round of data.

        :param collected: environment steps of the round
        """
        self._pending = [(phase, steps) for phase, steps in self.phases(collected) if steps > 0]

    def end_phase(self) -> None:
        """From within :meth:`_update`: leave out what is left of the phase."""
        self._pending[0] = (self._pending[0][0], 1)

    def _work_off(self) -> bool:
        """Take the gradient steps that are due; False when stopped between two of them."""
        while self._pending:
            if self.stop_requested:
                return False
            if self.config.learning_rate_schedule != "constant":
                self.modules.scale_learning_rates(self.config.rate_left(self.progress_remaining))
            begun = time.perf_counter()
            self.metrics.add(self._update(self._pending[0][0]))
            self._n_updates += 1
            phase, left = self._pending.pop(0)  # only now: an update may have changed it, or failed
            self.seconds[phase] += time.perf_counter() - begun
            if left > 1:
                self._pending.insert(0, (phase, left - 1))
        return True

    @property
    def pending_updates(self) -> int:
        """Gradient steps that are due."""
        return sum(steps for _, steps in self._pending)

    @property
    def updates(self) -> int:
        """Gradient steps taken."""
        return int(self._n_updates)

    @property
    def total_timesteps(self) -> int:
        """Steps that the last ``learn`` was asked for, those before it included."""
        return int(self._total_timesteps)

    @property
    def current_learning_rate(self) -> float:
        """The step size at this point of the schedule."""
        return self.config.learning_rate * self.config.rate_left(self.progress_remaining)

    @property
    def progress_remaining(self) -> float:
        """Share of ``total_timesteps`` that is still to come, from 1 to 0."""
        return max(self._current_progress_remaining, 0.0)

    @property
    def remaining_timesteps(self) -> int:
        """Steps still missing to the ``total_timesteps`` of the last ``learn``."""
        return max(self._total_timesteps - self.num_timesteps, 0)

    def request_stop(self) -> None:
        """Ask ``learn`` to return where it can be continued exactly. Safe in a signal handler."""
        self.stop_requested = True

    def broken_weights(self) -> str | None:
        """:return: the name of a network's tensor, moments included, that holds NaN or infinity; None: none does."""
        return first_broken(self.modules.state())

    # -- state -------------------------------------------------------------------------------------------------------

    def _begin_loop(self) -> None:
        """Start with nothing done, and register what the loop itself has to remember."""
        self.stop_requested = False
        self._pending = []
        self._left_at = None
        self.parts: dict[str, Stateful] = {}
        self.run_numbers: dict[Path, int] = {}  # by the folder of checkpoints, where other runs may have saved too
        self.metrics = Metrics(self.device)
        self.seconds: defaultdict[str, float] = defaultdict(float)  # that phases have taken, in this process
        self.register("counters", Part(self._counters, self._load_counters))
        self.register("episodes", Part(self._episodes, self._load_episodes))
        self.register("metrics", self.metrics)
        self.register("collector", Part(self._collected, self._load_collected))

    def register(self, name: str, part: Stateful) -> None:
        """Put state of the agent's own into checkpoints: a store, a population, a tree.

        :param name: its name there: letters, digits and underscores
        :param part: what has ``state()`` and ``load_state(state)``; put back in the order of registration
        :raises ValueError: the name is taken
        """
        if name in self.parts:
            raise ValueError(f"{type(self).__name__} has registered a part {name!r} already")
        self.parts[name] = part

    def _counters(self) -> dict[str, Any]:
        return {
            "num_timesteps": self.num_timesteps,
            "total_timesteps": self._total_timesteps,
            "episodes": self._episode_num,
            "updates": self._n_updates,
            "pending": [list(item) for item in self._pending],
            "progress_remaining": self._current_progress_remaining,
            "seed": self.seed,
        }

    def _load_counters(self, state: Mapping[str, Any]) -> None:
        _COUNTERS(state, "the counters")
        self.num_timesteps, self._total_timesteps = state["num_timesteps"], state["total_timesteps"]
        self._episode_num, self._n_updates, self.seed = state["episodes"], state["updates"], state["seed"]
        self._pending = [(phase, steps) for phase, steps in state["pending"]]
        self._current_progress_remaining = state["progress_remaining"]

    def _collected(self) -> dict[str, Any]:
        return self.collector.state()

    def _load_collected(self, state: Mapping[str, Any]) -> None:
        self.collector.load_state(state)

    def _episodes(self) -> dict[str, Any]:
        infos, successes = self.ep_info_buffer, self.ep_success_buffer
        return {
            "infos": None if infos is None else [dict(info) for info in infos],
            "successes": None if successes is None else list(successes),
        }

    def _load_episodes(self, state: Mapping[str, Any]) -> None:
        _EPISODES(state, "the episodes")
        for name, saved in (("ep_info_buffer", state["infos"]), ("ep_success_buffer", state["successes"])):
            setattr(self, name, None if saved is None else deque(saved, maxlen=self._stats_window_size))

    # -- counting and logging ----------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise ValueError(
                f"{type(self).__name__} has no environment to learn in: pass one to the constructor or set_env"
            )
        self.start_time = time.time_ns()
        self.stop_requested = False
        if self.ep_info_buffer is None or reset_num_timesteps:
            self.ep_info_buffer = deque(maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        if reset_num_timesteps:
            if self.num_timesteps:
                self.run_numbers = {}  # another run than was saved
            self.num_timesteps = self._episode_num = 0
            self._pending = []
            self.collector = self._make_collector()
        else:
            total_timesteps += self.num_timesteps
        self._total_timesteps = total_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        if reset_num_timesteps or self._last_obs is None:
            self._reset_env()
        elif self._left_at not in (None, self._counts()):
            self.interrupt()  # somebody stepped the environments meanwhile
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        return total_timesteps, self._init_callback(callback, progress_bar)

    @abstractmethod
    def _reset_env(self, seeds: list[int | None] | None = None) -> None:
        """Start new episodes."""

    @abstractmethod
    def interrupt(self) -> None:
        """Start new episodes in the midst of a round."""

    def _counts(self) -> Any:
        """:return: how far the environments have gone, as far as they tell."""
        return None

    def count(self, dones: np.ndarray[Any, Any], infos: list[dict[str, Any]], rows: int) -> None:
        """Count a step of all environments and the episodes that ended in it, and log when it is time.

        :param dones: which rows ended, (N,)
        :param infos: one dict per row, with ``episode`` where it ended
        :param rows: how many are transitions; the others only did a delayed reset
        """
        self.num_timesteps += rows
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        if not np.count_nonzero(dones):
            return
        ended = np.flatnonzero(dones)
        self._update_info_buffer([infos[row] for row in ended], dones[ended])
        before = self._episode_num
        self._episode_num += len(ended)
        self._log_between(before, self._episode_num)

    def _log_between(self, before: int, now: int) -> None:
        """Write a line if a multiple of the log interval was passed; once, however many were."""
        if self._log_interval is not None and now // self._log_interval > before // self._log_interval:
            self.dump_logs()

    def _distributions(self) -> dict[str, Tensor]:
        """:return: numbers to show as histograms in TensorBoard, by their full names."""
        return {}

    def dump_logs(self) -> None:
        """Write one line of progress to the logger, under Stable-Baselines3's names."""
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        record = self.logger.record
        record("time/episodes", self._episode_num, exclude="tensorboard")
        if self.ep_info_buffer:
            record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        if len(self.seconds) > 1:
            for phase, seconds in self.seconds.items():
                record(f"time/{phase}", round(seconds, 1), exclude="tensorboard")
        if self._n_updates:
            record("train/n_updates", self._n_updates, exclude="tensorboard")
            record("train/learning_rate", self.current_learning_rate)
        means = self.metrics.flush()
        for name, value in means.items():
            record(name if "/" in name else f"train/{name}", value)
        for name, values in self._distributions().items():
            record(name, values, exclude=("stdout", "log", "json", "csv"))
        self.logger.dump(step=self.num_timesteps)
        check_losses(self, means)
