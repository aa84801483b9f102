"""MBPO, and posterior sampling on top of it: agents that learn from what a model of their world imagines.

Janner, Fu, Zhang, Levine: "When to Trust Your Model: Model-Based Policy Optimization", arXiv 1906.08253 (``mbpo``,
after the authors' program). Wang, Chen, Murphy: "Model-based Policy Optimization under Approximate Bayesian Inference",
AISTATS 2024, PMLR 238 (``ps``, ``ops``): of that paper only the abstract could be read; how models, agents and data are
put together here is ours. Arm ``sombrl`` adds the ensemble's spread to the reward (arXiv 2511.20066).

Shapes: ``K`` models, ``A`` agents (of each model, ``P``), ``N`` environments, ``B`` rows, ``O`` observation.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from ...envs.schema import array, flag, group, maybe, whole
from ...envs.terminations import find_termination
from ..core.compile import captured, compiled
from ..core.config import Count, Fraction, LearningRate, Range
from ..core.data import ReplayStore, Step, Transitions, transition_fields
from ..core.entropy import EntropyAgent, EntropyConfig, temperature_loss
from ..core.loop import Part
from ..core.nets import Adam, Critics, SquashedGaussianActor, Temperature, Tracked
from ..core.spaces import FieldSpec, Obs
from ..sac import actor_loss, critic_loss, soft_target
from .dynamics import Dynamics, Fit, FitSettings, keep_weights
from .imagination import Imagined, ImaginedStore, by_any_elite, by_own_member, rollout_length

PASSES = 10**6
"""Of a call of the model's training, at most; it ends by itself."""

RESETS = 256
"""First observations of episodes that are remembered, by which agents are judged. Our choice."""

Bound = Annotated[int, Range(0)]

SAMPLERS = ("ps", "ops", "model_only")
"""Variants with agents of their own for each model."""


