"""Run folders and solutions that somebody else has made: what they name, and what they may hold."""

import contextlib
import csv
import functools
import io
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from conftest import Command
from forging import Forger, attempt, report
from headway.envs.mean_field import GAMES
from headway.scripts.cli import main
from headway.scripts.mean_field.files import Saved, load_solution, save_tensors
from headway.scripts.options import parse_train
from headway.scripts.runs import read_run
from safetensors.torch import load_file

TINY = shlex.split(
    "--total-timesteps 40 --eval-episodes 1 --learning-starts 20 --batch-size 8 --net-arch 8 --threads 1"
)
TINY += ["--no-progress"]
ENV = "elsewhere:Elsewhere-v0"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that registers an environment and a game, which nothing has imported yet."""
    (tmp_path / "elsewhere.py").write_text(
        "import gymnasium as gym\nfrom toys import Point\nfrom headway.envs.mean_field import GAMES, register_game\n"
        "gym.register('Elsewhere-v0', Point, max_episode_steps=7)\n"
        "register_game('elsewhere', GAMES['left_right'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    forget()


def forget() -> None:
    """As in a process that has not imported it."""
    sys.modules.pop("elsewhere", None)
    gym.registry.pop("Elsewhere-v0", None)
    GAMES.pop("elsewhere", None)


# ---- what they name --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("elsewhere")
def test_no_folder_decides_which_environment_is_imported(headway: Command) -> None:
    code, out, err = headway("train", "sac", "--env", ENV, *TINY, "--run-dir", "run")
    assert code == 0, err
    evaluate = shlex.split(out.rpartition("evaluate it: headway ")[2].splitlines()[0])
    assert evaluate == ["evaluate", "run/final.zip", "--env", ENV]
    for command in (["evaluate", "run/final.zip"], ["train", "--resume", "run", "--total-timesteps", "60"]):
        forget()
        code, _, err = headway(*command)
        assert (code, err.count("\n")) == (1, 1)
        assert f"names the environment {ENV}, which would import the module elsewhere" in err
        assert f"--env {ENV}, or --trust-env" in err
        assert "elsewhere" not in sys.modules
    for flags in (["--env", ENV], ["--trust-env"]):
        forget()
        assert headway("evaluate", "run/final.zip", "--episodes", 1, *flags)[0] == 0
    forget()
    code, _, err = headway("train", "--resume", "run", "--total-timesteps", 60, "--env", ENV)
    assert code == 0, err
    forget()
    code, _, err = headway("train", "--resume", "run", "--total-timesteps", 80, "--trust-env")
    assert code == 0, err
    assert headway("evaluate", "run/final.zip", "--episodes", 1)[0] == 0  # it is imported now


@pytest.mark.usefixtures("elsewhere")
def test_a_folder_cannot_trust_itself(headway: Command) -> None:
    assert headway("train", "sac", "--env", ENV, *TINY, "--run-dir", "run")[0] == 0
    forget()
    file = Path("run/config.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"options": content["options"] | {"trust_env": True}}))
    code, _, err = headway("train", "--resume", "run", "--total-timesteps", 60)
    assert (code, "would import the module elsewhere" in err) == (1, True)
    assert "elsewhere" not in sys.modules


def test_trusting_needs_something_to_trust(headway: Command) -> None:
    code, _, err = headway("train", "sac", "--env", "Pendulum-v1", *TINY, "--trust-env")
    assert (code, "--trust-env is about the environment that a folder names" in err) == (1, True)
    code, _, err = headway("mfg", "show", "left_right", "--trust-game")
    assert (code, "--trust-game is about the game that a folder names" in err) == (1, True)


@pytest.mark.usefixtures("elsewhere")
def test_no_folder_decides_which_game_is_imported(headway: Command) -> None:
    solve = shlex.split("--iterations 2 --no-progress --format none --out run")
    code, _, err = headway("mfg", "solve", "elsewhere:elsewhere", *solve)
    assert code == 0, err
    forget()
    code, _, err = headway("mfg", "show", "run", "--format", "none")
    assert (code, err.count("\n")) == (1, 1)
    assert "would import the module elsewhere" in err
    assert "--trust-game" in err
    assert "elsewhere" not in sys.modules
    assert headway("mfg", "show", "run", "--format", "none", "--trust-game")[0] == 0
    assert headway("mfg", "show", "run", "--format", "none")[0] == 0  # it is imported now


# ---- what they hold --------------------------------------------------------------------------------------------------


@functools.cache
def solution() -> dict[str, Any]:
    """What the three files of a solved game hold."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name) / "run"
        flags = shlex.split(f"--iterations 3 --no-progress --format none --param size=4 horizon=3 --out {folder}")
        assert main(["mfg", "solve", "crowd_modelling", *flags]) == 0
        return {
            "solution.json": json.loads((folder / "solution.json").read_text()),
            "exploitability.csv": list(csv.reader((folder / "exploitability.csv").read_text().splitlines())),
            "solution.safetensors": load_file(folder / "solution.safetensors"),
        }


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "solution.json").write_text(json.dumps(content["solution.json"]))
    with (folder / "exploitability.csv").open("w", newline="") as file:
        rows = content["exploitability.csv"]
        csv.writer(file).writerows(row if isinstance(row, list) else [row] for row in rows)
    save_tensors(folder / "solution.safetensors", content["solution.safetensors"])


