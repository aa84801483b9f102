"""Trees over continuous actions, of many roots at once: what is counted, how they are descended, what goes back up.

A node is a state that was met, with K candidate actions that were drawn from the policy when it was made. An edge is a
candidate, with its visits n, the mean Q of what came back through it, and the node that it led to, once it was tried.

Everything lies in flat arrays. Node ``m`` of root ``r`` is number ``r (M + 1) + m``; edge ``k`` of a node is number
``node K + k``. The last node of each root is nobody's: rows that have nothing to write write there.

Shapes: R roots, M nodes of each, K candidates, A action, L levels of the deepest path.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.config import Config, Count, Positive, Range

Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]


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

    node: Whole
    """What is stepped from, (R,)"""
    slot: Whole
    """The candidate that is tried there, (R,)"""
    known: Whole
    """The node that this leads to, if there is one already: an end, or one as deep as is searched. Else -1, (R,)"""
    path: Whole
    """Edges from the root down, -1 below the end, (L, R)"""


class Tree:
    """The trees of R roots, on the host, whatever guides them: a descent asks at every level whether all are through.

    :param cfg: how they are searched
    :param roots: R
    :param candidates: K
    :param action: a candidate, as an example of shape, type and device
    :param gamma: discount per step
    """

    def __init__(self, cfg: TreeConfig, roots: int, candidates: int, action: Tensor, gamma: float) -> None:
        self.cfg, self.candidates, self.gamma = cfg, candidates, gamma
        self.nodes = cfg.simulations + 1
        count = roots * (self.nodes + 1)
        self.base = np.arange(roots) * (self.nodes + 1)
        """The root nodes, (R,)."""
        self.spare = self.base + self.nodes
        self.used = np.zeros(roots, np.int64)
        """Nodes of each root that there are, (R,)."""
        self.parent, self.depth, self.words = (np.zeros(count, np.int64) for _ in range(3))
        self.visits, self.value, self.raw = (np.zeros(count) for _ in range(3))
        """Of nodes: visits; the mean of V and all that came back, or the best Q; V itself, 0 where all has ended."""
        self.over = np.zeros(count, np.bool_)
        self.actions = torch.zeros(count, candidates, *action.shape, dtype=action.dtype, device=action.device)
        self.prior, self.n, self.q, self.reward, self.pending = (np.zeros((count, candidates)) for _ in range(5))
        self.child = np.zeros((count, candidates), np.int64)
        self.low, self.high = np.zeros(roots), np.zeros(roots)
        """Between which the Qs of each root's edges have been, (R,)."""
        self.begin()

    def begin(self) -> None:
        """Forget all nodes."""
        self.used[:], self.low[:], self.high[:] = 0, np.inf, -np.inf
        self.n[:], self.pending[:], self.child[:] = 0.0, 0.0, -1

    def make_nodes(self, where: Flags) -> Whole:
        """:return: the number of a new node of each root where one is wanted (R,), elsewhere of nobody's"""
        nodes: Whole = np.where(where, self.base + self.used, self.spare)
        self.used += where
        return nodes

    def fill(self, nodes: Whole, actions: Tensor, prior: Numbers | float, values: Numbers, over: Flags) -> None:
        """Write what nodes are.

        :param nodes: (B,)
        :param actions: their candidates, (B, K, ·)
        :param prior: P, (B, K), or that of all
        :param values: V, 0 where the episode has terminated, (B,)
        :param over: where nothing is searched for, (B,)
        """
        self.actions[torch.from_numpy(nodes)] = actions
        self.prior[nodes], self.over[nodes], self.visits[nodes] = prior, over, 1.0
        self.raw[nodes] = self.value[nodes] = values

    def link(self, nodes: Whole, parents: Whole, slots: Whole, rewards: Numbers) -> None:
        """Hang new nodes below those that they were reached from.

        :param nodes: (B,)
        :param parents: (B,)
        :param slots: by which candidate, (B,)
        :param rewards: on the way, in the value's unit, (B,)
        """
        self.parent[nodes], self.depth[nodes] = parents, self.depth[parents] + 1
        self.child[parents, slots], self.reward[parents, slots] = nodes, rewards

    # -- down --------------------------------------------------------------------------------------------------------

    def descend(self, active: Flags, first: Whole | None = None) -> Descent:
        """Follow the candidates that look best from each root to one that has not been tried.

        :param active: of which roots, (R,); the others' descents are at nobody's node
        :param first: the candidates of the roots to follow, (R,); None: those that look best there too
        :return: where that ends; its edges are pending until :meth:`back_up`
        """
        span = self.high - self.low
        seen = span > 0
        scale = np.divide(1.0, span, out=np.zeros_like(span), where=seen)[:, None]
        low = np.where(seen, self.low, 0.0)[:, None]
        node = end = self.base
        slot, known = np.zeros_like(node), np.where(active, -1, self.spare)
        path: list[Whole] = []
        children = self.child.ravel()
        while True:
            choice = self._scores(node, low, scale).argmax(1) if first is None or path else first
            edge = node * self.candidates + choice
            path.append(np.where(active, edge, -1))
            end, slot = np.where(active, node, end), np.where(active, choice, slot)
            child = children[edge]
            stops = (child < 0) | self.over[child]
            if self.cfg.max_depth is not None:
                stops |= self.depth[child] >= self.cfg.max_depth
            known = np.where(active, child, known)  # that of an inner node is overwritten one level below
            active = active & ~stops
            if not active.any():
                break
            node = np.where(active, child, node)
        edges = np.stack(path)
        self._pend(edges, 1.0)
        return Descent(end, slot, known, edges)

    def _scores(self, node: Whole, low: Numbers, scale: Numbers) -> Numbers:
        """Q + c P_k sqrt(max(1, sum_j n_j)) / (1 + n_k), Q scaled to [0, 1] of all that the root's tree has seen.

        Q of an edge that was not tried is its node's value, as far as that is among what was seen. A pending simulation
        counts as one that brought nothing.

        :param node: (R,)
        :param low: the least that was seen, (R, 1)
        :param scale: what makes 1 of the greatest, 0 where all was alike, (R, 1)
        :return: (R, K)
        """
        n = self.n.take(node, 0)
        q = np.where(n > 0, self.q.take(node, 0), self.value.take(node)[:, None])
        q -= low
        q *= scale
        np.minimum(np.maximum(q, 0.0, out=q), 1.0, out=q)
        if self.cfg.wave > 1:
            counted = n + self.pending.take(node, 0)
            q *= np.divide(n, counted, out=np.ones_like(n), where=counted > 0)
            n = counted
        total = n.sum(1, keepdims=True)
        n += 1.0
        bonus = self.prior.take(node, 0)
        bonus *= self.cfg.exploration * np.sqrt(np.maximum(total, 1.0))
        bonus /= n
        q += bonus
        if self.cfg.widening is not None:
            factor, power = self.cfg.widening
            allowed = np.maximum(np.ceil(factor * (1.0 + total) ** power), 2.0)
            q[np.arange(self.candidates) >= allowed] = -np.inf
        return q

    def _pend(self, path: Whole, amount: float) -> None:
        if self.cfg.wave > 1:
            np.add.at(self.pending.ravel(), np.where(path >= 0, path, self.spare * self.candidates), amount)

    # -- up ----------------------------------------------------------------------------------------------------------

    def back_up(self, descent: Descent, arrived: Whole) -> None:
        """G <- r + gamma G, n <- n + 1, Q <- Q + (G - Q) / n on the way from where each descent arrived to its root.

        :param descent: which way
        :param arrived: nodes, (R,)
        """
        self.visits[arrived] += descent.known >= 0  # a new one has its first
        back = self.raw[arrived]
        n, q, reward = self.n.ravel(), self.q.ravel(), self.reward.ravel()  # views: what is written is written there
        nobody = self.spare * self.candidates
        for edges in descent.path[::-1]:
            on = edges >= 0
            edge = np.where(on, edges, nobody)
            node = edge // self.candidates
            back = np.where(on, reward[edge] + self.gamma * back, back)
            count = n[edge] + 1.0
            visits = self.visits[node] + 1.0
            n[edge], self.visits[node] = count, visits
            if self.cfg.backup == "max":
                q[edge] = back
                best = np.where(self.n[node] > 0, self.q[node], -np.inf).max(1)
                self.value[node], back = best, np.where(on, best, back)
            else:
                before, value = q[edge], self.value[node]
                q[edge], self.value[node] = before + (back - before) / count, value + (back - value) / visits
            met = q[edge]
            self.low = np.where(on, np.minimum(self.low, met), self.low)
            self.high = np.where(on, np.maximum(self.high, met), self.high)
        self._pend(descent.path, -1.0)

    # -- another root ------------------------------------------------------------------------------------------------

    def keep(self, below: Whole) -> tuple[Whole, Whole]:
        """Make nodes the roots, and forget all but what hangs below them.

        :param below: a node of each root's, (R,); where it is negative all is forgotten
        :return: the nodes that are left, as they were numbered and as they are, (·,) each
        """
        roots, width = len(self.base), self.nodes + 1
        parents, rows = np.maximum(self.parent.reshape(roots, width) - self.base[:, None], 0), np.arange(roots)
        numbers = np.arange(width)
        kept = (self.base[:, None] + numbers == below[:, None]) & (numbers < self.used[:, None])
        for node in range(1, self.nodes):  # whose number is above its parent's
            kept[:, node] |= kept[rows, parents[:, node]] & (node < self.used)
        row, old = kept.nonzero()
        before, after = self.base[row] + old, self.base[row] + (kept.cumsum(1) - 1)[row, old]
        moved = np.full_like(self.parent, -1)
        moved[before] = after
        self.child = np.where(self.child >= 0, moved[self.child], -1)
        self.parent = np.maximum(moved[self.parent], 0)
        self.depth = self.depth - np.repeat(self.depth[np.maximum(below, 0)], width)
        nodes = (self.parent, self.depth, self.words, self.visits, self.value, self.raw, self.over)
        for part in (*nodes, self.prior, self.child, self.n, self.q, self.reward):
            part[after] = part[before]
        self.actions[torch.from_numpy(after)] = self.actions[torch.from_numpy(before)]
        self.used = kept.sum(1)
        gone = (numbers >= self.used[:, None]).ravel()
        self.n[gone], self.child[gone] = 0.0, -1
        tried, q = (self.n > 0).reshape(roots, -1), self.q.reshape(roots, -1)
        self.low, self.high = np.where(tried, q, np.inf).min(1), np.where(tried, q, -np.inf).max(1)
        return before, after
