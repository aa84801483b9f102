"""``headway/Frostbite-v0``: the game itself, without missions."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..atari import AtariEnv, Game
from .monitor import FrostbiteMonitor
from .ram import NAMES, observe
from .starts import start_of_level

FROSTBITE = Game("frostbite", len(NAMES), observe, FrostbiteMonitor)


class FrostbiteEnv(AtariEnv):
    """Frostbite, which really ends when it ends.

    Parameters as :class:`~headway.envs.atari.AtariEnv`, whose ``obs="ram"`` shows the numbers that
    :data:`~headway.envs.frostbite.ram.NAMES` names.

    ``reset(options=…)`` also takes ``start_level``: the episode begins where a player who looks ahead has reached that
    level, with the points and lives that this left.
    """

    monitor: FrostbiteMonitor

    def __init__(self, **options: Any) -> None:
        super().__init__(FROSTBITE, **options)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode; see the class for the options."""
        options = dict(options or {})
        level = options.pop("start_level", None)
        if level is not None:
            if "start_state" in options:
                raise ValueError("start_level and start_state both say where to begin: leave one out")
            options["start_state"] = start_of_level(self.game, level)
        return super().reset(seed=seed, options=options)
