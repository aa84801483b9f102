"""What agents that maximise entropy share: the temperature, fixed or learned."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, TypeVar, cast

import torch
from torch import Tensor

from .config import AgentConfig, OffPolicyConfig, Range
from .nets import Temperature
from .off_policy import OffPolicyAgent


@dataclass(frozen=True, kw_only=True)
class EntropyConfig(OffPolicyConfig):
    """What agents add that weigh entropy against reward."""

    live = OffPolicyConfig.live | {"ent_coef", "target_entropy"}

    ent_coef: Annotated[float, Range(0)] | str = "auto"
    """Entropy temperature: a number keeps it fixed, "auto" learns it from 1, "auto_0.1" learns it from 0.1."""

    target_entropy: float | str = "auto"
    """Entropy, in nats, that a learned temperature steers towards; "auto" is minus the number of action dimensions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ent_coef, str):
            self.initial_alpha()
        if isinstance(self.target_entropy, str) and self.target_entropy != "auto":
            raise ValueError(
                f"{type(self).__name__}.target_entropy must be a number or 'auto', got {self.target_entropy!r}"
            )

    @property
    def learns_alpha(self) -> bool:
        """Whether the temperature is learned."""
        return isinstance(self.ent_coef, str)

    def initial_alpha(self) -> float:
        """:return: the temperature to start from."""
        if not isinstance(self.ent_coef, str):
            return float(self.ent_coef)
        kind, _, initial = self.ent_coef.partition("_")
        try:
            value = float(initial or 1.0)
        except ValueError:
            value = -1.0
        if kind != "auto" or not 0 < value < float("inf"):
            raise ValueError(
                f"{type(self).__name__}.ent_coef must be a number, 'auto' or 'auto_<positive number>', "
                f"got {self.ent_coef!r}"
            )
        return value

    def check_change(self, before: "EntropyConfig") -> None:
        """See that a change leaves a fixed temperature fixed, and a learned one learned.

        :param before: the configuration until now
        :raises AttributeError: it does not
        """
        if self.ent_coef != before.ent_coef and (self.learns_alpha or before.learns_alpha):
            raise AttributeError(
                f"ent_coef is {before.ent_coef!r} and cannot become {self.ent_coef!r} once the agent is built: set "
                "agent.temperature.module.log_alpha, or make another by load(path, env, ent_coef=…)"
            )

    def entropy_goal(self, action_dim: int) -> float:
        """:return: the entropy to steer towards, in nats, for actions of so many dimensions."""
        return -float(action_dim) if self.target_entropy == "auto" else float(self.target_entropy)


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """J(alpha) = E[-log(alpha) (log pi(a|s) + target entropy)]: raises alpha while the entropy is below its target.

    :param log_alpha: (*stack)
    :param log_prob: of actions drawn from the current policy, (*stack, B)
    :param target_entropy: in nats
    :return: scalar
    """
    return (-log_alpha * (log_prob.detach().mean(-1) + target_entropy)).sum()


C = TypeVar("C", bound=EntropyConfig)


class EntropyAgent(OffPolicyAgent[C]):
    """An agent that weighs entropy against reward, by a temperature that is fixed or learned."""

    loads_afresh = MappingProxyType({"ent_coef": "temperature"})

    def _track_temperature(self, stack: tuple[int, ...] = ()) -> None:
        """Register the temperature, or keep a fixed one.

        :param stack: axes of members, each with one of its own
        """
        self._alpha_shape = stack
        if self.config.learns_alpha:
            self.temperature = self.track("temperature", Temperature(self.config.initial_alpha(), stack))
        self._fix_alpha()

    def _fix_alpha(self) -> None:
        self._fixed_alpha = torch.full(self._alpha_shape, self.config.initial_alpha(), device=self.device)

    def _config_changed(self, before: AgentConfig) -> None:
        self.config.check_change(cast(EntropyConfig, before))
        super()._config_changed(before)
        self._fix_alpha()
