"""``headway train``: flags, files, signals, mistakes."""

import csv
import errno
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from conftest import Command
from headway import agents
from headway.agents import AGENTS, SAC
from headway.agents.core.config import OffPolicyConfig, describe
from headway.agents.core.data import ReplayStore, RolloutStore
from headway.agents.core.files import archive, list_checkpoints
from headway.agents.core.files.contents import versions
from headway.agents.core.logging import CSVFile, Metrics
from headway.agents.core.registry import known_agents
from headway.envs import make_batched
from headway.envs.mujoco import rendering
from headway.scripts import cli, runs
from headway.scripts.machine import busy, commit, cores
from headway.scripts.options import TrainOptions, parse_train, simulated_on
from headway.scripts.train import Evaluator, TrainingCallback, set_threads
from kill_resume import being_written, differences, newest
from toys import FORMS

TINY = shlex.split("--env worlds:Point-v0 --total-timesteps 60 --learning-starts 20 --batch-size 8 --net-arch 8")
TINY += shlex.split("--eval-episodes 1 --eval-every 25 --log-every 10 --checkpoint-every 20 --threads 1 --no-progress")


@pytest.fixture(autouse=True)
def no_figure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figure, which takes longer than the tiny run itself, where it is not what is tested."""
    if "with_figure" not in request.fixturenames:
        monkeypatch.setattr("headway.scripts.figures.learning_curve", lambda run, *_: run / "learning_curve.png")


@pytest.fixture
def with_figure() -> None:
    """Draw it."""


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, with its content, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ---- a whole run -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_says(headway: Command, tmp_path: Path, with_figure: None) -> None:
    code, out, err = headway("train", "sac", *TINY)
    assert (code, err) == (0, "")
    (folder,) = (tmp_path / "runs" / "Point-v0" / "sac").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-s0", folder.name)
    assert f"run folder: {folder.relative_to(tmp_path)}" in out
    assert "SAC in worlds:Point-v0 · 60 steps · seed 0 · 1 environment · cpu, 1 thread\n" in out
    assert "hyper-parameters: batch_size=8, net_arch=(8,), learning_starts=20\n" in out
    for line in ("before training: return -", "after training:  return -", "60 steps in ", ", 40 gradient steps"):
        assert line in out
    for name in ("final.zip", "best.zip", "learning_curve.png", "evaluations.csv", "progress.csv"):
        assert name in out
        assert (folder / name).stat().st_size > 0
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    config = json.loads((folder / "config.json").read_text())
    assert (config["agent"], config["options"]["seed"], config["config"]["batch_size"]) == ("SAC", 0, 8)
    assert config["versions"]["torch"] == torch.__version__
    assert config["commit"] == commit()
    assert [row["step"] for row in rows(folder / "evaluations.csv")] == ["0", "25", "50", "60"]
    assert [row["episodes"] for row in rows(folder / "evaluations.csv")] == ["2", "1", "1", "2"]
    logged = [row["time/total_timesteps"] for row in rows(folder / "progress.csv") if row["train/n_updates"]]
    assert logged == ["30", "40", "50", "60"]
    assert agents.load(folder / "final.zip").num_timesteps == 60

    command = out.rpartition("evaluate it: headway ")[2]
    code, out, _ = headway(*shlex.split(command), "--episodes", 3)
    assert code == 0
    assert "after 60 steps, in worlds:Point-v0" in out  # with its module, which another process has not imported yet


@pytest.mark.parametrize("flags", ["--n-envs 8 --vec dummy", "--train-freq 7", "--train-freq 2 episode", "--n-envs 7"])
def test_a_last_round_that_oversteps_ends_like_any_other(headway: Command, flags: str) -> None:
    tiny = [flag for flag in TINY if flag != "--no-progress"]
    code, _, err = headway("train", "sac", *tiny, *shlex.split(flags), "--run-dir", "run")
    assert code == 0, err
    assert json.loads(Path("run/config.json").read_text())["finished"] > 60
    assert "100%" in err
    assert Path("run/final.zip").exists()


def test_progress_bar_shows_return_speed_and_time_left(headway: Command) -> None:
    code, _, err = headway("train", "sac", *TINY, "--progress")
    assert code == 0
    last = err.strip().rpartition("\r")[2]
    assert re.fullmatch(r"100% \|█+\| 60/60 · return -\d+\.\d · [ \d.]+ steps/s · 00:00 left", last), last


# ---- flags -----------------------------------------------------------------------------------------------------------


SMALL = {
    "ppo": shlex.split("--n-steps 16 --n-epochs 2 --clip-range 0.01"),
    "dqn": shlex.split(
        "--env worlds:Halves-v0 --learning-starts 20 --learning-rate 0.05 --target-update-interval 10 --train-freq 1 "
        "--exploration-fraction 0.9"
    ),
}
"""What is tiny for agents that have other fields than SAC."""


def finished(headway: Command, agent: str, *flags: object, folder: str) -> Path:
    starts = TINY.index("--learning-starts")
    tiny = [*TINY[:starts], *TINY[starts + 2 :], *SMALL[agent]] if agent in SMALL else TINY
    code, _, err = headway("train", agent, *tiny, *flags, "--run-dir", folder)
    assert (code, err) == (0, "")
    return Path(folder)


def networks(folder: Path) -> dict[str, torch.Tensor]:
    return archive.read_archive(folder / "final.zip").members["networks"]


def same_networks(one: Path, two: Path) -> bool:
    first, second = networks(one), networks(two)
    return first.keys() == second.keys() and all(
        first[k].shape == second[k].shape and torch.equal(first[k], second[k]) for k in first
    )


LEARNING: dict[str, dict[str, str]] = {
    "sac": {
        "learning_rate": "0.01",
        "learning_rate_schedule": "linear",
        "gamma": "0.5",
        "batch_size": "4",
        "net_arch": "4 4",
        "activation": "tanh",
        "max_grad_norm": "0.01",
        "buffer_size": "16",
        "learning_starts": "30",
        "tau": "0.5",
        "train_freq": "1 episode",
        "gradient_steps": "2",
        "ent_coef": "auto_0.1",
        "target_entropy": "-3",
        "target_update_interval": "3",
        "n_critics": "3",
    },
    "td3": {
        "action_noise_std": "0.5",
        "policy_delay": "3",
        "target_policy_noise": "0.4",
        "target_noise_clip": "0.01",
        "n_critics": "3",
    },
    "ppo": {
        "learning_rate": "0.01",
        "learning_rate_schedule": "linear",
        "gamma": "0.5",
        "batch_size": "4",
        "net_arch": "4 4",
        "activation": "relu",
        "max_grad_norm": "0.01",
        "n_steps": "8",
        "n_epochs": "3",
        "gae_lambda": "0.5",
        "reward_scaling": "returns",
        "clip_range": "0.001",
        "clip_range_schedule": "linear",
        "clip_range_vf": "0.001",
        "normalize_advantage": "False",
        "ent_coef": "0.1",
        "vf_coef": "0.1",
        "target_kl": "1e-06",
        "ortho_init": "False",
        "log_std_init": "-1",
        "adam_eps": "0.1",
    },
    "dqn": {
        "learning_rate": "0.01",
        "max_grad_norm": "0.01",
        "tau": "0.5",
        "train_freq": "2",
        "gradient_steps": "2",
        "target_update_interval": "7",
        "exploration_fraction": "0.5",
        "exploration_initial_eps": "0.5",
        "exploration_final_eps": "0.9",
        "double": "True",
    },
}
"""Every hyper-parameter that changes what is learnt, at a value other than its default."""


@pytest.mark.parametrize("agent", LEARNING)
def test_every_hyper_parameter_changes_what_is_learnt(headway: Command, agent: str) -> None:
    base = finished(headway, agent, folder="base")
    assert same_networks(base, finished(headway, agent, folder="again"))
    for name, value in LEARNING[agent].items():
        flag = name.replace("_", "-")
        flags = [f"--{flag}", *value.split()]
        if value in ("True", "False"):
            flags = [f"--{flag}" if value == "True" else f"--no-{flag}"]
        changed = finished(headway, agent, *flags, folder=name)
        assert not same_networks(base, changed), name
        wanted = [int(part) if part.isdigit() else part for part in value.split()]
        stored = json.loads((changed / "config.json").read_text())["config"][name]
        assert stored == wanted or str(stored) == value or float(stored) == float(value), name


def test_compile_reaches_the_losses(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def record(function: Callable[..., Any], mode: str, device: torch.device) -> Callable[..., Any]:
        modes.append(mode)
        return function

    monkeypatch.setattr("headway.agents.sac.compiled", record)
    finished(headway, "sac", "--compile", "default", folder="compiled")
    assert modes == ["default"] * 3


@pytest.mark.parametrize(
    ("flags", "load", "expected"),
    [
        (("--net-arch", "129"), 0.0, 3),
        (("--net-arch", "128"), 0.0, 1),  # a second thread would cost more than it computes
        (("--net-arch", "129"), 0.51 * cores(), 1),  # two would wait for each other's turn
        (("--net-arch", "8", "--threads", "2"), 0.51 * cores(), 2),
    ],
)
def test_threads(
    headway: Command, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], load: float, expected: int
) -> None:
    monkeypatch.setattr("headway.scripts.train.busy", lambda: load)
    torch.set_num_threads(3)  # as torch chose
    tiny = [*TINY[: TINY.index("--threads")], "--no-progress", "--total-timesteps", "30", *flags]
    code, out, err = headway("train", "sac", *tiny, "--run-dir", "run")
    assert code == 0, err
    assert f"{expected} thread{'s' * (expected > 1)}" in out
    assert json.loads(Path("run/config.json").read_text())["torch_threads"] == expected
    torch.set_num_threads(3)
    monkeypatch.setattr("headway.scripts.train.busy", lambda: 0.51 * cores() - load)
    assert headway("train", "--resume", "run", "--total-timesteps", 32)[0] == 0
    assert torch.get_num_threads() == expected  # as before, whoever is busy now


def test_images_are_worth_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.scripts.train.busy", lambda: 0.0)
    run = parse_train("sac", [*TINY[: TINY.index("--threads")]])
    assert run is not None
    for form, expected in (("image in a dict", 3), ("image", 3), ("dict", 1)):
        torch.set_num_threads(3)
        set_threads(run, Path(), FORMS[form])
        assert torch.get_num_threads() == expected


def test_busy_processors_are_counted() -> None:
    before = busy()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        time.sleep(0.05)
        assert busy() >= 1
        spinning.kill()
    assert before >= 0


def test_every_option_has_its_effect(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    base = finished(headway, "sac", folder="base")
    assert not same_networks(base, finished(headway, "sac", "--seed", 1, folder="seed"))
    manifest = archive.read_manifest(finished(headway, "sac", "--n-envs", 2, folder="n_envs") / "final.zip")
    assert manifest["n_envs"] == 2
    other = finished(
        headway, "sac", "--env", "worlds:Wide-v0", "--total-timesteps", 30, "--device", "cpu", folder="env"
    )
    assert agents.load(other / "final.zip").observation_space.shape == (2,)
    assert agents.load(other / "final.zip").num_timesteps == 30

    flags = "--eval-every 15 --eval-episodes 3 --log-every 20 --checkpoint-every 10 --keep-checkpoints 4 --threads 2"
    spaced = finished(headway, "sac", *flags.split(), "--video", folder="spaced")
    assert torch.get_num_threads() == 2
    assert [row["step"] for row in rows(spaced / "evaluations.csv")] == ["0", "15", "30", "45", "60"]
    assert [row["episodes"] for row in rows(spaced / "evaluations.csv")] == ["6", "3", "3", "3", "6"]
    logged = [row["time/total_timesteps"] for row in rows(spaced / "progress.csv") if row["rollout/ep_rew_mean"]]
    assert logged == ["20", "40", "60"]
    steps = [int(path.stem[-3:]) for path in list_checkpoints(spaced / "checkpoints")]
    assert steps == [60, 50, 40, 30]
    assert (spaced / "final.mp4").stat().st_size > 0
    assert not (base / "final.mp4").exists()
    seldom = finished(headway, "sac", "--eval-every", 0, "--checkpoint-every", 0, folder="seldom")
    assert [row["step"] for row in rows(seldom / "evaluations.csv")] == ["0", "60"]
    assert newest(seldom) == 60
    assert same_networks(base, seldom)  # what is watched does not change what is learnt
    short = finished(headway, "sac", "--total-timesteps", 5, folder="short")
    assert (short / "best.zip").exists()  # though no better than before training


def test_every_flag_is_in_a_test() -> None:
    # Those that have tests of their own, and the others.
    elsewhere = "verify_resume resume run_dir progress vec env_device preset config compile precision delay delay_form"
    elsewhere += " max_episode_steps trust_env dataset seeds workers ray_address start_from eval_search"
    options = "env total_timesteps seed n_envs device threads eval_every eval_episodes checkpoint_every"
    options += " keep_checkpoints log_every video"
    for agent in ("sac", "ppo", "dqn"):  # DQN's others are those of every off-policy agent
        others = LEARNING["sac"].keys() & describe(OffPolicyConfig).keys() if agent == "dqn" else ()
        tested = {*elsewhere.split(), *options.split(), *LEARNING[agent], *others}
        assert tested == {*describe(TrainOptions), *describe(AGENTS[agent.upper()].config_class)}


def test_help_gives_default_range_and_unit_of_every_field(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for name, agent in [(name, agent) for name, agent in AGENTS.items() if ":" not in name]:  # not those of other tests
        code, out, err = headway("train", name.lower(), "--help")
        assert (code, err) == (0, "")
        text = re.sub(r"[\s│]", "", out)
        for info in [*describe(TrainOptions).values(), *describe(agent.config_class).values()]:
            default = " ".join(map(str, info.default)) if isinstance(info.default, tuple) else info.default or "''"
            default = info.default if info.default in (None, 0, False) else default
            assert info.doc, info.name
            entry = f"{info.help} (default: {default})"
            assert re.sub(r"\s", "", entry) in text, entry
            assert f"--{info.name.replace('_', '-')}" in out
            numeric = any(re.search(rf"\b{kind}\b", str(info.annotation)) for kind in ("int", "float"))
            assert "Range: " in info.help or not numeric or info.name in ("target_entropy", "log_std_init"), info.name
            assert all(r.unit in info.help for r in info.ranges)


def test_precedence_default_preset_file_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {
        "default": {"gamma": 0.91, "tau": 0.01, "batch_size": 1, "learning_rate": "1e-4"},
        "Point-v0": {"tau": 0.02, "batch_size": 2, "n_critics": 2},
        "other": {"tau": 0.04},
    }
    (tmp_path / "sac.yaml").write_text(yaml.safe_dump(presets))
    monkeypatch.setattr("headway.agents.presets.FOLDER", tmp_path)
    file = Path("settings.yaml")
    file.write_text("batch-size: 3\nn_critics: 3\nseed: 3\nmax_grad_norm: none\ncompile: off\nlearning_starts: 3\n")

    def parse(*flags: str) -> Any:
        run = parse_train("sac", flags)
        assert run is not None
        return run

    run = parse("--env", "worlds:Point-v0", "--config", str(file), "--n-critics", "4", "--learning_starts=4")
    assert run.config.buffer_size == 1_000_000  # the default
    assert run.config.gamma == 0.91  # the preset's default
    assert run.config.learning_rate == 1e-4  # which YAML reads as a text
    assert run.config.tau == 0.02  # the environment's preset
    assert run.config.batch_size == run.options.seed == 3  # the file
    assert (run.config.max_grad_norm, run.config.compile) == (None, "off")
    assert run.config.n_critics == run.config.learning_starts == 4  # the flag
    assert parse("--env", "Hopper-v5").config.tau == 0.01
    (tmp_path / "sac.yaml").write_text(yaml.safe_dump(presets | {"Hopper-v5": {"tau": 0.05}}))
    assert parse("--env", "headway/Hopper-v5").config.tau == 0.05  # the same task, bit for bit
    assert parse("--env", "headway.envs:headway/Hopper-v5").config.tau == 0.05
    assert parse("--env", "others/Hopper-v5").config.tau == 0.01
    assert parse("--env=worlds:Point-v0", "--preset", "other").config.tau == 0.04
    assert parse("--env", "worlds:Point-v0", "--preset=default").config.tau == 0.01
    file.write_text("env: worlds:Point-v0\nrun_dir: my_runs/of_today\ntrain_freq: [2, episode]\nnet_arch: [3, 3]\n")
    run = parse(f"--config={file}")
    assert (run.options.env, run.options.run_dir) == ("worlds:Point-v0", Path("my_runs/of_today"))
    assert (run.config.tau, run.config.train_freq, run.config.net_arch) == (0.02, (2, "episode"), (3, 3))
    file.write_text("env: worlds:Point-v0\npreset: other\n")
    assert parse("--config", str(file)).config.tau == 0.04


AS_WORDS = [
    ("--train-freq", "2 episode", "train_freq", (2, "episode")),
    ("--train-freq=2 step", "", "train_freq", (2, "step")),
    ("--net-arch", "3 4", "net_arch", (3, 4)),
    ("--max-grad-norm", "none", "max_grad_norm", None),
    ("--max-grad-norm=None", "", "max_grad_norm", None),
    ("--buffer-size", "1e5", "buffer_size", 100_000),
    ("--buffer_size=1.5e3", "", "buffer_size", 1500),
    ("--learning-rate", "1e-5", "learning_rate", 1e-5),
    ("--gradient-steps", "-1", "gradient_steps", -1),
    ("--ent-coef", "auto_0.1", "ent_coef", "auto_0.1"),
    ("--total-timesteps", "2e3", "total_timesteps", 2000),
    ("--delay", "none", "delay", None),
]


@pytest.mark.parametrize(("flag", "word", "field", "expected"), AS_WORDS)
def test_values_as_users_write_them(flag: str, word: str, field: str, expected: Any, tmp_path: Path) -> None:
    run = parse_train("sac", ["--env", "Pendulum-v1", flag, *([word] if word else []), "--seed", "3"])
    assert run is not None
    assert (run.values()[field], run.options.seed) == (expected, 3)
    name, _, value = flag.removeprefix("--").partition("=")
    file = tmp_path / "settings.yaml"
    file.write_text(f"{name}: {word or value}\n")
    run = parse_train("sac", ["--env", "Pendulum-v1", "--config", str(file)])
    assert run is not None
    assert (run.values()[field], type(run.values()[field])) == (expected, type(expected))


def test_a_runs_own_settings_can_be_given(run: Path, tmp_path: Path) -> None:
    file = run / "config.json"
    again, before = parse_train("sac", ["--config", str(file)]), json.loads(file.read_text())
    assert again is not None
    assert again.to_dict()["config"] == before["config"]
    changed = {"run_dir": None, "config": str(file)}
    assert again.to_dict()["options"] == before["options"] | changed
    with pytest.raises(ValueError, match="is of a run of SAC, not TD3"):
        parse_train("td3", ["--config", str(file)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma: 0.9\ngamma: 0.8", "the key 'gamma' is there twice"),
        ("batch-size: 3\nbatch_size: 4", "has the key 'batch_size' twice"),
        ("seed: 010", "010 is 8 in YAML 1.1"),
        ("seed: 0o10", "--seed must be int, got '0o10'"),
        ("seed: 2.5", "--seed must be int, got 2.5"),
        ("seed: &a [*a]", "recursive"),
        ("n_timesteps: !!float 1e6", "n_timesteps is not offered by Headway as a keyword: it is total_timesteps"),
        ("policy_kwargs: dict(net_arch=[400, 300])", "write net_arch, activation"),
        ("noise_type: normal", "TD3 has action_noise_std"),
        ("use_sde: True", "use_sde=True is not offered"),
        ("learning_rate: lin_7.3e-4", "pass 7.3e-4, and learning_rate_schedule='linear'"),
        ("n_epochs: 3", "it is one of PPO"),
        ("{agent: sac, options: 3, config: {}}", "is of a run of sac, not SAC"),
        ("{agent: SAC, options: 3, config: {}}", "options and config must hold names and values"),
    ],
)
def test_files_of_settings_that_cannot_be_heeded(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        parse_train("sac", ["--env", "Pendulum-v1", "--config", str(file)])


def test_settings_of_rl_zoo_that_ask_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("use_sde: false\nsde_sample_freq: -1\nbuffer_size: 3e5\nlearning_rate: !!float 7.3e-4\n")
    run = parse_train("sac", ["--env", "Pendulum-v1", "--config", str(file)])
    assert run is not None
    assert (run.config.buffer_size, run.config.learning_rate) == (300_000, 7.3e-4)


@pytest.mark.parametrize("env", ["HalfCheetah-v4", "HalfCheetah", "headway/HalfCheetah", "gymnasium:HalfCheetah-v5"])
def test_presets_hold_for_every_version(env: str) -> None:
    run = parse_train("sac", ["--env", env])
    assert run is not None
    assert run.config.learning_starts == 5000


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A complete run, not to be changed."""
    folder = tmp_path_factory.mktemp("complete") / "run"
    assert cli.main(["train", "sac", *TINY, "--run-dir", str(folder)]) == 0
    before = everything(folder)
    yield folder
    assert everything(folder) == before


