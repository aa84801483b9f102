"""``headway benchmark search``, for a moment."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from headway.envs.splitmix import normals
from headway.scripts.benchmark_search import NodeSearch, SearchSpeedOptions, ours

TINY = ("--tasks", "HalfCheetah-v5", "--roots", 1, 2, "--simulations", 4, "--candidates", 3)
TINY += ("--rounds", 2, "--seconds", 0.001)


def test_benchmark_writes_what_it_measured(headway: Command) -> None:
    code, out, err = headway("benchmark", "search", *TINY, "--json", "b.json")
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    sides = [(side, roots) for roots in (1, 2) for side in ("headway", "physics alone")] + [("node by node", 1)]
    assert [(m["side"], m["roots"]) for m in read["measurements"]] == sides
    assert all(len(m["rates"]) == 2 and min(m["rates"]) > 0 for m in read["measurements"])
    medians = {(m["side"], m["roots"]): m["median"] for m in read["measurements"]}
    for row, roots in zip(read["ratios"], (1, 2), strict=True):
        rate = medians["headway", roots]
        assert row["of_physics"] == pytest.approx(rate / medians["physics alone", roots])
        assert row["of_nodes"] == pytest.approx(rate / medians["node by node", 1])
    for part in read["parts"]:
        assert set(part["seconds"]) == {"tree", "simulator", "networks", "states"}
        assert min(part["seconds"].values()) > 0
    assert "HalfCheetah-v5; node by node" in out
    assert headway("benchmark", "search", "--json", "b.json")[0] == 1


def test_the_search_node_by_node_is_the_same_search() -> None:
    options = SearchSpeedOptions(simulations=60, candidates=4)
    planner, start, _ = ours("HalfCheetah-v5", 1, options)
    planner.plan(start)
    tree, plain, made = planner.tree, NodeSearch("HalfCheetah-v5", options), itertools.count()

    def same_noise(size: int) -> torch.Tensor:  # nodes are made in the same order
        return normals(torch.from_numpy(tree.words[[next(made)]]), 4 * size)[0].view(4, size).float()

    plain._noise = same_noise  # type: ignore[method-assign]
    assert plain.search() == 60
    assert plain.root is not None
    assert plain.root.n == tree.n[0].tolist()
    q = [w / n for n, w in zip(plain.root.n, plain.root.w, strict=True)]
    np.testing.assert_allclose(q, tree.q[0], atol=1e-4)


@pytest.mark.parametrize("flags", [("--roots", 0), ("--simulations", 0)])
def test_benchmarks_that_cannot_be(headway: Command, flags: tuple[Any, ...]) -> None:
    code, _, err = headway("benchmark", "search", *flags)
    assert code == 1
    assert "must lie in [1, inf)" in err
