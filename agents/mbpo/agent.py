"""MBPO, and posterior sampling on top of it: agents that learn from what a model of their world imagines.

Janner, Fu, Zhang, Levine: "When to Trust Your Model: Model-Based Policy Optimization", arXiv 1906.08253 (``mbpo``,
after the authors' program). Wang, Chen, Murphy: "Model-based Policy Optimization under Approximate Bayesian Inference",
AISTATS 2024, PMLR 238 (``ps``, ``ops``): of that paper only the abstract could be read; how models, agents and data are
put together here is ours. Arm ``sombrl`` adds the ensemble's spread to the reward (arXiv 2511.20066).

Shapes: ``K`` models, ``A`` agents (of each model, ``P``), ``N`` environments, ``B`` rows, ``O`` observation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.terminations import Termination, find_termination
from ..core.compile import captured, compiled
from ..core.data import ReplayStore, Step, Transitions, joined, transition_fields
from ..core.entropy import EntropyAgent, temperature_loss
from ..core.nets import Adam, Critics, SquashedGaussianActor, Temperature, Tracked
from ..core.spaces import FieldSpec, Obs
from ..sac import actor_loss, critic_loss, soft_target
from .acting import Acting, Counted
from .config import SAMPLERS, MBPOConfig
from .dynamics import Dynamics, Fit, keep_weights
from .ends import LearnedEnds, fit_ends
from .imagination import Imagined, ImaginedStore, Rollouts, by_any_elite, by_own_member, rollout_length
from .model_env import ModelEnv

PASSES = 10**6
"""Of a call of the model's training, at most; it ends by itself."""


