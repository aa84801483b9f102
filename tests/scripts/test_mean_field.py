"""``headway mfg`` and ``headway benchmark mfg``, on tiny games."""

import csv
import dataclasses
import importlib.util
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import Command
from headway.envs.mean_field import GAMES, SOLVERS, MFGame, exploitability, make_game, solve
from headway.scripts import benchmark_mean_field
from headway.scripts.benchmark_mean_field import PEERS, MeanFieldOptions, Measurement, ratios
from headway.scripts.mean_field import compare as comparing
from headway.scripts.mean_field import draw_crowds, draw_curves, draw_fits, recover, study
from headway.scripts.mean_field import solve as solving
from headway.scripts.mean_field.compare import read_arm
from headway.scripts.mean_field.draw_crowds import FlowPicture, reachable
from headway.scripts.mean_field.files import load_solution, save_tensors
from headway.scripts.mean_field.fit import read_counts
from headway.scripts.mean_field.games import parse_pairs, parse_value
from headway.scripts.mean_field.learners import ALGORITHMS
from headway.scripts.train import locked
from matplotlib.colors import LogNorm
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = ("--param", "size=4", "horizon=3")
QUIET = ("--no-progress", "--format", "none")


def image(path: str | Path) -> Any:
    drawn = matplotlib.image.imread(path)
    assert drawn.std() > 0.01
    return drawn


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


# -- solve -----------------------------------------------------------------------------------------------------------


def test_solve_prints_both_figures_and_writes_everything(headway: Command) -> None:
    flags = ("--iterations", 6, *SMALL, "--out", "run")
    code, out, err = headway("mfg", "solve", "crowd_modelling", *flags)
    assert code == 0, err
    own, theirs = (make_game("crowd_modelling", compat, size=4, horizon=3) for compat in (None, "openspiel"))
    for game, form in ((own, "as defined"), (theirs, "as OpenSpiel 2.0.2 computes it")):
        found = float(solve(game, "online_mirror_descent", 6).exploitability)
        assert f"NashConv {found:.10f}  {form}" in out
    folder = Path("run")
    assert {file.name for file in folder.iterdir()} == {
        "solution.safetensors", "solution.json", "exploitability.csv", "exploitability.png", "flow.png", "flow.gif",
    }  # fmt: skip
    tensors = load_file(folder / "solution.safetensors")
    assert torch.equal(tensors["defined.policy"], solve(own, "online_mirror_descent", 6).policy)
    assert tensors["openspiel.flow"].shape == (1, 4, 4)
    manifest = json.loads((folder / "solution.json").read_text())
    assert manifest["parameters"] == {"size": 4, "horizon": 3}
    assert manifest["forms"]["defined"]["exploitability"] == float(exploitability(own, tensors["defined.policy"]))
    lines = rows(folder / "exploitability.csv")
    assert [int(line["iteration"]) for line in lines if line["game"] == "openspiel"] == list(range(7))
    assert float(lines[6]["exploitability"]) == manifest["forms"]["defined"]["exploitability"]
    image(folder / "exploitability.png")
    image(folder / "flow.png")
    with Image.open(folder / "flow.gif") as film:
        assert film.n_frames == 4


def test_solve_four_rooms_as_openspiel_does(headway: Command) -> None:
    flags = ("--compat", "openspiel", "--algorithm", "online_mirror_descent", "--iterations", 50)
    code, out, _ = headway("mfg", "solve", "four_rooms", *flags, *QUIET)
    assert code == 0
    assert "NashConv 1.3089643510  as OpenSpiel" in out
    assert out.count("NashConv") == 1
    (folder,) = Path("runs/mfg/four_rooms/online_mirror_descent").iterdir()
    assert f"written: runs/mfg/four_rooms/online_mirror_descent/{folder.name}" in out
    assert not list(folder.glob("flow.gif"))


