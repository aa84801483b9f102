"""``headway frostbite``: Frostbite with instructions: data, what scores are worth, and playing it."""

from collections.abc import Sequence
from typing import Any

from ..options import run_command
from . import calibrate, collect, play

USAGE = """\
usage: headway frostbite COMMAND [--flags]

  collect        play Frostbite and find out which tasks were shown: a data set with instructions
  calibrate      what scores of the tasks are worth: a random player's, and one's that looks ahead
  play TEXT      see what a policy makes of a sentence, or play yourself
"""
COMMANDS: dict[str, tuple[type[Any], Any]] = {
    "collect": (collect.Options, collect.run),
    "calibrate": (calibrate.Options, calibrate.run),
    "play": (play.Options, play.run),
}


def main(arguments: Sequence[str]) -> int:
    """Run ``headway frostbite``.

    :param arguments: the command line after "frostbite"
    :return: exit code
    :raises ValueError: an unknown command
    """
    return run_command("frostbite", COMMANDS, arguments, USAGE)
