"""Any environment as a :class:`~headway.envs.BatchedEnv`: an id, a single environment, both kinds of vector one."""

import logging
from abc import abstractmethod
from copy import deepcopy
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from torch import Tensor

from ..envs import BatchedEnv, NumpyVectorEnv, make
from ..envs.batched import Info, Obs, Resettable, RowSnapshots, require, row_seeds
from .sb3 import DUMMY, BatchedVecEnv
from .snapshot import capture, restore

log = logging.getLogger("headway")

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
    if isinstance(env, VectorEnv):  # before gym.Env: EnvPool's are both
        return VectorEnvBatch(env)
    if isinstance(env, gym.Env):
        single = env if _is_monitored(env) else Monitor(env)
        env = DummyVecEnv([lambda: single])
    if isinstance(env, VecEnv):
        return VecEnvBatch(env)
    raise TypeError(f"{env!r} is no environment: give an id, a gymnasium.Env, an SB3 VecEnv or a Gymnasium VectorEnv")


def footprint(env: VecEnv | None) -> tuple[Any, ...]:
    """Objects that are others as soon as somebody steps or resets an environment; compare them by ``is``.

    :param env: of any kind
    :return: what it keeps of the last step and the last reset
    """
    if env is None:
        return ()
    inner: Any = env.unwrapped
    if isinstance(inner, BatchedVecEnv):
        vector = inner.batched.env if isinstance(inner.batched, VectorEnvBatch) else None
        return (inner.used, getattr(vector, "_autoreset_envs", None))
    infos = getattr(inner, "reset_infos", None)
    return (getattr(inner, "actions", None), infos, infos[0] if infos else None)


def counts_of(env: BatchedEnv) -> list[Any]:
    """How far the environments that can be reached have gone, by the counters of wrappers and their random numbers:
    for steps that went past the vector environment, which :func:`footprint` does not see.

    :param env: the batch
    :return: plain data, to be compared by ``==``
    """
    counts: list[Any] = []
    for single in getattr(env, "_singles", []):
        layer = single
        while isinstance(layer, gym.Wrapper):
            counts += [vars(layer).get(name) for name in ("_elapsed_steps", "total_steps")]
            layer = layer.env
        drawn = vars(layer).get("_np_random")
        counts.append(None if drawn is None else str(drawn.bit_generator.state))
    return counts


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


class _Held:
    """An environment while it is stepped: where an episode ends, what it led to is copied before the reset comes, since
    the environment may write into the same array."""

    __slots__ = ("env",)

    def __init__(self, env: Any) -> None:
        self.env = env

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except TypeError as cause:  # out of a Monitor's float(reward)
            if any(part in str(cause) for part in ("converted to Python scalars", "not 'list'", "not 'tuple'")):
                raise _vector_reward(self.env, "an array") from cause
            raise
        if isinstance(reward, (np.ndarray, list, tuple)):
            if np.size(reward) != 1:
                raise _vector_reward(self.env, f"of shape {np.shape(reward)}")
            reward = np.asarray(reward).item()
        return deepcopy(obs) if terminated or truncated else obs, reward, terminated, truncated, info

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


class _Pipe:
    """A worker's pipe during a step: the worker steps and resets in two commands, so that what the episode led to is on
    this side before the reset can write into its array.

    :param pipes: those of all workers; the first that is read reads all, so that they reset side by side
    :param remote: the worker's
    """

    __slots__ = ("pipes", "received", "remote")

    def __init__(self, pipes: "list[_Pipe]", remote: Any) -> None:
        self.pipes, self.remote = pipes, remote
        self.received: Any = None

    def send(self, message: tuple[str, Any]) -> None:
        command, data = message
        self.remote.send(("env_method", ("step", (data,), {})) if command == "step" else message)

    def recv(self) -> Any:
        if self.received is None:
            for pipe in self.pipes:
                pipe.received = pipe.remote.recv()
                if pipe.received[2] or pipe.received[3]:
                    pipe.remote.send(("env_method", ("reset", (), {})))
        obs, reward, terminated, truncated, info = self.received
        done, reset_info = terminated or truncated, {}
        info["TimeLimit.truncated"] = truncated and not terminated
        if done:
            info["terminal_observation"] = obs
            obs, reset_info = self.remote.recv()
        return obs, reward, done, info, reset_info


