"""``headway/Frostbite-v0``: the game itself, without missions."""

from typing import Any

from ..atari import AtariEnv, Game
from .monitor import FrostbiteMonitor
from .ram import NAMES, observe

FROSTBITE = Game("frostbite", len(NAMES), observe, FrostbiteMonitor)


class FrostbiteEnv(AtariEnv):
    """Frostbite, which really ends when it ends.

    Parameters as :class:`~headway.envs.atari.AtariEnv`, whose ``obs="ram"`` shows the numbers that
    :data:`~headway.envs.frostbite.ram.NAMES` names.
    """

    monitor: FrostbiteMonitor

    def __init__(self, **options: Any) -> None:
        super().__init__(FROSTBITE, **options)
