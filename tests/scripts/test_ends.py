"""How runs end: what never does, what is asked to, where it came from, and where it goes on."""

import contextlib
import datetime
import json
import logging
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from headway.agents import SAC, TD3
from headway.agents.core.files import list_checkpoints
from headway.agents.core.files.contents import versions
from headway.scripts import train as training
from headway.scripts.cli import origin_of
from headway.scripts.runs import check_outputs
from kill_resume import newest

TINY = shlex.split("--total-timesteps 60 --learning-starts 20 --batch-size 8 --net-arch 8 --eval-episodes 1")
TINY += shlex.split("--eval-every 0 --checkpoint-every 20 --threads 1 --no-progress")


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figure, which takes longer than the tiny run itself."""
    monkeypatch.setattr("headway.scripts.figures.learning_curve", lambda run, *_: run / "learning_curve.png")


def train(headway: Command, env: str, *flags: object, agent: str = "sac") -> tuple[int, str, str]:
    return headway("train", agent, "--env", f"worlds:{env}", *TINY, *flags, "--run-dir", "run")


# -- episodes that do not end ------------------------------------------------------------------------------------------


def test_an_evaluation_says_what_it_waits_for(
    headway: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("headway.scripts.episodes.PATIENCE", 0)
    monkeypatch.setattr("headway.scripts.episodes.LONG", 30)
    assert train(headway, "Long-v0")[0] == 0  # whose episodes have 50 steps, without a limit
    said = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(said) == 2  # once before training, once after it
    assert "at step 31: " in said[0]
    assert "--max-episode-steps" in said[0]
    caplog.clear()
    assert headway("evaluate", "run", "--episodes", 1, "--max-episode-steps", 40)[0] == 0
    assert "waiting" not in caplog.text  # it is known to end


def test_episodes_are_cut_where_the_command_says(headway: Command) -> None:
    code, _, err = train(headway, "Endless-v0", "--max-episode-steps", 9, "--delay", "constant:0,constant:1")
    assert (code, err) == (0, "")
    rows = Path("run/evaluations.csv").read_text().splitlines()
    assert {dict(zip(rows[0].split(","), row.split(","), strict=True))["length"] for row in rows[1:]} == {"9.0"}
    assert " 9   2 episodes" in headway("evaluate", "run", "--episodes", 2)[1]  # the policy knows
    assert " 4   2 episodes" in headway("evaluate", "run", "--episodes", 2, "--max-episode-steps", 4)[1]
    assert headway("train", "--resume", "run", "--max-episode-steps", 8)[2].count("cannot become 8") == 1


# -- requests to end ---------------------------------------------------------------------------------------------------


def test_a_second_request_ends_at_once_and_says_what_is_lost(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TOGETHER", -1.0)
    original, calls = SAC.keep, [0]

    def keep(self: Any, step: Any) -> None:
        calls[0] += 1
        if calls[0] == 33:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        original(self, step)

    monkeypatch.setattr(SAC, "keep", keep)
    code, _, err = train(headway, "Point-v0")
    assert (code, newest(Path("run"))) == (143, 20)
    assert "ended at once: what came after run/checkpoints/checkpoint-000000000020.zip is lost, up to step 32\n" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_come_together_are_one_request(
    headway: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As of a terminal that is closed, or of a supervisor that asks a process and its group."""
    original, calls = SAC.keep, [0]

    def keep(self: Any, step: Any) -> None:
        calls[0] += 1
        if calls[0] == 33:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(number)
        original(self, step)

    monkeypatch.setattr(SAC, "keep", keep)
    code, out, _ = train(headway, "Point-v0")
    assert (code, newest(Path("run"))) == (129, 33)
    assert "interrupted at step 33: saved run/checkpoints" in out


def test_what_nohup_ignores_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with training.Signals().installed():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, previous)


