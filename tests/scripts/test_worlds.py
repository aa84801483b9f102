"""Training and evaluating behind delays: ``--delay``, ``--delay-form``, ``--delays``, and names that carry them."""

import csv
import json
from pathlib import Path

import pytest
from conftest import Command
from gymnasium import spaces
from headway import agents
from headway.scripts.statistics import Summary
from headway.scripts.worlds import World

TRAIN = (
    "--env worlds:Point-v0 --total-timesteps 120 --learning-starts 40 --batch-size 16 --net-arch 8 --eval-episodes 2"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy trained behind delays, by the command line."""
    from headway.scripts.cli import main

    folder = tmp_path_factory.mktemp("runs") / "delayed"
    assert main(["train", "dcac", *TRAIN.split(), "--delay", "uniform:0-2,constant:1", "--run-dir", str(folder)]) == 0
    return folder


def test_names_carry_delays() -> None:
    for world in (World("a/B-v0"), World("m:B-v0", "wifi,wifi"), World("B-v0", "categorical:1@0.5/0.5,0@1", "flat")):
        assert World.of(str(world)) == world
    assert str(World("B-v0")) == "B-v0"


def test_other_laws_in_the_same_space() -> None:
    world = World("worlds:Point-v0", "uniform:0-3,wifi")
    one, other = world.single(), world.under("constant:1,uniform:0-2").single()
    assert one.observation_space == other.observation_space
    with pytest.raises(ValueError, match="delays of constant:4 are up to 4 ticks long, at most 3 fit"):
        world.under("constant:4,0")
    with pytest.raises(ValueError, match="has no delays to change: train with --delay"):
        World("B-v0").under("wifi,wifi")


def test_batches_and_single_environments_show_the_same_space() -> None:
    world = World("headway/InvertedPendulum-v5", "constant:1,1")
    batch, single = world.batch(2), world.single()
    assert isinstance(single.observation_space, spaces.Dict)
    assert batch.single_observation_space["action_buffer"] == single.observation_space["action_buffer"]  # type: ignore[index]


def test_a_run_remembers_its_delays(run: Path) -> None:
    options = json.loads((run / "config.json").read_text())["options"]
    assert (options["delay"], options["delay_form"]) == ("uniform:0-2,constant:1", "dict")
    agent = agents.load(run / "final.zip")
    assert agent.env_id == "worlds:Point-v0"
    assert "action_buffer" in agent.observation_space.spaces  # type: ignore[attr-defined]


def test_resumed_behind_the_same_delays(headway: Command, run: Path) -> None:
    code, out, _ = headway("train", "dcac", "--resume", run, "--total-timesteps", 140)
    assert code == 0
    assert "behind delays uniform:0-2,constant:1 (dict)" in out


def test_evaluated_behind_several_laws(headway: Command, run: Path, tmp_path: Path) -> None:
    plot, table = tmp_path / "delays.png", tmp_path / "delays.csv"
    laws = ["constant:0,0", "uniform:0-2,constant:1", "constant:2,1"]
    options = ["--episodes", 3, "--plot", plot, "--csv", table]
    code, out, err = headway("evaluate", run, "--delays", *laws, *options)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:4]] == laws
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["delays"] for row in rows] == laws
    assert set(rows[0]) == {"delays", *Summary.__dataclass_fields__}
    # The point stops after seven steps; the agent hears of it as late as the observation is.
    assert [float(row["length"]) for row in rows][::2] == [7, 9]
    assert plot.stat().st_size > 5_000
    assert "exists: choose another name or pass --overwrite" in headway("evaluate", run, "--delays", *laws, *options)[2]


def test_evaluated_behind_its_own_delays_and_others(headway: Command, run: Path) -> None:
    _, own, _ = headway("evaluate", run, "--episodes", 2)
    assert "in worlds:Point-v0@dict@uniform:0-2,constant:1" in own
    _, other, _ = headway("evaluate", run, "--episodes", 2, "--delay", "constant:1,0")
    assert "in worlds:Point-v0@dict@within:2:constant:1,within:1:constant:0" in other
    assert "length 8" in other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--delays wifi,wifi", "delays of wifi are up to 4 ticks long, at most 2 fit"),
        ("--delays wifi", "delays 'wifi' must be two laws with a comma between them"),
        ("--plot p.png", "--plot draws the comparison of --delays, --search or --missions, and there are none"),
        ("--delays constant:0,0 --video v.mp4", "--video shows one law of delays"),
    ],
)
def test_evaluations_that_cannot_be(headway: Command, run: Path, flags: str, message: str) -> None:
    code, _, err = headway("evaluate", run, *flags.split())
    assert (code, err.count("\n")) == (1, 1)
    assert message in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("dcac", "DCAC reads delayed observations"),
        ("dcac --delay-form flat --delay constant:1,1", "DCAC reads delayed observations"),
        ("sac --delay unifrm:0-3,wifi", "there is no delay law 'unifrm'"),
        ("sac --delay constant:-1,0", "-1"),
        ("sac --delay-form bare", "--delay-form bare says how delays are observed: it needs --delay"),
    ],
)
def test_trainings_that_cannot_be(headway: Command, tmp_path: Path, flags: str, message: str) -> None:
    code, _, err = headway("train", *flags.split(), *TRAIN.split(), "--run-dir", tmp_path / "r")
    assert (code, err.count("\n")) == (1, 1)
    assert message in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("form", ["flat", "bare", "dict"])
def test_sac_behind_delays(headway: Command, tmp_path: Path, form: str) -> None:
    arguments = [*TRAIN.split(), "--delay", "constant:1,1", "--delay-form", form, "--run-dir", tmp_path / "r"]
    code, out, _ = headway("train", "sac", *arguments)
    assert code == 0
    assert f"behind delays constant:1,1 ({form})" in out
    space = agents.load(tmp_path / "r" / "final.zip").observation_space
    assert isinstance(space, spaces.Dict if form == "dict" else spaces.Box)


def test_laws_shown_and_drawn(headway: Command, tmp_path: Path) -> None:
    plot = tmp_path / "laws.png"
    code, out, err = headway("delays", "wifi", "uniform:0-2", "within:3:constant:1", "--plot", plot)
    assert (code, err) == (0, "")
    wifi, wifi_age, uniform, _, within, _ = out.splitlines()[1:7]
    assert wifi.split()[-5:] == ["0.000", "0.308", "0.593", "0.083", "0.016"]
    assert wifi_age.split()[-5:] == ["0.000", "0.308", "0.623", "0.067", "0.001"]
    assert uniform.split()[:3] == ["uniform:0-2", "delay", "1.000"]
    assert within.split()[-4:] == ["0.000", "1.000", "0.000", "0.000"]
    assert plot.stat().st_size > 5_000
    assert "exists: choose another name" in headway("delays", "wifi", "--plot", plot)[2]
    assert "there is no delay law 'wfi'" in headway("delays", "wfi")[2]
    assert "name at least one law" in headway("delays")[2]
