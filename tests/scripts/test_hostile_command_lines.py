"""Command lines that nobody means: each ends in an exit code and at most a paragraph, and harms no file.

Every line begins as one that would work, small enough to end at once, and is then spoilt by drawn mutations: values of
wrong types and sizes, flags that are misspelt, repeated, without a value or another command's, files that are missing,
cut off or something else, names of nothing.
"""

import io
import os
import random
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import yaml
from headway.agents import AGENTS
from headway.agents.core.config import describe
from headway.scripts import benchmark
from headway.scripts.benchmark import BENCHMARKS
from headway.scripts.check import CheckOptions
from headway.scripts.cli import main
from headway.scripts.collect import CollectOptions
from headway.scripts.datasets import COMMANDS
from headway.scripts.delays import DelayOptions
from headway.scripts.evaluate import EvaluateOptions
from headway.scripts.mean_field import compare, fit, learn, recover, show, solve
from headway.scripts.options import TrainOptions, flag_of
from headway.scripts.plot import PlotOptions

Bystanders = Mapping[str, bytes | str | None]
"""What there is below a folder: contents of files, targets of links, None for folders."""

TRAINED = "--total-timesteps 8 --eval-episodes 1 --threads 1 --no-progress --vec dummy"
GAME = "crowd_modelling --param size=4 horizon=3"
LEARNED = f"{GAME} --set episodes=30 net_arch=[4] learning_starts=8"
SECONDS = 120
"""How long a line may take; a second by itself, but a check of two environments starts two processes."""

TIMED = "--rounds 1 --threads 1"
SUITE = {
    "name": "tiny",
    "description": "Two arms.",
    "total_timesteps": 8,
    "seeds": 2,
    "eval_every": 4,
    "eval_episodes": 1,
    "final_evaluations": 1,
    "environments": [{"id": "worlds:Point-v0"}],
    "arms": [{"label": "SAC", "agent": "sac"}, {"label": "TD3", "agent": "td3"}],
}


@dataclass(frozen=True)
class Command:
    """A command, and what a line of it is made of.

    :param line: one that works
    :param flags: classes of its flags
    :param bounds: flags that every line ends with, so that none works for long
    """

    line: str
    flags: Sequence[type] = ()
    bounds: str = ""

    def fields(self) -> dict[str, Any]:
        """:return: annotations by flag."""
        return {flag_of(name): info.annotation for cls in self.flags for name, info in describe(cls).items()}

    def bound(self) -> dict[str, list[str]]:
        """:return: values of the bounds by flag."""
        found: dict[str, list[str]] = {}
        for word in shlex.split(self.bounds):
            found |= {word: []} if word.startswith("--") else {}
            if not word.startswith("--"):
                found[[*found][-1]].append(word)
        return found