@dataclass(frozen=True, kw_only=True)
class MBPOConfig(EntropyConfig):
    """Hyper-parameters of MBPO and its variants. Where not said otherwise, defaults are MBPO's own for Hopper."""

    live = EntropyConfig.live | {"real_ratio", "spread_weight"}

    variant: Literal["mbpo", "ps", "ops", "model_only", "sombrl"] = "mbpo"
    """mbpo: one agent, imagined steps by any elite. ps: agents for each model, one of which is drawn for each episode.
    ops: the one of which most is expected. model_only: as ps, but agents know the world by their model alone, and are
    trained anew whenever it changes. sombrl: mbpo, rewarded for what models disagree about."""

    learning_starts: Annotated[int, Range(5, unit="environment steps")] = 5000
    """Steps with uniformly random actions before the model's first training."""

    gradient_steps: Annotated[int, Range(1)] = 20
    """Gradient steps of the agents per environment step."""

    target_entropy: float | str = "auto"
    """Entropy, in nats, that the temperature steers towards; "auto" is minus the number of action dimensions. MBPO's
    own are in the presets."""

    model_train_freq: Annotated[int, Range(1, unit="environment steps")] = 250
    """Steps between trainings of the model, each followed by rollouts."""

    rollouts_per_step: Count = 400
    """Imagined rollouts per environment step, of all agents together."""

    rollout_schedule: tuple[Bound, Bound, Bound, Bound] = (20, 150, 1, 15)
    """a, b, lo, hi: rollouts are lo steps long until epoch a, and hi from epoch b on."""

    epoch_length: Annotated[int, Range(1, unit="environment steps")] = 1000
    """An epoch of that schedule."""

    retain_epochs: Count = 1
    """Epochs for which imagined steps are kept."""

    real_ratio: Fraction = 0.05
    """Share of each batch that was really experienced."""

    n_models: Count = 7
    """Members of the model (K)."""

    n_elites: Count = 5
    """Members that imagine, the best on held-out rows (mbpo and sombrl; the others drop none)."""

    agents_per_model: Count = 1
    """Agents of each member (P), of the variants that have agents of their own."""

    model_net_arch: tuple[Count, ...] = (200, 200, 200, 200)
    """Hidden layer widths of the model."""

    model_learning_rate: LearningRate = 1e-3
    """Step size of Adam for the model."""

    model_target: Literal["delta", "absolute"] = "delta"
    """What the model predicts: the change of the observation, or the next one (arXiv 2510.01457)."""

    scale_targets: bool = False
    """Standardise what the model predicts, the reward included, per dimension (arXiv 2412.14312)."""

    prior_scale: Annotated[float, Range(0)] = 0.0
    """Weight of a fixed random network in each member's mean (randomised priors); 0: none."""

    bootstrap: Literal["auto", "redrawn", "kept", "none"] = "auto"
    """What rows a member learns from, see FitSettings; auto: redrawn of mbpo and sombrl, kept of the others."""

    refit_factor: Count = 5
    """How many times as many gradient steps as the others agents take that know the world by their model alone
    (model_only), since they begin anew with each model (our choice)."""

    judged_steps: Annotated[int, Range(0)] = 10
    """Imagined steps after which critics judge an agent (ops, and whom evaluations show)."""

    spread_weight: Annotated[float, Range(0)] = 1.0
    """What the ensemble's spread adds to the reward (sombrl)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        a, b, low, high = self.rollout_schedule
        if not (a < b and 1 <= low <= high):
            raise ValueError(
                f"{self._label('rollout_schedule')} must be a, b, lo, hi with a < b and 1 <= lo <= hi, "
                f"got {self.rollout_schedule}"
            )
        if self.n_elites > self.n_models and self.variant not in SAMPLERS:
            raise ValueError(
                f"{self._label('n_elites')} must be at most n_models, {self.n_models}, got {self.n_elites}"
            )

    @property
    def n_agents(self) -> int:
        """A."""
        return self.n_models * self.agents_per_model if self.variant in SAMPLERS else 1

    @property
    def rows(self) -> int:
        """Rollouts of each agent between two trainings of the model."""
        return max(self.rollouts_per_step * self.model_train_freq // self.n_agents, 1)

    @property
    def keeps_counts(self) -> bool:
        """Whether how often members and agents count a row is drawn once and kept with it."""
        return self.fitting.bootstrap == "kept"

    def capacity(self, length: int) -> int:
        """:return: imagined rows that each agent keeps, where rollouts have this length"""
        rounds = -(-self.epoch_length // self.model_train_freq)
        return self.retain_epochs * length * self.rows * rounds

    @property
    def fitting(self) -> FitSettings:
        """How the model is trained."""
        own: Any = "kept" if self.variant in SAMPLERS else "redrawn"
        return FitSettings(bootstrap=own if self.bootstrap == "auto" else self.bootstrap)


class Counted(NamedTuple):
    """The rows of the real store, and how often each agent counts them."""

    rows: Tensor
    """(R,) int64, for the store."""

    sums: Tensor
    """Running sums of counts, (A, R) int64."""

    def draw(self, shares: Tensor) -> Tensor:
        """:return: rows of each agent, by their counts, from uniform numbers (A, B), (A, B) int64"""
        goal = (shares * self.sums[:, -1:]).long()
        found = torch.searchsorted(self.sums, goal, right=True).clamp(max=len(self.rows) - 1)
        return self.rows[found]


@final
class MBPO(EntropyAgent[MBPOConfig]):
    """MBPO and posterior sampling: SAC on steps that an ensemble of learned models imagines from real states.

    Every ``model_train_freq`` steps the models are trained on all that was experienced, and imagine k steps from many
    states of it; G gradient steps of SAC follow every environment step, on batches of which a share is real.

    ``ps`` draws an agent j = (n, p) at the start of each episode, and acts by it to the end. Agent j imagines by model
    n alone; both know real rows by counts that were drawn once, Poisson with mean 1 (ours), and so remain apart. So
    the policy is drawn given model *and* data, q(M | D) q(pi | M, D), while ``model_only`` draws it given the model
    alone, as exact posterior sampling would.

    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`MBPOConfig`.
    """

    config_class = MBPOConfig
    config: MBPOConfig

    # -- construction ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        cfg = self.config
        if not isinstance(self.codec.raw_spec, FieldSpec) or len(self.codec.raw_spec.shape) != 1:
            raise ValueError(
                f"MBPO's model predicts one vector, the environment shows {self.observation_space}: let it show "
                "features"
            )
        actor, critics = self._fresh_agents()
        self.actor = self.track("actor", actor)
        self.critics = self.track("critics", critics, target=True)
        self._track_temperature((cfg.n_agents,))
        dynamics = Dynamics(
            self._width,
            self.actions.size,
            members=cfg.n_models,
            net_arch=cfg.model_net_arch,
            target=cfg.model_target,
            scales_targets=cfg.scale_targets,
            prior_scale=cfg.prior_scale,
        )
        self.dynamics = self.track("dynamics", dynamics, optimiser=Adam(learning_rate=cfg.model_learning_rate))
        self._soft_target = compiled(soft_target, cfg.compile, self.device)
        self._critic_loss = compiled(critic_loss, cfg.compile, self.device)
        self._actor_loss = compiled(actor_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _fresh_agents(self) -> tuple[SquashedGaussianActor, Critics]:
        """:return: untrained networks of all agents"""
        cfg, codec, size, stack = self.config, self.codec, self.actions.size, (self.config.n_agents,)
        actor = SquashedGaussianActor(codec.features(), size, stack=stack, **cfg.perceptron)
        critics = Critics(codec.features(), size, stack=stack, **cfg.perceptron)
        return actor, critics

    def _setup_model(self) -> None:
        super()._setup_model()
        cfg, device = self.config, self.device
        self.fit = Fit(self.dynamics.module, self.dynamics, cfg.fitting, self.generators["update"])
        self.imagined = ImaginedStore(cfg.n_agents, cfg.rows, self._width, self.actions.size, device)
        self.acting = torch.zeros(self.n_envs, dtype=torch.int64, device=device)
        """The agent that acts in each environment, (N,)."""
        self.best = 0
        """The agent of which most is expected."""
        self._begins = np.ones(self.n_envs, dtype=bool)
        self._starts = torch.zeros(0, self._width, device=device)
        self._going: tuple[Tensor, Tensor] | None = None
        self._data: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._counted: Counted | None = None
        self._has_model = False
        self._line = ""
        self.seconds = dict.fromkeys(("fit", "imagine", "update"), 0.0)
        """Spent in each phase so far, by this process."""
        self.register("fit", self.fit)
        self.register("imagined", self.imagined)
        self.register("sampling", Part(self._sampling, self._load_sampling))

    def _connect_env(self) -> None:
        super()._connect_env()
        if self.env is None:
            return
        if self.normalizer is not None:
            raise ValueError("MBPO's model has scales of its own: leave VecNormalize out")
        singles: list[Any] = getattr(self.batched_env, "_singles", None) or [self.batched_env]
        self.termination = find_termination(self.env_id or type(singles[0].unwrapped).__name__)

    @property
    def _width(self) -> int:
        spec = self.codec.raw_spec
        assert isinstance(spec, FieldSpec)
        return spec.shape[0]

    def _make_store(self) -> ReplayStore[Any]:
        """See :meth:`ReplayAgent._make_store`; with how often each member and each agent counts a row."""
        cfg, counts = self.config, {}
        if cfg.keeps_counts:
            kinds = {"model_counts": cfg.n_models, "agent_counts": cfg.n_agents}
            counts = {name: FieldSpec((size,), torch.uint8) for name, size in kinds.items()}
        return ReplayStore(
            Transitions,
            transition_fields(self.codec.raw_spec, self.actions.field) | counts,
            capacity=self.store_capacity,
            n_envs=self.n_envs,
            device=self.device,
            generator=self.generators["store"],
        )

    # -- acting ------------------------------------------------------------------------------------------------------

    def _reset_env(self, seeds: list[int | None] | None = None) -> None:
        super()._reset_env(seeds)
        self._begins[:] = True

    def choose(self) -> dict[str, Tensor]:
        """See :meth:`OffPolicyAgent.choose`; at the start of an episode, an agent is drawn for it."""
        if self._begins.any():
            rows = torch.from_numpy(self._begins).to(self.device)
            self._starts = torch.cat((self._starts, self._last_obs[rows]))[-RESETS:]
            self.acting = torch.where(rows, self._drawn_agents(), self.acting)
            self._begins[:] = False
        return super().choose()

    def _drawn_agents(self) -> Tensor:
        """:return: who would act in each environment in an episode that begins now, (N,)"""
        cfg = self.config
        if cfg.n_agents == 1:
            return torch.zeros_like(self.acting)
        if cfg.variant == "ops":
            return torch.full_like(self.acting, self.best)
        return torch.randint(cfg.n_agents, (self.n_envs,), generator=self.generators["collect"], device=self.device)

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """The agent of each environment acts; see :meth:`ActorCriticAgent.explore`."""
        return {"actions": self._by(self.acting, obs, False, self.generators["collect"])}

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        assert isinstance(obs, Tensor)
        best = torch.full((len(obs),), self.best, device=self.device)
        return self._by(best, obs, deterministic, generator)

    def _by(self, agents: Tensor, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        """:return: in each row, what the agent of that row does, (B, ·)"""
        actor = self.actor.module
        if deterministic:
            actions = actor.mode(obs)
        else:
            actions, _ = actor.sample(obs, actor.noise(len(agents), generator))
        return actions[agents, torch.arange(len(agents), device=self.device)]

    def keep(self, step: Step) -> None:
        """See :meth:`ReplayAgent.keep`; what a row counts is drawn once, here."""
        cfg, rows = self.config, step.transitions()
        if cfg.keeps_counts:
            drawn = keep_weights(self.n_envs, cfg.n_models + cfg.n_agents, self.generators["collect"])
            rows |= {"model_counts": drawn[:, : cfg.n_models], "agent_counts": drawn[:, cfg.n_models :]}
        self.store.add(rows, step.real)
        self._begins |= step.dones
        self._counted = None

    # -- what follows a step -----------------------------------------------------------------------------------------

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`: at times the model is trained and imagines; then agents learn."""
        cfg, now = self.config, self.num_timesteps
        if now < cfg.learning_starts or len(self.store) < min(cfg.learning_starts, cfg.buffer_size):
            return []  # a loaded policy has no experience yet
        due = not self._has_model or now // cfg.model_train_freq > (now - collected) // cfg.model_train_freq
        steps = cfg.gradient_steps * collected
        if cfg.variant == "model_only":  # all that a model gives is learnt at once
            steps = cfg.refit_factor * cfg.gradient_steps * cfg.model_train_freq if due else 0
        return [("fit", PASSES), ("imagine", self._length())] * due + [("update", steps)]

    def _length(self) -> int:
        return rollout_length(self.num_timesteps // self.config.epoch_length, self.config.rollout_schedule)

    def _update(self, phase: str) -> dict[str, Tensor]:
        begun = time.perf_counter()
        metrics: dict[str, Tensor] = {"fit": self._fit, "imagine": self._imagine, "update": self._learn}[phase]()
        self.seconds[phase] += time.perf_counter() - begun
        return metrics

    def _fit(self) -> dict[str, Tensor]:
        """Pass over all real rows once."""
        if self._data is None:  # the call begins, or goes on in another process
            rows, _ = self.store.chronological()
            batch = self.store.at(rows)
            counts = self.store.take("model_counts", rows) if self.config.keeps_counts else None
            targets = self.dynamics.module.targets(batch.obs, batch.rewards, batch.next_obs)
            self._data = torch.cat((batch.obs, batch.actions), 1), targets, counts
        inputs, targets, counts = self._data
        if not self.fit.in_progress:
            self.fit.begin(inputs, targets)
        ended, loss = self.fit.advance(inputs, targets, counts)
        metrics = {"model_loss": loss}
        if ended:
            self._data, self._has_model = None, True
            self.end_phase()
            metrics |= {"model_error": self.fit.errors.mean(), "model_passes": torch.tensor(float(self.fit.passes))}
            metrics |= {"model_spread": self.fit.spread, "model_calibration": self.fit.calibration}
        return metrics

    # -- imagination -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _imagine(self) -> dict[str, Tensor]:
        """Go on by one step in all rollouts."""
        cfg, actor = self.config, self.actor.module
        if self._going is None:
            self._going = self._begin_rollouts()
        obs, alive = self._going
        actions, _ = actor.sample(obs, actor.noise(cfg.rows, self.generators["update"]))
        step = self._stepped(obs, actions)
        rows = {"obs": obs, "actions": actions, **step._asdict()}
        self.imagined.add(rows, alive)
        self._going = step.next_obs, alive & ~step.terminated
        if self._pending[0][1] == 1:
            self._going = None
            self._judge()
            self._tell()
        return {"imagined_reward": step.rewards[alive].mean(), "imagined_ends": step.terminated.float().mean()}

    def _tell(self) -> None:
        spent = ", ".join(f"{phase} {seconds:,.0f} s" for phase, seconds in self.seconds.items())
        self._line = (
            f"model at step {self.num_timesteps:,}: {self.fit.passes} passes, held-out error "
            f"{float(self.fit.errors.mean()):.4f}, {int(self.imagined.sizes.sum()):,} imagined steps, rollouts of "
            f"{self._length()}; so far {spent}"
        )

    def describe_round(self) -> str:
        """See :meth:`LearningLoop.describe_round`: the model's last training, once."""
        told, self._line = self._line, ""
        return told

    def dump_logs(self) -> None:
        """See :meth:`LearningLoop.dump_logs`; with what each phase has taken."""
        for phase, seconds in self.seconds.items():
            self.logger.record(f"time/{phase}", round(seconds, 1), exclude="tensorboard")
        super().dump_logs()

    def _begin_rollouts(self) -> tuple[Tensor, Tensor]:
        """:return: states to imagine from, (A, B, O), and that all rollouts go on, (A, B)"""
        cfg = self.config
        if cfg.variant == "model_only":
            self._restart_agents()
            picked = self._shares(cfg.rows).mul(len(self._starts)).long()
            obs: Obs = self._starts[picked]
        else:
            obs = self._real(cfg.rows).obs
        assert isinstance(obs, Tensor)
        self.imagined.resize(cfg.capacity(self._length()))
        return obs, torch.ones(obs.shape[:-1], dtype=torch.bool, device=self.device)

    def _stepped(self, obs: Tensor, actions: Tensor) -> Imagined:
        """:return: what the agents' models make of actions in observations, (A, B, …)"""
        cfg, model, stream = self.config, self.dynamics.module, self.generators["update"]
        noise = self.noise(*obs.shape[:-1], 1 + self._width)
        if cfg.variant in SAMPLERS:
            return by_own_member(model, obs, actions, noise, self.termination)
        chosen = torch.zeros(obs.shape[:-1], dtype=torch.int64, device=self.device)
        if cfg.n_elites > 1:
            chosen = torch.randint(cfg.n_elites, chosen.shape, generator=stream, device=self.device)
        step = by_any_elite(model, obs, actions, noise, self.termination, self.fit.elites[chosen])
        if cfg.variant != "sombrl":
            return step
        means, _ = model(torch.cat((obs, actions), -1).flatten(0, 1))  # (K, A B, d)
        spread = means[..., 1:].std(0).mean(-1).view(step.rewards.shape)
        return step._replace(rewards=step.rewards + cfg.spread_weight * spread)

    def _restart_agents(self) -> None:
        """Forget what agents have learnt, as they are to know the world by their new model alone."""
        seed = int(torch.randint(2**62, (), generator=self.generators["update"], device=self.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh: list[nn.Module] = [*self._fresh_agents()]
        kept: list[Tracked[Any]] = [self.actor, self.critics]
        if self.config.learns_alpha:
            kept.append(self.temperature)
            fresh.append(Temperature(self.config.initial_alpha(), (self.config.n_agents,)))
        for tracked, network in zip(kept, fresh, strict=True):
            tracked.module.load_state_dict(network.state_dict())
            if tracked.target is not None:
                tracked.target.load_state_dict(network.state_dict())
            tracked.restart_optimiser()

    def _judge(self) -> None:
        """See of which agent most is expected, by its model and critics, from where episodes begin."""
        cfg = self.config
        if cfg.n_agents == 1:
            return
        obs = self._starts.expand(cfg.n_agents, *self._starts.shape)
        alive = torch.ones(obs.shape[:-1], device=self.device)
        total = torch.zeros_like(alive)
        for step in range(cfg.judged_steps + 1):
            actions, _ = self.actor.module.sample(obs, self.noise(*obs.shape[:-1], self.actions.size))
            if step == cfg.judged_steps:
                assert self.critics.target is not None
                total += cfg.gamma**step * alive * self.critics.target(obs, actions).amin(-2)
                break
            imagined = self._stepped(obs, actions)
            total += cfg.gamma**step * alive * imagined.rewards
            obs, alive = imagined.next_obs, alive * ~imagined.terminated
        self.best = int(total.mean(1).argmax())

    # -- agents ------------------------------------------------------------------------------------------------------

    def _shares(self, count: int) -> Tensor:
        """:return: uniform in [0, 1), (A, count)"""
        shape = (self.config.n_agents, count)
        return torch.rand(shape, generator=self.generators["update"], device=self.device)

    def _real(self, count: int) -> Transitions:
        """:return: rows that were experienced, by what each agent counts them, (A, count, …)"""
        if not self.config.keeps_counts:
            lead = (self.config.n_agents, count)
            return _mapped(lambda part: part.view(*lead, *part.shape[1:]), self.sample(lead[0] * count))
        if self._counted is None:
            rows, _ = self.store.chronological()
            self._counted = Counted(rows, self.store.take("agent_counts", rows).long().cumsum(0).T.contiguous())
        rows = self._counted.draw(self._shares(count))
        return _mapped(lambda part: part.view(*rows.shape, *part.shape[1:]), self.store.at(rows.flatten()))

    def _batch(self) -> Transitions:
        cfg = self.config
        real = 0 if cfg.variant == "model_only" else int(cfg.batch_size * cfg.real_ratio)
        imagined = self.imagined.sample(self._shares(cfg.batch_size - real))
        return imagined if real == 0 else _joined(self._real(real), imagined)

    def _learn(self) -> dict[str, Tensor]:
        return self._step(self._batch(), self._fixed_alpha, self.config)

    def _take_step(self, batch: Transitions, fixed_alpha: Tensor, cfg: MBPOConfig) -> dict[str, Tensor]:
        """Take a gradient step of all agents, each SAC's own."""
        noise = self.noise(2, cfg.n_agents, cfg.batch_size, self.actions.size)
        actor, critics, target_critics = self.actor.module, self.critics.module, self.critics.target
        assert target_critics is not None
        actions, log_prob = actor.sample(batch.obs, noise[0])
        metrics: dict[str, Tensor] = {}
        alpha = fixed_alpha
        if cfg.learns_alpha:
            alpha = self.temperature.module.alpha
            goal = cfg.entropy_goal(self.actions.size)
            metrics["ent_coef_loss"] = temperature_loss(self.temperature.module.log_alpha, log_prob, goal)
            self.temperature.minimise(metrics["ent_coef_loss"])
        target = self._soft_target(batch, actor, target_critics, alpha, cfg.gamma, noise[1])
        metrics["critic_loss"] = self._critic_loss(critics, batch, target)
        self.critics.minimise(metrics["critic_loss"])
        metrics["actor_loss"] = self._actor_loss(critics, batch.obs, actions, log_prob, alpha)
        self.actor.minimise(metrics["actor_loss"])
        self.critics.follow(cfg.tau)
        return metrics | {"ent_coef": alpha.mean()}

    # -- state -------------------------------------------------------------------------------------------------------

    def _sampling(self) -> dict[str, Any]:
        going = None if self._going is None else {"obs": self._going[0].clone(), "alive": self._going[1].clone()}
        return {
            "acting": self.acting.clone(),
            "begins": self._begins.copy(),
            "starts": self._starts.clone(),
            "best": self.best,
            "has_model": self._has_model,
            "going": going,
        }

    def _load_sampling(self, state: Mapping[str, Any]) -> None:
        cfg, width = self.config, self._width
        most, lead = cfg.n_agents - 1, (cfg.n_agents, cfg.rows)
        fields = {"acting": array((self.n_envs,), "int64", low=0, high=most), "begins": array((self.n_envs,), "bool")}
        fields |= {"starts": array((None, width), "float32"), "best": whole(0, most), "has_model": flag}
        rollouts = group({"obs": array((*lead, width), "float32"), "alive": array(lead, "bool")})
        group(fields | {"going": maybe(rollouts)})(state, "the sampling")
        self.acting, self._starts = (state[name].to(self.device).clone() for name in ("acting", "starts"))
        self._begins, self.best, self._has_model = np.array(state["begins"]), state["best"], state["has_model"]
        going = state["going"]
        self._going = None if going is None else (going["obs"].to(self.device), going["alive"].to(self.device))


def _mapped(change: Callable[[Tensor], Tensor], batch: Transitions) -> Transitions:
    return Transitions(**{field.name: change(getattr(batch, field.name)) for field in fields(batch)})


def _joined(one: Transitions, other: Transitions) -> Transitions:
    """:return: the rows of both, (A, B + B', …)"""
    names = [field.name for field in fields(one)]
    return Transitions(**{name: torch.cat((getattr(one, name), getattr(other, name)), 1) for name in names})
