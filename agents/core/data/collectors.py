"""Collectors: where an agent's data come from. Each keeps its place in its state, so that any stop can be continued."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from ....envs.schema import LARGEST, group, whole
from .stepping import Host, take_step


class Collector(Protocol):
    """What ``learn`` asks of a source of data, be it environment steps, whole episodes of a population, or a dataset.

    ``collect`` gathers one round of data, calls ``callback.on_rollout_start()`` before it, ``update_locals(locals())``
    and ``on_step()`` after every step (with local variables ``dones`` and ``infos``, which stock callbacks read) and
    ``on_rollout_end()`` after it. Whenever it calls ``on_step``, and whenever it returns, the agent is in a state that
    a checkpoint can hold: the step is stored, counted and logged. It returns False as soon as a callback, or
    ``agent.request_stop()``, asks to stop; the next call then goes on with the same round.
    """

    @property
    def in_progress(self) -> bool:
        """A round has begun and not ended."""

    def collect(self, callback: BaseCallback) -> bool:
        """:return: True when the round is complete, False when it was stopped inside it."""

    def state(self) -> dict[str, Any]:
        """:return: the place in the round."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to that place."""


class StepCollector:
    """Steps the environments; a round is so many steps of each, or so many episodes.

    :param host: the agent
    :param length: of a round
    :param unit: what it is counted in
    """

    def __init__(self, host: Host, length: int, unit: Literal["step", "episode"] = "step") -> None:
        self.host, self.length, self.unit = host, length, unit
        self.steps = 0
        self.episodes = 0
        self.rows = 0
        self.owed = 0
        """Gradient steps, times the length of a round, that rows which were no transitions have held back."""
        self._blank: list[dict[str, Any]] = [{} for _ in range(host.n_envs)]

    @property
    def in_progress(self) -> bool:
        """See :class:`Collector`."""
        return self.steps > 0

    @property
    def complete(self) -> bool:
        """The round has all its steps or episodes."""
        return (self.steps if self.unit == "step" else self.episodes) >= self.length

    def collect(self, callback: BaseCallback) -> bool:
        """See :class:`Collector`."""
        host = self.host
        if not self.in_progress:
            callback.on_rollout_start()
        while not self.complete:
            if host.stop_requested:
                return False
            host.keep_environment()
            step = take_step(host, host.choose(), self._blank)
            self.steps += 1
            self.rows += step.rows
            self.episodes += int(np.count_nonzero(step.dones))
            callback.update_locals({"dones": step.dones, "infos": step.infos, "rewards": step.host_rewards})
            if not callback.on_step():
                return False
        callback.on_rollout_end()
        host.end_round(self.rows)
        self.steps = self.episodes = self.rows = 0
        return True

    def share(self, steps: int, collected: int) -> int:
        """Share out gradient steps of a round by its transitions; what is left of one is owed to the next round.

        :param steps: per row of a whole round
        :param collected: transitions of this one
        :return: gradient steps that are due
        """
        if self.unit == "episode":
            return steps * self.host.n_envs
        due, self.owed = divmod(self.owed + steps * collected, self.length)
        return due

    def state(self) -> dict[str, Any]:
        """See :class:`Collector`."""
        return {"steps": self.steps, "episodes": self.episodes, "rows": self.rows, "owed": self.owed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Collector`."""
        most = self.length if self.unit == "step" else LARGEST
        counts = {"steps": whole(0, most), "episodes": whole(), "rows": whole(), "owed": whole()}
        group(counts, optional=("rows", "owed"))(state, "the collector")  # earlier versions did not count them
        self.steps, self.episodes = state["steps"], state["episodes"]
        self.rows, self.owed = state.get("rows", self.steps * self.host.n_envs), state.get("owed", 0)


class Learner(Protocol):
    """What :class:`GradientSteps` asks of an agent."""

    stop_requested: bool

    def begin_gradient_step(self) -> None:
        """Count a gradient step, and make it the next thing to do."""


class GradientSteps:
    """No data: a step is a gradient step on data that are there already, for agents that learn without an environment.

    :param host: the agent
    """

    in_progress = False

    def __init__(self, host: "Learner") -> None:
        self.host = host

    def collect(self, callback: BaseCallback) -> bool:
        """See :class:`Collector`."""
        host = self.host
        if host.stop_requested:
            return False
        callback.on_rollout_start()
        host.begin_gradient_step()
        callback.update_locals({"dones": np.zeros(1, bool), "infos": [{}]})
        go_on = callback.on_step()
        callback.on_rollout_end()
        return go_on

    def state(self) -> dict[str, Any]:
        """See :class:`Collector`."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Collector`."""
        group({})(state, "the collector")