def commands() -> list[Command]:
    """:return: every command there is, those with many flags several times."""
    speed, rollout, timed, learned = (BENCHMARKS[name][0] for name in ("speed", "rollout", "mfg", "learn"))
    worlds = {"DQN": "worlds:Halves-v0"}
    train = [
        Command(
            f"train {name.lower()} --env {worlds.get(name, 'worlds:Point-v0')} {extra}",
            (TrainOptions, AGENTS[name].config_class),
            TRAINED,
        )
        for name in sorted(AGENTS)
        for extra in ("", "--n-envs 2 --run-dir new", "--config good.yaml", "--delay constant:1,1")
    ]
    mean_field = {
        f"solve {GAME} --format none": (solve, "--iterations 2 --no-progress"),
        "show solved": (show, "--format none"),
        "show crowd_modelling": (show, "--format none"),
        "compare crowd_modelling --algorithms fictitious_play": (compare, "--iterations 1 --no-progress"),
        f"learn {LEARNED}": (learn, "--iterations 1 --no-progress --no-exact"),
        "learn --resume learned": (learn, "--no-progress"),
        "fit crowds.npz --baselines mean": (fit, "--no-progress"),
        "recover --flow data": (recover, "--people 0 --draws 1 --no-progress"),
    }
    return [
        *train,
        *(Command(f"train {extra}", (TrainOptions, AGENTS["SAC"].config_class), TRAINED) for extra in (
            "--resume run", "--resume cut", "sb3:SAC --env worlds:Point-v0", "sac --resume run",
            "mine:Agent --env worlds:Point-v0",
        )),
        *[Command(f"evaluate {policy}", (EvaluateOptions,), "--episodes 2 --n-envs 1") for policy in (
            "run", "run/final.zip", "run/final.zip --csv new.csv", "run --delay uniform:0-2,wifi",
            "run --delays wifi,wifi --plot new.png",
        )],
        *[Command("check worlds:Point-v0", (CheckOptions,), "--steps 10 --seconds 0.1")] * 3,
        *[Command("plot run --output new.png", (PlotOptions,))] * 3,
        *[Command("delays wifi,wifi uniform:0-3,constant:1 --plot new.png", (DelayOptions,))] * 3,
        *[Command(f"collect {who} --dataset toys/new-v0", (CollectOptions,), "--steps 8 --n-envs 1") for who in (
            "--policy random --env worlds:Point-v0", "--policy random --policy run --shares 1 2", "--replay run",
        )],
        *[Command(f"datasets {name} {line}", flags[:1]) for (name, flags), line in zip(COMMANDS.items(), (
            "toys", "toys/here-v0", "toys/here-v0 toys/cut-v0", "toys/here-v0 --plot new.png",
            "toys/here-v0 --dataset toys/few-v0 --episodes 1",
        ), strict=True)],
        Command("envs hopper"),
        Command("agents"),
        Command("mfg games crowd"),
        Command("--version"),
        Command("benchmark speed --agents sac --env worlds:Point-v0", (speed,), f"{TIMED} --updates 1 --steps 2"),
        Command("benchmark rollout --robots ant", (rollout,), f"{TIMED} --seconds 0.01 --num-envs 2 --peers"),
        Command(
            "benchmark mfg --games crowd_modelling",
            (timed,),
            f"{TIMED} --seconds 0.001 --no-peers --batch 0 --env-games --num-envs 1",
        ),
        *[Command("benchmark learn suite.yaml --seeds 2", (learned,), "--report-only --out suite")] * 2,
        *[Command("benchmark learn suite.yaml", (learned,), "--report-only")],
        *[Command("benchmark learn suite", (learned,), "--report-only")],
        *[Command(f"mfg {line}", (of.Options,), bounds) for line, (of, bounds) in mean_field.items()],
    ]  # fmt: skip