WRONG = [
    ("sac", "which environment? pass --env"),
    ("", "which agent? headway train AGENT --env ID"),
    ("sca --env worlds:Point-v0", "there is no agent 'sca': did you mean sac or dcac?"),
    ("sac --env Pendulm-v1", "there is no environment 'Pendulm-v1': did you mean Pendulum-v1"),
    ("sac --env nowhere:Point-v0", "there is no module 'nowhere'"),
    ("sac --env", "--env needs a value"),
    ("sac --env --seed 3", "--env needs a value"),
    ("sac --env CartPole-v1", "SAC needs a Box action space, got Discrete(2)"),
    ("sac --env worlds:Point-v0 --gama 0.9", "takes no --gama: did you mean --gamma"),
    ("sac --env worlds:Point-v0 --zzzzz=0.9", "takes no --zzzzz: see headway train sac --help"),
    ("sac --env worlds:Point-v0 more", "takes no more: see headway train sac --help"),
    ("sac --env worlds:Point-v0 --gamma 1.5", "SACConfig.gamma must lie in [0, 1], got 1.5"),
    ("sac --env worlds:Point-v0 --gamma nan", "SACConfig.gamma must lie in [0, 1], got nan"),
    ("sac --env worlds:Point-v0 --gamma high", "--gamma: could not convert string to float: 'high'"),
    ("sac --env worlds:Point-v0 --gamma", "'--gamma'"),
    ("sac --env worlds:Point-v0 --activation gelu", "'gelu' for argument '--activation'"),
    ("sac --env worlds:Point-v0 --train-freq 1 day", "--train-freq"),
    ("sac --env worlds:Point-v0 --ent-coef soft", "SACConfig.ent_coef must be a number, 'auto'"),
    ("sac --env worlds:Point-v0 --net-arch 0", "SACConfig.net_arch must lie in [1, inf), got 0"),
    ("sac --env worlds:Point-v0 --buffer-size 1000000000000000", "use a buffer_size of at most"),
    ("sac --env worlds:Point-v0 --n-envs=-1", "--n-envs must lie in [0, inf), got -1"),
    ("sac --env worlds:Point-v0 --n-envs 2 --train-freq 1 episode", "train_freq in episodes needs one environment"),
    (
        "sac --env worlds:Point-v0 --total-timesteps 0",
        "--total-timesteps must lie in [1, inf) environment steps, got 0",
    ),
    ("sac --env worlds:Point-v0 --seed -1", "--seed must lie in [0, 4e+09], got -1"),
    ("sac --env worlds:Point-v0 --vec threads", "'threads' for argument '--vec'"),
    (
        "sac --env worlds:Point-v0 --device abacus",
        "--device abacus: there is no such device here; choose from auto, cpu",
    ),
    ("sac --env worlds:Point-v0 --device cuda:99", "--device cuda:99: there is no such device here"),
    ("sac --env worlds:ShortCheetah-v0 --env-device cuda:99", "--env-device cuda:99: there is no such device here"),
    ("sac --env nowhere:Point-v0 --vec subproc", "there is no module 'nowhere'"),
    ("sac --env headway/HalfCheeta-v5", "there is no environment 'headway/HalfCheeta-v5': did you mean headway/HalfC"),
    ("sac --env worlds:Point-v0 --preset nothing", "agent sac has no preset 'nothing'"),
    ("sac --env worlds:Point-v0 --config missing.yaml", "--config missing.yaml: there is no such file"),
    ("sac --env worlds:Point-v0 --config key.yaml", "key.yaml has an unknown key 'gama': did you mean gamma?"),
    ("sac --env worlds:Point-v0 --config broken.yaml", "broken.yaml is not YAML"),
    ("sac --env worlds:Point-v0 --config list.yaml", "list.yaml must hold names and values"),
    ("sac --env worlds:Point-v0 --config resume.yaml", "resume.yaml has an unknown key 'resume'"),
    ("sac --env worlds:Point-v0 --config text.yaml", "--seed must be int, got '3'"),
    ("sac --env worlds:Point-v0 --config word.yaml", "SACConfig.tau must be float, got 'slow'"),
    ("sac --env worlds:Point-v0 --run-dir RUN", "exists: go on with it by --resume"),
    ("sac --env worlds:Point-v0 --run-dir RUN/final.zip", "final.zip exists: go on with it by --resume"),
    ("sac --env worlds:Point-v0 --run-dir RUN/final.zip/x", "cannot make the run folder"),
    ("sac --env worlds:Blind-v0 --video", "--video: no film can be made of worlds:Blind-v0 here"),
    ("sac --env worlds:Unlit-v0 --video", "--video: no film can be made of worlds:Unlit-v0 here: no light; MUJOCO_GL"),
    ("--resume", "--resume needs a value"),
    ("sac --resume=nowhere", "nowhere is no run folder: it has no config.json"),
    ("--resume RUN/checkpoints", "checkpoints is no run folder: it has no config.json"),
    ("td3 --resume RUN", "is a run of sac, not td3"),
    ("sac --resume RUN --gamma 0.5", "--gamma is 0.99 in RUN and cannot become 0.5: that would be another run"),
    ("--resume RUN --env worlds:Wide-v0", "--env is worlds:Point-v0 in RUN and cannot become worlds:Wide-v0"),
    ("--resume RUN --seed 5", "--seed is 0 in RUN and cannot become 5"),
    ("--resume RUN --net-arch 9", "--net-arch is (8,) in RUN and cannot become (9,)"),
    ("--resume RUN --eval-every 7", "--eval-every is 25 in RUN and cannot become 7"),
    ("--resume RUN --env-device cpu", "--env-device is auto in RUN and cannot become cpu"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line or "nothing" for line, _ in WRONG])
