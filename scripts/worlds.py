"""The environment of a run: an id, and the delays it is met behind, in one name that a saved policy can carry."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium import Env
from gymnasium.vector import AutoresetMode

from ..envs import BatchedEnv, is_batched, make, make_batched
from ..wrappers import BatchedRandomDelay, RandomDelay
from ..wrappers.delays import Within, parse_pair
from ..wrappers.random_delay import Form


@dataclass(frozen=True)
class World:
    """An environment to train or evaluate in.

    :param env_id: ``Id-v0`` or ``module:Id-v0``
    :param delay: laws of its delays, as for :func:`headway.wrappers.delays.parse_pair`; None: none
    :param form: what is observed behind delays
    """

    env_id: str
    delay: str | None = None
    form: Form = "dict"

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
        return is_batched(self.env_id)

    def single(self, **options: Any) -> Env[Any, Any]:
        """:return: one environment, made with options such as ``render_mode``."""
        env = make(self.env_id, **options)
        return env if self.delay is None else RandomDelay(env, *parse_pair(self.delay), form=self.form)

    def batch(self, num_envs: int, device: torch.device | str = "cpu", threads: int = 0) -> BatchedEnv:
        """Make its batch.

        :param num_envs: rows
        :param device: where they are simulated
        :param threads: that step them on the CPU; 0: one per core
        :return: the batch
        """
        if self.delay is None:
            return make_batched(self.env_id, num_envs, device=device, num_threads=threads)
        rows = make_batched(
            self.env_id, num_envs, device=device, num_threads=threads, autoreset_mode=AutoresetMode.DISABLED
        )
        return BatchedRandomDelay(rows, *parse_pair(self.delay), form=self.form)

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