def anchor_loss(actor: SquashedGaussianActor, obs: Tensor) -> Tensor:
    """sum_j E[KL(pi_j(.|s) || pi_anchor(.|s))], j all agents of a stack but the last, which is the anchor.

    tanh changes nothing in it, so that it is that of the Gaussians before.

    :param actor: of A + 1 agents
    :param obs: of the first A, (A, B, O)
    :return: scalar; no gradient reaches the anchor
    """
    agents, rows, _ = obs.shape
    mean, log_std = actor.gaussian(obs, members=slice(agents))  # (A, B, a)
    with torch.no_grad():
        anchor = actor.gaussian(obs.flatten(0, 1), members=slice(agents, None))  # (1, A B, a)
        goal, log_goal = (part.view(agents, rows, -1) for part in anchor)
    ratio = (2 * (log_std - log_goal)).exp() + (mean - goal).square() * (-2 * log_goal).exp()
    return (log_goal - log_std + 0.5 * (ratio - 1)).sum(-1).mean(-1).sum()


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
        self._track_temperature((cfg.stacked,))
        dynamics = Dynamics(
            self._width,
            self.actions.size,
            members=cfg.n_models,
            net_arch=cfg.model_net_arch,
            target=cfg.model_target,
            scales_targets=cfg.scale_targets,
            prior_scale=cfg.prior_scale,
            precision=cfg.precision,
        )
        self.dynamics = self.track("dynamics", dynamics, optimiser=Adam(learning_rate=cfg.model_learning_rate))
        if cfg.learn_termination:
            rate = Adam(learning_rate=cfg.model_learning_rate)
            self.ends = self.track("ends", LearnedEnds(self._width), optimiser=rate)
        self._soft_target = compiled(soft_target, cfg.compile, self.device)
        self._critic_loss = compiled(critic_loss, cfg.compile, self.device)
        self._actor_loss = compiled(actor_loss, cfg.compile, self.device)
        self._record = partial(captured, mode=cfg.compile, modules=self.modules, generator=self.generators["update"])
        self._step = self._record(self._take_step)

    def _fresh_agents(self) -> tuple[SquashedGaussianActor, Critics]:
        """:return: untrained networks of all agents"""
        cfg, codec, size, stack = self.config, self.codec, self.actions.size, (self.config.stacked,)
        actor = SquashedGaussianActor(codec.features(), size, stack=stack, **cfg.perceptron)
        critics = Critics(codec.features(), size, stack=stack, **cfg.perceptron)
        return actor, critics

    def _setup_model(self) -> None:
        super()._setup_model()
        cfg, device = self.config, self.device
        stream = self.generators["update"]
        self.fit = Fit(self.dynamics.module, self.dynamics, cfg.fitting, stream, self._record)
        self.imagined = ImaginedStore(cfg.stacked, cfg.rows, self._width, self.actions.size, device)
        self.rollouts = Rollouts(cfg.stacked, cfg.rows, self._width, device)
        self.acting = Acting(cfg.n_agents, self.n_envs, self._width, device)
        self._rows: Transitions | None = None
        self._model_counts: Tensor | None = None
        self._counted: Counted | None = None
        self._line = ""
        for name in ("fit", "imagined", "rollouts", "acting"):
            self.register(name, getattr(self, name))

    def _connect_env(self) -> None:
        super()._connect_env()
        if self.env is None:
            return
        if self.normalizer is not None:
            raise ValueError("MBPO's model has scales of its own: leave VecNormalize out")
        self.termination = self._find_termination()

    def _find_termination(self) -> Termination:
        if self.config.learn_termination:
            return self.ends.module.tell
        singles: list[Any] = getattr(self.batched_env, "_singles", None) or [self.batched_env]
        return find_termination(self.env_id or type(singles[0].unwrapped).__name__)

    @property
    def _width(self) -> int:
        spec = self.codec.raw_spec
        assert isinstance(spec, FieldSpec)
        return spec.shape[0]

    def _make_store(self) -> ReplayStore[Any]:
        """See :meth:`ReplayAgent._make_store`; with how often each member and each agent counts a row."""
        cfg, counts = self.config, {}
        if cfg.keeps_counts:
            kinds = {"model_counts": cfg.n_models, "agent_counts": cfg.stacked}
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
        self.acting.end_episodes(True)

    def choose(self) -> dict[str, Tensor]:
        """See :meth:`OffPolicyAgent.choose`; at the start of an episode, an agent is drawn for it."""
        self.acting.begin_episodes(self._last_obs, self.config.variant == "ops", self.generators["collect"])
        return super().choose()

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """The agent of each environment acts; see :meth:`ActorCriticAgent.explore`."""
        return {"actions": self._by(self.acting.drawn, obs, False, self.generators["collect"])}

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        assert isinstance(obs, Tensor)
        best = torch.full((len(obs),), self.acting.best, device=self.device)
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
            drawn = keep_weights(self.n_envs, cfg.n_models + cfg.stacked, self.generators["collect"])
            drawn[:, cfg.n_models + cfg.n_agents :] = 1  # the anchor knows all alike
            rows |= {"model_counts": drawn[:, : cfg.n_models], "agent_counts": drawn[:, cfg.n_models :]}
        self.store.add(rows, step.real)
        self.acting.end_episodes(step.dones)
        self._counted = None

    # -- what follows a step -----------------------------------------------------------------------------------------

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`: at times the model is trained and imagines; then agents learn."""
        cfg, now = self.config, self.num_timesteps
        if now < cfg.learning_starts or len(self.store) < min(cfg.learning_starts, cfg.buffer_size):
            return []  # a loaded policy has no experience yet
        due = not self.fit.calls or now // cfg.model_train_freq > (now - collected) // cfg.model_train_freq
        steps = cfg.gradient_steps * collected
        if cfg.variant == "model_only":  # all that a model gives is learnt at once
            steps = cfg.refit_factor * cfg.gradient_steps * cfg.model_train_freq if due else 0
        return [("fit", PASSES), ("imagine", self._length())] * due + [("update", steps)]

    def _length(self) -> int:
        return rollout_length(self.num_timesteps // self.config.epoch_length, self.config.rollout_schedule)

    def _update(self, phase: str) -> dict[str, Tensor]:
        step: dict[str, Any] = {"fit": self._fit, "imagine": self._imagine, "update": self._learn}
        return step[phase]()  # type: ignore[no-any-return]

    def _fit(self) -> dict[str, Tensor]:
        """Pass over all real rows once."""
        if self._rows is None:  # the call begins, or goes on in another process
            places, _ = self.store.chronological()
            self._rows = self._at(places)
            self._model_counts = self.store.take("model_counts", places) if self.config.keeps_counts else None
        rows, obs, next_obs = self._rows, self._rows.obs, self._rows.next_obs
        assert isinstance(obs, Tensor)
        assert isinstance(next_obs, Tensor)
        inputs = torch.cat((obs, rows.actions), 1)
        targets = self.dynamics.module.targets(obs, rows.rewards, next_obs)
        if not self.fit.in_progress:
            self.fit.begin(inputs, targets)
        ended, loss = self.fit.advance(inputs, targets, self._model_counts)
        metrics = {"model_loss": loss}
        if self.config.learn_termination:
            metrics["ends_loss"] = fit_ends(self.ends, next_obs, rows.terminated, self.generators["update"])
        if ended:
            self._rows = self._model_counts = None
            self.end_phase()
            metrics |= self._judgement()
        return metrics

    def _judgement(self) -> dict[str, Tensor]:
        """:return: what the last training of the model came to"""
        fit = self.fit
        numbers = {"timesteps": self.num_timesteps, "training": fit.calls, "passes": fit.passes}
        found = {name: torch.tensor(float(n)) for name, n in (numbers | {"rollout_length": self._length()}).items()}
        found |= {"error": fit.errors.mean(), "spread": fit.spread, "calibration": fit.calibration}
        return {f"model/{name}": value for name, value in found.items()}

    # -- imagination -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _imagine(self) -> dict[str, Tensor]:
        """Go on by one step in all rollouts."""
        actor, going = self.actor.module, self.rollouts
        if going.obs is None:
            going.begin(self._first_states())
            self.imagined.resize(self.config.capacity(self._length()))
        assert going.obs is not None
        obs, alive = going.obs, going.alive
        actions, _ = actor.sample(obs, actor.noise(self.config.rows, self.generators["update"]))
        step = self._stepped(obs, actions)
        self.imagined.add({"obs": obs, "actions": actions, **step._asdict()}, alive)
        going.obs, going.alive = step.next_obs, alive & ~step.terminated
        if self._pending[0][1] == 1:
            going.end()
            self._judge()
            self._tell()
        # Of rows that go on, by products, since picking them would wait for the device; there may be none left.
        count = alive.sum().clamp(min=1)
        return {
            "imagined_reward": (step.rewards * alive).sum() / count,
            "imagined_ends": (step.terminated & alive).sum() / count,
        }

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

    def _first_states(self) -> Tensor:
        """:return: states to imagine from, (A, B, O)"""
        cfg = self.config
        if cfg.variant != "model_only":
            obs = self._real(cfg.rows).obs
            assert isinstance(obs, Tensor)
            return obs
        self._restart_agents()
        return self.acting.starts[self._shares(cfg.rows).mul(len(self.acting.starts)).long()]

    def _stepped(self, obs: Tensor, actions: Tensor) -> Imagined:
        """:return: what the agents' models make of actions in observations, (A, B, …)"""
        cfg, model = self.config, self.dynamics.module
        noise = self.noise(*obs.shape[:-1], 1 + self._width)
        if cfg.variant in SAMPLERS:
            own = slice(cfg.n_agents)
            step = by_own_member(model, obs[own], actions[own], noise[own], self.termination)
            if len(obs) == cfg.n_agents:
                return step
            last = slice(cfg.n_agents, None)  # the anchor's rows are moved by any member, as MBPO's are
            other = self._by_any(obs[last], actions[last], noise[last])
            return Imagined(*(torch.cat(parts) for parts in zip(step, other, strict=True)))
        step = self._by_any(obs, actions, noise)
        if cfg.variant != "sombrl":
            return step
        means, _ = model(torch.cat((obs, actions), -1).flatten(0, 1))  # (K, A B, d)
        spread = means[..., 1:].std(0).mean(-1).view(step.rewards.shape)
        return step._replace(rewards=step.rewards + cfg.spread_weight * spread)

    def _by_any(self, obs: Tensor, actions: Tensor, noise: Tensor) -> Imagined:
        """:return: the step, each row's by an elite drawn anew"""
        members = self._movers()
        chosen = torch.zeros(obs.shape[:-1], dtype=torch.int64, device=self.device)
        if len(members) > 1:
            chosen = torch.randint(len(members), chosen.shape, generator=self.generators["update"], device=self.device)
        return by_any_elite(self.dynamics.module, obs, actions, noise, self.termination, members[chosen])

    def _movers(self) -> Tensor:
        """:return: members of the model that may move rows: the elites; of variants that drop none, all"""
        return self.fit.elites if self.config.variant in SAMPLERS else self.fit.elites[: self.config.n_elites]

    def model_env(self, num_envs: int, horizon: int = 1000) -> ModelEnv:
        """Make an environment of the model as it is now, for others to be judged, searched or trained in.

        Episodes begin where real ones did. A row is moved by one member for a whole episode where agents have members
        of their own, and by an elite drawn anew in each step otherwise.

        :param num_envs: rows
        :param horizon: steps after which an episode is truncated
        :return: the environment; it keeps the networks' weights, which are copies
        :raises ValueError: there is no model yet
        """
        if not self.fit.calls:
            raise ValueError("the model has not been trained yet: learn(…) for more than learning_starts steps first")
        return ModelEnv(
            self.dynamics.module,
            self.termination,
            self.acting.starts,
            (self._vectors(), self.action_space),
            num_envs=num_envs,
            horizon=horizon,
            members=self._movers(),
            keeps_member=self.config.variant in SAMPLERS,
        )

    def _vectors(self) -> spaces.Box:
        """:return: the space of what the model yields: of observations, or of the vector that is read of them"""
        space = self.observation_space
        return space if isinstance(space, spaces.Box) else spaces.Box(-np.inf, np.inf, (self._width,))

    def _restart_agents(self) -> None:
        """Forget what agents have learnt, as they are to know the world by their new model alone."""
        seed = int(torch.randint(2**62, (), generator=self.generators["update"], device=self.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh: list[nn.Module] = [*self._fresh_agents()]
        kept: list[Tracked[Any]] = [self.actor, self.critics]
        if self.config.learns_alpha:
            kept.append(self.temperature)
            fresh.append(Temperature(self.config.initial_alpha(), (self.config.stacked,)))
        for tracked, network in zip(kept, fresh, strict=True):
            tracked.module.load_state_dict(network.state_dict())
            if tracked.target is not None:
                tracked.target.load_state_dict(network.state_dict())
            tracked.restart_optimiser()

    def _judge(self) -> None:
        """See of which agent most is expected, by its model and critics, from where episodes begin."""
        cfg, starts, own = self.config, self.acting.starts, slice(self.config.n_agents)
        if cfg.n_agents == 1:
            return
        obs = starts.expand(cfg.stacked, *starts.shape)
        alive = torch.ones(obs.shape[:-1], device=self.device)
        total = torch.zeros_like(alive)
        for step in range(cfg.judged_steps):
            actions, _ = self.actor.module.sample(obs, self.noise(*obs.shape[:-1], self.actions.size))
            imagined = self._stepped(obs, actions)
            total += cfg.gamma**step * alive * imagined.rewards
            obs, alive = imagined.next_obs, alive * ~imagined.terminated
        actions, _ = self.actor.module.sample(obs, self.noise(*obs.shape[:-1], self.actions.size))
        assert self.critics.target is not None
        total += cfg.gamma**cfg.judged_steps * alive * self.critics.target(obs, actions).amin(-2)
        self.acting.best = int(total[own].mean(1).argmax())

    # -- agents ------------------------------------------------------------------------------------------------------

    def _shares(self, count: int) -> Tensor:
        """:return: uniform in [0, 1), (A, count)"""
        shape = (self.config.stacked, count)
        return torch.rand(shape, generator=self.generators["update"], device=self.device)

    def _real(self, count: int) -> Transitions:
        """:return: rows that were experienced, by what each agent counts them, (A, count, …)"""
        if not self.config.keeps_counts:
            return self._at(self.store.draw(self.config.stacked * count).view(-1, count))
        if self._counted is None:
            rows, _ = self.store.chronological()
            counts = self.store.take("agent_counts", rows).long()
            self._counted = Counted(rows, counts.cumsum(0).T.contiguous())
        return self._at(self._counted.draw(self._shares(count)))

    def _at(self, places: Tensor) -> Transitions:
        rows: Transitions = self.store.at(places)
        return rows

    def _batch(self) -> Transitions:
        cfg = self.config
        real = 0 if cfg.variant == "model_only" else int(cfg.batch_size * cfg.real_ratio)
        imagined = self.imagined.sample(self._shares(cfg.batch_size - real))
        return imagined if real == 0 else joined(self._real(real), imagined, 1)

    def _learn(self) -> dict[str, Tensor]:
        return self._step(self._batch(), self._fixed_alpha, self.config)

    def _take_step(self, batch: Transitions, fixed_alpha: Tensor, cfg: MBPOConfig) -> dict[str, Tensor]:
        """Take a gradient step of all agents, each SAC's own."""
        noise = self.noise(2, cfg.stacked, cfg.batch_size, self.actions.size)
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
        metrics["actor_loss"] = loss = self._actor_loss(critics, batch.obs, actions, log_prob, alpha)
        if cfg.anchor_kl:
            assert isinstance(batch.obs, Tensor)
            metrics["anchor_kl"] = anchor_loss(actor, batch.obs[: cfg.n_agents])
            loss = loss + cfg.anchor_kl * metrics["anchor_kl"]
        self.actor.minimise(loss)
        self.critics.follow(cfg.tau)
        return metrics | {"ent_coef": alpha.mean()}