@pytest.mark.parametrize(
    ("algorithm", "flags", "parameters"),
    [
        ("fictitious_play", ("--learning-rate", 0.3, "--temperature", 0.5), {"learning_rate": 0.3, "temperature": 0.5}),
        ("fictitious_play", ("--tie", "first"), {"tie": "first"}),
        ("munchausen_mirror_descent", ("--learning-rate", 0.5), {"learning_rate": 0.5}),
        ("boltzmann_policy_iteration", ("--learning-rate", 0.2), {"learning_rate": 0.2}),
        ("fixed_point", ("--damping", 0.9, "--temperature", 1), {"damping": 0.9, "temperature": 1.0}),
    ],
)
def test_solve_passes_parameters_on(
    headway: Command, algorithm: str, flags: tuple[Any, ...], parameters: dict[str, Any]
) -> None:
    code, out, err = headway(
        "mfg", "solve", "crowd_modelling", "--algorithm", algorithm, *flags, "--iterations", 4, "--compat", "none",
        *SMALL, *QUIET, "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    game = make_game("crowd_modelling", size=4, horizon=3)
    assert f"NashConv {float(solve(game, algorithm, 4, **parameters).exploitability):.10f}" in out
    settings = json.loads(Path("run/solution.json").read_text())["settings"]
    assert {name: settings[name] for name in parameters} == parameters


def test_solve_stops_early_and_evaluates_now_and_then(headway: Command) -> None:
    flags = ("--compat", "none", "--iterations", 9, "--tolerance", 2.5, "--evaluate-every", 2)
    assert headway("mfg", "solve", "crowd_modelling", *flags, *QUIET, "--out", "run")[0] == 0
    lines = rows(Path("run/exploitability.csv"))
    assert [int(line["iteration"]) for line in lines] == [0, 2]
    assert float(lines[1]["exploitability"]) <= 2.5 < float(lines[0]["exploitability"])


def test_solve_films_a_grid_of_several_populations(headway: Command) -> None:
    flags = ("--iterations", 2, "--param", "size=3", "--param", "horizon=2", "--compat", "none", "--no-progress")
    code, _, err = headway("mfg", "solve", "predator_prey", *flags, "--format", "mp4", "--fps", 5, "--out", "run")
    assert code == 0, err
    film = cv2.VideoCapture("run/flow.mp4")
    assert film.get(cv2.CAP_PROP_FPS) == 5
    frames = [film.read()[1].astype(float) for _ in range(3)]
    assert not film.read()[0]
    film.release()
    assert all(size % 2 == 0 for size in frames[0].shape[:2])
    assert np.abs(frames[0] - frames[2]).mean() > 1
    image("run/flow.png")


def test_folders_are_never_written_twice(headway: Command) -> None:
    Path("run").mkdir()
    code, _, err = headway("mfg", "solve", "left_right", "--out", "run", *QUIET)
    assert (code, list(Path("run").iterdir())) == (1, [])
    assert "File exists" in err
    for _ in range(2):
        assert headway("mfg", "solve", "left_right", "--iterations", 1, *QUIET)[0] == 0
    assert len(list(Path("runs/mfg/left_right/online_mirror_descent").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("solve", "four_room"), "there is no game 'four_room': did you mean four_rooms?"),
        (("solve", "sis", "--algorithm", "mirror"), "there is no algorithm 'mirror'"),
        (("solve", "sis", "--compat", "openspiel"), "game 'sis' has no compat='openspiel'"),
        (("solve", "sis", "--param", "horizn=3"), "has no parameter 'horizn': did you mean horizon?"),
        (("solve", "sis", "--param", "horizon=x"), "--param horizon must be int, got 'x'"),
        (("solve", "sis", "--param", "horizon"), "--param takes KEY=VALUE, got 'horizon'"),
        (("solve", "sis", "--param", "horizon=3", "--param", "horizon=4"), "--param horizon is given twice"),
        (("solve", "sis", "--damping", 0.5), "--damping: online_mirror_descent has no such parameter; it has --learn"),
        (("solve", "sis", "--damping", 1, "--algorithm", "fixed_point"), "--damping must lie in [0, 1), got 1"),
        (("solve", "sis", "--learning-rate", -1), "learning_rate of online_mirror_descent must lie in (0, inf)"),
        (("solve", "sis", "--iterations", 0), "--iterations must lie in [1, inf), got 0"),
        (("solve", "sis", "--device", "tpu"), "--device tpu: there is no such device here"),
        (("solve", "sis", "--itertions", 3), "did you mean --iterations"),
        (("show", "nowhere"), "'nowhere' is no folder and no game"),
        (("show", "."), "holds no solution"),
        (("games", "zzz"), "no game's name contains 'zzz'"),
        (("compare",), "name at least one game"),
        (("compare", "sis", "--algorithms", "fixed_point:dampin=1"), "fixed_point has no such parameter"),
        (("solv",), "there is no command 'mfg solv': did you mean solve or show?"),
        (("fit", "biofan"), "there are no data 'biofan': did you mean biofam?"),
        (("fit", "synthetic", "--method", "mce"), "--method mce: known: gcl_population, mce_individual"),
        (("fit", "synthetic", "--data-param", "dys=3"), "--data-param"),
        (("fit", "synthetic", "--data-param", "days=3", "days=4"), "--data-param days is given twice"),
        (("fit", "nothing.npz"), "nothing.npz does not exist"),
        (("learn",), "name at least one game"),
        (("learn", "siss"), "there is no game 'siss': did you mean sis?"),
        (("learn", "sis", "sis"), "games sis sis: one is named twice"),
        (("learn", "sis", "--seeds"), "--seeds: name at least one"),
        (("learn", "sis", "--seeds", -1), "--seeds must lie in [0,"),
        (("learn", "sis", "--set", "temprature=3"), "no field 'temprature': did you mean temperature"),
        (("learn", "sis", "--set", "temperature=-1"), "MirrorDescentConfig.temperature must lie in (0, inf), got -1"),
        (("learn", "sis", "--set", "temperature"), "--set takes FIELD=VALUE, got 'temperature'"),
        (("learn", "sis", "--set", "alpha=1", "alpha=1"), "--set alpha is given twice"),
        (("learn", "sis", "--set", "episodes=1"), "learning starts after 1000 transitions"),
        (("learn", "sis", "--timesteps", 9), "--timesteps goes with --algorithm ppo"),
        (
            ("learn", "sis", "--algorithm", "ppo", "--timesteps", 9, "--set", "timesteps=9"),
            "--timesteps is given twice",
        ),
        (("learn", "sis", "--param", "horizn=3"), "has no parameter 'horizn': did you mean horizon?"),
        (("learn", "--resume", "nowhere"), "--resume nowhere: headway mfg learn has not written it"),
        (("learn", "sis", "--resume", "a", "--out", "b"), "--resume a: headway mfg learn has not written it"),
        (("recover", "--people", 5, 5), "people: name at least one, and none twice; got 5 5"),
        (("recover", "--people", -1), "--people must lie in [0, inf), got -1"),
        (("recover", "--draws", 0), "--draws must lie in [1, inf), got 0"),
    ],
)
def test_mistakes_are_said_in_one_line(headway: Command, arguments: tuple[Any, ...], message: str) -> None:
    code, out, err = headway("mfg", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not list(Path().rglob("*.json"))


def test_values_are_parsed_without_running_them() -> None:
    texts = ("3", "0.5", "1e-3", "none", "True", "[[4, 4], [5, 4]]", "4|4;4|5", "__import__('os')", "NaN")
    found = [parse_value(text) for text in texts]
    assert found == [3, 0.5, 1e-3, None, True, [[4, 4], [5, 4]], "4|4;4|5", "__import__('os')", "NaN"]
    assert parse_pairs(["forbidden_states=[[4, 4]]"], "crowd_modelling_2d") == {"forbidden_states": [[4, 4]]}
    assert read_arm("fixed_point:damping=0.5,tie=first") == ("fixed_point", {"damping": 0.5, "tie": "first"})


def test_games_of_users_and_batches(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def twins(*, device: Any, dtype: Any) -> MFGame:
        mu0 = torch.full((2, 1, 2), 0.5, dtype=dtype)
        return MFGame(name="twins", S=2, A=2, H=1, mu0=mu0, r_state=lambda t, mu: -mu, post=torch.tensor([[0, 1]] * 2))

    monkeypatch.setitem(GAMES, "twins", twins)
    monkeypatch.setitem(GAMES, "lost", "no.such.module:game")
    code, _, err = headway("mfg", "solve", "twins")
    assert (code, "twins is a batch of (2,) games: headway mfg solves one at a time" in err) == (1, True)
    code, _, err = headway("mfg", "solve", "lost")
    assert (code, "game 'lost' cannot be loaded: No module named 'no'; install no.such.module" in err) == (1, True)


def test_nothing_is_left_behind_where_solving_fails(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*, device: Any, dtype: Any) -> MFGame:
        def reward(t: Any, mu: torch.Tensor) -> torch.Tensor:
            return torch.where(mu > 0, mu, torch.nan)

        mu0 = torch.tensor([[1.0, 0.0]], dtype=dtype)
        return MFGame(name="broken", S=2, A=1, H=2, mu0=mu0, r_state=reward, post=torch.tensor([[0], [1]]))

    monkeypatch.setitem(GAMES, "broken", broken)
    code, _, err = headway("mfg", "solve", "broken", "--out", "run", *QUIET)
    assert (code, "NaN" in err, Path("run").exists()) == (1, True, False)


# -- show, games, compare --------------------------------------------------------------------------------------------


def test_show_redraws_and_evaluates_again(headway: Command) -> None:
    headway("mfg", "solve", "crowd_modelling", "--iterations", 3, *SMALL, *QUIET, "--out", "run")
    Path("run/exploitability.png").unlink()
    code, out, err = headway("mfg", "show", "run", "--fps", 9)
    assert code == 0, err
    assert out.count("computed again from the policy in the folder") == 2
    figures = [line.split()[1] for line in out.splitlines() if line.startswith("NashConv")]
    assert figures[:2] == figures[2:]
    image("run/exploitability.png")
    assert Path("run/flow.gif").exists()
    assert headway("mfg", "show", "run", "--out", "elsewhere", "--format", "none")[0] == 0
    assert {file.name for file in Path("elsewhere").iterdir()} == {"exploitability.png", "flow.png"}


def test_a_folder_that_was_tampered_with_is_refused(headway: Command) -> None:
    headway("mfg", "solve", "left_right", "--iterations", 2, *QUIET, "--out", "run")
    file, manifest = Path("run/solution.safetensors"), Path("run/solution.json")
    whole, said = file.read_bytes(), manifest.read_text()
    file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"run is broken .*restore it"):
        load_solution(Path("run"))
    tensors = load_file(_written(file, whole))
    save_file(tensors | {"defined.policy": tensors["defined.policy"] * 1.5}, file)
    with pytest.raises(ValueError, match=r"run is broken .*sums to 1\.5"):
        load_solution(Path("run"))
    file.write_bytes(whole)
    for wrong in (said.replace('"format": 1', '"format": 99'), said.replace('"forms"', '"form"'), "[]", "{"):
        manifest.write_text(wrong)
        with pytest.raises(ValueError, match="run is broken"):
            load_solution(Path("run"))
    manifest.write_text(said)
    assert load_solution(Path("run")).manifest["game"] == "left_right"


def _written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def test_games_are_listed_and_described(headway: Command) -> None:
    code, listed, _ = headway("mfg", "games")
    assert code == 0
    assert headway("mfg", "show")[1] == listed
    lines = {line.split()[0].rstrip("*"): line for line in listed.splitlines()}
    assert lines.keys() >= GAMES.keys()
    assert lines["four_rooms"].split()[1:6] == ["*", "169", "5", "40", "1"]
    assert lines["left_right"].split()[1:5] == ["3", "2", "1", "1"]
    assert headway("mfg", "games", "rooms")[1].count("four_rooms") == 1
    code, about, _ = headway("mfg", "show", "four_rooms")
    assert "four_rooms: 169 states, 5 actions, 40 decisions" in about
    assert "horizon=40" in about
    code, usage, _ = headway("mfg")
    assert code == 0
    assert all(name in usage for name in SOLVERS)


def test_compare_draws_all_solvers(headway: Command) -> None:
    arms = ("fictitious_play", "fixed_point:damping=0.9,temperature=1", "munchausen_mirror_descent")
    flags = ("--algorithms", *arms, "--iterations", 4, "--evaluate-every", 2, "--no-progress", "--out", "run")
    code, out, err = headway("mfg", "compare", "left_right", "sis", *flags)
    assert code == 0, err
    lines = rows(Path("run/exploitability.csv"))
    solved = {(line["game"], line["algorithm"]) for line in lines}
    assert solved == {(game, arm) for game in ("left_right", "sis") for arm in arms}
    assert [int(line["iteration"]) for line in lines[:3]] == [0, 2, 4]
    last = [line for line in lines if line["algorithm"] == arms[1]][-1]
    expected = solve(make_game("sis"), "fixed_point", 4, damping=0.9, temperature=1).exploitability
    assert float(last["exploitability"]) == float(expected)
    assert f"NashConv {float(expected):.10f}" in out
    assert image("run/exploitability.png").shape[0] > 500
    assert headway("mfg", "compare", "crowd_modelling", "--compat", "openspiel", "--iterations", 1)[0] == 0


def _stopping(real: Callable[..., Any], at: int) -> Callable[..., Any]:
    """A solver at which the user presses Ctrl-C after so many iterations."""

    def press(k: int, _: torch.Tensor) -> None:
        if k == at:
            raise KeyboardInterrupt

    return lambda *args, **options: real(*args, on_evaluation=press, **options)


def test_what_solve_had_found_is_written_at_ctrl_c(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "solve", _stopping(solve, 3))
    code, out, _ = headway("mfg", "solve", "crowd_modelling", "--iterations", 9, *SMALL, *QUIET, "--out", "run")
    assert code == 130
    assert "interrupted after 3 of 9 iterations of the game as defined" in out
    assert "OpenSpiel" not in out
    saved = load_solution(Path("run"))
    assert saved.manifest["interrupted"] is True
    assert [part.solution.history.iterations for part in saved.solved] == [(0, 1, 2, 3)]
    game = make_game("crowd_modelling", size=4, horizon=3)
    assert torch.equal(saved.solved[0].solution.policy, solve(game, "online_mirror_descent", 3).policy)


def test_what_compare_had_found_is_written_at_ctrl_c(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "solve", _stopping(solve, 2))
    code, out, _ = headway("mfg", "compare", "left_right", "sis", "--iterations", 5, "--no-progress", "--out", "run")
    assert code == 130
    assert out.count("NashConv") == 1
    lines = rows(Path("run/exploitability.csv"))
    assert [(line["game"], line["iteration"]) for line in lines] == [("left_right", str(k)) for k in range(3)]
    image("run/exploitability.png")


# -- learn -----------------------------------------------------------------------------------------------------------

FEW = ("--set", "episodes=20", "members=20", "learning_starts=20", "train_freq=5", "--iterations", 2, "--no-progress")


def values(folder: str) -> list[tuple[str, ...]]:
    """What was found, in order, seconds left out."""
    lines = rows(Path(folder) / "exploitability.csv")
    return sorted(tuple(text for name, text in line.items() if name != "seconds") for line in lines)


def test_learn_writes_what_it_watches(headway: Command) -> None:
    code, out, err = headway("mfg", "learn", "left_right", "sis", *FEW, "--seeds", 0, 3, "--out", "run")
    assert code == 0, err
    lines = rows(Path("run/exploitability.csv"))
    assert list(lines[0]) == ["game", "algorithm", "seed", "iteration", "steps", "seconds", "exploitability"]
    assert [(line["seed"], line["iteration"]) for line in lines if line["game"] == "sis"] == [
        (seed, str(k)) for seed in ("", "0", "3") for k in range(3)
    ]
    exact = [float(line["exploitability"]) for line in lines[:3]]
    assert exact == solve(make_game("left_right"), "online_mirror_descent", 2).history.exploitability.tolist()
    assert lines[0]["algorithm"] == "online_mirror_descent"
    policy = load_file("run/sis/seed-3/policy.safetensors")["policy"]
    found = float(exploitability(make_game("sis"), policy))
    assert float(lines[-1]["exploitability"]) == found
    assert lines[-1]["steps"] == str(2 * 20 * make_game("sis").H)
    assert f"sis, seed 3: NashConv {found:.6g} after 2 iterations" in out
    assert re.search(r"\nmedian of 2 ( +[0-9.]+){3}\n", out)
    manifest = json.loads(Path("run/learn.json").read_text())
    assert manifest["config"]["episodes"] == 20
    assert manifest["flags"]["seeds"] == [0, 3]
    assert {"command", "machine", "versions"} <= manifest.keys()
    events = EventAccumulator("run/sis/seed-3").Reload()
    assert [point.step for point in events.Scalars("mean_field/iteration")] == [0, 1000, 2000]
    assert events.Scalars("mean_field/exploitability")[-1].value == pytest.approx(found)
    image("run/exploitability.png")
    code, _, err = headway("mfg", "learn", "sis", *FEW, "--out", "run")
    assert (code, "File exists" in err) == (1, True)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("average_fictitious_play", ("episodes=20", "learning_starts=5", "train_freq=5", "average_steps=3")),
        ("deep_fictitious_play", ("episodes=20", "learning_starts=5", "train_freq=5")),
        ("ppo", ("timesteps=20", "members=4", "n_steps=5", "batch_size=10", "n_epochs=1", "net_arch=[8]")),
    ],
)
def test_learn_with_every_algorithm(headway: Command, algorithm: str, settings: tuple[str, ...]) -> None:
    flags = ("--algorithm", algorithm, "--set", *settings, "--iterations", 1, "--no-progress", "--out", "run")
    code, out, err = headway("mfg", "learn", "left_right", *flags)
    assert code == 0, err
    lines = rows(Path("run/exploitability.csv"))
    assert [line["algorithm"] for line in lines] == ["fictitious_play"] * 2 + [algorithm] * 2
    assert int(lines[-1]["steps"]) >= 20
    assert "exact fictitious_play" in out


