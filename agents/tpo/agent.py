"""Tree-search policy optimisation.

Yazdanbakhsh, Songhori, Ormandi, Goldie, Mirhoseini: "TPO: Tree Search Policy Optimization for Continuous Action
Spaces", submitted to ICLR 2020 (OpenReview HJew70NYvH). **Only the abstract could be read.** It says that policies
alternate between search and being fitted to it; that search begins from a policy that PPO has trained; that few actions
are drawn from the policy in each state; that it learns off-policy from trajectories of the search, by a loss built from
means and standard deviations; and that with such a beginning few branches and few simulations suffice. All else here is
ours.
"""

import logging
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ...envs.schema import flag, group, whole
from ...envs.splitmix import branches, start
from ..core.compile import compiled
from ..core.config import describe
from ..core.data import RolloutStore
from ..core.loop import Part
from ..core.nets import ActorValue, Adam, Categorical, Gaussian
from ..core.on_policy import FLAG, SCALAR, Minibatch, OnPolicyAgent
from ..core.registry import AGENTS
from ..core.seeds import spawn_seed
from ..core.spaces import Fields, FieldSpec, Obs, count_rows, map_obs
from ..ppo import ppo_losses
from .config import TPOConfig
from .distil import Record, distil_losses
from .gate import SearchDoesNotHelpError, judge
from .guides import guide_of
from .planners import Roots, TreePlanner
from .policy import StateGaussian, adopt, keep_shared
from .simulator import searched
from .tree import TreeConfig

log = logging.getLogger("headway")

HEAD = "  real steps  simulated steps     return  top share  best Q - v"


