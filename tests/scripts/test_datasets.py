"""``headway datasets``: what is here, what it holds, what is wrong with it."""

from pathlib import Path

import h5py
import imageio
import pytest
import torch
from conftest import Command
from headway.agents.core.data import load_dataset, write_dataset
from headway.scripts.cli import MODULES, USAGE
from headway.scripts.datasets import COMMANDS
from toys import recorded


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    return tmp_path / "root"


def test_list_shows_what_is_here_and_what_is_broken(headway: Command, here: Path) -> None:
    assert headway("datasets", "list")[:2] == (0, f"no data set in {here}\n")
    data = recorded(lengths=(3, 4), env_id="worlds:Point-v0", name="toys/good-v0")
    for data_format in ("hdf5", "arrow"):
        write_dataset(recorded(name=f"toys/{data_format}-v0"), data_format=data_format)
    write_dataset(data)
    (here / "toys/arrow-v0/data/0/part-0.arrow").write_bytes(b"")
    code, out, _ = headway("datasets", "list")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["id", "environment", "episodes", "steps", "return", "MB"]
    assert [line.split()[0] for line in lines[1:]] == ["toys/arrow-v0", "toys/good-v0", "toys/hdf5-v0"]
    assert "broken: headway datasets check toys/arrow-v0" in lines[1]
    returns = data.returns
    numbers = f"{returns.mean():.4g} [{returns.min():.4g}, {returns.max():.4g}]"
    assert lines[2].split()[1:4] == ["worlds:Point-v0", "2", "7"]
    assert numbers in lines[2]
    assert len(headway("datasets", "list", "good")[1].splitlines()) == 2
    assert headway("datasets", "list", "none")[1] == f"no data set whose id contains 'none' in {here}\n"


def test_show_says_where_it_comes_from(headway: Command) -> None:
    about = {"description": "a toy", "collected": {"seed": 3, "versions": {"torch": "2"}, "policies": [{"id": 0}]}}
    data = recorded(about=about, ref_min_score=-10.0, ref_max_score=10.0, env_id="Pendulum-v1")
    write_dataset(data)
    out = headway("datasets", "show", "toys/recorded-v0")[1]
    scores = data.normalised(data.returns)
    for text in (
        "toys/recorded-v0: 2 episodes, 5 steps",
        "Pendulum-v1",
        "Box(-3.0, 3.0, (1,), float32)",
        "2.5 [2, 3]; 1 terminated, the others cut",
        f"{scores.mean():.4g} [{scores.min():.4g}, {scores.max():.4g}], where 0 is a return of -10.0, 100 of 10.0",
        "behavior_logp, policy_id",
        "description   a toy",
        "    seed: 3",
        "    versions: torch 2",
        '      {"id": 0}',
    ):
        assert text in out
    assert "entry_point" not in out


def test_check_has_a_line_for_each_problem(headway: Command, here: Path) -> None:
    write_dataset(recorded(env_id="Pendulum-v1", ref_min_score=0.0, ref_max_score=1.0))
    assert headway("datasets", "check", "toys/recorded-v0")[:2] == (
        0,
        "✓ toys/recorded-v0: 2 episodes, 5 steps, nothing wrong\n",
    )
    with h5py.File(here / "toys/recorded-v0/data/main_data.hdf5", "a") as file:
        for episode in (0, 1):
            values = file[f"episode_{episode}/actions"][:-1]
            del file[f"episode_{episode}/actions"]
            file[f"episode_{episode}/actions"] = values
    code, out, _ = headway("datasets", "check", "toys/recorded-v0", "gone")
    assert code == 1
    assert [line[:33] for line in out.splitlines()] == [
        "✗ toys/recorded-v0: episode 0: 3 ",
        "✗ toys/recorded-v0: episode 1: 2 ",
        "✗ gone: there is no data set gone",
    ]


