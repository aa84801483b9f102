"""Games on graphs: random ones, an epidemic, and traffic, where a member's way depends on where the others are."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...naming import nearest
from ..game import MFGame
from .crowds import TINY
from .parameters import Number, Numbers, check_positive, check_whole, even_start, spread

ALMOST = 1e-9
"""What a time may lack of a whole number of steps and still be it, so that rounding decides nothing (our choice)."""


def garnet(
    *,
    size: int = 10,
    horizon: int = 10,
    num_action: int = 3,
    num_chance_action: int = 3,
    sparsity_factor: float = 1.0,
    eta: Number = 1.0,
    seed: int = 0,
    device: torch.device,
    dtype: torch.dtype,
) -> MFGame:
    """Build a random game (arXiv 2103.00623, section 5.1): r(x, a) - eta log mu(x).

    An action leads to one of ``num_chance_action`` states, drawn uniformly, with probabilities that are the spacings of
    uniform numbers; r(x, a) is uniform in [0, 1]. The draws are ours: a seed means another game in OpenSpiel.

    :param size: S
    :param horizon: H
    :param num_action: A
    :param num_chance_action: K
    :param sparsity_factor: probability that r(x, a) is not 0, in [0, 1]
    :param eta: (*batch)
    :param seed: of the draws
    :return: the game
    :raises ValueError: a parameter out of range
    """
    check_whole(size=size, horizon=horizon, num_action=num_action, num_chance_action=num_chance_action)
    if not 0 <= sparsity_factor <= 1:
        raise ValueError(f"sparsity_factor must lie in [0, 1], got {sparsity_factor}")
    aversion = spread(Numbers(device, dtype)("eta", eta), 2)
    rng = torch.Generator().manual_seed(seed)
    shape = (size, num_action)

    def uniform(*last: int) -> Tensor:
        return torch.rand(*shape, *last, generator=rng, dtype=torch.float64)

    pays = (uniform() * (uniform() < sparsity_factor)).to(device, dtype)
    cuts = uniform(num_chance_action - 1).sort(-1).values
    edges = torch.cat([torch.zeros(*shape, 1), cuts, torch.ones(*shape, 1)], -1)
    return MFGame(
        name="garnet",
        S=size,
        A=num_action,
        H=horizon,
        mu0=even_start(size, device, dtype),
        r_state=lambda t, mu: -aversion * (mu + TINY).log(),
        r_action=lambda t, mu: pays.expand(1, size, num_action),
        succ_idx=torch.randint(size, (*shape, num_chance_action), generator=rng).to(device),
        succ_p=edges.diff().to(device, dtype),
    )


def sis(
    *,
    horizon: int = 50,
    infection: Number = 0.81,
    recovery: Number = 0.3,
    cost_infected: Number = 1.0,
    cost_distancing: Number = 0.5,
    initially_infected: Number = 0.6,
    device: torch.device,
    dtype: torch.dtype,
) -> MFGame:
    """Build the epidemic of arXiv 2102.01585: susceptible members go out or keep their distance.

    Who goes out is infected with probability ``infection`` mu(infected), who keeps the distance is not; the infected
    recover with probability ``recovery``. Each step infected costs, and so does each in distance.

    :param horizon: H
    :param infection: in [0, 1]; (*batch)
    :param recovery: in [0, 1]; (*batch)
    :param cost_infected: (*batch)
    :param cost_distancing: (*batch)
    :param initially_infected: share, in [0, 1]; (*batch)
    :return: the game; states are susceptible and infected, actions going out and keeping one's distance
    :raises ValueError: a parameter out of range
    """
    check_whole(horizon=horizon)
    numbers = Numbers(device, dtype)
    contagion, cure = numbers("infection", infection, 0, 1), numbers("recovery", recovery, 0, 1)
    illness = spread(numbers("cost_infected", cost_infected), 2)
    distance = spread(numbers("cost_distancing", cost_distancing), 3)
    ill = numbers("initially_infected", initially_infected, 0, 1)
    infected = torch.tensor([0.0, 1.0], dtype=dtype, device=device)
    outside = torch.tensor([1.0, 0.0], dtype=dtype, device=device)

    def transition(t: Any, mu: Tensor) -> Tensor:
        caught = spread(contagion, 3) * mu[..., 1:].unsqueeze(-1) * outside  # (…, n_pop, 1, A)
        after = caught * (1 - infected).unsqueeze(-1) + (1 - spread(cure, 3)) * infected.unsqueeze(-1)
        return torch.stack([1 - after, after], -1)

    return MFGame(
        name="sis",
        S=2,
        A=2,
        H=horizon,
        mu0=torch.stack([1 - ill, ill], -1).unsqueeze(-2),
        r_state=lambda t, mu: -illness * infected,
        r_action=lambda t, mu: distance * (outside - 1),
        succ_idx=torch.arange(2, device=device).expand(2, 2, 2).contiguous(),
        transition=transition,
        labels=("susceptible", "infected"),
    )


@dataclass(frozen=True)
class Link:
    """A road; driving along it takes ``free_flow_travel_time (1 + a (volume / capacity) ** b)``."""

    free_flow_travel_time: float = 1.0
    a: float = 0.0
    b: float = 1.0
    capacity: float = 1.0

    def travel_time(self, volume: float) -> float:
        """:return: with so many vehicles on it."""
        return float(self.free_flow_travel_time * (1 + self.a * (volume / self.capacity) ** self.b))


@dataclass(frozen=True)
class Demand:
    """Vehicles that go from one link to another; links are named ``"A->B"``."""

    origin: str
    destination: str
    departure_time: float = 0.0
    counts: float = 1.0


@dataclass(frozen=True)
class Network:
    """Roads, and who wants to use them.

    :param links: by name, ``"A->B"``; from the end of one, those that begin there can be entered, in this order
    :param demand: at least one
    :param max_num_time_step: see :func:`dynamic_routing`
    :param time_step_length: see :func:`dynamic_routing`
    :raises ValueError: a demand on a link that there is not, a number out of range
    """

    links: Mapping[str, Link]
    demand: tuple[Demand, ...]
    max_num_time_step: int = 10
    time_step_length: float = 0.5

    def __post_init__(self) -> None:
        for name, link in self.links.items():
            if name.count("->") != 1:
                raise ValueError(f"links are named 'A->B', from a place to a place, got {name!r}")
            if min(link.free_flow_travel_time, link.a, link.b) < 0 or link.capacity <= 0:
                raise ValueError(f"{name}: travel time, a and b must be at least 0, capacity above 0, got {link}")
        if not self.demand:
            raise ValueError("a network needs a demand, got none")
        for demand in self.demand:
            for name in (demand.origin, demand.destination):
                if name not in self.links:
                    raise ValueError(f"demand names link {name!r}, which does not exist: {nearest(name, self.links)}")
            if demand.departure_time < 0 or demand.counts <= 0:
                raise ValueError(f"departure_time must be at least 0 and counts above 0, got {demand}")

    def after(self, link: str) -> list[str]:
        """:return: the links that begin where one ends."""
        return [name for name in self.links if name.split("->")[0] == link.split("->")[1]]


State = tuple[str, str, int]
"""Destination, link, and steps to wait."""
ENTERING = -1
ARRIVED: State = ("", "arrived", 0)
LOST: State = ("", "out of the network", 0)


class _Roads:
    """Every state that a vehicle can get into.

    :param network: roads and demand
    :param horizon: longer waits are all the same
    :param step: length of a step of time
    """

    def __init__(self, network: Network, horizon: int, step: float) -> None:
        self.network, self.vehicles = network, sum(demand.counts for demand in network.demand)
        self.longest = {
            name: min(max(int(link.travel_time(self.vehicles) / step + ALMOST) - 1, 0), horizon)
            for name, link in network.links.items()
        }
        self.starts = [
            (demand.destination, demand.origin, min(int(demand.departure_time / step + ALMOST), horizon))
            for demand in network.demand
        ]
        self.index = {state: row for row, state in enumerate(dict.fromkeys((*self.starts, ARRIVED, LOST)))}
        self.ways: list[list[list[State]]] = []
        for state in (queue := list(self.index)):
            self.ways.append(self._onward(state))
            for following in itertools.chain(*self.ways[-1]):
                if following not in self.index:
                    self.index[following] = len(self.index)
                    queue.append(following)
        self.states = queue

    def _onward(self, state: State) -> list[list[State]]:
        """:return: by action, the state that it leads to, then those in which the crowd may make one wait first."""
        destination, link, wait = state
        if state in (ARRIVED, LOST):
            return [[state]]
        if wait > 0:
            return [[(destination, link, wait - 1)]]
        waits = [(destination, link, rest) for rest in range(self.longest[link])] if wait == ENTERING else []
        return [[self._entered(destination, name), *waits] for name in self.network.after(link)] or [[LOST]]

    def _entered(self, destination: str, link: str) -> State:
        if link == destination:
            return ARRIVED
        return (destination, link, ENTERING) if self.network.after(link) else LOST

    def moves(self) -> tuple[Tensor, Tensor]:
        """:return: successors, (S, A, K), and legal actions, (S, A)."""
        actions = max(map(len, self.ways))
        width = max(len(way) for ways in self.ways for way in ways)
        rows = [
            [[self.index[state] for state in (*way, *[way[0]] * (width - len(way)))] for way in ways]
            + [[self.index[ways[0][0]]] * width] * (actions - len(ways))
            for ways in self.ways
        ]
        legal = torch.tensor([[action < len(ways) for action in range(actions)] for ways in self.ways])
        return torch.tensor(rows), legal

    def transition(
        self, step: float, width: int, device: torch.device, dtype: torch.dtype
    ) -> Callable[[Any, Tensor], Tensor]:
        """:return: the game's transition, which picks one of so many successors for sure."""
        links = list(self.network.links.values())
        free, slope, power, capacity = (
            torch.tensor([getattr(link, name) for link in links], dtype=dtype, device=device)
            for name in ("free_flow_travel_time", "a", "b", "capacity")
        )
        longest = torch.tensor([self.longest[name] for name in self.network.links], device=device)
        names = list(self.network.links)
        entering = torch.tensor(
            [names.index(link) if wait == ENTERING else len(names) for _, link, wait in self.states], device=device
        )
        vehicles = self.vehicles * self.on_link().to(device, dtype)

        def transition(t: Any, mu: Tensor) -> Tensor:
            times = free * (1 + slope * (mu @ vehicles / capacity) ** power) / step
            waits = ((times + ALMOST).floor().to(torch.int64) - 1).clamp(min=0).minimum(longest)  # (…, n_pop, links)
            waits = torch.cat([waits, torch.zeros_like(waits[..., :1])], -1)[..., entering]  # (…, n_pop, S)
            return torch.nn.functional.one_hot(waits, width).to(dtype).unsqueeze(-2)

        return transition

    def on_link(self) -> Tensor:
        """:return: which link a state is on, (S, links) bool."""
        return torch.tensor([[name == link for name in self.network.links] for _, link, _ in self.states])

    def start(self) -> Tensor:
        """:return: mu0, (1, S) float64."""
        mu0 = torch.zeros(1, len(self.states), dtype=torch.float64)
        for state, demand in zip(self.starts, self.network.demand, strict=True):
            mu0[0, self.index[state]] += demand.counts / self.vehicles
        return mu0

    def labels(self) -> tuple[str, ...]:
        """:return: names of the states."""
        several = len({demand.destination for demand in self.network.demand}) > 1
        return tuple(
            link
            + (f" to {destination}" if several and destination else "")
            + (", entering" if wait == ENTERING else f", wait {wait}" if wait else "")
            for destination, link, wait in self.states
        )