PATHS = (
    "nowhere",
    "nowhere/below",
    "folder",
    ".",
    "/",
    "..",
    "empty",
    "empty.zip",
    "noise.zip",
    "cut.zip",
    "cut.yaml",
    "list.yaml",
    "other.yaml",
    "good.yaml",
    "suite.yaml",
    "noise.yaml",
    "loop.yaml",
    "loop",
    "dangling",
    "run",
    "run/final.zip",
    "cut",
    "run/config.json",
    "run/checkpoints",
    "run/evaluations.csv",
    "solved",
    "solved/nothing",
    "learned",
    "suite",
    "crowds.npz",
    "cut.npz",
    "sets/toys/here-v0",
    "sets/toys/here-v0/data",
    "sets/toys",
    "new.png",
    "new.txt",
    "new",
    "run/final.zip/below",
    "picture.png",
    "x" * 300,
    "a\nb",
    "ü/ø",
    "~",
    "~nobody/x",
    "/dev/full",
    "/proc/self/mem",
    "/proc/none/x",
    "new/" * 40 + "deep",
    " ",
    "-",
    "--",
    "a\udc80b.png",
)
NUMBERS = (
    "0",
    "-1",
    "-0.0",
    "1",
    "2",
    "0.5",
    "1.5",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "1e-400",
    "1e5.5",
    "1_0",
    "٣",
    "0x10",
    "010",
    "1e3",
    "0.0001",
    str(2**31),
    str(2**63),
    str(-(2**63) - 1),
    str(10**30),
    "9" * 5000,
    "1,5",
    "1 000",
    "½",
    "1j",
    "True",
    "+1",
    "--1",
    "1e",
    "e5",
    "2e0",
)
TEXTS = (
    "",
    " ",
    "\t",
    "\n",
    "ü",
    "日本語",
    "\u202e",
    "\x00",
    "\x1b[31m",
    "'",
    '"',
    "a b",
    "a=b",
    "=",
    ":",
    "::",
    ",",
    ",,",
    "%s",
    "{}",
    "{0.x}",
    "$HOME",
    "*",
    "[",
    "[1",
    "]",
    "!!python/object:os.system",
    "&a [*a]",
    "None",
    "none",
    "null",
    "nan",
    "yes",
    "off",
    "x" * 5000,
    "\udc80",
    "-",
    "--",
    "---",
    "\\",
    "'; rm -rf x",
    "../..",
    "1 episode",
    "0 episodes",
    "-1 step",
    "1 fortnight",
)
NAMES = (
    "Nothing-v0",
    "Pendulum-v99",
    "Pendulum",
    "Pendulum-v",
    "pendulum-v1",
    "worlds:Nothing-v0",
    "worlds:",
    ":Point-v0",
    "worlds::Point-v0",
    "nomodule:Point-v0",
    "worlds.none:Point-v0",
    "os:Point-v0",
    "os.path:join",
    "json:tool",
    "ns/Name-v0",
    "toys/here-v0",
    "toys/cut-v0",
    "ns/",
    "/",
    "headway/",
    "headway/Ant-v9",
    "headway/Nothing-v0",
    "worlds:Faulty-made-v0",
    "worlds:Faulty-reset-v0",
    "worlds:Halves-v0",
    "worlds:Wide-v0",
    "worlds:Blind-v0",
    "worlds:NaNObservation-v0",
    "worlds:InfiniteReward-v0",
    "bad_syntax:X-v0",
    "raises:X-v0",
    "leaves:X-v0",
    ".:X",
    "..x:X-v0",
    "a b:X-v0",
    "1:X-v0",
    "sac",
    "SAC",
    "sb3:",
    "sb3:Nothing",
    "sb3:A2C",
    "sb3_contrib:TQC",
    "sb3:BaseAlgorithm",
    "worlds:Point",
    "worlds:np",
    "os:getcwd",
    "crowd_modelling",
    "no_game",
    "constant",
    "constant:",
    "constant:-1,1",
    "constant:nan",
    "uniform:3-1",
    "uniform:0-",
    "uniform:0-99999999999",
    "wifi",
    "wifi,wifi,wifi",
    "wifi,",
    "constant:1e30,0",
    "fixed_point:damping=2",
    "fixed_point:damping",
    "size=0",
    "size=-1",
    "size=nan",
    "size",
    "=1",
    "horizon=x",
    "size=1.5",
    "size=[1,2]",
    "temperature=nan",
    "net_arch=[0]",
    "net_arch=[a]",
    "0-",
    "3-1",
    "1,1",
    "0-2",
    "x-y",
    "5,",
    "1-2-3",
    "0-99999999999999999999",
)
WORK = {"--compile", "--n-envs", "--vec", "--video", "--torch-threads", "--n-steps", "--gradient-steps", "--net-arch"}
WORK |= {flag for command in commands() for flag in command.bound()}
"""Flags whose values may rightly mean hours of work, or processes: only values that cannot be meant."""


def values(draw: random.Random, annotation: Any, flag: str) -> str:
    """:return: a value for a flag: half of the time of its own kind."""
    if flag in WORK:
        return draw.choice([n for n in NUMBERS if len(n) < 5 and n not in ("1e3", "010", "1_0")] + list(TEXTS))
    parts = [part for part in (annotation, *get_args(annotation)) if part is not None]
    pools: list[Sequence[str]] = [TEXTS, NUMBERS, PATHS, NAMES]
    if any(part in (int, float) for part in parts):
        pools += [NUMBERS] * 4
    if Path in parts:
        pools += [PATHS] * 4
    if str in parts:
        pools += [NAMES] * 3
    if choices := [str(v) for p in parts if get_origin(p) is Literal for v in get_args(p)]:
        pools += [choices] * 4
    return draw.choice(draw.choice(pools))


def hostile(seed: int) -> list[str]:
    """:return: the command line of a seed."""
    draw = random.Random(seed)
    every = commands()
    command = every[seed % len(every)]
    line, own = shlex.split(command.line), command.fields()
    others = {flag: of for other in every for flag, of in other.fields().items() if flag not in own}
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3))):
        line = draw.choice(MUTATIONS)(draw, line, own, others)
    given = {word.partition("=")[0] for word in line}
    return [*line, *(word for bound, its in command.bound().items() if bound not in given for word in (bound, *its))]


Mutation = Callable[[random.Random, list[str], Mapping[str, Any], Mapping[str, Any]], list[str]]


