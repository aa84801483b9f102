"""The console command ``headway``."""

import ctypes.util
import dis
import importlib
import logging
import os
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal

USAGE = """\
headway: reinforcement-learning agents on the Stable-Baselines3 and Gymnasium interfaces

  headway train AGENT --env ID [--flags]     train; --help lists every flag with default, range and unit
  headway train --resume RUN                 go on with an interrupted run
  headway check ENV… [--flags]               what to know of an environment before training in it; tables of several
  headway evaluate POLICY|RUN [--flags]      returns of a saved policy, with intervals; video, CSV; what it gains by
                                           looking ahead (--search)
  headway relabel DATASET --demos DEMOS --to ID   rewards for data, from as little as one demonstration
  headway benchmark speed [--flags]          updates/s and steps/s, side by side with Stable-Baselines3
  headway benchmark rollout [--flags]        steps/s of MuJoCo robots, side by side with every other way to step them
  headway benchmark mfg [--flags]            seconds per iteration of mean-field games, side by side with OpenSpiel
  headway benchmark relabel [--flags]        relabelling per pair of episodes, side by side with other solvers
  headway benchmark offline [--flags]        updates/s of IQL and HDCR on data, side by side with eager code
  headway benchmark population [--flags]     evaluation and choice of policies, side by side with loops; parts of PGPS
  headway benchmark mbpo [--flags]           steps/s of MBPO's model and agents, side by side with plain code
  headway benchmark search [--flags]         simulations/s of tree searches, side by side with the simulator alone
  headway benchmark frostbite [--flags]      frames/s with rules and missions, TDT's updates/s, beside plain code
  headway benchmark learn SUITE [--flags]    arms x environments x seeds, compared with intervals
  headway plot RUN… [--flags]                learning curves of runs, grouped by environment and agent; or what a
                                           population (--population), a model (--model) or searches (--search) did
  headway delays LAW… [--plot FILE]          what laws of delays draw, and the ages that follow
  headway mfg COMMAND [--flags]              mean-field games: solve, show, games, compare, learn, fit, recover
  headway collect --policy P --dataset ID    record a data set of a policy, or of several
  headway datasets COMMAND [--flags]         data sets that are here: list, show, check, plot, take
  headway frostbite COMMAND [--flags]        Frostbite told in words: collect data, calibrate scores, play
  headway agents                             what can be trained
  headway envs [TEXT]                        registered environments, those containing TEXT
  headway --version                          versions of Headway and of what it stands on

Also as python -m headway.scripts, where no script is on the path.

A mistake in a command ends in one line. HEADWAY_TRACEBACK=1 in front of it shows the way to where it was noticed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: the command line without the program's name; that of the process by default
    :return: exit code
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        return _version()
    try:
        code = _dispatch(arguments[0], arguments[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output, `head` for one, has seen enough. What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
        full = "allocate memory" in str(error) or "out of memory" in str(error)  # torch's own kind of MemoryError
        if os.environ.get("HEADWAY_TRACEBACK") or (isinstance(error, RuntimeError) and not full):
            raise
        text = re.sub(r"^\[Errno \d+\] ", "", " ".join(str(error).split()))
        where = origin_of(error)
        text = f"{text or type(error).__name__}{'' if where is None else f' ({where})'}"
        print(f"headway: error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("headway: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


LIBRARIES = {
    *("gymnasium", "h5py", "imageio", "imageio_ffmpeg", "matplotlib", "minari", "mujoco", "numpy", "optuna"),
    *(
        "PIL",
        "pyarrow",
        "ray",
        "safetensors",
        "scipy",
        "stable_baselines3",
        "statsmodels",
        "tensorboard",
        "torch",
        "tqdm",
        "tyro",
        "yaml",
    ),
}
"""Packages that Headway stands on, whose lines say little of where a mistake lies."""


def origin_of(error: BaseException) -> str | None:
    """Say where an error comes from that is not a mistake in the command.

    A mistake in the command is what Headway itself refuses, by a ``raise`` of its own, or what the operating system
    does when Headway asks it for something; with nobody else's code on the way there, nor to what it was raised from.

    :param error: it
    :return: file, line and how to see the rest; None: of a mistake in the command
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for one in reversed(chain):
        for step in reversed(list(traceback.walk_tb(one.__traceback__))):
            if _author(step[0]) == "another":
                return _place(one, *step)
    steps = list(traceback.walk_tb(error.__traceback__))
    own = [step for step in steps if _author(step[0]) == "headway"]
    if not own or isinstance(error, (OSError, MemoryError)):
        return None
    frame, instruction = steps[-1][0], _last(error.__traceback__).tb_lasti
    if frame is own[-1][0] and frame.f_code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]:
        return None
    return _place(error, *own[-1])