def test_learn_goes_on_after_ctrl_c_as_if_nothing_had_been(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("left_right", *FEW, "--seeds", 0, 1)
    headway("mfg", "learn", *flags, "--out", "whole")
    log, calls = study.log_iterations, []

    def pressed(iteration: Any) -> None:
        calls.append(iteration.number)
        if calls == [0, 1, 2, 0, 1]:  # seed 0 is finished, and an iteration of seed 1
            raise KeyboardInterrupt

    monkeypatch.setattr(study, "log_iterations", lambda logger: pressed)
    code, out, _ = headway("mfg", "learn", *flags, "--out", "run")
    assert code == 130
    assert "interrupted: 1 of 2 runs are finished; the one that was cut off starts again" in out
    assert "go on with: headway mfg learn --resume run\n" in out
    assert len(values("run")) == len(values("whole")) - 1
    image("run/exploitability.png")
    policy = Path("run/left_right/seed-0/policy.safetensors")
    before = policy.stat().st_mtime_ns
    with Path("run/exploitability.csv").open("a") as file:
        file.write("left_right,deep_mirr")  # as if the process had been killed
    monkeypatch.setattr(study, "log_iterations", log)
    code, out, err = headway("mfg", "learn", *flags, "--out", "run", "--resume", "run")
    assert code == 0, err
    assert "left_right, seed 0: finished before" in out
    assert policy.stat().st_mtime_ns == before
    assert values("run") == values("whole")
    code, out, _ = headway("mfg", "learn", "--resume=run", "--no-progress", "--seeds", 2)
    assert code == 0
    assert len(values("run")) == len(values("whole")) + 3
    manifest = json.loads(Path("run/learn.json").read_text())
    assert (manifest["flags"]["seeds"], len(manifest["resumed"])) == ([0, 1, 2], 2)


def test_learn_resumes_nothing_else(headway: Command) -> None:
    headway("mfg", "learn", "left_right", *FEW, "--no-exact", "--out", "run")
    before = values("run")
    for flags, message in (
        (("--iterations", 3), "--iterations is 2 in run and cannot become 3: leave the flag out"),
        (("--set", "alpha=1"), "--set is episodes=20"),
        (("left_right", "sis"), "--games is left_right in run and cannot become left_right sis"),
        (("--exact",), "--exact is False in run and cannot become True"),
        (("--out", "elsewhere"), "--out elsewhere: a command that goes on with run writes there"),
    ):
        code, out, err = headway("mfg", "learn", *flags, "--resume", "run")
        assert (code, out, message in err) == (1, "", True), err
    with locked(Path("run")) as free:
        assert free
        code, _, err = headway("mfg", "learn", "--resume", "run")
    assert (code, "another process is learning in run" in err) == (1, True)
    assert values("run") == before
    Path("run/exploitability.csv").write_text("game,seed\nleft_right,0\n")
    code, _, err = headway("mfg", "learn", "--resume", "run")
    assert (code, "run/exploitability.csv is broken" in err) == (1, True)
    Path("run/learn.json").write_text("{}")
    code, _, err = headway("mfg", "learn", "--resume", "run")
    assert (code, "run/learn.json is broken" in err) == (1, True)


def test_a_run_that_fails_does_not_stop_the_others(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ALGORITHMS["deep_mirror_descent"]

    def diverging(*args: Any, seed: int, iterations: int, **options: Any) -> Any:
        if seed == 0 and iterations:
            raise ValueError("outputs are no longer finite")
        return known.solve(*args, seed=seed, iterations=iterations, **options)

    monkeypatch.setitem(ALGORITHMS, "deep_mirror_descent", dataclasses.replace(known, solve=diverging))
    code, out, _ = headway("mfg", "learn", "left_right", *FEW, "--seeds", 0, 1, "--out", "run")
    assert code == 1
    assert "left_right, seed 0: failed: outputs are no longer finite" in out
    assert "1 of 2 runs failed" in out
    assert [place.parent.name for place in Path("run").rglob("policy.safetensors")] == ["seed-1"]


def test_settings_are_listed(headway: Command) -> None:
    code, out, _ = headway("mfg", "learn", "--algorithm", "ppo", "--set", "help")
    assert code == 0
    assert "  batch_size=64: Rows per gradient step. Range: [1, inf).\n" in out


# -- recover ---------------------------------------------------------------------------------------------------------


def test_recover_plants_and_finds(headway: Command) -> None:
    code, out, err = headway("mfg", "recover", "--people", 0, 200, 2000, "--draws", 2, "--no-progress", "--out", "run")
    assert code == 0, err
    lines = rows(Path("run/recovery.csv"))
    assert [(line["people"], line["flow"], line["draw"]) for line in lines] == [
        (people, flow, draw)
        for people, draw in (("all", "0"), ("200", "0"), ("200", "1"), ("2000", "0"), ("2000", "1"))
        for flow in ("data", "model")
    ]
    assert float(lines[0]["error_u"]) < 1e-6
    assert abs(float(lines[0]["log_congestion"]) - 1) < 1e-6
    assert all(line["converged"] == "1" for line in lines)
    many, few = (np.median([float(r["error_u"]) for r in lines if r["people"] == n]) for n in ("2000", "200"))
    assert many < few
    assert re.search(r"\n +2000  model  0\.0\d+ \[0\.0\d+, 0\.0\d+\] .* 2 of 2\n", out)
    assert json.loads(Path("run/recover.json").read_text())["people"] == [0, 200, 2000]
    image("run/recovery.png")


def test_recover_topics(headway: Command) -> None:
    flags = ("--instance", "topics", "--people", 0, "--flow", "data", "--no-progress", "--out", "run")
    code, out, err = headway("mfg", "recover", *flags)
    assert code == 0, err
    (line,) = rows(Path("run/recovery.csv"))
    assert float(line["stay"]) == pytest.approx(0.2, abs=1e-6)
    assert float(line["popularity"]) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(line["exploitability"])) < 1e-9
    assert "error_popularity" in out
    assert not Path("run/recovery.png").exists()  # without numbers of people there is no axis for them


def test_recover_keeps_what_it_has_at_ctrl_c(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = iter([recover.fit] * 3)

    def pressed(*args: Any, **options: Any) -> Any:
        try:
            return next(fits)(*args, **options)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(recover, "fit", pressed)
    code, out, _ = headway("mfg", "recover", "--people", 100, "--draws", 3, "--no-progress", "--out", "run")
    assert code == 130
    assert "interrupted after 3 of 6 fits" in out
    assert len(rows(Path("run/recovery.csv"))) == 3
    image("run/recovery.png")


# -- pictures --------------------------------------------------------------------------------------------------------


def test_walls_are_what_nobody_can_reach() -> None:
    game = make_game("four_rooms")
    assert int(reachable(game).sum()) == 104
    assert np.array_equal(~reachable(game), game.info["walls"].numpy())
    assert reachable(make_game("crowd_modelling")).all()
    assert reachable(make_game("garnet", sparsity_factor=0.5)).any()
    assert reachable(make_game("sis")).all()


def test_frames_show_where_the_crowd_is() -> None:
    game = make_game("crowd_modelling_2d", size=3, horizon=1, forbidden_states="[0|0]", initial_distribution="[2|2]")
    flow = np.zeros((1, 2, 9))
    flow[0, 0, 8], flow[0, 1, 1:] = 1, 1 / 8
    picture = FlowPicture(game, flow, "a title " * 12)
    first, second = picture.frame(0), picture.frame(1)
    assert first.shape == second.shape
    axes = picture.figure.axes[0]
    walls = picture.maps[0].get_array().mask
    assert walls.tolist() == [[True, False, False], [False] * 3, [False] * 3]

    def colour(frame: Any, x: int, y: int) -> list[int]:
        column, row = axes.transData.transform((x, y))
        return frame[frame.shape[0] - 1 - int(row), int(column)].tolist()

    assert colour(first, 0, 0) == [183] * 3
    assert colour(first, 2, 2)[0] > 200 > 100 > colour(first, 1, 1)[0]  # yellow, purple
    assert colour(second, 1, 1) == colour(second, 2, 2)


# -- fit -------------------------------------------------------------------------------------------------------------


def test_fit_recovers_what_was_planted(headway: Command) -> None:
    flags = ("--data-param", "days=4", "people=none", "--data-param", "d=4", "horizon=5", "--baselines", "var", "mean")
    code, out, err = headway("mfg", "fit", "synthetic", *flags, "--train", 3, "--no-progress", "--out", "run")
    assert code == 0, err
    assert "3 crowds fitted, 1 to test" in out
    assert re.search(r"popularity +planted 1.0000, recovered (1.000|0.999)", out)
    manifest = json.loads(Path("run/fit.json").read_text())
    assert manifest["scores"].keys() == {"reward", "var", "mean"}
    assert manifest["scores"]["reward"]["test"]["jsd_mean"] < 1e-6 < manifest["scores"]["mean"]["test"]["jsd_mean"]
    assert manifest["config"]["tau"] == 0.05
    found = load_file("run/fit.safetensors")
    assert abs(float(found["popularity"]) - 1) < 1e-3
    for name in ("recovered", "errors", "forecasts"):
        image(f"run/{name}.png")


def test_fit_of_counts_in_a_file(headway: Command) -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((5, 3, 2, 2))
    counts[:, 0] = rng.integers(1, 9, (5, 2, 2))
    for n in range(2):  # as many stay as arrived
        arrived = counts[:, n].sum(1)
        counts[:, n + 1, :, 0] = np.floor(arrived * 0.4)
        counts[:, n + 1, :, 1] = arrived - counts[:, n + 1, :, 0]
    np.savez("crowd.npz", counts=counts, labels=np.array(["in", "out"]))
    read = read_counts(Path("crowd.npz"))
    assert read.labels == ("in", "out")
    assert torch.allclose(read.pi.sum(-1), torch.ones(5, 4, dtype=torch.float64))
    assert torch.allclose(read.pi[0, 3], torch.from_numpy(counts[0, 2].sum(0) / counts[0, 2].sum()))
    flags = ("--model", "u", "--baselines", "persistence", "moves", "--seed", 3, "--param", "l2=0.01")
    code, out, err = headway("mfg", "fit", "crowd.npz", *flags, "--no-progress", "--out", "run")
    assert code == 0, err
    assert "4 crowds fitted, 1 to test" in out
    assert json.loads(Path("run/fit.json").read_text())["config"] == {"seed": 3, "terminal": "learned", "l2": 0.01}
    image("run/reward.png")


def test_files_that_are_no_counts_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "crowd.npz"
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        read_counts(file)
    np.savez(file, count=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"has no array 'counts'.*it has count"):
        read_counts(file)
    np.savez(file, counts=np.ones((2, 3, 2)))
    with pytest.raises(ValueError, match="counts must be numbers"):
        read_counts(file)
    np.savez(file, counts=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_counts(file)


# -- benchmark -------------------------------------------------------------------------------------------------------

TINY = ("--rounds", 2, "--seconds", 0.001, "--batch", 7, "--batch-iterations", 2, "--num-envs", 1, 3)
WITHOUT_PEER = importlib.util.find_spec("pyspiel") is None


def test_benchmark_writes_what_it_measured(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *args: None if n == "pyspiel" else find(n, *args))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ("--games", "crowd_modelling", "--env-games", "four_rooms", *TINY, "--json", "b.json")
    code, out, err = headway("benchmark", "mfg", *flags)
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    timed = {(m["quantity"], m["game"], m["side"], m["rows"]) for m in read["measurements"]}
    assert timed == {
        ("fictitious_play", "crowd_modelling", "headway", 1),
        ("online_mirror_descent", "crowd_modelling", "headway", 1),
        ("batch", "crowd_modelling", "headway", 7),
        ("env", "four_rooms", "headway-single", 1),
        ("env", "four_rooms", "headway", 1),
        ("env", "four_rooms", "headway", 3),
    }
    assert all(len(m["values"]) == 2 and min(m["values"]) > 0 for m in read["measurements"])
    assert all(m["median"] == statistics.median(m["values"]) for m in read["measurements"])
    assert {(a["side"], a["reason"].partition(":")[0]) for a in read["absent"]} == {
        ("headway-gpu", "torch finds no CUDA device"),
        ("openspiel-python", "OpenSpiel is not installed"),
        ("openspiel-c++", "OpenSpiel is not installed"),
    }
    assert "absent: OpenSpiel is not installed" in out
    assert {"command", "machine", "versions", "load_before", "load_after", "options", "units"} <= read.keys()
    assert read["ratios"] == []
    code, _, err = headway("benchmark", "mfg", "--json", "b.json")
    assert (code, "b.json exists: choose another name" in err) == (1, True)


@pytest.mark.skipif(WITHOUT_PEER, reason="OpenSpiel is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_benchmark_beside_openspiel(headway: Command) -> None:
    flags = ("--games", "crowd_modelling", "--env-games", "crowd_modelling", *TINY, "--no-gpu", "--json", "b.json")
    code, out, err = headway("benchmark", "mfg", *flags)
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("b.json").read_text())
    sides = {m["side"] for m in read["measurements"]}
    assert sides == {"headway", "headway-single", "openspiel-python", "openspiel-c++"}
    assert all(row["difference"] < 1e-9 for row in read["agreement"])
    assert len(read["agreement"]) == 2
    assert all(row["times"] > 0 for row in read["ratios"])
    assert "x c++" in out


def test_ratios() -> None:
    def timed(quantity: str, side: str, rows: int, *values: float) -> Measurement:
        return Measurement(quantity, "crowd_modelling", side, rows, list(values))

    found = ratios(
        [
            timed("online_mirror_descent", "headway", 1, 0.5, 0.1, 0.2),
            timed("online_mirror_descent", "openspiel-c++", 1, 4.0),
            timed("batch", "headway", 100, 2.0),
            timed("env", "headway", 8, 600.0),
            timed("env", "openspiel-python", 1, 20.0),
        ]
    )
    assert [(r["quantity"], r["rows"], r["peer"], r["times"]) for r in found] == [
        ("online_mirror_descent", 1, "openspiel-c++", 20.0),
        ("batch", 100, "openspiel-c++", 200.0),
        ("env", 8, "openspiel-python", 30.0),
    ]


def test_iterations_are_timed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = benchmark_mean_field.our_solver(make_game("left_right"), "fictitious_play", 2)
    calls: list[int] = []
    monkeypatch.setattr(benchmark_mean_field, "solve", lambda game, algorithm, n, **_: calls.append(n))
    made.run(5)
    assert calls == [2, 2, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--games", "four_room"), "--games four_room: the benchmark has no such game: did you mean four_rooms?"),
        (("--env-games", "sis"), "--env-games sis: the benchmark has no such game"),
        (("--rounds", 0), "--rounds must lie in [1, inf), got 0"),
        (("--num-envs", 4, 0), "--num-envs must lie in [1, inf), got 0"),
        (("--json", "nowhere/b.json"), "there is no folder nowhere"),
    ],
)
def test_mistakes_of_the_benchmark(headway: Command, flags: tuple[Any, ...], message: str) -> None:
    code, out, err = headway("benchmark", "mfg", *flags)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_every_peer_is_a_game_of_ours() -> None:
    assert PEERS.keys() <= GAMES.keys()
    assert set(MeanFieldOptions().games) | {"periodic_aversion"} == set(PEERS)


# -- mistakes in folders, files and flags ----------------------------------------------------------------------------


def test_tensors_that_cannot_be_written_say_where(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*nowhere/a\.safetensors: "):
        save_tensors(tmp_path / "nowhere" / "a.safetensors", {"a": torch.ones(2)})
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2, 3).T})
    assert load_file(tmp_path / "a.safetensors")["a"].shape == (3, 2)


