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
    :param of_many: of a single member: act to the bits that it would as one of several, for which products in a batch
        take another way than a product alone
    :raises ValueError: another number of weights, or features that have some
    """

    def __init__(self, single: Actor, members: Tensor, of_many: bool = False) -> None:
        if any(True for _ in single.features.parameters()):
            raise ValueError("a population reads vectors: networks that read images have weights of their own to learn")
        mlp = single.mlp
        sizes = [parameter.numel() for parameter in mlp.parameters()]
        if members.dim() != 2 or members.shape[1] != sum(sizes):
            raise ValueError(f"members must be (P, {sum(sizes)}), got {tuple(members.shape)}")
        self.single, self.members = single, members
        members = members.expand(2, -1) if of_many and len(members) == 1 else members
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
        self.actors.features = nn.Identity()  # which are taken of all rows in one, before these are shared out

    def of(self, episodes: Tensor, each: int) -> "Population":
        """Say who acts in the rows of a batch.

        :param episodes: numbers of the rows' episodes, which follow one another, (N,) int64
        :param each: episodes of a member
        :return: so many members that each has the same number of rows; of the same weights where rows are the members'
            in turn, and else a copy for each row
        """
        if len(episodes) % each == 0 and int(episodes[0]) % each == 0:
            episodes = episodes[::each]
        members = episodes // each
        first, last = int(members[0]), int(members[-1])
        chosen = self.members[first : last + 1] if last - first == len(members) - 1 else self.members[members]
        return Population(self.single, chosen, of_many=len(self) > 1)

    def __len__(self) -> int:
        return len(self.members)

    def act(self, obs: Tensor) -> Tensor:
        """Choose actions.

        :param obs: encoded, the same number of rows for each member, one member after the other, (P E, O)
        :return: in [-1, 1], (P E, A)
        """
        seen = self.single.features(obs)
        if not self.actors.stack:
            return self.actors.mode(seen)
        rows = seen.view(len(self), -1, seen.shape[-1]).expand(*self.actors.stack, -1, -1)  # (P, E, D)
        return self.actors.mode(rows)[: len(self)].flatten(0, 1)


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
    :param keep: the steps, see :func:`run_episodes`; besides, what members chose, ``chosen`` (S, A) in [-1, 1], and
        ``starts`` (S,), where an episode begins or, in its midst, the environment was restarted
    :return: the mean return of each member, (P,) float64, and the episodes
    """
    round_, acting = torch.empty(0), population

    def act(obs: Obs, turn: Turn) -> dict[str, Tensor]:
        nonlocal round_, acting
        if round_ is not turn.episodes:
            round_, acting = turn.episodes, population.of(turn.episodes, episodes)
        encoded = codec.encode(obs, population.members.device)
        assert isinstance(encoded, Tensor)
        chosen = acting.act(encoded)
        return {"actions": actions.to_env(chosen).to(env.device), "chosen": chosen, "starts": turn.starts}

    played = run_episodes(env, act, episodes=len(population) * episodes, horizon=horizon, seed=seed, keep=keep)
    return played.returns.view(-1, episodes).mean(1), played