PROGRAM = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored where the tests were started by nohup
from headway.scripts import cli, train
train.TOGETHER, train.PATIENCE = 0.1, 0.3
sys.exit(cli.main(sys.argv[1:]))
"""


def process(env: str, *flags: str, **streams: Any) -> "subprocess.Popen[str]":
    places = os.pathsep.join([*(str(Path(__file__).parents[i]) for i in (0, 1)), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PROGRAM, "train", "sac", "--env", f"worlds:{env}", *TINY, *flags]
    environment = {**os.environ, "PYTHONPATH": places}
    return subprocess.Popen([*command, "--run-dir", "run"], env=environment, text=True, **streams)


def wait(condition: Callable[[], object], running: "subprocess.Popen[str]") -> None:
    while not condition() and running.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize("within", ["python", "library"])
def test_a_step_that_hangs_does_not_keep_a_run_from_ending(within: str) -> None:
    running = process(f"Hangs-{within}-v0", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait(Path("hangs").exists, running)
    for _ in range(2):
        running.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "all of it is lost, up to step 15" in err


def test_a_terminal_that_is_closed_loses_nothing() -> None:
    """What is written to it fails from then on, and must not come before what is saved."""
    master, slave = pty.openpty()
    running = process(
        "Point-v0", "--progress", "--total-timesteps", "100000", stdin=slave, stdout=slave, stderr=slave,
        preexec_fn=lambda: (os.setsid(), os.close(master), os.dup2(0, 0), _take_terminal()),
    )  # fmt: skip
    os.close(slave)
    while newest(Path("run")) < 40 and running.poll() is None:
        with contextlib.suppress(OSError):
            os.read(master, 65536)
    os.close(master)  # and the kernel sends SIGHUP
    assert running.wait(timeout=60) == 129
    step = newest(Path("run"))
    assert step >= 40
    assert SAC.resume("run", "worlds:Point-v0").num_timesteps == step


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# -- folders and files -------------------------------------------------------------------------------------------------


class Noon(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "Noon":
        return cls(2026, 1, 2, 12)


def test_runs_of_one_second_have_folders_of_their_own(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "datetime", Noon)
    for _ in range(3):
        assert headway("train", "sac", "--env", "worlds:Point-v0", *TINY)[0] == 0
    names = sorted(folder.name for folder in Path("runs/Point-v0/sac").iterdir())
    assert names == ["20260102-120000-s0", "20260102-120000-s0-2", "20260102-120000-s0-3"]
    for name in names:
        assert json.loads(Path("runs/Point-v0/sac", name, "config.json").read_text())["finished"] == 60


OUTPUTS = {
    "evaluate nowhere --csv": "a.csv",
    "evaluate nowhere --video": "a.gif",
    "evaluate nowhere --delays wifi,wifi --plot": "a.png",
    "plot nowhere --output": "a.pdf",
    "delays wifi --plot": "a.svg",
    "benchmark speed --json": "a.json",
    "benchmark rollout --json": "a.json",
    "benchmark rollout --plot": "a.png",
    "benchmark mfg --json": "a.json",
    "benchmark offline --json": "a.json",
    "benchmark population --json": "a.json",
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_outputs_are_tried_before_the_work(headway: Command, tmp_path: Path, command: str) -> None:
    """Before all else, even before the policy is looked for."""
    name = OUTPUTS[command]
    Path("file").touch()
    Path(f"folder.{name[2:]}").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for place in (f"file/{name}", f"/proc/{name}", f"folder.{name[2:]}", f"{300 * 'a'}.{name[2:]}"):
        code, out, err = headway(*command.split(), place)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"headway: error: cannot write {place}: ")
        assert err.endswith("choose another place\n")
    if "--plot" in command or "--output" in command:
        assert "must end in .png, .pdf or .svg, got a.doc" in headway(*command.split(), "a.doc")[2]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_be_made_is_not_refused(tmp_path: Path) -> None:
    check_outputs(tmp_path / "new" / "newer" / "a.csv", None, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["nothing.csv", "a.csv"])
def test_a_link_that_leads_nowhere_is_not_overwritten(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.csv").symlink_to(tmp_path / target)  # to nothing, or to itself
    with pytest.raises(FileExistsError, match=r"a\.csv exists: choose another name or pass --overwrite"):
        check_outputs(tmp_path / "a.csv", overwrite=False)


# -- going on from Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["", "--n-envs 3", "--delay constant:1,uniform:0-2"])
def test_a_run_of_the_command_line_goes_on_in_a_script(headway: Command, flags: str) -> None:
    import worlds  # noqa: F401

    assert train(headway, "Point-v0", *shlex.split(flags))[0] == 0
    assert headway("train", "--resume", "run", "--total-timesteps", 80)[0] == 0
    expected = SAC.resume("run").modules.state()
    for path in list_checkpoints(Path("run/checkpoints"))[:1]:
        path.unlink()  # back to the last but one
    for folder in ("run", "run/checkpoints", Path("run")):
        agent = SAC.resume(folder, *(["worlds:Point-v0"] if not flags else []))
        assert agent.num_timesteps < 80
        agent.learn(80 - agent.num_timesteps, reset_num_timesteps=False)
        found = agent.modules.state()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_other_versions_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    agent = SAC("MlpPolicy", "Pendulum-v1", seed=0, net_arch=(4,), learning_starts=99, buffer_size=100)
    agent.learn(5)
    agent.save_checkpoint(tmp_path)
    SAC.resume(tmp_path)
    assert caplog.text == ""
    here = versions()
    changed = here | {"torch": "9.9.9", "mujoco": "8.8.8"}
    monkeypatch.setattr("headway.agents.core.files.contents.versions", lambda: changed)
    SAC.resume(tmp_path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"torch {here['torch']} (here 9.9.9), mujoco {here['mujoco']} (here 8.8.8): what follows may differ" in said
    assert "numpy" not in said


# -- whose error it is -------------------------------------------------------------------------------------------------

ERRORS = [
    ("Faulty-reset-v0", r"it is Tuesday \(ValueError at .*/worlds.py:\d+, in _check; HEADWAY_TRACEBACK=1 shows"),
    ("Faulty-step-v0", r"it is Tuesday \(ValueError at .*/worlds.py:\d+, in _check; HEADWAY_TRACEBACK=1 shows"),
    ("Faulty-made-v0", r"cannot be made: .*it is Tuesday \(ValueError at .*/worlds.py:\d+, in _check; HEADWAY"),
    ("Unlike-v0", r"number of dimensions, .* \(ValueError at .*/worlds.py:\d+, in _check; HEADWAY_TRACEBACK=1"),
    ("Denied-v0", r"not allowed: 'a.dat' \(PermissionError at .*/worlds.py:\d+, in _check; HEADWAY_TRACEBACK=1"),
]


@pytest.mark.parametrize(("env", "message"), ERRORS)
def test_an_error_of_the_environments_says_where_it_is(
    headway: Command, monkeypatch: pytest.MonkeyPatch, env: str, message: str
) -> None:
    code, _, err = train(headway, env)
    assert code == 1
    assert re.search(message, err.splitlines()[-1])
    monkeypatch.setenv("HEADWAY_TRACEBACK", "1")
    with pytest.raises((ValueError, OSError)):
        headway("train", "sac", "--env", f"worlds:{env}", *TINY, "--run-dir", "again")


@pytest.mark.parametrize("line", ["raise ValueError('not today')", "int('x')", "import nothing_of_this_name", "1 +"])
def test_an_error_of_a_module_says_where_it_is(
    headway: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"faulty_{abs(hash(line))}"
    Path(f"{name}.py").write_text(f"\n\n{line}\n")
    code, _, err = headway("train", "sac", "--env", f"{name}:Any-v0", *TINY)
    assert (code, err.count("\n")) == (1, 1)
    assert f"{name}.py" in err
    assert "3" in err.partition(f"{name}.py")[2][:12]


def failing(source: str, file: str) -> BaseException:
    """The error of a program that stands in a file."""
    try:
        exec(compile(source, file, "exec"), {})
    except Exception as error:
        return error.with_traceback(getattr(error.__traceback__, "tb_next", None))  # without this file
    raise AssertionError


OURS = str(Path(training.__file__).with_name("imagined.py"))


def test_where_errors_come_from() -> None:
    assert origin_of(failing("raise ValueError('a mistake')", OURS)) is None
    assert origin_of(failing("open('/nowhere/at/all')", OURS)) is None
    said = origin_of(failing("x = 1\nint('x')", OURS))  # not foreseen, and so a fault of Headway's
    assert said is not None
    assert said.startswith(f"ValueError at {OURS}:2, in <module>; HEADWAY_TRACEBACK=1 ")
    said = origin_of(failing("import numpy as np\nnp.concatenate([np.zeros(1), np.zeros((1, 1))])", OURS))
    assert said is not None
    assert f"{OURS}:2" in said
    theirs = str(Path.home() / "theirs.py")
    for source in ("raise ValueError", "open('/nowhere')", "import json\njson.loads('{')"):
        said = origin_of(failing(source, theirs))
        assert said is not None
        assert f"{theirs}:{1 + source.count(chr(10))}" in said
    nested = failing("try:\n  int('x')\nexcept ValueError as cause:\n  raise ValueError('what to do') from cause", OURS)
    assert origin_of(nested) is None  # what Headway has understood


# -- YAML that stands for more than it says ----------------------------------------------------------------------------

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(10 * [f'*{old}'])}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net_arch: &a [*a]", "recursive"),
        ("gamma: &b {c: *b}", "recursive"),
        ("&top\ngamma: *top", "recursive"),
        (BOMB, "it stands for more than 100,000 values"),
        (5000 * "[", "recursion"),
        ("gamma: *nobody", "undefined alias"),
    ],
)
def test_odd_yaml_is_one_line(headway: Command, text: str, message: str) -> None:
    Path("odd.yaml").write_text(text)
    for command in ("train sac --env worlds:Point-v0 --config odd.yaml", "benchmark learn odd.yaml"):
        code, out, err = headway(*command.split())
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("headway: error: odd.yaml is not YAML that can be read safely: ")
        assert message in err
        assert "HEADWAY_TRACEBACK" not in err


# -- policies that diverge ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["sac", "td3"])
def test_a_run_that_diverges_keeps_what_was_good(headway: Command, monkeypatch: pytest.MonkeyPatch, agent: str) -> None:
    cls: Any = {"sac": SAC, "td3": TD3}[agent]
    original = cls.keep

    def keep(self: Any, step: Any) -> None:
        original(self, step)
        if self.num_timesteps == 47:
            with torch.no_grad():
                self.actor.module.mlp.biases[-1].fill_(np.nan)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "keep", keep)
        code, _, err = train(headway, "Point-v0", "--eval-every", 10, agent=agent)
    assert (code, err.count("\n")) == (1, 1)
    assert f"{agent.upper()} has diverged after 48 steps: " in err
    assert "the last checkpoint, run/checkpoints/checkpoint-000000000040.zip, is still finite" in err
    assert "go on with" not in err  # it would do so again
    assert newest(Path("run")) == 40
    assert cls.load("run/best.zip").broken_weights() is None
    assert logging.getLogger("headway").level == logging.NOTSET
