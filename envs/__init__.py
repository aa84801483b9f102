"""What is simulated."""

from .batched import BatchedEnv
from .registration import make, supports_rgb

__all__ = ["BatchedEnv", "make", "supports_rgb"]