NETWORKS = {
    "line": Network(
        {"bef_O->O": Link(), "O->A": Link(), "A->D": Link(), "D->aft_D": Link()},
        (Demand("bef_O->O", "D->aft_D", counts=100.0),),
        max_num_time_step=5,
        time_step_length=1.0,
    ),
    "braess": Network(
        {
            "O->A": Link(0.0, capacity=5.0),
            "A->B": Link(1.0, a=1.0, capacity=5.0),
            "A->C": Link(2.0, capacity=5.0),
            "B->C": Link(0.25, capacity=5.0),
            "B->D": Link(2.0, capacity=5.0),
            "C->D": Link(1.0, a=1.0, capacity=5.0),
            "D->E": Link(0.0, capacity=5.0),
        },
        (Demand("O->A", "D->E", counts=5.0),),
        max_num_time_step=100,
        time_step_length=0.05,
    ),
}
"""OpenSpiel's settings of a road without choices and of Braess's paradox."""


def dynamic_routing(
    *,
    network: str | Network = "braess",
    max_num_time_step: int | None = None,
    time_step_length: float | None = None,
    device: torch.device,
    dtype: torch.dtype,
) -> MFGame:
    """Build the game of drivers who want to arrive early, on roads that get slower with traffic (arXiv 2110.11943).

    Who enters a link stays there for the time that it takes with as many vehicles as are on it then, in whole steps,
    rounded down, at least one; then the driver enters the next link. Whoever enters the destination in step t pays t
    steps, who does not get there pays ``max_num_time_step + 1``. It is OpenSpiel's game, but for the names of actions.

    States are pairs of destination and link, with a number of steps to wait, or "entering" while the crowd decides on
    that; one of having arrived; and one of having left the network elsewhere. Actions are the next links in order; they
    do nothing while entering, if one has to wait. S x A x K numbers are held, K the longest wait: for small networks.

    :param network: a name in :data:`NETWORKS`, or one of your own
    :param max_num_time_step: H; None: the network's
    :param time_step_length: None: the network's
    :return: the game; ``info["links"]`` names links, ``info["on_link"]`` is (S, links) bool
    :raises ValueError: an unknown network (the nearest is named), a number out of range
    """
    if isinstance(network, str):
        if network not in NETWORKS:
            raise ValueError(f"there is no network {network!r}: {nearest(network, NETWORKS)}")
        network = NETWORKS[network]
    horizon = network.max_num_time_step if max_num_time_step is None else max_num_time_step
    step = network.time_step_length if time_step_length is None else time_step_length
    check_whole(max_num_time_step=horizon)
    check_positive(time_step_length=step)
    roads = _Roads(network, horizon, step)
    succ_idx, legal = roads.moves()
    away = torch.ones(len(roads.states), dtype=dtype, device=device)
    away[roads.index[ARRIVED]] = 0
    return MFGame(
        name="dynamic_routing",
        S=len(roads.states),
        A=legal.shape[1],
        H=horizon,
        mu0=roads.start().to(device, dtype),
        r_state=lambda t, mu: -step * away * (torch.as_tensor(t, device=device) > 0),  # step t ends after t steps
        terminal=lambda mu: -2 * step * away,
        legal=legal.to(device),
        succ_idx=succ_idx.to(device),
        transition=roads.transition(step, succ_idx.shape[-1], device, dtype),
        labels=roads.labels(),
        info={"links": tuple(network.links), "on_link": roads.on_link().to(device)},
    )
