"""Trees over continuous actions, of many roots at once: what is counted, how they are descended, what goes back up.

A node is a state that was met, with K candidate actions that were drawn from the policy when it was made. An edge is a
candidate, with its visits n, the mean Q of what came back through it, and the node that it led to, once it was tried.

Everything lies in flat arrays. Node ``m`` of root ``r`` is number ``r (M + 1) + m``; edge ``k`` of a node is number
``node K + k``. The last node of each root is nobody's: rows that have nothing to write write there.

Shapes: R roots, M nodes of each, K candidates, A action, L levels of the deepest path.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.config import Config, Count, Positive, Range


@dataclass(frozen=True, kw_only=True)
class TreeConfig(Config):
    """How trees are searched. Defaults are ours where no other source is given: the paper's could not be read."""

    simulations: Count = 32
    """N: simulations per decision; each is a step of the simulator, unless it meets an end again."""

    candidates: Count = 8
    """K: actions drawn from the policy in each state; of a Discrete space, all where there are no more."""

    exploration: Positive = 1.25
    """c: weight of what has been tried little against what was good (MuZero's; its growth with N is nothing here)."""

    prior: Literal["uniform", "density"] = "uniform"
    """P of a candidate: uniform, as candidates are drawn from the policy; by their density too counts the policy twice,
    as some code does. Of a Discrete space, whose candidates differ, P is always the policy's probability."""

    backup: Literal["mean", "max"] = "mean"
    """What goes up: the mean of returns, or that of the best candidate, which is exact once all have been tried."""

    max_depth: Count | None = None
    """States so many steps ahead are not searched beyond; none: no limit."""

    wave: Annotated[int, Range(1, 64)] = 1
    """W: simulations of a root that step together, held apart by virtual losses; more roots and W = 1 search better."""

    widening: tuple[Positive, Positive] | None = None
    """C and kappa: of a state with n visits only the first max(2, ceil(C n^kappa)) candidates count (arXiv 1805.09613
    has 1 and 0.5); none: all do."""

    root: Literal["puct", "gumbel"] = "puct"
    """gumbel: candidates of the root by sequential halving, as in Gumbel MuZero, for less than two simulations each."""

    decide: Literal["visits", "value"] = "visits"
    """What is done: the candidate with most visits, of several the best; or the one with the greatest Q."""

    visit_temperature: Positive = 1.0
    """Where what is done is drawn, candidates are by n^(1 / temperature)."""

    include_mean: bool = False
    """The first candidate is the policy's mean: to act, not to fit moments to, which it biases."""


class Descent(NamedTuple):
    """Where each root's descent has ended."""

    node: Tensor
    """What is stepped from, (R,)"""
    slot: Tensor
    """The candidate that is tried there, (R,)"""
    known: Tensor
    """The node that this leads to, if there is one already: an end, or one as deep as is searched. Else -1, (R,)"""
    path: Tensor
    """Edges from the root down, -1 below the end, (L, R)"""


