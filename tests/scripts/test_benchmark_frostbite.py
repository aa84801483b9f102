"""``headway benchmark frostbite``, for a moment."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from conftest import Command
from headway.agents import TDT
from headway.scripts.benchmark_frostbite import SIDES, PlainLoop, drawn_data


def test_benchmark_writes_what_it_measured(headway: Command) -> None:
    flags = ("--rounds", 2, "--seconds", 0.001, "--rows", 2, "--obs", "ram", "--json", "b.json")
    code, out, err = headway("benchmark", "frostbite", *flags)
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    assert [(m["part"], m["side"]) for m in read["measurements"]] == [
        (p, s) for p, sides in SIDES.items() for s in sides
    ]
    assert all(len(m["rates"]) == 2 and min(m["rates"]) > 0 for m in read["measurements"])
    medians = {(m["part"], m["side"]): m["median"] for m in read["measurements"]}
    for row in read["ratios"]:
        peer = medians[row["part"], SIDES[row["part"]][-1]]
        assert row["ratio"] == pytest.approx(medians[row["part"], row["side"]] / peer)
    assert out.count("x the last line") == len(read["ratios"]) == 4


def test_the_plain_loop_learns_the_same_task() -> None:
    """What we are compared with is no straw man: it has our sizes, and its loss falls."""
    data = drawn_data("ram")
    agent = TDT("MultiInputPolicy", dataset=data, seed=0, device="cpu", dropout=0.0)
    torch.manual_seed(0)
    loop = PlainLoop(data, agent)
    theirs, ours = (
        sum(p.numel() for name, p in model.named_parameters() if ".blocks." in f".{name}")
        for model in (loop.model, agent.network.module)
    )
    assert theirs == ours
    window = loop.windows(4)
    loop.windows = lambda rows: window  # type: ignore[method-assign]
    before = loop.act(window)
    for _ in range(60):
        loop.update()
    assert before.shape == (4,)
    assert (loop.act(window) == window[2][:, -1]).all()
