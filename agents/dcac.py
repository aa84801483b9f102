"""Delay-correcting actor-critic: off-policy learning under random delays, by resampling actions in hindsight.

Bouteiller, Ramstedt, Beltrame, Pal, Binas: "Reinforcement Learning with Random Delays", ICLR 2021, arXiv 2010.02966.
Written from the equations as others quote them and from the behaviour of the authors' code; the paper itself could not
be read. That code adds a reward too many to the backups of rows with few valid steps, and loses the last reward of an
episode; this one does neither, and tests hold both.

Names: an augmented state x = (m, u, omega, kappa, beta) holds an observation m, the buffer u of the actions sent since
it was captured (newest first), and the ages of both; see :mod:`headway.wrappers.random_delay`.
Shapes: ``B`` fragments, ``K`` longest total delay, ``S`` steps, ``D`` observation, ``A`` action, ``E`` critics; ``M``
is what a network reads beside the buffer, m and one-hot omega and kappa, and ``X = M + K A`` all it reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, final

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from .core.compile import captured, compiled
from .core.config import Count, Positive, Range
from .core.data import ReplayStore, Step, Transitions
from .core.entropy import EntropyAgent, EntropyConfig, temperature_loss
from .core.nets import SquashedGaussianActor, StateCritics
from .core.spaces import FieldSpec, ObservationCodec, VectorFeatures

AGES = ("observation_age", "action_age", "applied_action_age")
"""omega, kappa and beta, by the keys that :class:`headway.wrappers.random_delay.RandomDelay` gives them."""


@dataclass(frozen=True, kw_only=True)
class DCACConfig(EntropyConfig):
    """Hyper-parameters of DCAC. Defaults are those of the authors' training presets, where not said otherwise."""

    live = EntropyConfig.live | {"reward_scale"}

    batch_size: Count = 128
    """Fragments per gradient step."""

    learning_starts: Annotated[int, Range(0, unit="environment steps")] = 10_000
    """Steps with random actions before the first gradient step (uniform ones, our choice; the authors draw them from
    the untrained policy)."""

    reward_scale: Positive = 5.0
    """Factor on rewards; with a fixed temperature it sets how much reward an action's entropy is worth."""

    ent_coef: Annotated[float, Range(0)] | str = 1.0
    """Entropy temperature: a number keeps it fixed, "auto" learns it from 1, "auto_0.1" from 0.1 (an extension)."""

    n_critics: Count = 2
    """Critics, of whose values the least is used."""

    rtac: bool = False
    """Back up over one step only: the real-time actor-critic of arXiv 1911.04448 on delayed observations."""

    max_steps: Annotated[int, Range(1)] | None = None
    """Longest n of a backup. None: as long as the delays after its start allow, which biases values where those vary.
    With the least total delay, 3 behind wifi,wifi, n is the same up to the end of an episode, and backups are unbiased
    (our addition)."""


class Fragments(NamedTuple):
    """Recorded sub-trajectories x_0, (r_1, x_1), …, (r_S, x_S), B of them; what lies beyond x_n may be anything."""

    seen: Tensor
    """m, one-hot omega and one-hot kappa of x_0 … x_S, (B, S + 1, M)."""

    buffer: Tensor
    """u of x_0, newest first, in [-1, 1], (B, K A)."""

    ages: Tensor
    """omega, kappa, beta of x_0 … x_S, (B, S + 1, 3) int64."""

    rewards: Tensor
    """r_1 … r_S, (B, S)."""

    terminated: Tensor
    """Whether x_1 … x_S are terminal, (B, S) bool."""

    length: Tensor
    """n, from 1 to S, (B,) int64."""

    def first(self) -> Tensor:
        """:return: x_0 as recorded, the way networks read it, (B, X)"""
        return torch.cat((self.seen[:, 0], self.buffer), 1)


