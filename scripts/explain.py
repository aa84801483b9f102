"""``headway evaluate --search tree:… --explain STEP``: one decision of a tree search, drawn."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.pyplot import get_cmap
from stable_baselines3.common.vec_env import VecEnv

from ..agents.tpo import Search, Tree, TreePlanner
from .episodes import check_drawing, evaluation_env
from .figures import plain_axes
from .policies import Policy
from .worlds import World

FRAMES = 6
"""Pictures of the best line, at the most."""


def explain(policy: Policy, world: World, search: str, step: int, path: Path, seed: int) -> None:
    """Play an episode with search up to a step, and draw how that step was decided.

    :param policy: who acts
    :param world: where
    :param search: how it looks ahead, see :meth:`~headway.agents.tpo.Search.of`: by a tree
    :param step: which decision, from 0
    :param path: the figure to write
    :param seed: of the episode, and of what the search draws
    :raises ValueError: the episode ends before, or the planner is no tree
    """
    try:
        check_drawing(world.env_id)
        render = True
    except ValueError as reason:
        render = False
        print(f"without pictures: {str(reason).removeprefix('--video: ')}")
    env = policy.in_(evaluation_env(world, 1, render=render))
    searching = Search.of(search).around(policy.agent, env, seed=seed)
    planner = searching.planner
    if not isinstance(planner, TreePlanner):
        raise ValueError(f"--explain shows how a tree decided, and {search} grows none: take tree:…")
    env.seed(seed)
    obs, starts = env.reset(), np.ones(1, bool)
    for number in range(step + 1):
        actions, _ = searching.predict(obs, None, starts)
        if number < step:
            obs, _, starts, _ = env.step(actions)
            if starts[0]:
                raise ValueError(f"--explain {step}: the episode of seed {seed} ended after {number + 1} steps")
    line = best_line(planner.tree)
    frames = _frames(planner, line) if render else []
    title = f"{policy.name} with {search} in {world.env_id}, step {step:,} of the episode of seed {seed}"
    draw_decision(path, title, planner.tree, line, frames)
    env.close()
    print(f"decision: {path}")


def best_line(tree: Tree, root: int = 0) -> list[int]:
    """:return: nodes from a root along the edges with most visits, of several the best"""
    line = [int(tree.base[root])]
    while tree.n[line[-1]].any():
        n, q = tree.n[line[-1]], tree.q[line[-1]]
        child = int(tree.child[line[-1], np.where(n == n.max(), q, -np.inf).argmax()])
        line.append(child)
    return line


def _frames(planner: TreePlanner, line: Sequence[int]) -> list[Any]:
    """:return: pictures of the states along a line; of an end there is none, as the simulator has begun anew"""
    pool, row, pictures = planner.simulator.pool, torch.tensor([0]), []
    for node in line[:FRAMES]:
        if planner.tree.over[node]:
            break
        pool.load_state(planner.states.read(torch.tensor([node])), row)
        vec: VecEnv = pool.env
        pictures.append(np.asarray(vec.get_images()[0]))
    return pictures


def _places(tree: Tree, root: int) -> dict[int, float]:
    """:return: where each node is drawn from left to right: leaves in order, others above the middle of theirs"""
    places: dict[int, float] = {}
    count = 0.0

    def visit(node: int) -> float:
        nonlocal count
        below = [visit(int(child)) for child in tree.child[node] if child >= 0]
        if not below:
            below, count = [count], count + 1
        places[node] = (below[0] + below[-1]) / 2
        return places[node]

    visit(root)
    return places


def draw_decision(path: Path, title: str, tree: Tree, line: Sequence[int], frames: Sequence[Any]) -> None:
    """Draw a tree, the candidates of its root, and pictures along the best line.

    :param path: the file to write
    :param title: above the figure
    :param tree: of which the first root is drawn
    :param line: nodes to be picked out
    :param frames: of the states along it; none: no pictures
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 8 if frames else 5.5), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=11)
    if not frames:
        _draw_sides(figure, tree, line)
        figure.savefig(path)
        return
    above, below = figure.subfigures(2, 1, height_ratios=(2.4, 1))  # type: ignore[misc]
    _draw_sides(above, tree, line)
    for number, (axes, frame) in enumerate(zip(np.ravel(below.subplots(1, len(frames))), frames, strict=True)):
        axes.imshow(frame)
        axes.set_axis_off()
        axes.set_title(f"+{number}" if number else "now", fontsize=9)
    figure.savefig(path)


def _draw_sides(figure: Any, tree: Tree, line: Sequence[int]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    _draw_tree(left, tree, line)
    _draw_candidates(right, tree, line)


def _draw_tree(axes: Any, tree: Tree, line: Sequence[int]) -> None:
    root, most = int(tree.base[0]), tree.n[tree.base[0]].max()
    places, colours = _places(tree, root), get_cmap("viridis")
    scale = Normalize(tree.low[0], tree.high[0])
    best = set(pairwise(line))
    for node, place in places.items():
        for slot, child in enumerate(tree.child[node].tolist()):
            if child < 0:
                continue
            on_line = (node, child) in best
            ends = ([place, places[child]], [tree.depth[node], tree.depth[child]])
            width = 0.5 + 4 * np.sqrt(tree.n[node, slot] / most)
            axes.plot(*ends, color="#D55E00" if on_line else "0.75", lw=width, zorder=2 if on_line else 1)
            axes.scatter(
                places[child],
                tree.depth[child],
                s=40,
                color=colours(scale(tree.q[node, slot])),
                marker="s" if tree.over[child] else "o",
                edgecolors="0.2",
                linewidths=0.5,
                zorder=3,
            )
    axes.scatter(places[root], 0, s=70, color="0.2", zorder=3)
    axes.set(xticks=[], ylabel="steps ahead", title=f"{len(places) - 1} states were tried")
    axes.set_yticks(range(int(max(tree.depth[node] for node in places)) + 1))
    axes.invert_yaxis()
    plain_axes(axes, "y")
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("line: visits; orange: the most visited; colour: Q, dark is least; square: an end", fontsize=8)


def _draw_candidates(axes: Any, tree: Tree, line: Sequence[int]) -> None:
    root = int(tree.base[0])
    order = np.argsort(tree.n[root], kind="stable")
    chosen = next((k for k in range(tree.candidates) if len(line) > 1 and tree.child[root, k] == line[1]), -1)
    actions = tree.actions[root].numpy()
    names = [_shown(actions[k]) for k in order]
    axes.barh(range(len(order)), tree.n[root][order], color=["#D55E00" if k == chosen else "0.75" for k in order])
    for place, k in enumerate(order):
        if tree.n[root, k]:
            axes.text(tree.n[root, k], place, f" Q {tree.q[root, k]:.2f}", va="center", fontsize=7)
    axes.set(yticks=range(len(order)), xlabel="visits")
    axes.set_title(f"candidates; V {tree.raw[root]:.2f}, v {tree.value[root]:.2f}", fontsize=11)
    axes.set_yticklabels(names, fontsize=6)
    axes.margins(x=0.25)
    plain_axes(axes, "x")


def _shown(action: Any) -> str:
    """:return: an action for people, of many numbers the first"""
    if np.ndim(action) == 0:
        return str(int(action))
    numbers = [f"{x:+.1f}" for x in np.ravel(action)[:6]]
    return " ".join(numbers) + (" …" if np.size(action) > 6 else "")
