"""From costs to rewards, and from one data set to another."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.data.dataset import Dataset
from ..core.files.contents import versions
from .config import Constants, RelabelConfig
from .costs import EpisodeCosts, compare
from .states import Problem, prepare

RANGE = 1000.0
"""What the returns of a data set's best and worst episode are apart after scaling (as in IQL, arXiv 2110.06169)."""


@dataclass(frozen=True)
class Labels:
    """Rewards, and how they came about.

    :param rewards: of each step, (R,) float64
    :param demonstration: the one that each episode was nearest to, (E,) int64; -1 where there is none
    :param cost: mean over the steps of its cost, (E,)
    :param column_error: of its plan, (E,); NaN where there is none
    :param scale: by which rewards were multiplied
    :param constants: of the squashing
    """

    rewards: Tensor
    demonstration: Tensor
    cost: Tensor
    column_error: Tensor
    scale: float
    constants: Constants

    def record(self) -> dict[str, Any]:
        """:return: what there is to know of each episode, in JSON's terms."""
        return {
            "demonstration": [None if number < 0 else number for number in self.demonstration.tolist()],
            "cost": _rounded(self.cost),
            "column_error": _rounded(self.column_error),
        }


def _rounded(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else float(f"{value:.6g}") for value in values.tolist()]


def squash(costs: Tensor, config: RelabelConfig, constants: Constants) -> Tensor:
    """Make rewards of costs: more for less.

    :param costs: in [0, 2]
    :param config: whether exponentially
    :param constants: alpha, beta and its divisor
    :return: alpha exp(-beta c / divisor), or -alpha c / 1000 (the authors' pseudo-reward is -c / 1000)
    """
    if config.squash == "linear":
        return -constants.alpha * costs / RANGE
    return constants.alpha * torch.exp(-constants.beta * costs / constants.divisor)


def label(dataset: Dataset, problem: Problem, found: Mapping[int, EpisodeCosts]) -> Labels:
    """Make rewards of what was found.

    Of several demonstrations each episode keeps the rewards of the one that gives it most, all of them; or the mean of
    the ``top_k`` that do.

    :param dataset: what is labelled
    :param problem: the same, with the configuration
    :param found: what each episode costs; nothing, where nothing is compared
    :return: the labels
    """
    config = problem.config
    constants = config.constants(dataset.env_id, problem.numbers)
    episodes = dataset.episodes
    chosen = torch.full((episodes,), -1)
    cost, error = (torch.full((episodes,), math.nan, dtype=torch.float64) for _ in range(2))
    rewards = dataset.rewards if config.method == "ground-truth" else torch.ones(len(dataset), dtype=torch.float64)
    if config.needs_demonstrations:
        parts = []
        for i in range(episodes):
            squashed = squash(found[i].costs.double(), config, constants)  # (K, N)
            order = squashed.sum(1).argsort(descending=True, stable=True)
            parts.append(squashed[order[: config.top_k]].mean(0))
            chosen[i] = k = int(order[0])
            cost[i], error[i] = found[i].costs[k].double().mean(), found[i].column_error[k]
        rewards = torch.cat(parts)
    returns = dataset.with_rewards(rewards).returns
    apart = float(returns.max() - returns.min())
    scale = RANGE / apart if constants.scaled and apart > 0 else 1.0  # all alike: there is nothing to scale by
    rewards = rewards * scale + constants.bias
    if config.method == "shuffled":
        rewards = rewards[torch.randperm(len(rewards), generator=torch.Generator().manual_seed(config.seed))]
    return Labels(rewards, chosen, cost, error, scale, constants)


def relabel(
    dataset: Dataset,
    demonstrations: Dataset | None = None,
    config: RelabelConfig | None = None,
    *,
    workers: int = 1,
    device: str = "cpu",
    done: Mapping[int, EpisodeCosts] | None = None,
    on_episode: Callable[[int, EpisodeCosts], None] | None = None,
) -> Dataset:
    """Label a data set's steps by how near they come to demonstrations.

    Its own rewards are not looked at, but by the method ``ground-truth``.

    :param dataset: it stays as it is
    :param demonstrations: episodes to compare with, see :func:`~headway.agents.relabelling.best`; None where the method
        needs none
    :param config: how
    :param workers: processes on a CPU. More than one start this program's main module again, which must therefore begin
        with ``if __name__ == "__main__"``
    :param device: where to compute
    :param done: costs of episodes that are known already
    :param on_episode: called with number and costs of each other one
    :return: the same steps with other rewards; ``about["relabelling"]`` says how, and what each episode was
        matched with
    :raises ValueError: the two do not fit each other or the configuration
    """
    config = config or RelabelConfig()
    problem = prepare(dataset, demonstrations, config)
    found = dict(done or {})
    if config.needs_demonstrations:
        todo = [i for i in range(dataset.episodes) if i not in found]
        for i, costs in compare(problem, todo, workers=workers, device=device):
            found[i] = costs
            if on_episode is not None:
                on_episode(i, costs)
    labels = label(dataset, problem, found)
    about = provenance(dataset, demonstrations if config.needs_demonstrations else None, config, labels, device)
    return replace(dataset.with_rewards(labels.rewards), about={**dataset.about, "relabelling": about})


def provenance(
    dataset: Dataset, demonstrations: Dataset | None, config: RelabelConfig, labels: Labels, device: str
) -> dict[str, Any]:
    """:return: where labels come from, in JSON's terms."""
    constants = labels.constants
    given = None
    if demonstrations is not None:
        numbers = demonstrations.about.get("episodes", list(range(demonstrations.episodes)))
        given = {
            "name": demonstrations.name,
            "episodes": numbers,
            "lengths": demonstrations.lengths.tolist(),
            "returns": _rounded(demonstrations.returns),
        }
    return {
        "source": dataset.name,
        "source_relabelling": dataset.about.get("relabelling"),
        "config": config.to_dict(),
        "constants": {**vars(constants), "scale": labels.scale},
        "demonstrations": given,
        "device": device,
        "versions": versions(),
        "episodes": labels.record(),
    }
