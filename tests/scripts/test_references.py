"""Normalised scores: whose returns count as 0 and 100, and how many evaluations a policy was chosen by."""

import json
from pathlib import Path

import pytest
from conftest import Command
from headway.scripts.references import D4RL, V5, Reference, find_reference, reference_of_run, selected_among


def test_scores_are_linear_between_references() -> None:
    reference = Reference(-100.0, 300.0, "somebody")
    assert [reference.score(value) for value in (-100, 0, 300, 700)] == [0, 25, 100, 200]
    assert "mean 25.0, IQM 50.0   (0 is -100.0, 100 is 300.0: somebody)" in reference.line(0, 100)


def test_tables_are_named_and_not_mixed() -> None:
    for name, table in (("d4rl", D4RL), ("v5", V5)):
        found = find_reference(name, "headway/Hopper-v5")
        assert (found.low, found.high) == table["Hopper"]
        assert found.source.startswith(name)
    assert find_reference("v5", "Hopper-v5") != find_reference("d4rl", "Hopper-v5")
    with pytest.raises(ValueError, match="--reference v5 says nothing of Pendulum-v1"):
        find_reference("v5", "Pendulum-v1")
    with pytest.raises(FileNotFoundError, match="there is no data set d5rl"):
        find_reference("d5rl", "Hopper-v5")


def test_a_run_knows_the_references_of_its_data(tmp_path: Path) -> None:
    assert reference_of_run(tmp_path) is None
    run = {"agent": "IQL", "options": {"dataset": "a/b-v0", "env": "Hopper-v5"}, "config": {}}
    (tmp_path / "config.json").write_text(json.dumps(run | {"data": {"references": [1.0, 3.0]}}))
    assert reference_of_run(tmp_path) == Reference(1.0, 3.0, "stored with a/b-v0")


def test_evaluations_that_chose_a_policy_are_counted(headway: Command) -> None:
    tiny = "--env worlds:Point-v0 --net-arch 8 --threads 1 --no-progress --total-timesteps 60 --learning-starts 20"
    code, _, err = headway("train", "sac", *tiny.split(), "--eval-every", 20, "--eval-episodes", 1, "--run-dir", "r")
    assert code == 0, err
    assert selected_among(Path("r/best.zip")) == 3
    assert selected_among(Path("r/final.zip")) == 1
    _, out, _ = headway("evaluate", "r", "--env", "worlds:Point-v0", "--episodes", 2)
    assert "chosen as the best of 3 evaluations" in out
    _, out, _ = headway("evaluate", "r/final.zip", "--env", "worlds:Point-v0", "--episodes", 2)
    assert "chosen as" not in out
    assert "normalised" not in out
