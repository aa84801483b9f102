"""Numbers that are none: whose they are, which of them, and what to do."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..spaces import Obs, ObservationCodec


class NonFiniteError(ValueError):
    """An environment returned NaN or infinity; nothing of that step was stored."""


class DivergedError(NonFiniteError):
    """The agent's own numbers are NaN or infinite: weights, actions or losses. Nothing of it was stored or saved."""


class Learner(Protocol):
    """What is asked of an agent to say what is wrong with it."""

    num_timesteps: int
    last_checkpoint: Path | None

    def broken_weights(self) -> str | None:
        """:return: the name of a network's tensor that is not finite; None: all are."""


class Seer(Protocol):
    """What is asked of an agent to say what is wrong with its environment."""

    codec: ObservationCodec

    @property
    def env_id(self) -> str | None:
        """What the environment is called."""


def sums_of(chosen: Mapping[str, Tensor]) -> list[Tensor]:
    """:return: scalars that are finite only if all floats in there are."""
    return [values.sum() for values in chosen.values() if values.is_floating_point()]


def check_chosen(agent: Learner, chosen: Mapping[str, Tensor]) -> None:
    """Refuse what a policy chose that has become NaN; nothing happens where only a sum was too large.

    :param agent: whose policy
    :param chosen: as of ``choose``, (N, …) each
    :raises DivergedError: naming the first number
    """
    for name, values in chosen.items():
        if not values.is_floating_point():
            continue
        numbers = values.reshape(len(values), -1)
        bad = (~torch.isfinite(numbers)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            what = "action" if name == "actions" else f"{name} of its action"
            raise diverged(agent, f"its {what} for environment {row} is {numbers[row, column].item()}")


def diverged(agent: Learner, what: str) -> DivergedError:
    """:return: the error for an agent whose own numbers are none: which, since when, and what can be done."""
    weights = agent.broken_weights()
    holds = f", its weights {weights} are not finite" if weights and weights not in what else ""
    last = agent.last_checkpoint
    saved = "no checkpoint was saved before" if last is None else f"the last checkpoint, {last}, is still finite"
    return DivergedError(
        f"{type(agent).__name__} has diverged after {agent.num_timesteps:,} steps: {what}{holds}; nothing of it was "
        f"stored or saved; {saved}; train with a smaller learning_rate or max_grad_norm, or scale rewards and "
        "observations down"
    )


def check_losses(agent: Learner, means: Mapping[str, float]) -> None:
    """Refuse to go on with losses that are none.

    :param agent: whose losses
    :param means: of logged metrics, by name
    :raises DivergedError: one that is called a loss is not finite
    """
    for name, value in means.items():
        if name.endswith("loss") and not math.isfinite(value):
            raise diverged(agent, f"its {name} is {value}")


def first_broken(tensors: Mapping[str, Tensor]) -> str | None:
    """:return: the name of the first tensor that holds NaN or infinity; None: there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def check_shown(agent: Seer, when: str, shown: list[Obs], rewards: Tensor | None = None) -> None:
    """Refuse what an environment shows; nothing happens where only a sum was too large.

    :param agent: who sees it
    :param when: it was shown
    :param shown: encoded observations, (N, *O) each
    :param rewards: (N,)
    :raises NonFiniteError: naming the first number
    """
    found: list[tuple[str, Any]] = [] if rewards is None else [("reward", rewards.unsqueeze(1))]
    found += [("", part.flatten(1)) for obs in shown for part in agent.codec.numbers(obs).values()]
    for name, values in found:
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise NonFiniteError(
                f"environment {row} ({agent.env_id or 'no id'}) returned {name or agent.codec.locate(column)} = "
                f"{values[row, column].item()} {when}: nothing of this step was stored; "
                "mend the environment, then resume from the last checkpoint"
            )
