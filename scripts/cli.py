"""The console command ``headway``."""

import ctypes.util
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence

USAGE = """\
headway: reinforcement-learning agents on the Stable-Baselines3 and Gymnasium interfaces

  headway train AGENT --env ID [--flags]     train; --help lists every flag with default, range and unit
  headway train --resume RUN                 go on with an interrupted run
  headway check ENV… [--flags]               what to know of an environment before training in it; tables of several
  headway evaluate POLICY|RUN [--flags]      returns of a saved policy, with intervals; video, CSV
  headway benchmark speed [--flags]          updates/s and steps/s, side by side with Stable-Baselines3
  headway benchmark rollout [--flags]        steps/s of MuJoCo robots, side by side with every other way to step them
  headway benchmark mfg [--flags]            seconds per iteration of mean-field games, side by side with OpenSpiel
  headway benchmark learn SUITE [--flags]    arms x environments x seeds, compared with intervals
  headway plot RUN… [--flags]                learning curves of runs, grouped by environment and agent
  headway delays LAW… [--plot FILE]          what laws of delays draw, and the ages that follow
  headway mfg COMMAND [--flags]              mean-field games: solve, show, games, compare, learn, fit, recover
  headway agents                             what can be trained
  headway envs [TEXT]                        registered environments, those containing TEXT
  headway --version                          versions of Headway and of what it stands on

Also as python -m headway.scripts, where no script is on the path.
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
    # A mistake of the user's ends in one line that says what to do; HEADWAY_TRACEBACK=1 shows where it was noticed.
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
        print(f"headway: error: {text or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("headway: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _dispatch(command: str, rest: list[str]) -> int:
    if any(argument.startswith("--video") for argument in rest):
        draw_without_screen()
    if command in ("train", "evaluate", "benchmark", "check"):
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


MODULES = {"check": "check", "benchmark": "benchmark", "plot": "plot", "delays": "delays", "mfg": "mean_field"}
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