@final
class TPO(OnPolicyAgent[TPOConfig]):
    """Tree-search policy optimisation: PPO first, then rounds of search, to which policy and value are fitted.

    Each round of the second part searches before every step, by ``N`` simulations over ``K`` candidates of the policy
    (see :mod:`.tree`), draws what is done by visits, and then descends, ``n_epochs`` times over its last rounds::

        w_k = n_k / N,   m = sum_k w_k a_k,   sigma_hat: see moments
        L   = mean_d [(mu - m)^2 / (2 sigma_old^2) + c_s (log sigma - log sigma_hat)^2] + c_v (V - V_hat)^2 + …
        V_hat = (1 - eta) v + eta G,   v = (V_old + sum_k n_k Q_k) / (1 + N),   G the lambda-return over v

    ``gate`` plays some episodes before the first search: where search does not help, there is nothing to learn from it.
    Statistics of observations and rewards are frozen then.

    It needs an environment whose rows can be copied, see :class:`~headway.agents.tpo.SearchPolicy`. ``predict`` is the
    policy alone; put a :class:`~headway.agents.tpo.SearchPolicy` around the agent to search there, too.

    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`TPOConfig`.

    :param start_from: a trained PPO, Headway's or Stable-Baselines3's, to begin with, or the file of one of Headway's
    """

    config_class = TPOConfig
    shares_features = True
    only_initial = ("log_std_init", "ortho_init")
    config: TPOConfig
    action_kinds = ("Box", "Discrete")
    arguments = ("start_from",)
    start_from: Any

    def _build(self) -> None:
        cfg, choices = self.config, self.actions.choices
        policy: Any = Gaussian(self.actions.size, cfg.log_std_init) if choices is None else Categorical(choices)
        if choices is None and cfg.std == "state":
            policy = StateGaussian(self.actions.size, cfg.log_std_init)
        nets = ActorValue(self.codec.features(), policy, **cfg.perceptron)
        if cfg.ortho_init:
            nets.orthogonal_()
        keep_shared(nets)
        self.searching, self.simulated, self.rounds, self._lines = False, 0, 0, 0
        self.starts_search_at = cfg.bootstrap_steps
        self._unit: float | None = None
        if self.start_from is not None:
            self.starts_search_at, self._unit = 0, self._begin_from(nets, self.start_from)
        self.nets = self.track("policy", nets, optimiser=Adam(eps=cfg.adam_eps), joint_norm=True)
        self.register("search", Part(self._search_state, self._load_search_state))
        self._ppo_losses = compiled(ppo_losses, cfg.compile, self.device)
        self._losses = compiled(distil_losses, cfg.compile, self.device)

    def _begin_from(self, nets: ActorValue, source: Any) -> float:
        """Take over a bootstrap; :return: what 1 of its values is in rewards"""
        model = AGENTS["PPO"].load(source, device=self.device) if isinstance(source, (str, Path)) else source
        adopt(nets, model)
        unit, training = guide_of(model).reward_unit, self.get_vec_normalize_env()
        scales = self.config.reward_scaling != "off" or (training is not None and training.norm_reward)
        if unit != 1.0 and not scales:
            raise ValueError(
                f"1 of the bootstrap's values is {unit:.3g} of reward, and rewards are not scaled here: set "
                "reward_scaling to 'returns', or use the VecNormalize that it was trained in"
            )
        return unit

    def _setup_model(self) -> None:
        super()._setup_model()
        cfg, kept = self.config, self.kept()
        if self._unit is not None and cfg.reward_scaling != "off":
            self.reward_scale.fix(self._unit)
        fields = {"obs": self.codec.spec, "real": FLAG, "returns": SCALAR}
        fields |= {name: kept[name] for name in Record._fields if name in kept}
        self.memory = RolloutStore(fields, n_steps=cfg.n_steps * cfg.history, n_envs=self.n_envs, device=self.device)
        self.register("memory", self.memory)

    def kept(self) -> dict[str, Fields]:
        """See :meth:`OnPolicyAgent.kept`: beside PPO's, what the search found."""
        size, discrete = self.actions.size, self.actions.choices is not None
        count = min(self.config.candidates, size) if discrete else self.config.candidates
        each = FieldSpec((count,), torch.float32)
        candidates = FieldSpec((count,), torch.int64, size) if discrete else FieldSpec((count, size), torch.float32)
        policy = FieldSpec((size if discrete else 2 * size,), torch.float32)
        found = {"candidates": candidates, "visits": each, "q": each, "outputs": policy, "before": policy}
        return super().kept() | found

    def _connect_env(self) -> None:
        super()._connect_env()
        self._planner: TreePlanner | None = None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.env is not None:
            searched(self.env)  # refused now, not after the bootstrap
        return super()._setup_learn(*args, **kwargs)

    # -- acting ------------------------------------------------------------------------------------------------------

    def values(self, obs: Obs) -> Tensor:
        """See :meth:`OnPolicyAgent.values`."""
        return self.nets.module(obs)[1]  # type: ignore[no-any-return]

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        outputs, policy = self.nets.module(obs)[0], self.nets.module.policy
        if deterministic:
            return policy.mode(outputs)
        return policy.sample(outputs, policy.noise(count_rows(obs), generator))[0]

    def choose(self) -> dict[str, Tensor]:
        """See :meth:`ActorCriticAgent.choose`; the first search begins with a round."""
        begins = not self.searching and not self.collector.in_progress
        if begins and self.num_timesteps >= self.starts_search_at:
            self._begin_search()
        return super().choose()

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """See :meth:`ActorCriticAgent.explore`: PPO's action and what belongs to it, or the search's."""
        if not self.searching:
            (outputs, values), policy = self.nets.module(obs), self.nets.module.policy
            actions, log_probs = policy.sample(outputs, policy.noise(self.n_envs, self.generators["collect"]))
            found = {
                name: torch.zeros(self.n_envs, *field.shape, dtype=field.dtype, device=self.device)
                for name, field in self.kept().items()
                if isinstance(field, FieldSpec)
            }
            return found | {"actions": actions, "log_probs": log_probs, "values": values}
        planner = self._searcher()
        words = self._words(self.n_envs, self.num_timesteps)
        batch: Any = searched(self.env)  # type: ignore[arg-type]
        rows = torch.arange(self.n_envs, device=batch.device)
        decision = planner.plan(Roots(batch.state(rows), obs, words), deterministic=False)
        self.simulated += int(decision.simulated.sum())
        tree, outputs = planner.tree, planner.guide.look(obs)[0]
        arrays = {"visits": tree.n, "q": tree.q, "values": tree.value}
        found = {name: torch.from_numpy(part[tree.base]).float().to(self.device) for name, part in arrays.items()}
        found |= {"candidates": tree.actions[torch.from_numpy(tree.base)], "outputs": outputs, "before": outputs}
        return found | {"actions": decision.actions, "log_probs": torch.zeros_like(found["values"])}

    def _searcher(self) -> TreePlanner:
        if self._planner is None:
            assert self.env is not None
            self._planner = self._planner_in(searched(self.env), self.n_envs)
        return self._planner

    def _planner_in(self, env: Any, roots: int) -> TreePlanner:
        settings = {name: getattr(self.config, name) for name in describe(TreeConfig)}
        return TreePlanner(guide_of(self), env, roots, TreeConfig(**settings))

    def _words(self, rows: int, time: int) -> Tensor:
        """:return: a random stream for each of the decisions at a time, (rows,)"""
        numbers = time + torch.arange(rows, device=self.device)
        return branches(torch.full_like(numbers, start(self.seed, 0)), numbers)

    # -- the gate ----------------------------------------------------------------------------------------------------

    def _begin_search(self) -> None:
        if self.config.gate != "off":
            self._pass_gate()
        if isinstance(self.nets.module.policy, StateGaussian):
            self.nets.module.policy.free.fill_(1.0)
        self._freeze()
        self.searching = True

    def _freeze(self) -> None:
        """Leave the statistics of observations and rewards as they are: values must keep their meaning."""
        if self.config.reward_scaling != "off":
            self.reward_scale.frozen = True
        if (normalizer := self.get_vec_normalize_env()) is not None:
            normalizer.training = False

    def _pass_gate(self) -> None:
        """See whether search acts better than the policy's mode; :raises SearchDoesNotHelpError: it does not"""
        cfg, count = self.config, self.config.gate_episodes
        env: Any = searched(self.env).like(count)  # type: ignore[arg-type, attr-defined]
        planner = self._planner_in(env, count)
        log.info("gate: playing %s episodes without search and with it", count)
        found = judge(planner, env, spawn_seed(self.seed or 0, "gate"), lambda step: self._words(count, -step * count))
        env.close()
        self.simulated += found.simulated
        figures = {"gate/policy_return": found.policy, "gate/search_return": found.search}
        self.metrics.add({name: torch.tensor(value) for name, value in figures.items()})
        if found.helps:
            log.info("gate: %s", found)
            return
        remedy = "train the bootstrap for longer, or search more (simulations, candidates)"
        if cfg.gate == "stop":
            raise SearchDoesNotHelpError(f"{found}: there is nothing to learn from it; {remedy}, or set gate to 'warn'")
        log.warning("gate: %s: there is little to learn from it; %s", found, remedy)

    # -- learning ----------------------------------------------------------------------------------------------------

    def source(self) -> tuple[RolloutStore, int]:
        """See :meth:`OnPolicyAgent.source`: of search, the last rounds."""
        return (self.memory, self.config.search_batch_size) if self.searching else super().source()

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`: PPO's, or the last rounds of search in minibatches."""
        due = super().phases(collected)
        return self._remember() if self.searching else due

    @torch.no_grad()
    def _remember(self) -> Sequence[tuple[str, int]]:
        cfg, rollout, memory = self.config, self.rollout, self.memory
        rollout["returns"].lerp_(rollout["values"], 1 - cfg.value_mix)  # V_hat = (1 - eta) v + eta G
        for t in range(cfg.n_steps):
            memory.add({name: map_obs(itemgetter(t), rollout.field(name)) for name in memory.names})
        self.rounds += 1
        look, steps = self._searcher().guide.look, min(self.rounds, cfg.history) * cfg.n_steps
        for t in range(steps):
            memory["before"][t] = look(map_obs(itemgetter(t), memory.field("obs")))[0]
        rows = int(memory["real"].sum())
        return [("distil", cfg.n_epochs * -(-rows // cfg.search_batch_size))]

    def _update(self, phase: str) -> dict[str, Tensor]:
        return self._update_by_search() if phase == "distil" else self._update_as_ppo()

    def _update_as_ppo(self) -> dict[str, Tensor]:
        cfg = self.config
        clip_range = cfg.clip_range * (self.progress_remaining if cfg.clip_range_schedule == "linear" else 1.0)
        losses = self._ppo_losses(self.nets.module, Minibatch(**self.minibatch(Minibatch._fields)), clip_range, cfg)
        if cfg.target_kl is not None and float(losses.approx_kl.detach()) > 1.5 * cfg.target_kl:
            self.end_phase()
        else:
            self.nets.minimise(losses.loss)
        return losses._asdict()

    def _update_by_search(self) -> dict[str, Tensor]:
        batch = Record(**self.minibatch(Record._fields))
        zero = torch.zeros(())
        bounds = (zero, zero) if self.actions.choices is not None else (self.actions.low, self.actions.high)  # type: ignore[attr-defined]
        losses = self._losses(self.nets.module, batch, bounds, self.config)
        if self.config.kl_stop is not None and float(losses.kl.detach()) > self.config.kl_stop:
            self.end_phase()
        else:
            self.nets.minimise(losses.loss)
        return {f"search/{name}": value for name, value in losses._asdict().items()}

    # -- what is told and kept ---------------------------------------------------------------------------------------

    def dump_logs(self) -> None:
        """See :meth:`LearningLoop.dump_logs`; with the steps of the simulator, real ones included."""
        self.logger.record("time/simulator_steps", self.num_timesteps + self.simulated)
        super().dump_logs()

    def describe_round(self) -> str:
        """See :meth:`LearningLoop.describe_round`: of search, a line with both accounts of steps."""
        if not self.searching:
            return ""
        returns = [info["r"] for info in self.ep_info_buffer or ()]
        reached = f"{np.mean(returns):>10.1f}" if returns else f"{'-':>10}"
        visits = self.rollout["visits"]
        share = float((visits.amax(-1) / visits.sum(-1)).mean())
        gain = float((self.rollout["q"].amax(-1) - self.rollout["values"]).mean())
        steps = f"{self.num_timesteps:>12,} {self.num_timesteps + self.simulated:>15,}"
        line = f"{steps} {reached} {share:>9.0%} {gain:>+9.3f}"
        self._lines += 1
        return f"{HEAD}\n{line}" if self._lines % 20 == 1 else line

    def _search_state(self) -> dict[str, Any]:
        state = {"searching": self.searching, "simulated": self.simulated, "rounds": self.rounds}
        return state | {"starts_search_at": self.starts_search_at}

    def _load_search_state(self, state: Mapping[str, Any]) -> None:
        counts = dict.fromkeys(("simulated", "rounds", "starts_search_at"), whole())
        group({"searching": flag, **counts})(state, "the search")
        for name, value in state.items():
            setattr(self, name, value)
        if self.searching:
            self._freeze()

    def __getstate__(self) -> dict[str, Any]:
        """A planner looks with the networks of its own agent, and is made anew."""
        return super().__getstate__() | {"_planner": None}
