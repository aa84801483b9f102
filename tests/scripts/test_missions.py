"""``headway evaluate --missions``, and ``headway frostbite play`` and ``calibrate``."""

import csv
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch

pytest.importorskip("ale_py")

from headway.agents import TDT
from headway.agents.core.data import Dataset
from headway.envs import missions
from headway.envs.missions import Reference, find_task, register_references, tasks_of
from headway.scripts.draw_missions import draw_missions
from headway.scripts.frostbite import calibrate, play
from headway.scripts.missions import evaluate_missions, missions_of
from headway.scripts.policies import read_policy
from headway.scripts.worlds import World

Command = Any
TASKS = ("land_row-1", "lose_life", "camp_row-2")


FEW = "FewTasks-v0"


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    options = {"game": "frostbite", "include_task": True, "tasks": TASKS, "noop_max": 4}
    gym.register(FEW, entry_point="headway.wrappers.missions:make_text_game", kwargs=options)
    yield
    gym.registry.pop(FEW)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    env = gym.make(FEW)
    seen = [env.reset(seed=seed)[0] for seed in range(3)]
    obs = {key: torch.as_tensor(np.stack([one[key] for one in seen])) for key in seen[0]}
    data = Dataset(
        observation_space=env.observation_space,
        action_space=env.action_space,
        obs=obs,
        final_obs={key: part[:1] for key, part in obs.items()},
        actions=torch.arange(3),
        rewards=torch.zeros(3, dtype=torch.float64),
        lengths=torch.tensor([3]),
        terminated=torch.tensor([True]),
        env_id=FEW,
    )
    agent = TDT("MultiInputPolicy", dataset=data, seed=0, width=8, layers=1, heads=1, context=2, device="cpu")
    with torch.no_grad():
        for weights in agent.network.module.parameters():
            weights.mul_(5)  # so that words decide something
    agent.save(tmp_path / "tdt")
    return tmp_path / "tdt.zip"


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missions, "_REFERENCES", {})
    known = {"land_row-1": Reference(0.5, 1.0), "lose_life": Reference(0.0, 0.8), "camp_row-2": Reference(0.0, 0.2)}
    register_references("frostbite", known)


def test_every_task_of_a_split_is_told(headway: Command, saved: Path, references: None) -> None:
    flags = ("--missions", "train", "text_new", "--episodes", 2, "--csv", "m.csv", "--plot", "m.png")
    code, out, err = headway("evaluate", saved, *flags)
    assert code == 0, err
    with Path("m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["task"]) for row in rows] == [
        (split, task) for split in ("train", "text_new") for task in TASKS[:2]
    ]
    for row in rows:
        assert 0 <= float(row["score"]) <= 1
        reference = Reference(float(row["random"]), float(row["oracle"]))
        assert 0 <= float(row["normalized"]) <= 1
        assert row["episodes"] == "2"
        if float(row["success"]) in (0.0, 1.0):  # a score of 0 or 1, or one that is the same in both
            assert float(row["normalized"]) == pytest.approx(reference.normalised(float(row["score"])), abs=0.5)
        assert float(row["sensitivity"]) > 1e-4
    assert "train: 2 tasks, 2 episodes of each" in out
    assert "text_new: 2 tasks" in out
    assert out.count("\nall ") == out.count("\neasy ") == 2
    assert imageio.imread("m.png").shape[2] in (3, 4)
    code, _, err = headway("evaluate", saved, "--missions", "train", "--episodes", 1, "--plot", "m.png")
    assert code == 1
    assert "m.png exists" in err


def test_several_policies_are_told_of_together(saved: Path, tmp_path: Path, capsys: Any, references: None) -> None:
    policy = read_policy(saved, None, "cpu")
    assert policy.world is not None
    found = evaluate_missions([policy, policy], policy.world, ["task"], episodes=3, n_envs=2, seed=5)
    (told,) = found
    assert [one.task.id for one in told] == ["camp_row-2"] * 2
    assert np.array_equal(told[0].scores, told[1].scores)
    assert told[0].scores.shape == told[0].successes.shape == told[0].lengths.shape == (3,)
    assert "task: 1 tasks, 3 episodes of each, 2 policies" in capsys.readouterr().out
    draw_missions(found, "two policies", tmp_path / "two.png")


