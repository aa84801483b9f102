"""Any environment as a :class:`~headway.envs.BatchedEnv`: an id, a single environment, both kinds of vector one."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize
from torch import Tensor

from ..envs import BatchedEnv, NumpyVectorEnv, make
from ..envs.batched import Info, Obs
from .sb3 import DUMMY, BatchedVecEnv
from .snapshot import capture, restore

AnyEnv = str | gym.Env[Any, Any] | VecEnv | VectorEnv[Any, Any, Any]


def as_batched(env: AnyEnv) -> BatchedEnv:
    """Turn an environment of any kind into a batch of tensors on the CPU; a batch, whatever its face, stays as it is.

    :param env: an id (``Id-v0`` or ``module:Id-v0``), a ``gym.Env``, an SB3 ``VecEnv`` or a Gymnasium ``VectorEnv``
    :return: the batch, with one row for an id or a single environment
    :raises ValueError: an unknown id, or a vector environment that does not say how it resets
    :raises TypeError: not an environment
    """
    if isinstance(env, BatchedEnv):
        return env
    if isinstance(env, (BatchedVecEnv, NumpyVectorEnv)):
        return env.batched
    if isinstance(env, str):
        env = make(env)
    if isinstance(env, gym.Env):
        single = env if _is_monitored(env) else Monitor(env)
        env = DummyVecEnv([lambda: single])
    if isinstance(env, VecEnv):
        return VecEnvBatch(env)
    if isinstance(env, VectorEnv):
        return VectorEnvBatch(env)
    raise TypeError(f"{env!r} is no environment: give an id, a gymnasium.Env, an SB3 VecEnv or a Gymnasium VectorEnv")


def _is_monitored(env: gym.Env[Any, Any]) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Monitor):
            return True
        env = env.env
    return False


def _tensors(obs: Any) -> Obs:
    """Arrays to tensors that own their memory: environments may write into the arrays they return."""
    if isinstance(obs, dict):
        return {key: torch.from_numpy(np.array(part)) for key, part in obs.items()}
    return torch.from_numpy(np.array(obs))


def _overlay(obs: Any, rows: np.ndarray[Any, Any], final: Any) -> Any:
    """A copy of a batch of observations in which some rows are replaced by those of ``final``, given by row."""
    if isinstance(obs, dict):
        return {key: _overlay(part, rows, [None if f is None else f[key] for f in final]) for key, part in obs.items()}
    replaced = np.array(obs)
    for row in np.flatnonzero(rows):
        replaced[row] = final[row]
    return replaced


class _Adapter(BatchedEnv):
    """What both adapters share: spaces, device, seeds and state."""

    def __init__(self, env: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self.render_mode = env.render_mode
        self.device = torch.device("cpu")

    def _own_state(self) -> dict[str, Any]:
        """Copy what the adapter itself carries from step to step."""
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`_own_state` copied."""

    def state(self) -> Any:
        """See :meth:`BatchedEnv.state`; exact for everything :func:`~headway.wrappers.capture` can copy."""
        return {"env": capture(self.env), "adapter": self._own_state()}

    def load_state(self, state: Any) -> None:
        """See :meth:`BatchedEnv.load_state`."""
        restore(self.env, state["env"])
        self._load_own_state(state["adapter"])

    def render(self) -> Any:
        """:return: what the wrapped environment draws."""
        return self.env.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the wrapped environment."""
        self.env.close()


class VecEnvBatch(_Adapter):
    """A Stable-Baselines3 ``VecEnv`` as a batch.

    ``info["sb3"]`` carries its list of info dicts, for callbacks. Rows that these mark as delayed resets, as those of a
    :class:`BatchedVecEnv` may be, are marked in ``info["dummy"]``. Under a ``VecNormalize``, ``obs`` is normalised, to
    act on, and ``info["raw"]`` holds ``(obs, rewards)`` as the environment gave them, to store; ``final_obs`` is raw
    too (of a finished row it is un-normalised again, as Stable-Baselines3 does, so exact unless ``clip_obs`` cut it).

    :param env: the vector environment
    """

    def __init__(self, env: VecEnv) -> None:
        super().__init__(env, env.observation_space, env.action_space)
        self.normalizer = unwrap_vec_normalize(env)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """See :meth:`BatchedEnv.reset`."""
        if isinstance(seed, list):
            self.env.unwrapped._seeds = list(seed)
        elif seed is not None:
            self.env.seed(seed)
        if options is not None:
            self.env.set_options(options)
        self._returns[:], self._lengths[:] = 0, 0
        array_obs = self.env.reset()
        return _tensors(array_obs), {"raw": (_tensors(self._raw(array_obs)), None)} if self.normalizer else {}

    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`."""
        array_obs, array_rewards, dones, infos = self.env.step(actions.cpu().numpy())
        dones = np.array(dones, bool)
        truncated = dones & [bool(i.get("TimeLimit.truncated")) for i in infos]
        dummy = np.array([DUMMY in i for i in infos])
        obs, rewards = _tensors(array_obs), torch.from_numpy(np.array(array_rewards, np.float32))
        info: Info = {"sb3": infos}
        if dummy.any():
            info["dummy"] = torch.from_numpy(dummy)
        raw, raw_rewards = self._raw(array_obs), array_rewards
        if self.normalizer:
            raw_rewards = self.normalizer.get_original_reward()
            info["raw"] = (_tensors(raw), torch.from_numpy(np.array(raw_rewards, np.float32)))
        if dones.any():
            info["final_obs"] = _tensors(_overlay(raw, dones, self._terminal_rows(infos, dones)))
        else:
            info["final_obs"] = info["raw"][0] if self.normalizer else obs
        info["episode"] = self._episode(raw_rewards, dones, infos)
        return obs, rewards, torch.from_numpy(dones & ~truncated), torch.from_numpy(truncated), info

    def render(self) -> Any:
        """:return: one frame per row, where the environments draw arrays."""
        return tuple(self.env.get_images()) if self.render_mode == "rgb_array" else self.env.render()

    def _raw(self, obs: Any) -> Any:
        """What the normaliser was given; that is ``obs`` itself, wrappers above included, if it leaves them alone."""
        return self.normalizer.get_original_obs() if self.normalizer and self.normalizer.norm_obs else obs

    def _terminal_rows(self, infos: list[dict[str, Any]], dones: np.ndarray[Any, Any]) -> list[Any]:
        """The final observations, row by row, None where no episode ended."""
        final = [i.get("terminal_observation") if done else None for done, i in zip(dones, infos, strict=True)]
        _check_final(final, dones, "terminal_observation")
        if self.normalizer:
            return [None if f is None else self.normalizer.unnormalize_obs(f) for f in final]
        return final

    def _episode(self, rewards: Any, dones: Any, infos: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns and lengths; a Monitor's own account of a finished row has precedence, as in SB3."""
        self._returns += rewards
        self._lengths += 1
        returns, lengths = self._returns.copy(), self._lengths.copy()
        for row in np.flatnonzero(dones):
            if "episode" in infos[row]:
                returns[row], lengths[row] = infos[row]["episode"]["r"], infos[row]["episode"]["l"]
        self._returns[dones], self._lengths[dones] = 0, 0
        return {"r": torch.from_numpy(returns), "l": torch.from_numpy(lengths)}

    def _own_state(self) -> dict[str, Any]:
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()


class VectorEnvBatch(_Adapter):
    """A Gymnasium ``VectorEnv`` as a batch, whichever way it resets.

    - SAME_STEP: the mode of a batch itself.
    - DISABLED: finished rows are reset here, by ``reset(options={"reset_mask": …})``.
    - NEXT_STEP: the reset takes a step of its own. In it ``info["dummy"]`` marks the row, whose action went unused;
      nothing of it is a transition, and nothing of it is ever stored.

    :param env: the vector environment
    :raises ValueError: its metadata do not name its autoreset mode
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{type(env).__name__} does not say how it resets finished rows (its autoreset_mode is {mode!r}): "
                "set it in its metadata to one of gymnasium.vector.AutoresetMode"
            )
        super().__init__(env, env.single_observation_space, env.single_action_space)
        self.mode = mode
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """See :meth:`BatchedEnv.reset`."""
        self._ended[:], self._returns[:], self._lengths[:] = False, 0, 0
        if isinstance(seed, list) and seed[0] is not None and seed == [seed[0] + i for i in range(self.num_envs)]:
            seed = seed[0]  # the same, in the only form that every vector environment knows
        obs, _ = self.env.reset(seed=seed, options=options)
        return _tensors(obs), {}

    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`."""
        dummy = self._ended & (self.mode is AutoresetMode.NEXT_STEP)
        array_obs, array_rewards, terminated, truncated, array_info = self.env.step(actions.cpu().numpy())
        rewards = np.array(array_rewards, np.float64)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        self._ended = terminated | truncated
        final = array_obs
        if self._ended.any() and self.mode is AutoresetMode.SAME_STEP:
            final = _overlay(array_obs, self._ended, _final_rows(array_info, self._ended))
        final_obs = _tensors(final)
        if self._ended.any() and self.mode is AutoresetMode.DISABLED:
            array_obs, _ = self.env.reset(options={"reset_mask": self._ended.copy()})
        self._returns += np.where(dummy, 0, rewards)
        self._lengths += ~dummy
        info: Info = {
            "final_obs": final_obs,
            "episode": {"r": torch.from_numpy(self._returns.copy()), "l": torch.from_numpy(self._lengths.copy())},
            "dummy": torch.from_numpy(dummy),
        }
        self._returns[self._ended], self._lengths[self._ended] = 0, 0
        flags = torch.from_numpy(terminated), torch.from_numpy(truncated & ~terminated)
        return _tensors(array_obs), torch.from_numpy(rewards.astype(np.float32)), *flags, info

    def _own_state(self) -> dict[str, Any]:
        return {"ended": self._ended.copy(), "returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._ended, self._returns, self._lengths = (state[key].copy() for key in ("ended", "returns", "lengths"))


def _final_rows(info: dict[str, Any], ended: np.ndarray[Any, Any]) -> Any:
    """The final observations of a SAME_STEP environment, row by row."""
    final = info.get("final_obs")
    if isinstance(final, dict):
        return [{key: part[row] for key, part in final.items()} for row in range(len(ended))]
    _check_final([None] * len(ended) if final is None else final, ended, "final_obs")
    return final


def _check_final(final: Any, ended: np.ndarray[Any, Any], name: str) -> None:
    missing = [row for row in np.flatnonzero(ended).tolist() if final[row] is None]
    if missing:
        raise ValueError(
            f"rows {missing} ended, but the vector environment's info has no {name!r} for them: "
            "an environment that resets within the step must give the observations that its resets replaced"
        )