def test_check_says_what_should_be_known(headway: Command) -> None:
    data = recorded(
        lengths=(1, 2), rewards=torch.ones(3).double(), obs=torch.zeros(3, 1), actions=torch.full((3, 1), 2.0)
    )
    write_dataset(data)
    code, out, _ = headway("datasets", "check", "toys/recorded-v0")
    assert code == 0
    for note in (
        "1 of 2 episodes have one step",
        "all rewards are 1",
        "3 actions are beyond the bounds of Box",
        "3 observations are all zeros",
        "does not say which environment",
        "no reference scores",
    ):
        assert note in out


def test_plot_draws_a_panel_for_each_environment(headway: Command) -> None:
    for name, env in (("a", "Pendulum-v1"), ("b", "Pendulum-v1"), ("c", None)):
        write_dataset(recorded(name=f"toys/{name}-v0", env_id=env, lengths=(2, 3, 1), seed=ord(name)))
    names = ("toys/a-v0", "toys/b-v0", "toys/c-v0")
    assert headway("datasets", "plot", *names[:2], "--plot", "one.png")[:2] == (0, "plot: one.png\n")
    assert headway("datasets", "plot", *names, "--plot", "two.png")[0] == 0
    one, two = (imageio.v3.imread(name) for name in ("one.png", "two.png"))
    assert two.shape[1] == 2 * one.shape[1]
    assert "exists: choose another name" in headway("datasets", "plot", *names, "--plot", "one.png")[2]
    assert "must end in .png, .pdf or .svg" in headway("datasets", "plot", *names, "--plot", "one.txt")[2]


def test_take_draws_some_episodes(headway: Command) -> None:
    data = recorded(lengths=(3, 4, 2, 5, 6), name="toys/whole-v0", env_id="Pendulum-v1")
    write_dataset(data)
    parts = {}
    for name, *flags in (
        ("few", "--episodes", 2),
        ("more", "--episodes", 4),
        ("steps", "--steps", 9),
        ("all", "--steps", 20),
    ):
        code, _, err = headway("datasets", "take", "toys/whole-v0", "--dataset", f"toys/{name}-v0", *flags)
        assert code == 0, err
        parts[name] = load_dataset(f"toys/{name}-v0")
    assert (parts["few"].episodes, parts["more"].episodes) == (2, 4)
    lengths = {name: part.lengths.tolist() for name, part in parts.items()}
    assert set(lengths["few"]) < set(lengths["more"])  # all lengths are different
    order = lengths["all"]
    assert order == data.lengths.tolist()
    assert len(parts["steps"]) >= 9
    assert parts["few"].env_id == "Pendulum-v1"
    assert dict(parts["few"].about["taken"]) == {"from": "toys/whole-v0", "seed": 0, "episodes": 2}
    start = 3 if lengths["few"][0] == 4 else 0
    if lengths["few"][0] in (3, 4):
        assert torch.equal(parts["few"].actions[: lengths["few"][0]], data.actions[start : start + lengths["few"][0]])
    command = ("datasets", "take", "toys/whole-v0", "--dataset", "toys/other-v0")
    for flags, message in (
        ((), "pass --episodes or --steps"),
        (("--steps", 3, "--episodes", 1), "and not both"),
        (("--steps", 21), "20 steps, --steps asks for 21"),
        (("--episodes", 6), "5 episodes"),
    ):
        code, _, err = headway(*command, *flags)
        assert code == 1
        assert message in err
    assert headway("datasets", "take", "toys/whole-v0", "--dataset", "toys/few-v0", "--episodes", 1)[0] == 1


def test_commands(headway: Command) -> None:
    assert {"collect", "datasets"} <= {*MODULES}
    assert "headway collect" in USAGE
    code, out, _ = headway("datasets")
    assert code == 0
    assert all(f"  {command} " in out for command in COMMANDS)
    assert "did you mean show" in headway("datasets", "shows")[2]
    for command in ("check", "plot"):
        assert "which data set" in headway("datasets", command, *(("--plot", "x.png") if command == "plot" else ()))[2]