def test_scores_and_successes_are_the_environments(saved: Path) -> None:
    policy = read_policy(saved, None, "cpu")
    assert policy.world is not None
    (told,) = evaluate_missions([policy], policy.world, ["task"], episodes=2, n_envs=2, seed=7)
    for episode in range(2):
        env = policy.world.single(split="task", tasks=("camp_row-2",))
        obs, _ = env.reset(seed=7 + episode)
        memory, over, starts, info, steps = None, False, np.ones(1, bool), {}, 0
        while not over:
            batch = {key: np.asarray(part)[None] for key, part in obs.items()}
            action, memory = policy.agent.predict(batch, memory, starts, True)  # type: ignore[arg-type]
            obs, _, terminated, truncated, info = env.step(action[0])
            over, starts, steps = terminated or truncated, np.zeros(1, bool), steps + 1
        assert told[0].scores[episode] == pytest.approx(info["task_score"], abs=1e-6)
        assert bool(told[0].successes[episode]) == info["success"]
        assert told[0].lengths[episode] == steps


def test_worlds_without_missions_and_unknown_splits_are_refused(headway: Command, saved: Path) -> None:
    with pytest.raises(ValueError, match="CartPole-v1 has none"):
        missions_of(World("CartPole-v1"))
    code, _, err = headway("evaluate", saved, "--missions", "tests")
    assert code == 1
    assert "it can be train, text_known, text_new, task" in err
    code, _, err = headway("evaluate", saved, "--missions", "train", "--search", "tree:8,4")
    assert code == 1
    assert "leave one out" in err


def test_a_policy_is_told_a_sentence(headway: Command, saved: Path) -> None:
    flags = ("--policy", saved, "--video", "film.mp4", "--seed", 3)
    code, out, err = headway("frostbite", "play", "jump onto the first ice floe", *flags)
    assert code == 0, err
    assert "land_row-1: score " in out
    film = imageio.get_reader("film.mp4")
    assert film.get_data(0).shape == (504, 320, 3)
    assert film.get_data(0)[422:].max() > 128  # the mission
    assert headway("frostbite", "play", "jump onto the first ice floe", *flags)[0] == 1  # the film is there
    code, _, err = headway("frostbite", "play", "jump", "--video", "other.mp4")
    assert code == 1
    assert "--policy" in err
    assert play.task_saying("Jump onto the first ice floe!") == "land_row-1"
    assert play.task_saying("catch me something to eat") is None


def test_keys_are_actions() -> None:
    assert sorted(play.keys().values()) == list(range(1, 10))


def test_references_are_measured_once(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--tasks", "land_row-1", "lose_life", "--episodes", 3, "--oracle-episodes", 1, "--workers", 1)
    code, out, err = headway("frostbite", "calibrate", *flags)
    assert code == 0, err
    saved = json.loads(Path("references.json").read_text())
    assert saved["tasks"].keys() == {"land_row-1", "lose_life"}
    assert saved["tasks"]["land_row-1"]["oracle"] == 1.0
    assert 0 < saved["tasks"]["lose_life"]["random"] < saved["tasks"]["lose_life"]["oracle"] < 1
    assert "0 of them played before" in out

    def nobody_plays(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(calibrate, "play_episode", nobody_plays)
    code, out, err = headway("frostbite", "calibrate", *flags)
    assert code == 1  # the file is there
    code, out, err = headway("frostbite", "calibrate", *flags, "--overwrite")
    assert code == 0, err
    assert "8 of them played before" in out
    assert json.loads(Path("references.json").read_text()) == saved


def test_references_come_along() -> None:
    known = missions.references_of("frostbite")
    assert known.keys() <= tasks_of("frostbite").keys()
    for name, reference in known.items():
        assert 0 <= reference.random < reference.oracle <= 1, find_task("frostbite", name)


def test_one_can_play_oneself(headway: Command) -> None:
    pygame = pytest.importorskip("pygame")

    def hold_down_then_escape() -> None:
        while not pygame.display.get_init() or pygame.display.get_surface() is None:
            time.sleep(0.05)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=play.ARROWS["down"]))
        time.sleep(5)  # of fifteen steps a second; two are needed
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))

    hand = threading.Thread(target=hold_down_then_escape)
    hand.start()
    code, out, err = headway("frostbite", "play", "jump onto the first ice floe")
    hand.join()
    assert code == 0, err
    assert "arrows move and jump" in out
    assert "land_row-1: score 1.00, done, after " in out  # nobody can hold down for that long and land nowhere
