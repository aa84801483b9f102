"""What the README and docs/environments.md show runs, with fewer steps."""

import inspect
import os
import re
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import stable_baselines3
from headway.agents import AGENTS
from headway.agents.core.config import describe
from headway.scripts.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CROWDS = (ROOT / "docs" / "mean-field-games.md").read_text()
ENVIRONMENTS = (ROOT / "docs" / "environments.md").read_text()
AGENTS_PAGE = (ROOT / "docs" / "agents.md").read_text()
SB3_PAGE = (ROOT / "docs" / "sb3.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = [block for block in blocks("python") if "evaluate_policy" in block]
    assert "agent.learn(5_000," in example
    names: dict[str, object] = {}
    exec(example.replace("5_000", "220"), names)
    assert names["action"].shape == (1,)  # type: ignore[attr-defined]
    assert (tmp_path / "pendulum.zip").exists()


def test_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (module,) = [block for block in blocks("python") if "gym.register" in block]
    (command,) = [block for block in blocks("bash") if "my_envs" in block]
    (tmp_path / "my_envs.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    _, _, arguments = command.partition("headway ")
    try:
        assert main(arguments.replace("2000", "250").split()) == 0
    finally:
        gymnasium.registry.pop("Reach-v0", None)
    assert "after training" in capsys.readouterr().out


def test_an_agent_of_your_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, use = blocks("python", AGENTS_PAGE)
    commands, learn = blocks("bash", AGENTS_PAGE)
    (suite,) = blocks("yaml", AGENTS_PAGE)
    (tmp_path / "my_agents.py").write_text(module)
    (tmp_path / "suite.yaml").write_text(
        suite.replace("3000", "120").replace("1000", "60").replace("seeds: 2", "seeds: 1")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    export, *lines = commands.replace("3000", "220").replace("4000", "240").splitlines()
    assert export == "export PYTHONPATH=."
    for line in (*lines, learn.strip()):
        command, *arguments = line.split()
        assert command == "headway"
        assert main(arguments) == 0, line
    out = capsys.readouterr().out
    assert "220 steps in" in out
    assert "resumed at step 220" in out
    assert "half the action range" in out
    assert "3 of 3 runs are finished" in out
    names: dict[str, Any] = {}
    exec(use.replace("300", "120").replace("100,", "20,"), names)
    assert names["again"].num_timesteps == 140
    assert names["action"].shape == (1,)


def test_coming_from_stable_baselines3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks("python", SB3_PAGE)
    monkeypatch.chdir(tmp_path)
    exec(example.replace("300", "20"), {})
    printed = capsys.readouterr().out.splitlines()
    said = [line.split("# ")[1].rstrip("…") for line in example.splitlines() if "print(refused)" in line]
    assert [line.startswith(comment) for line, comment in zip(printed, said, strict=True)] == [True, True]


def test_defaults_differ_from_stable_baselines3s_where_the_page_says_so() -> None:
    lines = {line.split("|")[1].strip() for line in SB3_PAGE.splitlines() if line.startswith("|")}
    assert {"TD3's exploration", "TD3's networks", "`gradient_steps`"} <= lines
    for name in ("SAC", "TD3", "PPO", "DQN"):
        parameters = inspect.signature(getattr(stable_baselines3, name).__init__).parameters
        fields = describe(AGENTS[name].config_class)
        differing = {key for key in fields.keys() & parameters.keys() if fields[key].default != parameters[key].default}
        assert differing == set(), name
    assert describe(AGENTS["TD3"].config_class)["action_noise_std"].default == 0.1
    assert describe(AGENTS["TD3"].config_class)["net_arch"].default == (256, 256)


def test_a_task_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = [block for block in blocks("python", ENVIRONMENTS) if "register_mujoco_task(" in block]
    (train,) = re.findall(r"^headway (train .*)$", ENVIRONMENTS, re.MULTILINE)
    (tmp_path / "swing.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert main(train.replace("10000", "256").replace("1000", "200").split()) == 0
        assert list(tmp_path.glob("runs/mine-Swing-v0/sac/*/final.zip"))
    finally:
        gymnasium.registry.pop("mine/Swing-v0", None)


def test_crowds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python", CROWDS):
        exec(block.replace("10_000", "10").replace("4_000", "2_048").replace("1_000", "512"), names)
    solved, uniform, batch, learnt, loaded = capsys.readouterr().out.splitlines()
    assert 0 < float(solved.split("(")[1].split(",")[0]) < float(uniform.split("(")[1].split(",")[0])
    assert batch == "torch.Size([10])"
    assert float(learnt) > 0
    assert loaded.split()[1].startswith(f"tensor({loaded.split()[0][:6]}")


def test_using_batches() -> None:
    found = [block for block in blocks("python", ENVIRONMENTS) if "register_mujoco_task(" not in block]
    using, vary, snapshots, verified = found
    names: dict[str, Any] = {}
    exec(using.replace("1024", "4").replace("64", "3"), names)
    assert names["obs"].shape == (4, 105)
    exec(vary.replace("256", "4"), names)
    assert len(names["env"].physics["body_mass"].unique(dim=0)) == 4
    exec(snapshots.replace("7", "2"), names)
    rows = names["env"].sim.qpos
    assert (rows[1:] == rows[0]).all()
    exec(verified, names)
    assert names["report"].exact


def test_two_set_up_commands() -> None:
    assert [marker for marker in re.findall(r"<!-- (\w+) -->", README)] == ["train", "test"]
    commands = [block for block in blocks("bash") if "venv" in block]
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
