"""``headway mfg``: solve mean field games, look at what was found, learn them, fit rewards to data."""

import importlib
from collections.abc import Sequence

from ...envs.mean_field import SOLVERS
from ...envs.naming import nearest
from ..options import run_flags
from .games import algorithm_parameters, list_games

USAGE = """\
usage: headway mfg COMMAND [--flags]

  solve GAME       look for a Nash equilibrium; write it, exploitability on the way, and a film of the crowd
  show [FOLDER]    draw what was solved again; with a game's name, describe it
  games [TEXT]     games with their sizes and parameters, those whose names contain TEXT
  compare GAME…    exploitability of several algorithms against iterations and seconds
  learn GAME…      deep solvers, their exploitability computed exactly after every iteration
  fit DATA         recover a crowd's reward from how it moved, and compare its forecasts with baselines
  recover          how well a planted reward comes back, against the number of people seen

algorithms of solve and compare, with their parameters:
"""

COMMANDS = ("solve", "show", "compare", "learn", "fit", "recover")
"""Each a module with its flags in ``Options`` and its work in ``run``, imported when it is called."""


def main(arguments: Sequence[str]) -> int:
    """Run ``headway mfg``.

    :param arguments: the command line after "mfg"
    :return: exit code
    :raises ValueError: an unknown command
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + _algorithms())
        return 0
    command, *rest = arguments
    if command == "games":
        if any(word in ("-h", "--help") for word in rest):
            print("usage: headway mfg games [TEXT]\n\nGames, sizes and parameters; of names that contain TEXT.")
        else:
            list_games(" ".join(rest))
        return 0
    if command not in COMMANDS:
        raise ValueError(f"there is no command 'mfg {command}': {nearest(command, [*COMMANDS, 'games'])}")
    module = importlib.import_module(f".{command}", __package__)
    if command == "learn":  # an earlier run's flags stand in for those not given
        return int(module.main(rest))
    return run_flags(module.Options, rest, f"headway mfg {command}", module.run)


def _algorithms() -> str:
    lines = []
    for name in sorted(SOLVERS):
        parameters = ", ".join(f"{key}={default}" for key, default in algorithm_parameters(name).items())
        lines.append(f"  {name:<28} {parameters}")
    return "\n".join(lines)
