"""A population of policies as one matrix: each member a row, each layer of all of them a view of it."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from ...envs.batched import BatchedEnv
from ..core.data import Episodes, Turn, run_episodes
from ..core.nets import Actor, StackedMLP
from ..core.spaces import Actions, Obs, ObservationCodec


def flatten(actor: nn.Module) -> Tensor:
    """:return: all weights of a network as one vector, (D,), in torch's order of parameters"""
    return torch.cat([parameter.detach().reshape(-1) for parameter in actor.parameters()])


@torch.no_grad()
def unflatten(vector: Tensor, actor: nn.Module) -> None:
    """Write weights into a network.

    :param vector: (D,)
    :param actor: of the architecture that they were taken from
    :raises ValueError: another number of weights
    """
    sizes = [parameter.numel() for parameter in actor.parameters()]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"the network has {sum(sizes)} weights, got a vector of shape {tuple(vector.shape)}")
    for parameter, part in zip(actor.parameters(), torch.split(vector, sizes), strict=True):
        parameter.copy_(part.view(parameter.shape))


class Population:
    """P policies of one architecture, evaluated together: one product per layer, whatever P.

    The weights of the stacked network are views of ``members``: writing into the one is writing into the other.

    :param single: a policy of the architecture; its features have no weights
    :param members: (P, D), see :func:`flatten`
    :raises ValueError: another number of weights, or features that have some
    """

    def __init__(self, single: Actor, members: Tensor) -> None:
        if any(True for _ in single.features.parameters()):
            raise ValueError("a population reads vectors: networks that read images have weights of their own to learn")
        mlp = single.mlp
        sizes = [parameter.numel() for parameter in mlp.parameters()]
        if members.dim() != 2 or members.shape[1] != sum(sizes):
            raise ValueError(f"members must be (P, {sum(sizes)}), got {tuple(members.shape)}")
        self.single, self.members = single, members
        inputs, widths = mlp.weights[0].shape[0], [weight.shape[1] for weight in mlp.weights]
        stack = () if len(members) == 1 else (len(members),)  # one alone acts to the bits of its own network
        with torch.device("meta"):  # where nothing is drawn, since nothing is kept
            stacked = StackedMLP(stack, inputs, widths[-1], widths[:-1], mlp.activation, mlp.precision)
        for (name, own), part in zip(mlp.named_parameters(), torch.split(members, sizes, 1), strict=True):
            layers, _, index = name.partition(".")
            view = part.view(*stack, *own.shape)
            stacked.get_submodule(layers)[int(index)] = nn.Parameter(view, requires_grad=False)  # type: ignore[operator]
        self.actors = deepcopy(single).requires_grad_(False)
        self.actors.mlp, self.actors.stack = stacked, stacked.stack

    def of(self, episodes: Tensor, each: int) -> "Population":
        """Say who acts in the rows of a batch.

        :param episodes: numbers of the rows' episodes, which follow one another, (N,) int64
        :param each: episodes of a member
        :return: so many members that each has the same number of rows; of the same weights where rows are the members'
            in turn, and else a copy for each row
        """
        first, rows = int(episodes[0]), len(episodes)
        if first % each == 0 and rows % each == 0 and first + rows <= len(self) * each:
            return Population(self.single, self.members[first // each : (first + rows) // each])
        return Population(self.single, self.members[episodes // each])

    def __len__(self) -> int:
        return len(self.members)

    def act(self, obs: Tensor) -> Tensor:
        """Choose actions.

        :param obs: encoded, the same number of rows for each member, one member after the other, (P E, O)
        :return: in [-1, 1], (P E, A)
        """
        if len(self) == 1:
            return self.actors.mode(obs)
        rows = obs.view(len(self), -1, obs.shape[-1])  # (P, E, O)
        return self.actors.mode(rows).flatten(0, 1)


@torch.no_grad()
def evaluate(
    population: Population,
    env: BatchedEnv,
    codec: ObservationCodec,
    actions: Actions,
    *,
    episodes: int = 1,
    horizon: int | None = None,
    seed: int | None = None,
    keep: bool = False,
) -> tuple[Tensor, Episodes]:
    """Let every member play whole episodes, all at the same time; rows that are done rest.

    Episode ``e`` of member ``p`` starts as a single environment that is reset with ``seed + p * episodes + e`` does,
    whatever the number of rows.

    :param population: P members
    :param env: the batch, best of ``P * episodes`` rows, or of a multiple of ``episodes`` that divides that
    :param codec: of observations
    :param actions: of the action space
    :param episodes: E, per member
    :param horizon: steps after which an episode is cut; None: never
    :param seed: of the first episode; None goes on with the random streams as they are
    :param keep: the steps, see :func:`run_episodes`
    :return: the mean return of each member, (P,) float64, and the episodes
    """
    round_, acting = torch.empty(0), population

    def act(obs: Obs, turn: Turn) -> Tensor:
        nonlocal round_, acting
        if round_ is not turn.episodes:
            round_, acting = turn.episodes, population.of(turn.episodes, episodes)
        encoded = codec.encode(obs, population.members.device)
        assert isinstance(encoded, Tensor)
        return actions.to_env(acting.act(encoded)).to(env.device)

    played = run_episodes(env, act, episodes=len(population) * episodes, horizon=horizon, seed=seed, keep=keep)
    return played.returns.view(-1, episodes).mean(1), played