def _author(frame: FrameType) -> Literal["headway", "library", "another"]:
    """:return: who wrote the code of a frame."""
    file, package = Path(frame.f_code.co_filename), Path(__file__).resolve().parents[1]
    if any(file.resolve().is_relative_to(package / part) for part in ("agents", "envs", "scripts", "wrappers")):
        return "headway"
    standard = file.is_relative_to(sysconfig.get_path("stdlib")) and "site-packages" not in file.parts
    return "library" if standard or str(file).startswith("<") or LIBRARIES & set(file.parts) else "another"


def _last(step: TracebackType | None) -> TracebackType:
    assert step is not None
    return step if step.tb_next is None else _last(step.tb_next)


def _place(error: BaseException, frame: FrameType, line: int) -> str:
    place = f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"
    return f"{type(error).__name__} at {place}; HEADWAY_TRACEBACK=1 shows the whole way there"


def _dispatch(command: str, rest: list[str]) -> int:
    if any(argument.startswith("--video") for argument in rest):
        draw_without_screen()
    if command in ("train", "evaluate", "benchmark", "check", "collect"):
        _say_mujoco_warnings_once()
    if command == "train":
        return _train(rest)
    if command == "evaluate":
        return _evaluate(rest)
    if command in MODULES:
        code: int = importlib.import_module(f".{MODULES[command]}", __package__).main(rest)
        return code
    if command == "agents":
        return _agents()
    if command == "envs":
        return _envs(rest)
    from ..envs.naming import nearest

    raise ValueError(f"there is no command {command!r}: {nearest(command, COMMANDS)}")


def _say_mujoco_warnings_once() -> None:
    """Send MuJoCo's warnings to the log, each once; by itself it repeats them, and writes MUJOCO_LOG.TXT here."""
    import mujoco

    said: set[str] = set()

    def say(message: str) -> None:
        if message not in said:
            said.add(message)
            # What a model file should no longer say concerns its author, not who trains in it.
            level = logging.INFO if "deprecated" in message else logging.WARNING
            logging.getLogger("headway").log(level, "MuJoCo: %s", message)

    mujoco.set_mju_user_warning(say)


def draw_without_screen() -> None:
    """Have MuJoCo draw through EGL where there is no screen: left alone, it decides on a window when it is imported.

    ``headway.envs`` does so when something is drawn, which is too late for environments with renderers of MuJoCo's.
    """
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not screen and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


MODULES = {
    "check": "check",
    "benchmark": "benchmark",
    "plot": "plot",
    "delays": "delays",
    "mfg": "mean_field",
    "collect": "collect",
    "datasets": "datasets",
    "frostbite": "frostbite",
    "relabel": "relabel",
}
"""Commands whose modules, each with a ``main``, are imported when they are called."""

COMMANDS = ("train", "evaluate", *MODULES, "agents", "envs")


def _train(rest: list[str]) -> int:
    from .options import parse_train

    if rest[:1] in (["-h"], ["--help"]):
        print(
            "usage: headway train AGENT --env ID [--flags]\n\n`headway train AGENT --help` lists the flags. Agents:\n"
        )
        return _agents()
    name, arguments = ("", rest) if not rest or rest[0].startswith("-") else (rest[0], rest[1:])
    run = parse_train(name, arguments)
    if run is None:
        return 0
    if run.options.seeds is not None:
        from .train_seeds import train_seeds

        return train_seeds(run)
    from .train import train

    return train(run)


def _evaluate(rest: list[str]) -> int:
    from .evaluate import EvaluateOptions, evaluate
    from .options import run_flags

    return run_flags(EvaluateOptions, rest, "headway evaluate", evaluate)


def _version() -> int:
    from ..agents.core.files.contents import versions

    found = versions()
    print(f"headway {found.pop('headway-rl')} ({', '.join(f'{name} {version}' for name, version in found.items())})")
    return 0


def _agents() -> int:
    from ..agents.core.registry import known_agents

    agents = known_agents()
    width = max(8, *map(len, agents))
    for name, agent in sorted(agents.items()):
        print(f"  {name:<{width}} {(agent.__doc__ or '').partition(chr(10))[0]}")
    print("\nAlso module:Class for an agent of your own, and rivals: sb3:SAC, sb3:PPO, …, sb3_contrib:TQC, …")
    return 0


def _envs(rest: list[str]) -> int:
    import gymnasium

    from .. import envs  # noqa: F401  (registers Headway's own)

    text = rest[0].lower() if rest else ""
    ids = sorted(env_id for env_id in gymnasium.registry if text in env_id.lower())
    print("\n".join(ids) or f"no environment id contains {text!r}")
    if any(env_id.startswith("headway/") for env_id in ids):
        print("in Python, headway/… are known once headway.envs or headway.agents is imported", file=sys.stderr)
    return 0 if ids else 1


if __name__ == "__main__":
    sys.exit(main())
