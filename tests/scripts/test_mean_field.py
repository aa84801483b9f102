"""``headway mfg solve``, ``show``, ``games`` and ``compare``, on tiny games."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import Command
from headway.envs.mean_field import GAMES, SOLVERS, MFGame, exploitability, make_game, solve
from headway.scripts.mean_field import compare as comparing
from headway.scripts.mean_field import solve as solving
from headway.scripts.mean_field.compare import read_arm
from headway.scripts.mean_field.files import load_solution, save_tensors
from headway.scripts.mean_field.games import parse_pairs, parse_value
from mean_field_support import QUIET, SMALL, image, rows
from PIL import Image
from safetensors.torch import load_file, save_file


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
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # all for the same readers
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
        (("compare", "sis", "--algorithms"), "--algorithms: name at least one: "),
        (("compare", "sis", "sis"), "games sis sis: one is named twice"),
        (("compare", "sis", "--algorithms", "fixed_point", "fixed_point:"), "fixed_point: is named twice"),
        (("compare", "sis", "--algorithms", "fixed_point:damping=0.1,damping=0.2"), "damping is given twice"),
        (("compare", "sis", "--algorithms", "fixed_point:damping"), "takes KEY=VALUE, got 'damping'"),
        (("compare", "sis", "--algorithms", "fixed_point:damping=x"), "damping must be a number, got 'x'"),
        (("compare", "sis", "--algorithms", "fixed_point:damping=2"), "damping of fixed_point must"),
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


@pytest.mark.parametrize("command", ["solve", "show", "compare", "learn"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def (:", "SyntaxError: invalid syntax"),
        ("raise LookupError('it is\\nTuesday')", "LookupError: it is Tuesday"),
        ("assert False", "AssertionError"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_games_of_broken_modules_are_one_line(
    headway: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, text: str, why: str
) -> None:
    (tmp_path / "broken_game.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = headway("mfg", command, "broken_game:mine")
    assert (code, err.count("\n")) == (1, 1)
    assert f"game 'broken_game:mine': module 'broken_game' cannot be imported: {why}" in err


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


def test_nothing_is_left_behind_where_solving_fails(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*, device: Any, dtype: Any) -> MFGame:
        def reward(t: Any, mu: torch.Tensor) -> torch.Tensor:
            return torch.where(mu > 0, mu, torch.nan)

        mu0 = torch.tensor([[1.0, 0.0]], dtype=dtype)
        return MFGame(name="broken", S=2, A=1, H=2, mu0=mu0, r_state=reward, post=torch.tensor([[0], [1]]))

    monkeypatch.setitem(GAMES, "broken", broken)
    code, _, err = headway("mfg", "solve", "broken", "--out", "run", *QUIET)
    assert (code, "NaN" in err, Path("run").exists()) == (1, True, False)


def test_tensors_that_cannot_be_written_say_where(tmp_path: Path) -> None:
    (tmp_path / "nowhere").touch()
    with pytest.raises(OSError, match=r"cannot write .*nowhere/a\.safetensors: "):
        save_tensors(tmp_path / "nowhere" / "a.safetensors", {"a": torch.ones(2)})
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2, 3).T})
    assert load_file(tmp_path / "a.safetensors")["a"].shape == (3, 2)


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


def test_ctrl_c_while_drawing_leaves_a_solution(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "draw_solved", pressed)
    code, out, _ = headway("mfg", "solve", "left_right", "--iterations", 1, *QUIET, "--out", "run")
    assert code == 130
    assert out.endswith("written: run\npictures unfinished: headway mfg show run\n")
    assert load_solution(Path("run")).manifest["game"] == "left_right"


def test_what_compare_had_found_is_written_at_ctrl_c(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "solve", _stopping(solve, 2))
    code, out, _ = headway("mfg", "compare", "left_right", "sis", "--iterations", 5, "--no-progress", "--out", "run")
    assert code == 130
    assert out.count("NashConv") == 1
    lines = rows(Path("run/exploitability.csv"))
    assert [(line["game"], line["iteration"]) for line in lines] == [("left_right", str(k)) for k in range(3)]
    image("run/exploitability.png")


def test_agents_train_on_crowds_from_the_command_line(headway: Command) -> None:
    code, out, err = headway(
        *("train", "sac", "--env", "headway/MeanFieldPopulation-v0", "--total-timesteps", 120, "--threads", 1),
        *("--learning-starts", 100, "--eval-episodes", 1),
    )
    assert code == 0, out + err