def test_an_edited_solution_is_refused(headway: Command) -> None:
    headway("mfg", "solve", "left_right", "--iterations", 2, *QUIET, "--out", "run")
    manifest, table, file = (Path("run") / f for f in ("solution.json", "exploitability.csv", "solution.safetensors"))
    said = json.loads(manifest.read_text())
    for change, message in (
        ({"algorithm": 3}, "'algorithm' in solution.json must be a text, got 3"),
        ({"forms": {}}, "'forms' in solution.json names no form"),
        ({"forms": {"definde": {}}}, "a game has no form 'definde': did you mean defined"),
    ):
        manifest.write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=f"run is broken .*{message}.*restore it, or solve the game again"):
            load_solution(Path("run"))
    manifest.write_text(json.dumps({name: value for name, value in said.items() if name != "algorithm"}))
    with pytest.raises(ValueError, match="has no 'algorithm'"):
        load_solution(Path("run"))
    manifest.write_text(json.dumps(said))
    lines = table.read_text()
    last = lines.splitlines()[-1].split(",")
    for wrong in ("nan", "inf", "0.123"):
        table.write_text(lines.replace(",".join(last), ",".join([*last[:2], wrong, last[3]])))
        with pytest.raises(ValueError, match=rf"the last exploitability is {wrong}, the policy's is \d"):
            load_solution(Path("run"))
    table.write_text(lines)
    tensors = load_file(file)
    save_tensors(file, tensors | {"defined.flow": tensors["defined.flow"].flip(-1)})
    with pytest.raises(ValueError, match="the flow is not the policy's"):
        load_solution(Path("run"))
    save_tensors(file, tensors)
    assert load_solution(Path("run")).solved[0].compat is None