class Tree:
    """The trees of R roots.

    :param cfg: how they are searched
    :param roots: R
    :param candidates: K
    :param action: a candidate, as an example of shape and type
    :param gamma: discount per step
    """

    def __init__(self, cfg: TreeConfig, roots: int, candidates: int, action: Tensor, gamma: float) -> None:
        self.cfg, self.candidates, self.gamma = cfg, candidates, gamma
        self.nodes = cfg.simulations + 1
        self.device = action.device
        whole, each, count = torch.int64, (candidates,), roots * (self.nodes + 1)

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=self.device)

        self.base = torch.arange(roots, device=self.device) * (self.nodes + 1)
        """The root nodes, (R,)."""
        self.spare = self.base + self.nodes
        self.used = zeros(roots, dtype=whole)
        """Nodes of each root that there are, (R,)."""
        self.parent, self.depth, self.words = (zeros(count, dtype=whole) for _ in range(3))
        self.visits, self.value, self.raw = (zeros(count) for _ in range(3))
        """Of nodes: visits; the mean of V and all that came back, or the best Q; V itself, 0 where all has ended."""
        self.over = zeros(count, dtype=torch.bool)
        self.actions = torch.zeros(count, *each, *action.shape, dtype=action.dtype, device=self.device)
        self.prior, self.n, self.q, self.reward, self.pending = (zeros(count, *each) for _ in range(5))
        self.child = zeros(count, *each, dtype=whole)
        self.low, self.high = zeros(roots), zeros(roots)
        """Between which the Qs of each root's edges have been, (R,)."""
        self.slots = torch.arange(candidates, device=self.device)
        self.begin()

    def begin(self) -> None:
        """Forget all nodes."""
        self.used.zero_()
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)
        for part in (self.n, self.pending):
            part.zero_()
        self.child.fill_(-1)

    def make_nodes(self, where: Tensor) -> Tensor:
        """:return: the number of a new node of each root where one is wanted (R,) bool, elsewhere of nobody's"""
        nodes = torch.where(where, self.base + self.used, self.spare)
        self.used += where
        return nodes

    def fill(self, nodes: Tensor, actions: Tensor, prior: Tensor, values: Tensor, over: Tensor) -> None:
        """Write what nodes are.

        :param nodes: (B,)
        :param actions: their candidates, (B, K, ·)
        :param prior: P, (B, K)
        :param values: V, 0 where the episode has terminated, (B,)
        :param over: where nothing is searched for, (B,) bool
        """
        self.actions[nodes], self.prior[nodes] = actions, prior.double()
        values = values.double()
        self.raw[nodes], self.value[nodes], self.over[nodes] = values, values, over
        self.visits[nodes] = 1.0

    def link(self, nodes: Tensor, parents: Tensor, slots: Tensor, rewards: Tensor) -> None:
        """Hang new nodes below those that they were reached from.

        :param nodes: (B,)
        :param parents: (B,)
        :param slots: by which candidate, (B,)
        :param rewards: on the way, in the value's unit, (B,)
        """
        self.parent[nodes], self.depth[nodes] = parents, self.depth[parents] + 1
        edges = parents * self.candidates + slots
        self.child.view(-1)[edges], self.reward.view(-1)[edges] = nodes, rewards.double()

    # -- down --------------------------------------------------------------------------------------------------------

    def descend(self, active: Tensor, first: Tensor | None = None) -> Descent:
        """Follow the candidates that look best from each root to one that has not been tried.

        :param active: of which roots, (R,) bool; the others' descents are at nobody's node
        :param first: the candidates of the roots to follow, (R,); None: those that look best there too
        :return: where that ends; its edges are pending until :meth:`back_up`
        """
        node = end = self.base
        slot, known = torch.zeros_like(node), torch.where(active, -1, self.spare)
        path: list[Tensor] = []
        while True:
            choice = self._scores(node).argmax(1) if first is None or path else first
            edge = node * self.candidates + choice
            path.append(torch.where(active, edge, -1))
            end, slot = torch.where(active, node, end), torch.where(active, choice, slot)
            child = self.child.view(-1)[edge]
            stops = (child < 0) | self.over[child]
            if self.cfg.max_depth is not None:
                stops |= self.depth[child] >= self.cfg.max_depth
            known = torch.where(active, child, known)  # that of an inner node is overwritten one level below
            active = active & ~stops
            if not active.any():
                break
            node = torch.where(active, child, node)
        edges = torch.stack(path)
        self._pend(edges, 1.0)
        return Descent(end, slot, known, edges)

    def _scores(self, node: Tensor) -> Tensor:
        """Q + c P_k sqrt(max(1, sum_j n_j)) / (1 + n_k), Q scaled to [0, 1] of all that the root's tree has seen.

        Q of an edge that was not tried is its node's value, as far as that is among what was seen. A pending simulation
        counts as one that brought nothing.

        :return: (R, K)
        """
        n = self.n[node]
        q = torch.where(n > 0, self.q[node], self.value[node].unsqueeze(1))
        span = self.high - self.low
        seen = span > 0
        scale, low = torch.where(seen, 1 / span, 0.0), torch.where(seen, self.low, 0.0)
        q = ((q - low.unsqueeze(1)) * scale.unsqueeze(1)).clamp(0.0, 1.0)
        if self.cfg.wave > 1:
            counted = n + self.pending[node]
            q, n = q * torch.where(counted > 0, n / counted, 1.0), counted
        total = n.sum(1, keepdim=True)
        scores = q + self.cfg.exploration * total.clamp_min(1.0).sqrt() * self.prior[node] / (1.0 + n)
        if self.cfg.widening is not None:
            factor, power = self.cfg.widening
            allowed = (factor * (1.0 + total) ** power).ceil().clamp_min(2.0)
            scores = scores.masked_fill(self.slots >= allowed, -torch.inf)
        return scores

    def _pend(self, path: Tensor, amount: float) -> None:
        if self.cfg.wave > 1:
            edges = torch.where(path >= 0, path, self.spare * self.candidates).flatten()
            self.pending.view(-1).index_add_(0, edges, torch.full_like(edges, amount, dtype=torch.float64))

    # -- up ----------------------------------------------------------------------------------------------------------

    def back_up(self, descent: Descent, arrived: Tensor) -> None:
        """G <- r + gamma G, n <- n + 1, Q <- Q + (G - Q) / n on the way from where each descent arrived to its root.

        :param descent: which way
        :param arrived: nodes, (R,)
        """
        self.visits[arrived] += (descent.known >= 0).double()  # a new one has its first
        back = self.raw[arrived]
        n, q, reward = (part.view(-1) for part in (self.n, self.q, self.reward))
        for edges in descent.path.flip(0):
            on = edges >= 0
            edge = torch.where(on, edges, self.spare * self.candidates)
            node = edge // self.candidates
            back = torch.where(on, reward[edge] + self.gamma * back, back)
            n[edge] += 1.0
            self.visits[node] += 1.0
            if self.cfg.backup == "max":
                q[edge] = back
                best = torch.where(self.n[node] > 0, self.q[node], -torch.inf).amax(1)
                self.value[node], back = best, torch.where(on, best, back)
            else:
                q[edge] += (back - q[edge]) / n[edge]
                self.value[node] += (back - self.value[node]) / self.visits[node]
        on, met = descent.path >= 0, q[descent.path.clamp_min(0)]
        self.low = torch.minimum(self.low, torch.where(on, met, torch.inf).amin(0))
        self.high = torch.maximum(self.high, torch.where(on, met, -torch.inf).amax(0))
        self._pend(descent.path, -1.0)

    # -- another root ------------------------------------------------------------------------------------------------

    def keep(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Make nodes the roots, and forget all but what hangs below them.

        :param below: a node of each root's, (R,); where it is negative all is forgotten
        :return: the nodes that are left, as they were numbered and as they are, (·,) each
        """
        roots, width = len(self.base), self.nodes + 1
        parents = (self.parent.view(roots, width) - self.base.unsqueeze(1)).clamp_min(0)
        numbers = torch.arange(width, device=self.device)
        kept = (self.base.unsqueeze(1) + numbers == below.unsqueeze(1)) & (numbers < self.used.unsqueeze(1))
        for node in range(1, self.nodes):  # whose number is above its parent's
            hangs = kept.gather(1, parents[:, node : node + 1]).squeeze(1) & (node < self.used)
            kept[:, node] |= hangs
        row, old = kept.nonzero(as_tuple=True)
        before, after = self.base[row] + old, self.base[row] + (kept.long().cumsum(1) - 1)[row, old]
        moved = torch.full_like(self.parent, -1)
        moved[before] = after
        self.child = torch.where(self.child >= 0, moved[self.child], -1)
        self.parent = moved[self.parent].clamp_min(0)
        self.depth = self.depth - self.depth[below.clamp_min(0)].repeat_interleave(width)
        nodes = (self.parent, self.depth, self.words, self.visits, self.value, self.raw, self.over, self.actions)
        for part in (*nodes, self.prior, self.child, self.n, self.q, self.reward):
            part[after] = part[before]
        self.used = kept.sum(1)
        gone = (numbers >= self.used.unsqueeze(1)).flatten()
        self.n[gone], self.child[gone] = 0.0, -1
        tried, q = (self.n > 0).view(roots, -1), self.q.view(roots, -1)
        self.low = torch.where(tried, q, torch.inf).amin(1)
        self.high = torch.where(tried, q, -torch.inf).amax(1)
        return before, after