def check_solution(saved: Saved) -> None:
    for part in saved.solved:
        history = part.solution.history
        assert part.solution.policy.isfinite().all()
        assert history.exploitability.isfinite().all()
        assert list(history.iterations) == sorted(history.iterations)


def forge_solution(case: int, folder: Path) -> tuple[str, str]:
    forger, content = Forger(case), dict(solution())
    name = forger.rng.choice([*content, "solution.json"])
    changed = forger.tensors if name == "solution.safetensors" else forger.tree
    content[name] = changed(content[name])
    try:
        write(folder, content)
    except (csv.Error, TypeError, ValueError) as error:
        return "refused", f"no file can hold it: {error}"
    return attempt(lambda: load_solution(folder), check_solution, ValueError)


def test_forged_solutions(tmp_path: Path) -> None:
    outcomes = {str(case): forge_solution(case, tmp_path) for case in range(150)}
    assert {kind for kind, _ in outcomes.values()} == {"refused", "accepted"}, report(outcomes)


@pytest.mark.slow
def test_a_thousand_forged_solutions(tmp_path: Path) -> None:
    outcomes = {str(case): forge_solution(case, tmp_path) for case in range(1000)}
    assert {kind for kind, _ in outcomes.values()} == {"refused", "accepted"}, report(outcomes)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("solution.json", {"parameters": {"size": 10**6}}, "the parameter size must be a whole number from"),
        ("solution.json", {"parameters": {"crowd_aversion_coef": 1e999}}, "finite number"),
        ("solution.json", {"game": "no_such_module:maze"}, "would import the module no_such_module"),
        ("solution.json", {"forms": {"defined": {}}}, "lacks 'iterations'"),
        ("solution.json", {"format": True}, "'format' in solution.json must be a number"),
        ("exploitability.csv", [["game", "iteration"], ["defined", "1"]], "broken"),
    ],
)
def test_solutions_that_cannot_be_are_refused_in_words(tmp_path: Path, file: str, change: Any, message: str) -> None:
    content = dict(solution())
    content[file] = content[file] | change if isinstance(change, dict) else change
    write(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        load_solution(tmp_path)


def test_forged_configurations_of_runs(tmp_path: Path) -> None:
    run = parse_train("sac", ["--env", "Pendulum-v1", "--run-dir", "run"])
    assert run is not None
    content = run.to_dict() | {"versions": {"python": "3"}, "finished": 40}

    def read() -> Any:
        read_run(tmp_path)
        return parse_train("", ["--resume", str(tmp_path)])

    outcomes = {}
    for case in range(150):
        (tmp_path / "config.json").write_text(json.dumps(Forger(case).tree(content)))
        outcomes[str(case)] = attempt(read, lambda _: None, ValueError)
    assert {kind for kind, _ in outcomes.values()} == {"refused", "accepted"}, report(outcomes)