def valid_length(ages: Tensor, present: Tensor) -> Tensor:
    """n = max{j : d_t >= t for all t = 1 … j}, d = omega + beta: what was seen by then owes nothing to a_0 and later.

    :param ages: omega, kappa, beta of x_0 … x_S, (B, S + 1, 3) int64
    :param present: x_1 … x_S were recorded in the episode of x_0, (B, S) bool; x_1 always was
    :return: n, from 1 to S, (B,) int64
    """
    delays = ages[:, 1:, 0] + ages[:, 1:, 2]  # d_1 … d_S, (B, S)
    t = torch.arange(1, delays.shape[1] + 1, device=delays.device)
    return ((delays >= t) & present).cumprod(1).sum(1)


def resample(
    actor: SquashedGaussianActor, fragments: Fragments, noise: Tensor, rows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Replay fragments with fresh actions a_t ~ pi(.|x_t) in the place of those sent since x_0, for n steps.

    :param actor: the policy; gradients flow through its actions into its later inputs
    :param fragments: B of them
    :param noise: standard normal, (S, B, A)
    :param rows: how many of the fragments, from the first, take each step; all with n > t must take step t
    :return: log pi(a_t|x_t) for t < n, (B, S), and the resampled x_n, (B, X)
    """
    size, width = fragments.buffer.shape  # B, K A
    line = fragments.buffer  # all actions, newest first, (B, (t + K) A); its first K are the buffer at step t
    log_probs = []
    for t, count in enumerate(rows):
        states = torch.cat((fragments.seen[:count, t], line[:count, :width]), 1)
        action, log_prob = actor.sample(states, noise[t, :count])  # (count, A), (count,)
        line = torch.cat((F.pad(action, (0, 0, 0, size - count)), line), 1)
        log_probs.append(F.pad(log_prob, (0, size - count)))
    n = fragments.length.unsqueeze(1)
    columns = (len(rows) - n) * noise.shape[2] + torch.arange(width, device=n.device)
    seen = fragments.seen.gather(1, n.unsqueeze(2).expand(-1, -1, fragments.seen.shape[2])).squeeze(1)
    return torch.stack(log_probs, 1), torch.cat((seen, line.gather(1, columns)), 1)


def soft_return(
    fragments: Fragments, rewards: Tensor | float, log_probs: Tensor, final_values: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    """sum_{t=1…n} gamma^(t-1) (rewards_t - alpha log pi(a_(t-1)|x_(t-1))) + gamma^n (1 - terminated_n) min_j V_j(x_n).

    :param fragments: B of them
    :param rewards: (B, S), or 0
    :param log_probs: of the fresh actions, (B, S)
    :param final_values: V_j of the resampled x_n, (E, B)
    :param alpha: temperature, scalar
    :param gamma: discount per step
    :return: (B,)
    """
    n = fragments.length.unsqueeze(1)
    t = torch.arange(log_probs.shape[1], device=n.device)
    terms = torch.where(t < n, rewards - alpha * log_probs, 0.0)  # a choice: beyond n there may be no numbers
    ended = fragments.terminated.gather(1, n - 1).squeeze(1)
    final = final_values.amin(0).masked_fill(ended, 0.0)
    return terms @ gamma ** t.to(terms.dtype) + gamma ** fragments.length.to(terms.dtype) * final


def critic_loss(critics: StateCritics, states: Tensor, target: Tensor) -> Tensor:
    """sum_j E[(V_j(x_0) - y)^2].

    :param critics: E of them
    :param states: x_0 as recorded, (B, X)
    :param target: y, (B,)
    :return: scalar
    """
    values: Tensor = critics(states)  # (E, B)
    return len(values) * F.mse_loss(values, target.expand_as(values))


@final
class DCAC(EntropyAgent[DCACConfig]):
    """Delay-correcting actor-critic: off-policy, for observations and actions that are late (arXiv 2010.02966).

    It reads what :class:`headway.wrappers.RandomDelay` shows in its dict form.

    Values are of states that hold the actions on their way. Each update draws fragments x_0, (r_1, x_1), … and, with
    actions a_t ~ pi(.|x_t) that replace those recorded since x_0 in the buffers::

        n       = max{j : omega_t + beta_t >= t for all t <= j}
        y       = sum_{t<=n} gamma^(t-1) (rho r_t - alpha log pi(a_(t-1)|x_(t-1))) + gamma^n min_j V'_j(x_n)
        V_j    <- descend (V_j(x_0) - y)^2
        pi     <- ascend sum_{t<=n} gamma^(t-1) (-alpha log pi(a_(t-1)|x_(t-1))) + gamma^n min_j V_j(x_n)
        V'_j   <- (1 - tau) V'_j + tau V_j

    The bootstrap is left out where x_n is terminal; a truncated x_n has one. Where delays vary, choosing n by them
    biases y: see docs/dcac.md; ``max_steps`` at the least total delay does not.

    Deviations: one optimiser per network instead of one for a weighted sum of losses, which differ by Adam's epsilon
    only; one-hot ages as wide as the ages can be, not K; the initial weights and the density of all agents here.
    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`DCACConfig`.

    :raises ValueError: observations that are not those of a delayed environment
    """

    config_class = DCACConfig
    flattens = True
    config: DCACConfig

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """See :meth:`ActorCriticAgent.check_spaces`."""
        super().check_spaces(observation_space, action_space)
        parts: Mapping[str, Any] = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        keys = ("action_buffer", *AGES)
        missing = [key for key in keys if key not in parts] + ["an observation"] * (not parts.keys() - set(keys))
        if missing:
            raise ValueError(
                f"DCAC reads delayed observations, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
                "not in this environment's: wrap it in headway.wrappers.RandomDelay (form 'dict'), or pass --delay"
            )
        if kept := sorted(ObservationCodec(observation_space, flatten=True).kept):
            raise ValueError(
                f"DCAC reads one vector, and {', '.join(kept)} is an image: wrap what makes features of it"
            )
        ages_count = all(isinstance(parts[key], spaces.Discrete) and parts[key].start == 0 for key in AGES)
        if not ages_count or parts["action_buffer"].shape[1:] != action_space.shape:
            raise ValueError(
                "DCAC needs an action_buffer of K actions and ages that are Discrete from 0, got "
                f"{ {key: parts[key] for key in keys} }: wrap the environment in headway.wrappers.RandomDelay"
            )

    def _build(self) -> None:
        cfg, action = self.config, self.actions.size
        self.horizon = int(self.codec.parts["action_buffer"].shape[0])  # K
        self.steps = 1 if cfg.rtac else min(self.horizon, cfg.max_steps or self.horizon)  # S
        self.widths = dict(zip(self.codec.parts, self.codec.sizes, strict=True))
        self.shown = [key for key in self.codec.parts if key not in ("action_buffer", *AGES)]  # the environment's own
        self.width = sum(self.widths[key] for key in self.shown)
        inputs = self.width + sum(self.widths[key] for key in ("action_buffer", *AGES[:2]))  # beta tells of the past
        self.actor = self.track("actor", SquashedGaussianActor(VectorFeatures(inputs), action, **cfg.perceptron))
        critics = StateCritics(VectorFeatures(inputs), n_critics=cfg.n_critics, **cfg.perceptron)
        self.critics = self.track("critics", critics, target=True)
        self._track_temperature()
        # Steps are left out where no row needs them, but not where their number would have to be waited for, or to be
        # compiled for.
        self._fixed_shapes = self.device.type != "cpu" or cfg.compile != "off"
        self._resample = compiled(resample, cfg.compile, self.device)
        self._soft_return = compiled(soft_return, cfg.compile, self.device)
        self._critic_loss = compiled(critic_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _connect_env(self) -> None:
        super()._connect_env()
        source = self._vec_normalize_env
        keys = source.norm_obs_keys or () if source is not None and source.norm_obs else ()
        others = sorted({"action_buffer", *AGES}.intersection(keys))
        if others:
            shown = [key for key in self.codec.space if key not in ("action_buffer", *AGES)]  # type: ignore[attr-defined]
            raise ValueError(
                f"DCAC puts actions into the buffers it has stored, so VecNormalize must leave {', '.join(others)} "
                f"alone: use norm_obs_keys={shown}"
            )

    def _act(self, obs: Tensor, deterministic: bool, generator: torch.Generator) -> Tensor:
        parts = self._parts(obs)
        states = torch.cat([parts[key] for key in ("observation", *AGES[:2], "action_buffer")], 1)
        if deterministic:
            return self.actor.module.mode(states)
        noise = torch.randn(len(obs), self.actions.size, generator=generator, device=self.device)
        return self.actor.module.sample(states, noise)[0]

    def _parts(self, encoded: Tensor) -> dict[str, Tensor]:
        """:return: the parts of encoded observations (B, ·): what the environment shows as "observation", and the rest
        by key, ages one-hot, buffers in [-1, 1]; (B, columns)"""
        parts = dict(zip(self.codec.parts, torch.split(encoded, self.codec.sizes, 1), strict=True))
        return parts | {"observation": torch.cat([parts[key] for key in self.shown], 1)}

    # -- what is stored: single steps, from which buffers are put together again ---------------------------------------

    def _make_store(self) -> ReplayStore[Any]:
        kind = torch.float64 if self.codec.is_wide else torch.float32
        obs = FieldSpec((self.width,), kind)
        ages = FieldSpec((len(AGES),), torch.int16, tuple(self.widths[key] for key in AGES))
        action, flag = FieldSpec((self.actions.size,), torch.float32), FieldSpec((), torch.bool)
        fields = {
            "obs": obs,
            "ages": ages,
            "oldest": action,  # the last entry of the buffer: what fills it at the start of an episode
            "actions": action,
            "rewards": FieldSpec((), torch.float32),
            "terminated": flag,
            "truncated": flag,
            "next_obs": obs,
            "next_ages": ages,
        }
        cfg = self.config
        least = (self.horizon + 1) * self.n_envs
        if cfg.buffer_size < least:
            raise ValueError(f"buffers of {self.horizon} actions need a buffer_size of {least}, got {cfg.buffer_size}")
        return ReplayStore(
            Transitions,
            fields,
            capacity=cfg.buffer_size,
            n_envs=self.n_envs,
            device=self.device,
            generator=self.generators["store"],
        )

    def keep(self, step: Step) -> None:
        """See :meth:`ReplayAgent.keep`."""
        rows = step.transitions()
        now, then = self._parts(rows["obs"]), self._parts(rows["next_obs"])
        ages, next_ages = (torch.stack([part[key].argmax(1) for key in AGES], 1).short() for part in (now, then))
        oldest = now["action_buffer"][:, -self.actions.size :]
        seen = {"obs": now["observation"], "ages": ages, "next_obs": then["observation"], "next_ages": next_ages}
        self.store.add(rows | seen | {"oldest": oldest}, step.real)

    def sample_fragments(self) -> Fragments:
        """:return: fragments whose first steps are drawn uniformly from the store, those with the largest n first."""
        store, K = self.store, self.horizon
        rows, present = store.draw_around(self.config.batch_size, K, self.steps)  # (B, K + S) each
        ages = torch.cat((store.take("ages", rows[:, K : K + 1]), store.take("next_ages", rows[:, K:])), 1).long()
        length, order = valid_length(ages, present[:, K:]).sort(descending=True, stable=True)
        rows, present, ages = rows[order], present[order], ages[order]
        start, coming, past = rows[:, K : K + 1], rows[:, K:], rows[:, :K].flip(1)

        sent = torch.where(
            present[:, :K].flip(1).unsqueeze(2), store.take("actions", past), store.take("oldest", start)
        )
        obs = torch.cat((store.take("obs", start), store.take("next_obs", coming)), 1)
        rewards = store.take("rewards", coming)
        if self.normalizer is not None:
            columns = torch.split(obs, [self.widths[key] for key in self.shown], 2)
            obs = torch.cat([self.normalizer.part(*one) for one in zip(self.shown, columns, strict=True)], 2)
            rewards = self.normalizer.rewards(rewards)
        obs = obs.float()
        # Beyond the end lie foreign rows, or none; what is not a number there would spread through products with zero.
        obs[:, 1:].masked_fill_(~present[:, K:].unsqueeze(2), 0.0)
        ages[:, 1:].masked_fill_(~present[:, K:].unsqueeze(2), 0)
        one_hot = [F.one_hot(ages[:, :, i], self.widths[AGES[i]]) for i in (0, 1)]
        seen = torch.cat((obs, *one_hot), 2)
        return Fragments(seen, sent.flatten(1), ages, rewards, store.take("terminated", coming), length)

    # -- learning ------------------------------------------------------------------------------------------------------

    def _update(self, phase: str) -> dict[str, Tensor]:
        return self._step(self.sample_fragments(), self._fixed_alpha, self.config)

    def _take_step(self, fragments: Fragments, fixed_alpha: Tensor, cfg: DCACConfig) -> dict[str, Tensor]:
        actor, critics, target_critics = self.actor.module, self.critics.module, self.critics.target
        assert target_critics is not None
        noise = self.noise(self.steps, cfg.batch_size, self.actions.size)
        rows = self._rows_by_step(fragments.length)
        log_probs, final_states = self._resample(actor, fragments, noise, rows)  # (B, S), (B, X)
        taken = torch.arange(len(rows), device=self.device) < fragments.length.unsqueeze(1)
        log_prob = log_probs.detach().masked_fill(~taken, 0.0).sum() / fragments.length.sum()

        metrics: dict[str, Tensor] = {}
        alpha = fixed_alpha
        if cfg.learns_alpha:
            alpha = self.temperature.module.alpha
            goal = cfg.entropy_goal(self.actions.size)
            metrics["ent_coef_loss"] = temperature_loss(self.temperature.module.log_alpha, log_prob, goal)
            self.temperature.minimise(metrics["ent_coef_loss"])

        values = critics(final_states, frozen=True)
        metrics["actor_loss"] = -self._soft_return(fragments, 0.0, log_probs, values, alpha, cfg.gamma).mean()
        with torch.no_grad():
            rewards = cfg.reward_scale * fragments.rewards[:, : len(rows)]
            values = target_critics(final_states)
            target = self._soft_return(fragments, rewards, log_probs, values, alpha, cfg.gamma)
        metrics["critic_loss"] = self._critic_loss(critics, fragments.first(), target)
        self.actor.minimise(metrics["actor_loss"])
        self.critics.minimise(metrics["critic_loss"])
        self.critics.follow(cfg.tau)
        omega, _, beta = fragments.ages[:, 0].float().mean(0)
        facts = {"n": fragments.length.float().mean(), "observation_age": omega, "total_delay": omega + beta}
        return metrics | facts | {"ent_coef": alpha, "entropy": -log_prob}

    def _rows_by_step(self, length: Tensor) -> list[int]:
        """:return: how many rows, sorted by n, take each step of a resampling."""
        if self._fixed_shapes:
            return [len(length)] * self.steps
        left = (length > torch.arange(self.steps).unsqueeze(1)).sum(1).tolist()
        return [count for count in left if count]

    def _distributions(self) -> dict[str, Tensor]:
        if not len(self.store):
            return {}
        # What an update would draw now: so the histograms follow from what a checkpoint holds.
        state = self.store.generator.get_state()
        fragments = self.sample_fragments()
        self.store.generator.set_state(state)
        omega, kappa, beta = fragments.ages[:, 0].unbind(1)
        return {
            "delay/observation_age": omega,
            "delay/action_age": kappa,
            "delay/total_delay": omega + beta,
            "delay/resampled_steps": fragments.length,
        }