def test_a_mistake_is_one_line_and_changes_nothing(
    headway: Command, run: Path, tmp_path: Path, line: str, message: str
) -> None:
    files = {"key": "gama: 0.9", "broken": "gamma: [0.9", "list": "- gamma", "resume": "resume: RUN"}
    files |= {"text": "seed: '3'", "word": "tau: slow"}
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content + "\n")
    before = everything(tmp_path)
    code, out, err = headway("train", *line.replace("RUN", str(run)).split())
    assert (code, out) == (1, "")
    assert err.startswith("headway: error: ")
    assert err.count("\n") == 1
    assert message.replace("RUN", str(run)) in err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"agent": "SAC", "options": {}}', '{"agent": "No", "options": {}, "config": {}}']
)
def test_a_broken_config_is_one_line(headway: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    code, out, err = headway("train", "--resume", "run")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "config.json is broken" in err or "there is no agent 'no'" in err


def test_a_complete_run_says_so_and_stays_as_it_is(headway: Command, run: Path) -> None:
    code, out, err = headway("train", "--resume", run)
    assert (code, err) == (0, "")
    assert out == f"{run} is complete: 60 steps. Pass a larger --total-timesteps to train on.\n"


def test_two_processes_cannot_train_in_one_folder(headway: Command, run: Path) -> None:
    with runs.alone(run, "training"):
        code, _, err = headway("train", "--resume", run, "--total-timesteps", 90)
    assert code == 1
    assert err == f"headway: error: another process is training in {run}: wait for it, or stop it\n"


def test_other_commands(headway: Command) -> None:
    code, out, _ = headway("agents")
    assert code == 0
    listed = out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == sorted(known_agents())
    assert "Soft actor-critic" in out
    assert headway("train", "--help")[1].endswith(out)
    code, out, _ = headway("envs", "hopper")
    assert code == 0
    assert "Hopper-v5\n" in out
    assert "Pendulum" not in out
    assert headway("envs", "no such thing")[:2] == (1, "no environment id contains 'no such thing'\n")
    assert headway("trian")[::2] == (1, "headway: error: there is no command 'trian': did you mean train?\n")
    code, out, _ = headway("--version")
    assert code == 0
    assert f"headway {versions()['headway-rl']} (python {platform.python_version()}, torch {torch.__version__}" in out
    done = subprocess.run(
        [sys.executable, "-m", "headway.scripts", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, out)
    assert headway()[0] == 2
    assert headway("--help")[:2] == (0, headway()[1])


@pytest.mark.parametrize("draw_without_screen", [cli.draw_without_screen, rendering.draw_without_screen])
def test_films_are_drawn_without_a_screen(
    monkeypatch: pytest.MonkeyPatch, draw_without_screen: Callable[[], None]
) -> None:
    def drawing(display: str, library: str | None, wanted: str | None = None) -> str | None:
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.setenv("WAYLAND_DISPLAY", "")
        monkeypatch.setattr("ctypes.util.find_library", lambda name: library)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        if wanted:
            monkeypatch.setenv("MUJOCO_GL", wanted)
        monkeypatch.setattr("sys.platform", "linux")
        draw_without_screen()
        return os.environ.get("MUJOCO_GL")

    assert drawing("", "libEGL.so.1") == "egl"
    assert drawing("", "libEGL.so.1", "osmesa") == "osmesa"
    assert drawing("", None) is drawing(":0", "libEGL.so.1") is None


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As ``headway envs | head -1``, with the reader gone before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "headway.scripts.cli", "envs"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


# ---- stopping and going on -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts, with three gradient steps per step so that there is something in between."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert cli.main(["train", "sac", *TINY, "--gradient-steps", "3", "--run-dir", str(folder)]) == 0
    return folder


def on_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, action: Callable[[], None]) -> None:
    """Do something in the middle of the given call of a method."""
    original, calls = getattr(owner, name), [0]

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            action()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def interrupt(headway: Command, *flags: object) -> tuple[int, str, str]:
    return headway("train", "sac", *TINY, "--gradient-steps", 3, *flags, "--run-dir", "run")


def go_on(headway: Command, text: str) -> None:
    """Do what the text says."""
    (command,) = re.findall(r"go on with: headway (.*)", text)
    code, out, err = headway(*shlex.split(command))
    assert (code, err) == (0, "")
    assert "after training:" in out


MOMENTS = {
    "before the first update": (ReplayStore, "add", 15, 15, "interrupted at step 15"),
    "in a step": (ReplayStore, "add", 33, 33, "interrupted at step 33"),
    "in the first of three updates": (Metrics, "add", 40, 34, "interrupted at step 34"),
    "in an evaluation": (Evaluator, "evaluate", 2, 25, "interrupted at step 25"),
    "in a checkpoint": (TrainingCallback, "checkpoint", 2, 40, "interrupted at step 40"),
    "in the last update": (Metrics, "add", 120, 60, "interrupted at step 60"),
    "before the first step": (Evaluator, "evaluate", 1, 0, "headway: interrupted"),
    "while finishing": (Evaluator, "evaluate", 4, 60, "headway: interrupted"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_saves_first_and_nothing_is_lost(
    headway: Command, alone: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, moment: str
) -> None:
    owner, name, call, step, message = MOMENTS[moment]
    with monkeypatch.context() as patch:
        on_call(patch, owner, name, call, lambda: signal.raise_signal(number))
        code, out, err = interrupt(headway)
    assert code == 128 + number
    assert message in out + err
    assert newest(Path("run")) == step
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    go_on(headway, out + err)
    assert differences(alone, Path("run"), scalars=False) == []


def test_a_second_ctrl_c_ends_at_once_and_saves_nothing_half_done(
    headway: Command, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        on_call(patch, Metrics, "add", 50, impatient)
        code, out, err = interrupt(headway)
    assert (code, newest(Path("run"))) == (130, 20)
    go_on(headway, out + err)
    assert differences(alone, Path("run"), scalars=False) == []


def test_a_signal_just_before_learning_is_not_forgotten(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        on_call(patch, SAC, "learn", 1, lambda: signal.raise_signal(signal.SIGTERM))
        code, out, _ = interrupt(headway)
    assert code == 143
    assert "interrupted at step 0" in out


def test_rows_torn_by_a_kill_are_written_again(headway: Command, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row can break off anywhere, and then look like one of an earlier step, or like a whole one."""
    with monkeypatch.context() as patch:
        on_call(patch, ReplayStore, "add", 35, lambda: signal.raise_signal(signal.SIGINT))
        _, out, _ = interrupt(headway)
    for name in ("progress.csv", "evaluations.csv"):
        whole = (alone / name).read_text().splitlines()[-1]
        for end in range(1, len(whole), 7):
            with Path("run", name).open("a") as file:
                file.write(whole[:end])
            open_tables(Path("run"))
    go_on(headway, out)
    assert differences(alone, Path("run"), scalars=False) == []


def open_tables(folder: Path) -> None:
    """Open a run's tables as a resumed process does, at step 35."""
    CSVFile(folder / "progress.csv", keep_until=35)
    CSVFile(folder / "evaluations.csv", key="step", keep_until=35)


def test_environments_in_processes_that_end_are_one_line(headway: Command) -> None:
    flags = shlex.split("--env worlds:Crash-v0 --n-envs 2 --vec subproc --total-timesteps 200 --run-dir run")
    code, _, err = headway("train", "sac", *TINY, *flags)
    assert code == 1
    assert err.endswith("headway: error: an environment's process ended; its own error output says why\n")
    assert "saved run/checkpoints/checkpoint-000000000078.zip\n" in err
    assert multiprocessing.active_children() == []


def test_ctrl_c_in_a_terminal_with_environments_in_processes(headway: Command, tmp_path: Path) -> None:
    """The signal reaches the workers as well; a run with them equals, stopped or not, one without."""
    flags = [*TINY, "--n-envs", "2", "--total-timesteps", "4000", "--checkpoint-every", "10"]
    command = [sys.executable, "-m", "headway.scripts.cli", "train", "sac", *flags, "--vec", "subproc"]
    places = os.pathsep.join([*(str(Path(__file__).parents[i]) for i in (0, 1)), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*command, "--run-dir", "run"],
        env={**os.environ, "PYTHONPATH": places},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    while newest(Path("run")) == 0 and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    stopped = int(re.findall(r"interrupted at step ([\d,]+)", out)[0].replace(",", ""))
    assert newest(Path("run")) == stopped < 4000

    end = str(stopped + 40)  # as far as both runs go
    code, out, err = headway("train", "--resume", "run", "--total-timesteps", end)
    assert (code, err) == (0, "")
    code, _, err = headway("train", "sac", *flags, "--total-timesteps", end, "--run-dir", "alone")
    assert (code, err) == (0, "")
    assert differences(Path("alone"), Path("run"), scalars=False) == []


# ---- environments in one batch ---------------------------------------------------------------------------------------

SIXTEEN = ["--env", "worlds:ShortCheetah-v0", "--n-envs", 16, "--total-timesteps", 480, "--learning-starts", 100]
SIXTEEN += ["--eval-every", 160, "--log-every", 100, "--checkpoint-every", 200]


def test_a_batched_environment_is_one_batch(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, str, int]] = []

    def count(env_id: str, num_envs: int, device: str = "cpu", num_threads: int = 0) -> Any:
        made.append((num_envs, device, num_threads))
        return make_batched(env_id, num_envs, device=device, num_threads=num_threads)

    with monkeypatch.context() as patch:
        patch.setattr("headway.scripts.worlds.make_batched", count)
        for module in ("train", "episodes"):
            patch.delattr(f"headway.scripts.{module}.DummyVecEnv")
        code, out, err = headway("train", "sac", *TINY, *SIXTEEN, "--run-dir", "run", "--progress")
    assert code == 0
    assert "480/480 · return -" in err
    assert made == [(16, "cpu", 1), (1, "cpu", 1)]
    assert " · 16 environments in one batch on cpu · cpu, 1 thread\n" in out
    assert "480 steps in " in out
    assert ", 384 gradient steps" in out  # 16 after every step of the batch from the seventh on
    assert [row["step"] for row in rows(Path("run/evaluations.csv"))] == ["0", "160", "320", "480"]
    assert {row["length"] for row in rows(Path("run/evaluations.csv"))} == {"12.0"}
    logged = [row["time/total_timesteps"] for row in rows(Path("run/progress.csv")) if row["rollout/ep_rew_mean"]]
    assert logged == ["208", "304", "400", "480"]  # the first episodes end at step 192
    assert json.loads(Path("run/config.json").read_text())["options"]["env_device"] == "cpu"  # what auto has chosen

    code, out, _ = headway("evaluate", "run", "--episodes", 3, "--video", "film.gif", "--csv", "episodes.csv")
    assert code == 0
    assert "in worlds:ShortCheetah-v0" in out
    assert [row["length"] for row in rows(Path("episodes.csv"))] == ["12"] * 3
    assert Path("film.gif").stat().st_size > 0
    code, _, err = headway("evaluate", "run", "--episodes", 3, "--env", "HalfCheetah-v5")
    assert (code, err) == (0, "")


def test_a_batch_learns_what_its_environments_in_turn_would(headway: Command) -> None:
    together = finished(headway, "sac", *SIXTEEN, "--n-envs", 3, folder="together")
    in_turn = finished(headway, "sac", *SIXTEEN, "--n-envs", 3, "--vec", "dummy", folder="in_turn")
    assert same_networks(together, in_turn)
    stores = [
        archive.read_archive(list_checkpoints(run / "checkpoints")[0]).members["store"] for run in (together, in_turn)
    ]
    assert stores[0].keys() == stores[1].keys()
    assert all(torch.equal(tensor, stores[1][name]) for name, tensor in stores[0].items())
    assert (together / "evaluations.csv").read_text() == (in_turn / "evaluations.csv").read_text()


def test_long_rounds_of_a_large_batch(headway: Command) -> None:
    """What is due falls inside rounds, which the bar, the tables and the last checkpoint do not mind."""
    flags = (
        "--env worlds:ShortCheetah-v0 --n-envs 64 --n-steps 16 --n-epochs 2 --batch-size 256 --net-arch 8 --threads 1"
    )
    flags += " --total-timesteps 1500 --eval-episodes 1 --eval-every 500 --log-every 300 --checkpoint-every 700"
    code, out, err = headway("train", "ppo", *shlex.split(flags), "--run-dir", "run")
    assert code == 0
    assert " · 64 environments in one batch on cpu · " in out
    assert "2,048 steps in " in out  # two rounds of 1,024
    assert ", 16 gradient steps" in out
    assert "100%" in err
    assert "1,500/1,500 · return -" in err
    assert [row["step"] for row in rows(Path("run/evaluations.csv"))] == ["0", "512", "1024", "2048"]
    logged = [row["time/total_timesteps"] for row in rows(Path("run/progress.csv")) if row["time/fps"]]
    assert logged == ["320", "640", "960", "1216", "2048"]
    assert [int(path.stem[-4:]) for path in list_checkpoints(Path("run/checkpoints"))] == [2048, 1408]


@pytest.mark.parametrize("step", [24, 40, 64])
def test_a_run_stopped_in_a_round_goes_on_as_if_it_had_not_been(
    headway: Command, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = finished(headway, "ppo", folder="whole")
    with monkeypatch.context() as patch:
        on_call(patch, RolloutStore, "add", step, lambda: signal.raise_signal(signal.SIGINT))
        starts = TINY.index("--learning-starts")
        tiny = [*TINY[:starts], *TINY[starts + 2 :], *SMALL["ppo"]]
        code, out, err = headway("train", "ppo", *tiny, "--run-dir", "run")
    assert (code, newest(Path("run"))) == (130, step)
    go_on(headway, out + err)
    assert differences(whole, Path("run"), scalars=False) == []


@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_discrete_actions_from_end_to_end(headway: Command, agent: str) -> None:
    run = finished(headway, agent, "--env", "worlds:Halves-v0", "--n-envs", 2, "--video", folder="run")
    assert (run / "final.mp4").stat().st_size > 0
    code, out, _ = headway("evaluate", run, "--episodes", 3, "--stochastic")
    assert (code, f"{agent.upper()} after" in out) == (0, True)
    code, out, _ = headway("train", "--resume", run, "--total-timesteps", 90)
    assert (code, "resumed at step" in out) == (0, True)


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sixteen rows that nothing interrupts."""
    folder = tmp_path_factory.mktemp("sixteen") / "run"
    assert cli.main(["train", "sac", *TINY, *map(str, SIXTEEN), "--run-dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(("owner", "name", "call", "step"), [(ReplayStore, "add", 23, 368), (Metrics, "add", 55, 160)])
def test_a_stopped_batch_goes_on_as_if_it_had_not_been(
    headway: Command, sixteen: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, step: int
) -> None:
    with monkeypatch.context() as patch:
        on_call(patch, owner, name, call, lambda: signal.raise_signal(signal.SIGINT))
        code, out, err = headway("train", "sac", *TINY, *SIXTEEN, "--run-dir", "run")
    assert (code, newest(Path("run"))) == (130, step)
    go_on(headway, out + err)
    assert differences(sixteen, Path("run"), scalars=False) == []


def test_where_a_batch_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU or where there is none, a machine with two is made believe."""

    def chosen(warp: bool = True, **options: Any) -> str | None:
        monkeypatch.setattr("headway.scripts.options.find_spec", lambda name: object() if warp else None)
        return simulated_on(TrainOptions(**{"env": "headway/HalfCheetah-v5", **options}))

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert chosen(device="cuda:1") == "cuda:1"
    assert chosen(device="auto") == "cuda"
    assert chosen(warp=False, device="cuda:1") == "cpu"
    assert chosen(device="cpu") == "cpu"
    assert chosen(device="cpu", env_device="cuda:0") == "cuda:0"
    assert chosen(device="cuda", env_device="cpu") == "cpu"
    assert chosen(env="Hopper-v5", device="cuda") is None
    assert chosen(env="headway/Hopper-v5", device="cuda", vec="dummy") is None
    with pytest.raises(ValueError, match=r"--env-device cuda: Hopper-v5 steps on the CPU; only a batched form runs"):
        chosen(env="Hopper-v5", env_device="cuda")
    with pytest.raises(ValueError, match=r"--env-device cuda: headway/Hopper-v5 steps on the CPU with --vec subproc"):
        chosen(env="headway/Hopper-v5", env_device="cuda", vec="subproc")
    with pytest.raises(ValueError, match=r"--env-device abacus: .* choose from auto, cpu, cuda, cuda:0, cuda:1"):
        chosen(env_device="abacus")


def test_a_longer_run_goes_on_from_a_complete_one(headway: Command, alone: Path) -> None:
    code, _, _ = headway("train", "sac", *TINY, "--gradient-steps", 3, "--total-timesteps", 40, "--run-dir", "run")
    assert code == 0
    best, evaluations = Path("run/best.zip").read_bytes(), Path("run/evaluations.csv")
    *earlier, last = evaluations.read_text().splitlines()
    evaluations.write_text("\n".join([*earlier, last.replace(",-", ",", 1), ""]))  # a return that none can beat
    code, out, _ = headway("train", "--resume", "run", "--total-timesteps", 60)
    assert code == 0
    assert Path("run/best.zip").read_bytes() == best
    assert "resumed at step 40" in out
    assert same_networks(alone, Path("run"))
    assert [row["step"] for row in rows(Path("run/evaluations.csv"))] == ["0", "25", "40", "50", "60"]
    assert headway("train", "--resume", "run")[1].startswith("run is complete: 60 steps.")


def test_a_longer_run_stays_longer_when_it_is_stopped(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(headway, "sac", folder="run")
    with monkeypatch.context() as patch:
        on_call(patch, ReplayStore, "add", 5, lambda: signal.raise_signal(signal.SIGTERM))
        assert headway("train", "--resume", "run", "--total-timesteps", 90)[0] == 143
    code, out, _ = headway("train", "--resume", "run")
    assert code == 0
    assert "90 steps in " in out


def test_runs_of_neighbouring_seeds_share_no_start(headway: Command) -> None:
    """Nor do their evaluations; a run evaluates at the same starts each time, and says which."""
    seeds = gym.make("worlds:Witness-v0").unwrapped.seeds  # type: ignore[attr-defined]
    flags = shlex.split("--env worlds:Witness-v0 --total-timesteps 60 --n-envs 3 --eval-episodes 1 --eval-every 25")
    of_agents = {
        "sac": ["--net-arch", "8", "--learning-starts", "60"],
        "sb3:PPO": ["--set", "n_steps=16", "batch_size=48"],
    }
    seen = []
    for agent, seed in itertools.product(of_agents, range(3)):
        seeds.clear()
        folder = f"{agent[:3]}{seed}"
        code, _, err = headway(
            "train", agent, *flags, *of_agents[agent], "--seed", seed, "--run-dir", folder, "--no-progress"
        )
        assert code == 0, err
        seen.append(set(seeds))
    assert seen[:3] == seen[3:]  # rivals meet the same
    assert all(len(starts) == 5 for starts in seen)  # three rows, twice the two episodes before and after
    assert len(set().union(*seen)) == 15
    config = json.loads(Path("sac1/config.json").read_text())
    assert {config["seeds"]["environments"] + row for row in range(3)} < seen[1]
    assert {config["seeds"]["evaluation"] + episode for episode in range(2)} < seen[1]


# ---- what goes wrong on the way --------------------------------------------------------------------------------------

SICK = [
    ("NaNObservation-v0", r"environment 1 \(.*\) returned observation\[0\] = nan at step 80:"),
    ("InfiniteReward-v0", r"environment 1 \(.*\) returned reward = inf at step 80:"),
    ("NaNClock-v0", r"environment 1 \(.*\) returned observation\['clock'\]\[1\] = nan at step 80:"),
]


@pytest.mark.parametrize(("env", "message"), SICK)
def test_a_number_that_is_none_is_named_and_what_was_learnt_is_saved(
    headway: Command, caplog: pytest.LogCaptureFixture, env: str, message: str
) -> None:
    flags = shlex.split("--n-envs 2 --total-timesteps 120 --eval-every 0 --checkpoint-every 0 --run-dir run")
    code, _, err = headway("train", "sac", *TINY, "--env", f"worlds:{env}", *flags)
    assert code == 1
    lines = err.splitlines()
    assert lines[0] == "saved run/checkpoints/checkpoint-000000000078.zip"
    assert lines[1] == f"go on with: headway train sac --resume run --env worlds:{env}"
    assert re.search(message, lines[2])
    assert len(lines) == 3
    code, _, _ = headway("train", "--resume", "run")  # the new environments are still young
    assert code == 0
    assert "the episode it was saved in is restarted" in caplog.text


def test_an_environment_that_raises_costs_only_its_episode(headway: Command, caplog: pytest.LogCaptureFixture) -> None:
    flags = shlex.split("--seed 1 --eval-every 0 --checkpoint-every 0 --run-dir run")
    with pytest.raises(RuntimeError, match="the world has ended"):  # not ours to shorten: the trace leads to the cause
        headway("train", "sac", *TINY, "--env", "worlds:Crash-v0", *flags)
    assert newest(Path("run")) == 39
    code, out, _ = headway("train", "--resume", "run")
    assert code == 0
    assert "resumed at step 39" in out
    assert "the episode it was saved in is restarted" in caplog.text  # it was half way through a step


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--env worlds:ChangesClass-v0", "is saved exactly (20 steps of a copy are equal bit for bit)"),
        ("--env worlds:Point-v0 --delay uniform:0-2,constant:1 --n-envs 2", "is saved exactly"),
        ("--env worlds:ShortCheetah-v0 --n-envs 2", "is saved exactly"),
        ("--env worlds:Locked-v0", "cannot be saved, a resumed run restarts its episode: env.env.env.env.lock"),
        ("--env worlds:Shared-v0", "is not saved exactly: step 1 of a copy differs in rewards"),
    ],
)
def test_the_first_checkpoint_can_be_checked(
    headway: Command, flags: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    policies = []
    for checked in ([], ["--verify-resume"]):
        code, out, err = headway("train", "sac", *TINY, *shlex.split(flags), *checked, "--run-dir", f"run{checked}")
        assert (code, err) == (0, "")
        assert out.count("--verify-resume: the environment's state") == len(checked)
        policies.append(networks(Path(f"run{checked}")))
    assert said in out
    if "Shared" not in flags:  # whose rewards depend on whoever steps besides
        assert all(torch.equal(part, policies[1][name]) for name, part in policies[0].items())
    assert len(caplog.records) == 2 * ("Locked" in flags)  # one in each run, not one for each checkpoint


def test_the_policy_is_written_first(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(callback: TrainingCallback) -> None:
        raise OSError("no room for a checkpoint")

    monkeypatch.setattr(TrainingCallback, "checkpoint", full)
    code, _, err = headway("train", "sac", *TINY, "--checkpoint-every", 0, "--run-dir", "run")
    assert code == 1
    assert "no room for a checkpoint" in err
    assert agents.load("run/final.zip").num_timesteps == 60


def test_a_full_disk_leaves_the_checkpoint_before(headway: Command, alone: Path) -> None:
    sizes = [path.stat().st_size for path in list_checkpoints(alone / "checkpoints")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0] - 50, hard))  # enough for all but the last
    try:
        code, _, err = interrupt(headway)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    hint, error = err.splitlines()
    assert error.startswith("headway: error: cannot write run/checkpoints/checkpoint-000000000060.zip: File too large")
    assert newest(Path("run")) == 40
    assert being_written(Path("run")) == []
    go_on(headway, hint)
    assert differences(alone, Path("run"), scalars=False) == []


@pytest.mark.parametrize("write", range(1, 26, 4))
def test_a_disk_that_is_full_at_any_write_loses_nothing(
    headway: Command, alone: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    calls = [0]
    original = archive._write

    def full(file: Any, data: bytes) -> None:
        calls[0] += 1
        if calls[0] >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "_write", full)
        code, _, err = interrupt(headway)
    assert code == 1
    hint, error = err.splitlines()
    assert re.match(r"headway: error: cannot write run/.*: No space left on device; free space and save again", error)
    go_on(headway, hint)
    assert differences(alone, Path("run"), scalars=False) == []


def test_a_full_disk_under_the_tables_is_one_line_too(
    headway: Command, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = csv.DictWriter.writerow

    def full(self: Any, row: Any) -> Any:
        original(self, row)
        if row.get("time/total_timesteps") == "50":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerow", full)
        code, _, err = interrupt(headway)
    assert code == 1
    assert "No space left on device" in err.splitlines()[-1]
    assert newest(Path("run")) == 40
    go_on(headway, err)
    assert differences(alone, Path("run"), scalars=False) == []