COUNTS = np.ones((2, 3, 2, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"counts": COUNTS, "labels": np.array("ab")}, r"labels must be a list of texts, got \(\) of <U2"),
        ({"counts": COUNTS, "names": np.ones(2)}, "names must be a list of texts, got .* of float64"),
        ({"counts": COUNTS, "labels": np.array(["a", None])}, "labels cannot be read: it holds Python objects"),
        ({"counts": COUNTS.astype(str)}, "counts must be numbers"),
        ({"counts": COUNTS * 1j}, "counts must be numbers .*complex128"),
        ({"counts": COUNTS, "pi": np.full((2, 4, 2), "x")}, "pi must be numbers .* of <U1"),
        ({"counts": COUNTS, "pi": np.full((2, 4, 2), 0.5j)}, "pi must be numbers .* of complex128"),
        ({"counts": -COUNTS}, r"counts must be finite and at least 0, got -1.0 at \(0, 0, 0, 0\)"),
        ({"counts": COUNTS * np.inf}, "counts must be finite and at least 0, got inf"),
        ({"counts": COUNTS * 0}, "counts hold no people at crowd and time"),
        ({"counts": COUNTS[:, :0]}, "each at least 1"),
    ],
)
def test_arrays_that_are_no_crowds_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "crowd.npz", **arrays)
    with pytest.raises(ValueError, match=f"crowd.npz.*{message}"):
        read_counts(tmp_path / "crowd.npz")


