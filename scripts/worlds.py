"""The environment of a run: an id, and the delays it is met behind."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from gymnasium import Env
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from ..envs import BatchedEnv, is_batched, make, make_batched
from ..wrappers import BatchedRandomDelay, RandomDelay
from ..wrappers.delays import Within, parse_pair
from ..wrappers.random_delay import Form
from ..wrappers.specs import DELAYED, RANDOM_DELAY, changes, make_single

DELAYS = ("observation_delay", "action_delay", "form", "initial_action", "terminal_delivery")


@dataclass(frozen=True)
class World:
    """An environment to train or evaluate in.

    :param env_id: ``Id-v0`` or ``module:Id-v0``
    :param delay: laws of its delays, as for :func:`headway.wrappers.delays.parse_pair`; None: none
    :param form: what is observed behind delays
    :param initial_action: what acts behind delays before any action has arrived; None: zeros
    :param spec: how it is made, without the delays, where that is more than its id
    :param max_episode_steps: where episodes are cut, instead of the environment's own limit; None: there
    """

    env_id: str
    delay: str | None = None
    form: Form = "dict"
    initial_action: Any = None
    spec: EnvSpec | None = field(default=None, compare=False)
    max_episode_steps: int | None = None

    @classmethod
    def of_spec(cls, spec: EnvSpec) -> "World":
        """:return: the world of a spec that a policy was saved with; keywords and wrappers are kept."""
        spec, laws = copy.copy(spec), {}
        if spec.id == DELAYED:
            inner = EnvSpec(spec.kwargs["env_id"].rpartition(":")[2])
            inner.id, inner.kwargs = spec.kwargs["env_id"], dict(spec.kwargs)
            laws = {name: inner.kwargs.pop(name, None) for name in ("env_id", *DELAYS)}
            inner.additional_wrappers = tuple(w for w in spec.additional_wrappers if w.entry_point != RANDOM_DELAY)
            spec = inner
        elif spec.additional_wrappers and spec.additional_wrappers[-1].entry_point == RANDOM_DELAY:
            *wrappers, delays = spec.additional_wrappers
            spec.additional_wrappers, laws = tuple(wrappers), delays.kwargs or {}
        if not laws:
            return cls(spec.id, spec=spec)
        delay = f"{laws['observation_delay']},{laws['action_delay']}"
        return cls(spec.id, delay, laws.get("form") or "dict", laws.get("initial_action"), spec)

    @classmethod
    def of(cls, name: str) -> "World":
        """:return: the world of a name that ``str`` of one gave; an id is one."""
        env_id, *behind = name.split("@", 2)
        return cls(env_id, behind[1], behind[0]) if len(behind) == 2 else cls(name)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.env_id if self.delay is None else f"{self.env_id}@{self.form}@{self.delay}"

    @property
    def is_batched(self) -> bool:
        """Whether its rows step together as tensors."""
        return is_batched(self.env_id) and not (self.spec and self.spec.additional_wrappers)

    def single(self, **options: Any) -> Env[Any, Any]:
        """:return: one environment, made with options such as ``render_mode``."""
        if self.max_episode_steps is not None:
            options["max_episode_steps"] = self.max_episode_steps
        env = make(self.env_id, **options) if self.spec is None else make_single(self.spec, **options)
        if self.delay is None:
            return env
        return RandomDelay(env, *parse_pair(self.delay), self.initial_action, self.form)

    def batch(self, num_envs: int, device: torch.device | str = "cpu", threads: int = 0) -> BatchedEnv:
        """Make its batch.

        :param num_envs: rows
        :param device: where they are simulated
        :param threads: that step them on the CPU; 0: one per core
        :return: the batch
        """
        how = {} if self.spec is None else {k: v for k, v in changes(self.spec).items() if k != "render_mode"}
        if self.max_episode_steps is not None:
            how["max_episode_steps"] = self.max_episode_steps
        if self.delay is None:
            return make_batched(self.env_id, num_envs, device=device, num_threads=threads, **how)
        how["autoreset_mode"] = AutoresetMode.DISABLED
        rows = make_batched(self.env_id, num_envs, device=device, num_threads=threads, **how)
        return BatchedRandomDelay(rows, *parse_pair(self.delay), self.initial_action, self.form)

    def under(self, delay: str) -> "World":
        """Change the laws, but not what is observed, which depends on the longest delays.

        :param delay: the new laws
        :return: this environment behind them
        :raises ValueError: it has no delays to change, or the new ones are longer
        """
        if self.delay is None:
            raise ValueError(f"{self.env_id} has no delays to change: train with --delay to evaluate with --delays")
        laws = zip(parse_pair(delay), parse_pair(self.delay), strict=True)
        return replace(self, delay=",".join(str(Within(new, old.max)) for new, old in laws))