def _vector_reward(env: Any, what: str) -> ValueError:
    return ValueError(
        f"{env} returned a reward that is {what}; agents maximise one number: weigh its parts in a gymnasium.Wrapper "
        "(of mo-gymnasium, LinearReward)"
    )


def _scalar_rewards(env: Any, rewards: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """A number for each row, (N,); refused where there are several."""
    array = np.array(rewards, dtype)
    if array.size != env.num_envs:
        raise _vector_reward(env, f"of shape {array.shape[1:]} in each row")
    return array.reshape(env.num_envs)


class _Adapter(BatchedEnv):
    """What both adapters share: spaces, device, seeds and state.

    Of a vector environment that steps its environments here, one after the other, and that no wrapper surrounds, each
    row can be copied and reset by itself, as far as :func:`~headway.wrappers.capture` can copy the environment. Rows
    must not share objects that change.
    """

    def __init__(self, env: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self.render_mode = env.render_mode
        self.device = torch.device("cpu")
        # what the adapter itself carries from step to step, (N,) each
        self._account: dict[str, np.ndarray[Any, Any]] = {
            "returns": np.zeros(self.num_envs),
            "lengths": np.zeros(self.num_envs, dtype=np.int64),
        }

        self._alike: int | None = 0
        """Ends of episodes whose final observation was the next one's first; None: nothing is to be feared."""

    def _step_inside(self, actions: Tensor) -> Any:
        """Step the wrapped environment, so that final observations outlive the resets where these can be reached."""
        inner = self.env.unwrapped
        if isinstance(inner, (DummyVecEnv, SyncVectorEnv)):
            name, held = "envs", [_Held(env) for env in inner.envs]
        elif isinstance(inner, SubprocVecEnv):
            pipes: list[_Pipe] = []
            pipes += [_Pipe(pipes, remote) for remote in inner.remotes]
            name, held = "remotes", pipes  # type: ignore[assignment]
        else:
            return self.env.step(actions.cpu().numpy())
        own = getattr(inner, name)
        setattr(inner, name, held)
        try:
            result = self.env.step(actions.cpu().numpy())
        finally:
            setattr(inner, name, own)
        self._alike = None
        return result

    def _watch(self, ended: np.ndarray[Any, Any], final: Obs, obs: Obs) -> None:
        """Warn of environments out of reach that seem to write the next episode into the last one's array."""
        if self._alike is None:
            return
        rows = torch.from_numpy(np.flatnonzero(ended))
        pairs = zip(*(part.values() if isinstance(part, dict) else [part] for part in (final, obs)), strict=True)
        if not all(torch.equal(one[rows], other[rows]) for one, other in pairs):
            self._alike = None
            return
        self._alike += len(rows)
        if self._alike >= 3:
            self._alike = None
            log.warning(
                "%s: so far the final observation of every episode was the first one of the next. If its environments "
                "reuse their arrays, what episodes led to is lost: put headway.wrappers.Snapshot around each of them",
                type(self.env.unwrapped).__name__,
            )

    def _forget(self, rows: Any = slice(None)) -> None:
        for part in self._account.values():
            part[rows] = 0

    def state(self, rows: Tensor | None = None) -> Any:
        """See :class:`~headway.envs.batched.RowSnapshots`; exact for what :func:`~headway.wrappers.capture` can copy.

        The state of the whole, without ``rows``, holds what rows have in common too, and is loaded as a whole.
        """
        if rows is None:
            account = {name: part.copy() for name, part in self._account.items()}
            return {"env": capture(self.env), "adapter": account}
        require(self, RowSnapshots)
        numbers = rows.tolist()
        parts = [{"env": capture(self._singles[row]), "shown": deepcopy(self._shown(row))} for row in numbers]
        return {"rows": parts, "adapter": {name: part[numbers] for name, part in self._account.items()}}

    def load_state(self, state: Any, rows: Tensor | None = None) -> None:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        if rows is None and "rows" not in state:
            restore(self.env, state["env"])
            self._account = {name: state["adapter"][name].copy() for name in self._account}
            return
        require(self, RowSnapshots)
        numbers = list(range(self.num_envs)) if rows is None else rows.tolist()
        if "rows" not in state:
            raise ValueError(
                "the state is of a whole batch, and so it is loaded: take state(rows) to load it into rows"
            )
        if len(state["rows"]) != len(numbers):
            raise ValueError(f"the state is of {len(state['rows'])} rows, for {len(numbers)} to load it into")
        for row, part in zip(numbers, state["rows"], strict=True):
            restore(self._singles[row], part["env"])
            self._show(row, deepcopy(part["shown"]))
        for name, part in self._account.items():
            part[numbers] = state["adapter"][name]

    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        self.load_state(self.state(src), dst)

    def like(self, num_envs: int) -> BatchedEnv:
        """See :class:`~headway.envs.batched.RowSnapshots`; its environments are copies of the first one here, reset."""
        require(self, RowSnapshots)
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: a batch needs at least one row")
        try:
            envs = [deepcopy(self._singles[0]) for _ in range(num_envs)]
        except Exception as cause:  # the environment's own code: anything can happen in it
            raise ValueError(
                f"{self._singles[0]} cannot be copied ({type(cause).__name__}: {cause}): make the copies before "
                "anything is drawn or logged to a file, or give its class __deepcopy__"
            ) from cause
        for env in envs:  # from entropy: they would go on with the random numbers of the first
            env.reset(seed=int(np.random.SeedSequence().generate_state(1)[0]))
        return as_batched(self._around(envs))

    def reset_rows(self, mask: Tensor, *, seed: int | list[int | None] | None = None) -> tuple[Obs, Info]:
        """See :class:`~headway.envs.batched.Resettable`."""
        require(self, Resettable)
        chosen = np.flatnonzero(mask.numpy()).tolist()
        seeds = row_seeds([None] * self.num_envs if seed is None else seed, self.num_envs)
        self._forget(chosen)
        return _tensors(self._reset_some(chosen, seeds)), {}

    def lacks(self, ability: type[Any]) -> str | None:
        """See :meth:`BatchedEnv.lacks`."""
        return (
            None
            if self._singles
            else (
                f"the rows of a {type(self.env).__name__} cannot be reached one by one: use a DummyVecEnv or a "
                "SyncVectorEnv, without a wrapper around it but VecTransposeImage"
            )
        )

    @property
    @abstractmethod
    def _singles(self) -> list[gym.Env[Any, Any]]:
        """The environments of the rows; empty where they cannot be reached."""

    @abstractmethod
    def _shown(self, row: int) -> Any:
        """:return: what the vector environment keeps of a row besides its environment, live."""

    @abstractmethod
    def _show(self, row: int, shown: Any) -> None:
        """Put it back."""

    @abstractmethod
    def _reset_some(self, rows: list[int], seeds: list[int | None]) -> Any:
        """Reset some rows, with their part of the seeds; :return: the observations of all."""

    @abstractmethod
    def _around(self, envs: list[gym.Env[Any, Any]]) -> Any:
        """:return: a vector environment like this one, around other environments."""

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
        self._above = [] if self.normalizer is None else _above(env, self.normalizer)
        self._tells_ends = isinstance(env.unwrapped, (BatchedVecEnv, DummyVecEnv, SubprocVecEnv))
        if isinstance(env.unwrapped, BatchedVecEnv):
            self._alike = None

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """See :meth:`BatchedEnv.reset`."""
        if isinstance(seed, list):
            self.env.unwrapped._seeds = list(seed)
        elif seed is not None:
            self.env.seed(seed)
        if options is not None:
            self.env.set_options(options)
        self._forget()
        array_obs = self.env.reset()
        self._refuse_changes(array_obs, None)
        return _tensors(array_obs), {"raw": (_tensors(self._raw(array_obs)), None)} if self.normalizer else {}

    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`."""
        array_obs, array_rewards, dones, infos = self._step_inside(actions)
        array_rewards = _scalar_rewards(self.env, array_rewards, np.float32)
        self._refuse_changes(array_obs, array_rewards)
        dones, truncated = np.array(dones, bool), np.zeros(len(infos), bool)
        dummies = [row for row, said in enumerate(infos) if DUMMY in said]
        obs, rewards = _tensors(array_obs), torch.from_numpy(array_rewards)
        info: Info = {"sb3": infos}
        if dummies:
            info["dummy"] = torch.zeros(len(infos), dtype=torch.bool)
            info["dummy"][dummies] = True
        raw, raw_rewards = self._raw(array_obs), array_rewards
        if self.normalizer:
            raw_rewards = self.normalizer.get_original_reward()
            info["raw"] = (_tensors(raw), torch.from_numpy(np.array(raw_rewards, np.float32)))
        self._account["lengths"] += 1
        if dummies:
            self._account["lengths"][dummies] -= 1
            raw_rewards = np.where(info["dummy"].numpy(), 0, raw_rewards)
        self._account["returns"] += raw_rewards
        returns, lengths = (self._account[name].copy() for name in ("returns", "lengths"))
        info["episode"] = {"r": torch.from_numpy(returns), "l": torch.from_numpy(lengths)}
        shown = info["raw"][0] if self.normalizer else obs
        if not np.count_nonzero(dones):
            info["final_obs"] = shown
        else:
            truncated |= dones & [bool(i.get("TimeLimit.truncated")) for i in infos]
            self._check_ends(dones, infos)
            info["final_obs"] = _tensors(_overlay(raw, dones, self._terminal_rows(infos, dones)))
            self._watch(dones, info["final_obs"], shown)
            self._end(dones, infos, returns, lengths, info)
        return obs, rewards, torch.from_numpy(dones & ~truncated), torch.from_numpy(truncated), info

    # Both faces of Stable-Baselines3's kind: rows are reached as it reaches them.
    def rows_have(self, name: str) -> bool:
        """See :class:`~headway.wrappers.sb3.RowAccess`, as the three methods below."""
        return bool(self.env.has_attr(name))

    def row_attributes(self, name: str, rows: list[int]) -> list[Any]:
        """:return: the attribute of each row's environment."""
        return list(self.env.get_attr(name, rows))

    def set_row_attributes(self, name: str, value: Any, rows: list[int]) -> None:
        """Set the attribute of each row's environment."""
        self.env.set_attr(name, value, rows)

    def call_rows(self, name: str, rows: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """:return: what the method of each row's environment returns."""
        return list(self.env.env_method(name, *args, indices=rows, **kwargs))

    def rows_are_wrapped(self, wrapper_class: type[Any], rows: list[int]) -> list[bool]:
        """:return: whether each row's environment is in such a wrapper."""
        return list(self.env.env_is_wrapped(wrapper_class, rows))

    @cached_property
    def _is_monitored(self) -> bool:
        return is_vecenv_wrapped(self.env, VecMonitor) or bool(self.env.env_is_wrapped(Monitor)[0])

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
        if self.normalizer and self.normalizer.norm_obs:
            kinds = self.normalizer.venv.observation_space
            return [None if f is None else _rounded(self.normalizer.unnormalize_obs(f), kinds) for f in final]
        return final

    def _check_ends(self, dones: np.ndarray[Any, Any], infos: list[dict[str, Any]]) -> None:
        """Say once that a vector environment of somebody's own does not tell time limits from ends."""
        if not self._tells_ends:
            self._tells_ends = True
            if not any("TimeLimit.truncated" in infos[row] for row in np.flatnonzero(dones)):
                log.warning(
                    "%s does not say which episodes were only cut off (info['TimeLimit.truncated']): all are taken to "
                    "have ended, and values at time limits are learnt as zero",
                    type(self.env.unwrapped).__name__,
                )

    def _refuse_changes(self, obs: Any, rewards: Any) -> None:
        """See that wrappers above the normaliser leave alone what it gives; else its statistics are not of what is
        acted on, and stored data could not be normalised as it was."""
        if not self._above:
            return
        source = self.normalizer
        assert source is not None
        if source.norm_obs:
            own = source.normalize_obs(source.get_original_obs())
            pairs = [(own[key], obs.get(key)) for key in own] if isinstance(own, dict) else [(own, obs)]
            same = len(pairs) == (len(obs) if isinstance(obs, dict) else 1)
            what = None if same and all(np.array_equal(a, b, equal_nan=True) for a, b in pairs) else "observations"
        else:
            what = None
        if rewards is not None and not np.array_equal(
            source.normalize_reward(source.get_original_reward()), rewards, equal_nan=True
        ):
            what = "rewards"
        if what is not None:
            names = ", ".join(type(wrapper).__name__ for wrapper in self._above)
            raise ValueError(
                f"{names} above VecNormalize changes the {what}: stored data could not be normalised as what is acted "
                "on; put VecNormalize around it, outermost"
            )

    def _end(self, dones: Any, infos: list[dict[str, Any]], returns: Any, lengths: Any, info: Info) -> None:
        """Begin new accounts; a Monitor's own of a finished row has precedence, as in SB3."""
        untold = dones.copy()
        for row in np.flatnonzero(dones):
            if "episode" in infos[row]:
                untold[row] = False
                returns[row], lengths[row] = infos[row]["episode"]["r"], infos[row]["episode"]["l"]
        if untold.any() and self._is_monitored:
            info["goes_on"] = torch.from_numpy(untold)
        self._forget(dones)

    @property
    def _dummy(self) -> DummyVecEnv:
        """What is innermost; it need not be a DummyVecEnv."""
        return self.env.unwrapped  # type: ignore[no-any-return]

    @property
    def _singles(self) -> list[gym.Env[Any, Any]]:
        env = self.env
        while type(env) is VecTransposeImage:
            env = env.venv
        return env.envs if type(env) is DummyVecEnv else []

    def _shown(self, row: int) -> Any:
        return [part[row] for part in self._dummy.buf_obs.values()]

    def _show(self, row: int, shown: Any) -> None:
        for part, value in zip(self._dummy.buf_obs.values(), shown, strict=True):
            part[row] = value

    def _reset_some(self, rows: list[int], seeds: list[int | None]) -> Any:
        dummy = self._dummy
        for row in rows:
            obs, dummy.reset_infos[row] = dummy.envs[row].reset(seed=seeds[row])
            dummy._save_obs(row, obs)
        shown: Any = dummy._obs_from_buf()
        return self.env.transpose_observations(shown) if isinstance(self.env, VecTransposeImage) else shown

    def _around(self, envs: list[gym.Env[Any, Any]]) -> VecEnv:
        dummy = DummyVecEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
        return VecTransposeImage(dummy, self.env.skip) if isinstance(self.env, VecTransposeImage) else dummy


def _above(env: VecEnv, normalizer: VecNormalize) -> list[VecEnv]:
    """The wrappers around a normaliser, without those that are known to change nothing."""
    wrappers: list[VecEnv] = []
    while env is not normalizer:
        if type(env) not in (VecMonitor, VecCheckNan, VecVideoRecorder):
            wrappers.append(env)
        env = env.venv  # type: ignore[attr-defined]
    return wrappers


def _rounded(obs: Any, space: spaces.Space[Any]) -> Any:
    """Un-normalised integers, to be whole again."""
    if isinstance(space, spaces.Dict):
        return {key: _rounded(part, space[key]) for key, part in obs.items()}
    return np.rint(obs) if space.dtype is not None and space.dtype.kind in "iu" else obs


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
        self._account["ended"] = np.zeros(self.num_envs, dtype=bool)

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """See :meth:`BatchedEnv.reset`."""
        self._forget()
        if isinstance(seed, list) and seed[0] is not None and seed == [seed[0] + i for i in range(self.num_envs)]:
            seed = seed[0]  # the same, in the only form that every vector environment knows
        obs, _ = self.env.reset(seed=seed, options=options)
        return _tensors(obs), {}

    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`."""
        returns, lengths = self._account["returns"], self._account["lengths"]
        dummy = self._account["ended"] & (self.mode is AutoresetMode.NEXT_STEP)
        array_obs, array_rewards, terminated, truncated, array_info = self._step_inside(actions)
        rewards = _scalar_rewards(self.env, array_rewards, np.float64)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        ended = terminated | truncated
        final = array_obs
        if ended.any() and self.mode is AutoresetMode.SAME_STEP:
            final = _overlay(array_obs, ended, _final_rows(array_info, ended))
        final_obs = _tensors(final)
        if ended.any() and self.mode is AutoresetMode.DISABLED:
            array_obs, _ = self.env.reset(options={"reset_mask": ended.copy()})
        returns += np.where(dummy, 0, rewards)
        lengths += ~dummy
        info: Info = {
            "final_obs": final_obs,
            "episode": {"r": torch.from_numpy(returns.copy()), "l": torch.from_numpy(lengths.copy())},
            "dummy": torch.from_numpy(dummy),
            **_successes(array_info, ended),
        }
        self._forget(ended)
        self._account["ended"] = ended
        flags = torch.from_numpy(terminated), torch.from_numpy(truncated & ~terminated)
        obs = _tensors(array_obs)
        if ended.any() and self.mode is AutoresetMode.SAME_STEP:
            self._watch(ended, final_obs, obs)
        return obs, torch.from_numpy(rewards.astype(np.float32)), *flags, info

    @property
    def _in_process(self) -> list[gym.Env[Any, Any]]:
        """The environments of the rows, below any wrapper; empty where they live in processes of their own."""
        innermost = self.env.unwrapped
        return list(innermost.envs) if isinstance(innermost, SyncVectorEnv) else []

    def rows_have(self, name: str) -> bool:
        """See :class:`~headway.wrappers.sb3.RowAccess`, as the three methods below."""
        return bool(self._in_process) and all(env.has_wrapper_attr(name) for env in self._in_process)

    def row_attributes(self, name: str, rows: list[int]) -> list[Any]:
        """:return: the attribute of each row's environment."""
        return [self._in_process[row].get_wrapper_attr(name) for row in rows]

    def set_row_attributes(self, name: str, value: Any, rows: list[int]) -> None:
        """Set the attribute of each row's environment."""
        for row in rows:
            self._in_process[row].set_wrapper_attr(name, value)

    def call_rows(self, name: str, rows: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """:return: what the method of each row's environment returns."""
        return [self._in_process[row].get_wrapper_attr(name)(*args, **kwargs) for row in rows]

    def rows_are_wrapped(self, wrapper_class: type[Any], rows: list[int]) -> list[bool]:
        """:return: whether each row's environment is in such a wrapper."""
        return [is_wrapped(self._in_process[row], wrapper_class) for row in rows]

    @property
    def _singles(self) -> list[gym.Env[Any, Any]]:
        return self.env.envs if type(self.env) is SyncVectorEnv else []

    def _shown(self, row: int) -> Any:
        return {"obs": self.env._env_obs[row], "ended": bool(self.env._autoreset_envs[row])}

    def _show(self, row: int, shown: Any) -> None:
        self.env._env_obs[row], self.env._autoreset_envs[row] = shown["obs"], shown["ended"]

    def _reset_some(self, rows: list[int], seeds: list[int | None]) -> Any:
        mask = np.zeros(self.num_envs, bool)
        mask[rows] = True
        if rows:
            self.env.reset(seed=seeds, options={"reset_mask": mask})
        return concatenate(self.single_observation_space, self.env._env_obs, self.env._observations)

    def _around(self, envs: list[gym.Env[Any, Any]]) -> SyncVectorEnv:
        return SyncVectorEnv(
            [lambda env=env: env for env in envs],  # type: ignore[misc]
            copy=self.env.copy,
            observation_mode=self.env.observation_mode,
            autoreset_mode=self.env.autoreset_mode,
        )


def _successes(info: Any, ended: np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """Whether episodes succeeded, and which rows say so, (N,) bool each; where rows were reset, in ``final_info``."""
    for told in (info.get("final_info"), info) if isinstance(info, dict) else ():
        if isinstance(told, dict) and "is_success" in told:
            success = np.asarray(told["is_success"]).astype(bool)
            says = np.asarray(told.get("_is_success", ended)).astype(bool)
            return {"is_success": torch.from_numpy(success), "_is_success": torch.from_numpy(says & ended)}
    return {}


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
