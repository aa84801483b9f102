"""Agents that are not Headway's: a user's own, by ``module:Class``, and rivals, by ``sb3:PPO`` and the like."""

import csv
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
import yaml
from conftest import Command
from headway import agents
from headway.agents import AGENTS, FileFormatError
from headway.agents.core.registry import find_agent
from headway.agents.core.seeds import spawn_seed
from headway.scripts.episodes import evaluate_agent, evaluation_env
from headway.scripts.options import parse_train
from headway.scripts.peers import name_of, trainable
from headway.scripts.results import list_trials
from headway.scripts.suites import Suite
from headway.scripts.worlds import World

TINY = shlex.split("--env worlds:Point-v0 --total-timesteps 60 --eval-episodes 1 --eval-every 25 --log-every 20")
TINY += shlex.split("--threads 1 --no-progress")
OWN = [*TINY, *shlex.split("--learning-starts 20 --batch-size 8 --net-arch 8 --push 0.25")]

SOURCE = '''
"""An agent of one's own."""

from dataclasses import dataclass

from headway.agents.core.config import OffPolicyConfig
from headway.agents.core.nets import QValues
from headway.agents.core.off_policy import OffPolicyAgent


@dataclass(frozen=True, kw_only=True)
class PusherConfig(OffPolicyConfig):
    """What it has."""

    push: float = 0.5
    """How hard it pushes."""


class Pusher(OffPolicyAgent[PusherConfig]):
    """Pushes, and learns to say how hard."""

    config_class = PusherConfig

    def _build(self):
        self.said = self.track("said", QValues(self.codec.features(), 1, self.config.net_arch))

    def _act(self, obs, deterministic, generator):
        return obs.new_full((len(obs), 1), self.config.push)

    def _update(self, phase):
        loss = (self.said.module(self.sample().obs) - self.config.push).square().mean()
        self.said.minimise(loss)
        return {"loss": loss}


class NoAgent:
    """Something else."""
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with an agent, which nothing has imported yet."""
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "mine:Pusher"
    forget()


def forget() -> None:
    """As in a process that has not imported it."""
    AGENTS.pop("mine:Pusher", None)
    sys.modules.pop("mine", None)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


# ---- an agent of one's own -------------------------------------------------------------------------------------------


def test_an_agent_of_ones_own_is_trained_resumed_and_evaluated(headway: Command, mine: str, tmp_path: Path) -> None:
    code, out, err = headway("train", mine, *OWN)
    assert (code, err) == (0, "")
    (folder,) = (tmp_path / "runs" / "Point-v0" / "pusher").iterdir()
    assert "mine:Pusher in worlds:Point-v0 · 60 steps" in out
    assert "push=0.25" in out
    assert json.loads((folder / "config.json").read_text())["agent"] == mine
    assert mine in headway("agents")[1]
    evaluate = out.rpartition("evaluate it: headway ")[2].split()
    assert evaluate[-2:] == ["--agent", mine]
    forget()
    code, out, _ = headway(*evaluate, "--episodes", 2)
    assert (code, "mine:Pusher after 60 steps" in out) == (0, True)
    forget()
    code, out, _ = headway("train", mine, "--resume", folder, "--total-timesteps", 80)
    assert (code, "resumed at step 60" in out) == (0, True)


def test_no_file_decides_what_is_imported(headway: Command, mine: str) -> None:
    assert headway("train", mine, *OWN, "--run-dir", "run")[0] == 0
    forget()
    code, _, err = headway("train", "--resume", "run", "--total-timesteps", 80)
    assert (code, err.count("\n")) == (1, 1)
    assert "a folder does not decide what is imported" in err
    assert "headway train mine:Pusher --resume run" in err
    code, _, err = headway("evaluate", "run/final.zip")
    assert (code, err.count("\n")) == (1, 1)
    for way in ("import mine first", "Pusher.load", "--agent mine:Pusher"):
        assert way in err
    with pytest.raises(FileFormatError, match="loading imports nothing by itself"):
        agents.load("run/final.zip")
    assert "mine" not in sys.modules
    own = find_agent(mine)
    assert type(agents.load("run/final.zip")) is own
    assert headway("train", "--resume", "run", "--total-timesteps", 80)[0] == 0  # it is imported now
    assert own.load("run/final.zip").config.push == 0.25


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train nowhere:Mine",
            "agent 'nowhere:Mine': there is no module 'nowhere': install it, or run from the folder",
        ),
        ("train mine:Pushr", "module 'mine' has no class 'Pushr': did you mean Pusher"),
        ("train mine:NoAgent", "mine:NoAgent cannot be trained: it is neither an agent of Headway's kind"),
        ("train mine:Pusher --preset fast", "agent mine:Pusher brings no preset 'fast': give its values by --config"),
        ("train mine:Pusher --pusch 1", "takes no --pusch: did you mean --push"),
        ("train broken:Mine", "agent 'broken:Mine': 'broken' cannot be imported: ZeroDivisionError: division by zero"),
        ("train leaves:Mine", "agent 'leaves:Mine': 'leaves' cannot be imported: SystemExit: 3"),
        ("train sb3:PPOO", "has no class 'PPOO': did you mean PPO"),
        ("train sb3_contrib:ARS", "cannot be trained: it is neither"),
        ("train sb3:PPO --set gama=1", "sb3:PPO has no 'gama' to set: did you mean gamma"),
        ("train sb3:PPO --set seed=1", "sb3:PPO has no 'seed' to set"),
        ("train sb3:PPO --set gamma", "--set takes name=value, got 'gamma'"),
        ("train sb3:PPO --set gamma=[", "--set gamma=[: the value is not YAML"),
        ("train sb3:PPO --gamma 1", "takes no --gamma"),
        ("train sb3:DQN", "sb3:DQN cannot be made: The algorithm only supports"),
        ("train sb3:DDPG --delay constant:1,1 --set policy=MlpPolicy", "sb3:DDPG cannot be made"),
    ],
)
def test_a_mistake_is_one_line(headway: Command, mine: str, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    code, _, err = headway(*line.split(), "--env", "worlds:Point-v0")
    assert (code, err.count("\n")) == (1, 1)
    assert message in err
    assert not (tmp_path / "runs").exists()


# ---- rivals ----------------------------------------------------------------------------------------------------------

SB3 = [*TINY, "--set", "n_steps=16", "batch_size=8", "policy_kwargs={net_arch: [8], activation_fn: ReLU}"]


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of Stable-Baselines3's PPO."""
    from headway.scripts.cli import main

    folder = tmp_path_factory.mktemp("rival") / "run"
    assert main(["train", "sb3:PPO", *SB3, "--run-dir", str(folder)]) == 0
    return folder


def test_a_rival_leaves_what_headways_agents_leave(rival: Path) -> None:
    names = {"config.json", "progress.csv", "evaluations.csv", "best.zip", "final.zip", "learning_curve.png"}
    assert names <= {path.name for path in rival.iterdir()}
    assert [row["step"] for row in rows(rival / "evaluations.csv")] == ["0", "25", "50", "64"]  # whole rounds of 16
    assert [row["episodes"] for row in rows(rival / "evaluations.csv")] == ["2", "1", "1", "2"]
    logged = [row["time/total_timesteps"] for row in rows(rival / "progress.csv") if row["rollout/ep_rew_mean"]]
    assert logged == ["20", "40", "64"]
    config = json.loads((rival / "config.json").read_text())
    assert (config["agent"], config["finished"], config["config"]["set"][0]) == ("sb3:PPO", 64, "n_steps=16")


def test_a_rival_is_what_it_is_by_itself(rival: Path) -> None:
    """The same weights as from ``learn``, which evaluations on the way do not disturb; evaluated on the same seeds."""
    env = World("worlds:Point-v0").single()
    kwargs: dict[str, Any] = {"net_arch": [8], "activation_fn": torch.nn.ReLU}
    alone = stable_baselines3.PPO("MlpPolicy", env, n_steps=16, batch_size=8, policy_kwargs=kwargs, seed=0)
    assert alone.env is not None
    alone.env.seed(spawn_seed(0, "environments"))
    alone.learn(60)
    saved = stable_baselines3.PPO.load(rival / "final.zip")
    pairs = zip(alone.policy.parameters(), saved.policy.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    returns, _ = evaluate_agent(alone, evaluation_env(World("worlds:Point-v0"), 1), 2, spawn_seed(0, "evaluation"))
    assert float(rows(rival / "evaluations.csv")[-1]["mean"]) == pytest.approx(np.mean(returns))


def test_a_rivals_file_is_loaded_only_as_what_it_is_said_to_be(headway: Command, rival: Path) -> None:
    code, out, _ = headway("evaluate", rival, "--agent", "sb3:PPO", "--episodes", 2, "--video", "film.gif")
    assert (code, "sb3:PPO after " in out, Path("film.gif").exists()) == (0, True, True)
    (Path("lone.zip")).write_bytes((rival / "final.zip").read_bytes())
    for line, message in (
        (f"{rival}", "is a file of Stable-Baselines3's: name its class, as --agent sb3:PPO, if you trust it"),
        (f"{rival} --agent sb3:SAC", "cannot be loaded as sb3:SAC"),
        (f"{rival} --agent sac", "is a Stable-Baselines3 file"),
        ("lone.zip --agent sb3:PPO", "does not say which environment it was trained in: pass --env"),
        (f"{rival} --agent sb3:PPO --env Hopper-v5", "Observation spaces do not match"),
    ):
        code, _, err = headway("evaluate", *line.split())
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
    assert headway("evaluate", "lone", "--agent", "sb3:PPO", "--env", "worlds:Point-v0", "--episodes", 1)[0] == 0


def test_an_interrupted_rival_says_that_it_starts_again(
    headway: Command, rival: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = stable_baselines3.PPO.train, [0]

    def train(self: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            signal.raise_signal(signal.SIGINT)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(stable_baselines3.PPO, "train", train)
        code, out, _ = headway("train", "sb3:PPO", *SB3, "--run-dir", "run")
    assert code == 130
    assert "interrupted at step 33: a rival's run cannot go on where it was interrupted: it starts again" in out
    code, out, _ = headway(*shlex.split(out.rpartition("go on with: headway ")[2]))
    assert (code, "it starts again" in out) == (0, True)
    assert (Path("run") / "evaluations.csv").read_text() == (rival / "evaluations.csv").read_text()
    code, out, _ = headway("train", "--resume", "run")
    assert (code, out.startswith("run is complete: 64 steps.")) == (0, True)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        (
            "sb3_contrib:TQC",
            '--set learning_starts=20 batch_size=8 "policy_kwargs={net_arch: [8]}" --delay constant:1,1',
        ),
        ("sb3:SAC", "--env worlds:ShortCheetah-v0 --n-envs 8 --set learning_starts=20 train_freq=[2,step]"),
    ],
)
def test_rivals_behind_delays_and_in_batches(headway: Command, name: str, flags: str) -> None:
    code, out, err = headway("train", name, *TINY, *shlex.split(flags), "--run-dir", "run")
    assert (code, err) == (0, "")
    assert ("behind delays constant:1,1 (dict)" in out) == ("--delay" in flags)
    assert ("8 environments in one batch on cpu" in out) == ("--n-envs" in flags)
    assert headway("evaluate", "run", "--agent", name, "--episodes", 1)[0] == 0


def test_names_lead_to_classes_and_back() -> None:
    for name in ("sb3:PPO", "sb3_contrib:CrossQ"):
        assert name_of(trainable(name)) == name
    assert name_of(trainable("stable_baselines3:PPO")) == "sb3:PPO"
    assert name_of(trainable("SAC")) == "SAC"
    run = parse_train("sb3:PPO", ["--env", "Pendulum-v1", "--set", "learning_rate=1e-3", "target_kl=null"])
    assert run is not None
    assert trainable("sb3:PPO").settings(run.config) == {"learning_rate": 1e-3, "target_kl": None}


# ---- in suites -------------------------------------------------------------------------------------------------------


def test_own_agents_and_rivals_are_arms(
    headway: Command, mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"learning_starts": 20, "batch_size": 8, "net_arch": [8]}
    suite = {
        "name": "doors",
        "total_timesteps": 60,
        "seeds": 1,
        "eval_every": 30,
        "eval_episodes": 1,
        "environments": [{"id": "worlds:Point-v0"}],
        "arms": [
            {"label": "mine", "agent": mine, "flags": own},
            {
                "label": "rival",
                "agent": "sb3:PPO",
                "flags": {"set": {"n_steps": 16, "policy_kwargs": {"net_arch": [8]}}},
            },
        ],
    }
    (tmp_path / "doors.yaml").write_text(yaml.safe_dump(suite))
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, here, here.parent))), prepend=os.pathsep)
    code, out, err = headway("benchmark", "learn", "doors.yaml", "--workers", 1)
    assert (code, "2 of 2 runs are finished" in out) == (0, True), err
    trials = list_trials(Suite.from_dict(suite, "doors"), Path("runs/suites/doors"))
    assert [trial.command[1] for trial in trials] == [mine, "sb3:PPO"]
    assert "--set n_steps=16" in shlex.join(trials[1].command)
    for trial in trials:  # gone on with, in processes that have imported nothing
        config = json.loads((trial.folder / "config.json").read_text())
        (trial.folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "finished"}))
    code, out, err = headway("benchmark", "learn", "runs/suites/doors", "--workers", 1)
    assert (code, "2 of 2 runs are finished" in out) == (0, True), err
