"""What tests of several folders share besides the worlds in :mod:`toys`."""

from stable_baselines3.common.callbacks import BaseCallback


class Stop(BaseCallback):
    """Stop at a step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.num_timesteps < self.at