def test_a_renamed_npy_and_a_text_are_no_archives(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, COUNTS)
    (tmp_path / "b.npz").write_text("1,2\n")
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as arrays: it is no .npz archive.*numpy\.savez"):
            read_counts(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "one.npz"), "there is one crowd: at least two are needed, some to fit and some to test"),
        (("fit", "synthetic", "--data-param", "days=1"), "there is one crowd"),
        (("fit", "synthetic", "--data-param", "peopel=10"), "synthetic has no parameter 'peopel': did you mean people"),
        (("fit", "mvad", "--data-param", "groups=3"), "mvad has no parameter 'groups'"),
        (("fit", "synthetic", "--data-param", "people=abc"), "people must be a whole number of at least 1, got abc"),
        (("fit", "synthetic", "--data-param", "people=1.5"), "people must be a whole number of at least 1, got 1.5"),
        (("fit", "synthetic", "--data-param", "people=-1"), "people must be a whole number of at least 1, got -1"),
        (("fit", "biofam", "--data-param", "groups=none"), "groups must be a whole number of at least 1, got None"),
        (("fit", "synthetic", "--data-param", "tau=1e999"), "tau must be a finite number, got inf"),
        (("compare", "sis", "--algorithms"), "--algorithms: name at least one: "),
        (("compare", "sis", "sis"), "games sis sis: one is named twice"),
        (("compare", "sis", "--algorithms", "fixed_point", "fixed_point:"), "fixed_point: is named twice"),
        (("compare", "sis", "--algorithms", "fixed_point:damping=0.1,damping=0.2"), "damping is given twice"),
        (("compare", "sis", "--algorithms", "fixed_point:damping"), "takes KEY=VALUE, got 'damping'"),
        (("compare", "sis", "--algorithms", "fixed_point:damping=x"), "damping must be a number, got 'x'"),
        (("compare", "sis", "--algorithms", "fixed_point:damping=2"), "damping of fixed_point must"),
    ],
)
def test_more_mistakes_are_said_in_one_line(headway: Command, arguments: tuple[Any, ...], message: str) -> None:
    np.savez("one.npz", counts=COUNTS[0])
    code, out, err = headway("mfg", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not Path("runs").exists()


# -- pictures of what hardly differs ---------------------------------------------------------------------------------


def test_crowds_that_start_at_a_point_are_on_a_logarithmic_scale() -> None:
    flow = np.full((1, 11, 25), 1 / 25)
    flow[0, 0] = np.eye(25)[0]
    assert isinstance(draw_crowds._norm(flow), LogNorm)
    assert not isinstance(draw_crowds._norm(flow[:, 1:]), LogNorm)


@pytest.mark.parametrize("value", [0.0, -1e-17, 2.0])
def test_curves_of_nothing_and_of_one_evaluation_are_drawn(value: float) -> None:
    one = draw_curves.Curve(np.array([0]), np.array([0.1]), np.array([value]))
    zero = draw_curves.Curve(np.arange(2), np.arange(2) * 0.1, np.zeros(2))
    draw_curves.exploitability_curves(Path("one.png"), "one", {"a": one})
    draw_curves.solver_comparison(Path("both.png"), {"g": {"a": one, "b": zero}, "h": {"a": one}, "i": {"b": zero}})
    draw_curves.learning_curves(Path("runs.png"), "runs", {"g": ([one], zero), "h": ([zero, zero], None)}, "exact")
    draw_fits.forecast_errors(Path("errors.png"), "none", {"a": (0.0, 0.0)})
    for name in ("one", "both", "runs", "errors"):
        image(f"{name}.png")


def test_labels_of_states_are_no_formulas() -> None:
    shares = np.full((4, 15), 1 / 15)
    labels = [f"${state}$_^" for state in range(15)]
    draw_fits.forecasts(Path("forecasts.png"), "$a_^$", shares, {"m": shares}, labels)
    draw_fits.reward_map(Path("reward.png"), "$a_^$", -np.eye(15), np.ones((15, 15), bool), labels)
    image("forecasts.png")
    image("reward.png")


def test_ctrl_c_while_drawing_leaves_a_solution(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "draw_solved", pressed)
    code, out, _ = headway("mfg", "solve", "left_right", "--iterations", 1, *QUIET, "--out", "run")
    assert code == 130
    assert out.endswith("written: run\npictures unfinished: headway mfg show run\n")
    assert load_solution(Path("run")).manifest["game"] == "left_right"


def test_games_of_ones_own_are_known_by_their_module(
    headway: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "games_of_mine.py").write_text(
        "import torch\n"
        "from headway.envs.mean_field import MFGame, register_game\n\n"
        "def swap(*, horizon: int = 2, device, dtype):\n"
        "    mu0 = torch.tensor([[0.9, 0.1]], dtype=dtype, device=device)\n"
        "    post = torch.tensor([[0, 1], [1, 0]], device=device)\n"
        "    return MFGame(name='swap', S=2, A=2, H=horizon, mu0=mu0, post=post, r_state=lambda t, mu: -mu)\n\n"
        "register_game('swap_of_mine', swap)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "games_of_mine:swap_of_mine"
    code, out, _ = headway("mfg", "solve", name, "--iterations", 2, "--param", "horizon=3", *QUIET, "--out", "run")
    assert (code, "2 states, 2 actions, 3 decisions" in out) == (0, True)
    code, out, _ = headway("mfg", "show", "run", "--format", "none")
    assert (code, "computed again" in out) == (0, True)
    code, out, _ = headway("mfg", "show", name)
    assert (code, "horizon=2" in out) == (0, True)
    GAMES.pop("swap_of_mine")


def test_a_run_without_its_record_or_policy_is_not_finished(headway: Command) -> None:
    command = ("mfg", "learn", "left_right", "--iterations", 1, "--no-exact", "--no-progress", "--out", "run")
    tiny = ("--set", "episodes=20", "members=20", "learning_starts=20", "batch_size=8", "train_freq=4")
    assert headway(*command, *tiny)[0] == 0
    policy, record = Path("run/left_right/seed-0/policy.safetensors"), Path("run/exploitability.csv")
    kept = record.read_text()
    assert "finished before" in headway("mfg", "learn", "--resume", "run", "--no-progress")[1]
    for spoil in (lambda: policy.write_bytes(b""), lambda: record.write_text(kept[:-10])):
        spoil()
        code, out, _ = headway("mfg", "learn", "--resume", "run", "--no-progress")
        assert (code, "finished before" in out) == (0, False)
        assert len(record.read_text().splitlines()) == len(kept.splitlines())


def test_agents_train_on_crowds_from_the_command_line(headway: Command) -> None:
    code, out, err = headway(
        *("train", "sac", "--env", "headway/MeanFieldPopulation-v0", "--total-timesteps", 120, "--threads", 1),
        *("--learning-starts", 100, "--eval-episodes", 1),
    )
    assert code == 0, out + err