def _with_value(draw: random.Random, line: list[str], own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """A flag of its own with some value."""
    if not own:
        return [*line, draw.choice(TEXTS)]
    flag = draw.choice(sorted(own))
    value = values(draw, own[flag], flag)
    return [*line, *draw.choice(([f"{flag}={value}"], [flag, value], [flag, value], [flag, value, value]))]


def _spoilt(draw: random.Random, line: list[str], own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """A word of the line is another one."""
    line = line or ["train"]
    at = draw.randrange(len(line))
    previous = line[at - 1] if at else ""
    return [*line[:at], values(draw, own.get(previous, str), previous), *line[at + 1 :]]


def _misspelt(draw: random.Random, line: list[str], own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """A flag with a letter too few, or with other dashes or letters."""
    flag = draw.choice(sorted(own) or ["--help"])
    at = draw.randrange(2, len(flag))
    forms = (
        flag[:at] + flag[at + 1 :], flag[1:], "-" + flag, flag.replace("-", "_"), flag.upper(), flag + "=",
        f"--no-{flag[2:]}", flag + ".x", "\u2013" + flag[2:], flag[:at] + "\u0301" + flag[at:], flag,
    )  # fmt: skip
    return [*line, draw.choice(forms), *draw.choice(([], ["1"], [draw.choice(TEXTS)]))]


def _foreign(draw: random.Random, line: list[str], own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Another command's flag."""
    flag = draw.choice(sorted(others))
    return [*line, flag, values(draw, others[flag], flag)]


def _torn(draw: random.Random, line: list[str], own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """A word is missing, repeated or added, or all are in another order."""
    line = line or ["train"]
    at = draw.randrange(len(line))
    word = draw.choice(draw.choice((TEXTS, PATHS, NAMES, NUMBERS)))
    shuffled = [*line[:1], *draw.sample(line[1:], len(line) - 1)]
    return draw.choice((
        [*line[:at], *line[at + 1 :]], [*line[:at], line[at], *line[at:]], [*line[: at + 1], word, *line[at + 1 :]],
        shuffled,        [*line, "--", word], [*line, "--help"], [*line, *line[1:]],
    ))  # fmt: skip


MUTATIONS: tuple[Mutation, ...] = (_with_value, _with_value, _with_value, _spoilt, _spoilt, _misspelt, _foreign, _torn)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands in the folder that a line is given in: whole files and broken ones of every kind."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", "sets")
        patch.chdir(folder)
        fill()
    return folder


def fill() -> None:
    """Make them in the working folder."""
    here = Path()
    quietly("train", "sac", "--env", "worlds:Point-v0", "--run-dir", "run", "--net-arch", "4", *shlex.split(TRAINED))
    solved = (
        "mfg solve crowd_modelling --param size=4 horizon=3 --format none --iterations 2 --out solved --no-progress"
    )
    quietly(*solved.split())
    learned = f"mfg learn {LEARNED} --iterations 1 --out learned"
    quietly(*learned.split(), "--no-progress")
    shutil.copytree("run", "cut")
    for file in ("cut/config.json", "cut/evaluations.csv", "cut/progress.csv"):
        content = Path(file).read_bytes()
        Path(file).write_bytes(content[: len(content) // 2])
    policy = Path("run/final.zip").read_bytes()
    (here / "cut.zip").write_bytes(policy[: len(policy) // 2])
    (here / "noise.zip").write_bytes(random.Random(0).randbytes(500))
    (here / "noise.yaml").write_bytes(random.Random(1).randbytes(500))
    (here / "empty.zip").touch()
    (here / "empty").touch()
    (here / "picture.png").write_bytes(b"\x89PNG")
    (here / "good.yaml").write_text("gamma: 0.9\n")
    (here / "other.yaml").write_text("gamma: .nan\nn_envs: many\n? [1]\n: 2\n")
    (here / "list.yaml").write_text("- 1\n- [2, {}]\n")
    (here / "cut.yaml").write_text("gamma: [0.9, {a: ")
    (here / "loop.yaml").write_text("gamma: &a [*a]\n")
    (here / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    (here / "folder").mkdir()
    (here / "suite").mkdir()
    (here / "suite" / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("nothing")
    quietly("collect", "--policy", "random", "--env", "worlds:Point-v0", "--steps", "8", "--dataset", "toys/here-v0")
    shutil.copytree("sets/toys/here-v0", "sets/toys/cut-v0")
    recorded = Path("sets/toys/cut-v0/data/main_data.hdf5").read_bytes()
    Path("sets/toys/cut-v0/data/main_data.hdf5").write_bytes(recorded[: len(recorded) // 2])
    np.savez(here / "crowds.npz", counts=np.ones((3, 2, 2, 2), np.int64))
    crowds = (here / "crowds.npz").read_bytes()
    (here / "cut.npz").write_bytes(crowds[: len(crowds) // 2])
    (here / "bad_syntax.py").write_text("def (:\n")
    (here / "raises.py").write_text("raise LookupError('it is Tuesday')\n")
    (here / "leaves.py").write_text("import sys\nsys.exit(3)\n")


def quietly(*line: str) -> None:
    """Run a command that works."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main(line) == 0


def bystanders(folder: Path) -> Bystanders:
    """:return: everything below a folder."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        kind = str(path.relative_to(folder))
        if "__pycache__" in kind:
            continue
        found[kind] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@dataclass
class Ground:
    """A folder in which lines are tried, each in the same state.

    :param folder: the folder
    :param template: what it holds at first
    """

    folder: Path
    template: Path
    before: Bystanders = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        """Put everything back to what it was."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.template, self.folder, symlinks=True, dirs_exist_ok=True)
        self.before = bystanders(self.folder)

    def fault(self, line: Sequence[str]) -> str | None:
        """Try a line.

        :param line: the line
        :return: what is wrong with how it ends; None if nothing is
        """
        err, started = io.StringIO(), time.monotonic()
        code: Any = None
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            try:
                code = main(list(line))
            except SystemExit as stop:
                code = stop.code
            except Exception as error:
                return f"{type(error).__name__}: {str(error)[:300]}"
        seconds = time.monotonic() - started
        after = bystanders(self.folder)
        harmed = [name for name, content in self.before.items() if after.get(name, 0) != content]
        if after != self.before:
            self._renew()
        if not isinstance(code, int):
            return f"the exit code is {code!r}"
        if wrong := _wrong_message(code, err.getvalue()):
            return f"{wrong}: {err.getvalue()[-600:]}"
        if harmed := [name for name in harmed if not _may_change(name, line)]:
            return f"changed: {', '.join(harmed)}"
        return f"took {seconds:.0f} s" if seconds > SECONDS else None


def _wrong_message(code: int, err: str) -> str | None:
    if "Traceback (most recent" in err:
        return "a traceback"
    last = err.rstrip("\n").rpartition("headway: error: ")
    if code == 1 and not last[1]:
        return None if not err.strip() or "headway: " in err else "fails without a message of its own"
    if "\n" in last[2] and last[1]:
        return "more than a paragraph"
    if "shows the whole way there" in err and not any(
        name in err for name in ("worlds.py", "raises.py", "leaves.py", "toys.py")
    ):
        return "an error of Headway's own"
    return None


def _may_change(name: str, line: Sequence[str]) -> bool:
    """Whether a line says that something may change: a run that it goes on with, a file that it may overwrite."""
    words = set(line) | {word.partition("=")[2] for word in line}
    if any(word.startswith("--overwrite") for word in line) and name in {
        os.path.normpath(word) for word in words if word
    }:
        return True
    folder = name.partition("/")[0]
    resumed = {"run", "cut", "learned"} if any(word.startswith("--resume") for word in line) else set()
    return folder in resumed or (
        folder == "suite" and name != "suite/suite.yaml" and line[:2] == ["benchmark", "learn"]
    )


@pytest.fixture
def ground(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """It, as the working folder, modules in it importable."""
    monkeypatch.delenv("HEADWAY_TRACEBACK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", "sets")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for processes that commands start
    monkeypatch.setattr(benchmark, "WARM_UP", 8)
    folder = tmp_path / "ground"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return Ground(folder, template)


def try_lines(ground: Ground, seeds: Sequence[int]) -> None:
    """Try lines of seeds, and tell of all that end wrongly."""
    faults = {}
    for seed in seeds:
        line = hostile(seed)
        if (fault := ground.fault(line)) is not None:
            faults[seed, shlex.join(line)[-300:]] = fault
        torch.set_num_threads(1)
    assert not faults, "\n\n".join(f"{key}\n    {fault}" for key, fault in faults.items())


def test_lines_that_nobody_means(ground: Ground) -> None:
    quick = [seed for seed in range(10_000, 10_066) if hostile(seed)[0] != "check"]  # which starts processes
    try_lines(ground, quick)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_many_lines_that_nobody_means(ground: Ground, first: int) -> None:
    try_lines(ground, range(first, first + 100))
