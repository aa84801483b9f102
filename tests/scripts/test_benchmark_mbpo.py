"""``headway benchmark mbpo``, on tiny networks."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from headway.agents.mbpo import Dynamics
from headway.agents.mbpo.dynamics import decay_loss, gaussian_loss
from headway.scripts.benchmark_mbpo import (
    EagerMember,
    EagerModel,
    EagerSAC,
    MBPOSpeedOptions,
    Measurement,
    batches,
    imagination,
    imagining,
    ratios,
    real_rows,
    some_agent,
    worked_out,
)
from torch import nn

TINY = (
    "--rounds",
    2,
    "--seconds",
    0.001,
    "--net-arch",
    8,
    8,
    "--model-net-arch",
    8,
    8,
    "--rows",
    300,
    "--rollouts",
    14,
)
TINY += ("--agents", 2, "--steps", 2)
SMALL = MBPOSpeedOptions(net_arch=(8, 8), model_net_arch=(8, 8), rows=300, rollouts=14)


def test_benchmark_writes_what_it_measured(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *args: None if n == "mbrl" else find(n, *args))
    code, out, err = headway("benchmark", "mbpo", *TINY, "--json", "b.json")
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    sides = [("model", "headway"), ("model", "eager")]
    sides += [("update", s) for s in ("headway", "headway, SAC", "headway, several agents", "eager")]
    sides += [("imagine", s) for s in ("headway", "headway, own member", "all members")]
    assert [(m["part"], m["side"]) for m in read["measurements"]] == sides
    assert all(len(m["rates"]) == 2 and min(m["rates"]) > 0 for m in read["measurements"])
    assert all(len(m["processors"]) == 2 and min(m["processors"]) > 0 for m in read["measurements"])
    assert [(row["part"], row["side"]) for row in read["ratios"]] == [s for s in sides if s[1] != "headway"]
    assert [row["part"] for row in read["absent"]] == ["model", "update"]
    assert out.count("absent: mbrl-lib is not installed") == 2
    learning = read["learning"]
    assert (learning["steps"], learning["updates"]) == (2, 40)
    assert learning["model_steps"] == sum(learning["passes"]) >= 6  # of one batch; no call ends before its sixth pass
    for clock in ("seconds", "processors"):
        assert set(learning[clock]) == {"fit", "imagine", "update", "the rest"}
        assert min(learning[clock].values()) > 0
    seconds, each = learning["seconds"], learning["per_thousand"]
    assert (len(learning["passes"]), each["fit"][0]) == (1, pytest.approx(4 * seconds["fit"]))
    assert each["update"][0] == pytest.approx(500 * seconds["update"])
    assert out.count("the same gradient steps by") == 2
    code, _, err = headway("benchmark", "mbpo", "--json", "b.json")
    assert (code, "b.json exists: choose another name" in err) == (1, True)


def test_a_peer_that_cannot_be_imported_is_absent(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mbrl").mkdir()
    Path("mbrl/__init__.py").write_text("raise ValueError('mutable default')")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "mbrl", raising=False)
    code, out, err = headway("benchmark", "mbpo", *TINY, "--parts", "model")
    assert code == 0, err
    assert "absent: mbrl-lib cannot be imported: mutable default" in out
    assert "update" not in out
    assert "learning:" not in out


def test_the_eager_model_lowers_the_same_loss() -> None:
    torch.manual_seed(0)
    member, dynamics = EagerMember(5, 4, (6, 6, 6)), Dynamics(3, 2, members=1, net_arch=(6, 6, 6))
    linear = [layer for layer in member.net if isinstance(layer, nn.Linear)]
    for layer, weight, bias in zip(linear, dynamics.mlp.weights, dynamics.mlp.biases, strict=True):
        weight.data.copy_(layer.weight.T.unsqueeze(0))
        bias.data.copy_(layer.bias.view(1, 1, -1))
    x, targets = torch.randn(7, 5), torch.randn(7, 4)
    eager = member.loss(x, targets)
    ours = gaussian_loss(*dynamics(x), targets.unsqueeze(0)) + decay_loss(dynamics)
    torch.testing.assert_close(eager, ours)
    eager.backward()  # type: ignore[no-untyped-call]
    ours.backward()  # type: ignore[no-untyped-call]
    for layer, weight in zip(linear, dynamics.mlp.weights, strict=True):
        assert layer.weight.grad is not None
        assert weight.grad is not None
        torch.testing.assert_close(layer.weight.grad.T, weight.grad[0])
    torch.testing.assert_close(member.low.grad, dynamics.min_log_var.grad)


def test_eager_code_learns() -> None:
    """Errors and losses fall, so that what is timed is no empty work."""
    torch.manual_seed(0)
    inputs = torch.randn(300, 5)
    model = EagerModel(inputs, inputs[:, :4] * 0.5, (16,), 2)
    errors = []
    for _ in range(40):
        model.train()
        errors.append(sum(model.errors))
    assert len(model.losses) == 40 * 2 * batches(300, 256)
    assert errors[-1] < 0.7 * errors[0]
    stream = np.random.default_rng(0)
    rows = [stream.normal(size=(50, 3)), stream.uniform(-1, 1, (50, 2)), np.ones(50), np.ones(50, bool)]
    sac = EagerSAC([*rows, rows[0]], [*rows, rows[0]], (64,), "cpu")
    sac.update()
    first = sac.losses["critics"]
    for _ in range(150):
        sac.update()
    assert sac.losses["critics"] < 0.5 * first  # all values are 1, since every row ends
    assert set(sac.losses) == {"critics", "actor", "alpha"}


def test_ours_steps_what_learn_does() -> None:
    agent = imagining(some_agent(SMALL, variant="ps", n_models=2))
    assert agent.imagined.sizes.tolist() == [agent.config.rows] * 2
    inputs, targets = real_rows(agent)
    assert (len(inputs), inputs.shape[1], targets.shape[1]) == (299, 14, 12)
    batch = agent.store.at(agent.store.chronological()[0])
    torch.testing.assert_close(targets[:, 1:], batch.next_obs - batch.obs)  # type: ignore[operator]
    assert imagination(some_agent(SMALL), SMALL, "headway, own member").steps == 0.014


def test_ratios_are_of_medians() -> None:
    measured = [
        Measurement("model", "headway", [1.0, 10.0, 12.0], [2.0, 3.0]),
        Measurement("model", "eager", [5.0, 4.0, 90.0], [5.0]),
        Measurement("update", "headway", [9.0], [4.0]),
        Measurement("update", "eager", [3.0], [6.0]),
    ]
    assert ratios(measured) == [
        {"part": "model", "side": "eager", "times": 2.0, "processors": 2.0},
        {"part": "update", "side": "eager", "times": 3.0, "processors": 1.5},
    ]
    learning = {"model_steps": 20, "updates": 9}
    assert dict(worked_out(learning, measured)) == {"headway": 86.0, "eager": 154.0}
    assert list(worked_out(learning, measured[:3])) == [("headway", 86.0)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--parts",), "--parts: name some of model, update, imagine, learn, each once"),
        (("--parts", "model", "model"), "each once"),
        (("--agents", 1), "--agents 1: one agent is what several are compared with"),
        (("--rows", 10), "--rows must lie in"),
        (("--device", "tpu"), "--device tpu: there is no such device here"),
    ],
)
def test_mistakes_of_the_benchmark(headway: Command, flags: tuple[Any, ...], message: str) -> None:
    code, out, err = headway("benchmark", "mbpo", *flags)
    assert code == 1
    assert message in err
    assert not out
