"""PGPS and CEM: the coupling by hand, the settings that reduce it to its parts, generations and their account."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from headway.agents import CEM, PGPS, TD3
from headway.agents.pgps import Population, flatten, unflatten
from headway.agents.pgps.agent import next_beta, rank_correlation, scores, screened
from headway.agents.pgps.evolution import ORIGINS
from headway.agents.pgps.learners import distance, guided_loss
from headway.agents.presets import preset
from headway.agents.td3 import actor_loss, critic_loss, smoothed_target
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from support import same_tree
from torch import Tensor, nn
from toys import Point

TINY: dict[str, Any] = {"net_arch": [8, 8], "population_size": 4, "batch_size": 8, "learning_starts": 0}
TINY |= {"surrogate_states": 4, "probe_states": 8, "n_blocks": 2, "buffer_size": 5000, "device": "cpu", "seed": 3}
SEARCH = {"net_arch": [8, 8], "population_size": 4, "device": "cpu", "seed": 3}
COUPLED: dict[str, Any] = TINY | {"surrogate_start": 0, "candidates": 5}
ALONE: dict[str, Any] = TINY | {"surrogate": False, "guided": False, "insert_every": 0, "target_from_elite": False}


class Open(Point):
    """A point whose episodes have seven steps, wherever it goes."""

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


class Fixed(Open):
    """One that always starts at the same place, however often it is reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=1, options=options)
        return self._observe(), {}


def points(rows: int = 4, make: Callable[[], gym.Env[Any, Any]] = Point) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(make()) for _ in range(rows)])


class Generations(BaseCallback):
    """Keeps what each generation played with, and what it earned."""

    def __init__(self) -> None:
        super().__init__()
        self.members: list[Tensor] = []
        self.fitness: list[Tensor] = []
        self.slots: list[int | None] = []
        self.rows: list[str] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.slots.append(None)

    def _on_rollout_end(self) -> None:
        agent: Any = self.model
        self.members.append(agent.members.clone())
        self.fitness.append(agent.collector.fitness.clone())
        self.slots[-1] = getattr(agent, "learner_slot", None)
        self.rows.append(agent.describe_round())


def played(agent: Any, steps: int) -> Generations:
    seen = Generations()
    agent.learn(steps, seen)
    return seen


# -- the critic's choice ---------------------------------------------------------------------------------------------


class Target(nn.Module):
    """Values an action by its distance to another."""

    def __init__(self, best: float) -> None:
        super().__init__()
        self.best = best

    def first(self, obs: Tensor, actions: Tensor) -> Tensor:
        return -(actions - self.best).square().sum(-1)


@pytest.mark.parametrize("size", [4, 6, 7, 10])
def test_the_critic_chooses_the_nearest_candidates(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = PGPS("MlpPolicy", points(size), **COUPLED | {"population_size": size}).learn(7 * size)
    agent.critics.module = Target(0.3)  # type: ignore[assignment]
    before = agent.generators["store"].get_state()
    drawn: list[Tensor] = []
    draw = agent.search.draw

    def noted(count: int, **where: Any) -> Tensor:
        made = draw(count, **where)
        drawn.append(made.clone())
        return made

    monkeypatch.setattr(agent.search, "draw", noted)
    agent.begin_generation()
    fresh, candidates, half = drawn[0], torch.cat(drawn[1:]), size // 2
    assert len(candidates) == 5 * size - 1
    agent.generators["store"].set_state(before)
    away = [
        (Population(agent.actor.module, candidate.view(1, -1)).act(obs) - 0.3).square().mean()
        for obs in [agent.sample(4).obs]
        for candidate in candidates
    ]
    nearest = torch.stack(away).topk(half - 1, largest=False).indices.tolist()
    assert torch.equal(agent.members[0], agent.search.elite)  # type: ignore[arg-type]
    assert torch.equal(agent.members[half:-1], fresh[:-1])
    assert torch.equal(agent.members[-1], flatten(agent.actor.module))
    names = [ORIGINS[int(code)] for code in agent.origins]
    assert names == ["elite"] + ["screened"] * (half - 1) + ["random"] * (size - half - 1) + ["learner"]
    assert [int((candidates == member).all(1).nonzero()) for member in agent.members[1:half]] == nearest


@pytest.mark.parametrize("shared", [False, True])
def test_the_best_of_several_chunks_are_kept(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are drawn into the same memory, of which the best are copied."""
    agent = PGPS("MlpPolicy", points(), **COUPLED)
    search, actor, critics = agent.search, agent.actor.module, agent.critics.module
    obs, size = torch.linspace(-1, 1, 6).view(6, 1), len(search.mean)
    monkeypatch.setattr("headway.agents.pgps.agent.CHUNK", 4 * size)
    monkeypatch.setattr("headway.agents.pgps.cem.TABLE", 10 * size)
    before = search.generator.get_state()
    kept = screened(search, actor, critics, obs, count=21, best=3, shared=shared)
    search.generator.set_state(before)
    drawn = torch.cat([part.clone() for part in search.batches(21, 4, shared=shared)])
    assert len(drawn.unique(dim=0)) == 21
    judged = scores(Population(actor, drawn), critics, obs)
    assert torch.equal(kept, drawn[judged.topk(3).indices])
    assert screened(search, actor, critics, obs, count=21, best=0, shared=shared).shape == (0, size)


def test_scores_are_means_over_states_of_each_member() -> None:
    agent = PGPS("MlpPolicy", points(), **COUPLED)
    members, obs = agent.search.draw(5), torch.linspace(-1, 1, 6).view(6, 1)
    found = scores(Population(agent.actor.module, members), agent.critics.module, obs)
    for member, score in zip(members, found, strict=True):
        actor = copy.deepcopy(agent.actor.module)
        unflatten(member, actor)
        torch.testing.assert_close(score, agent.critics.module.first(obs, actor.mode(obs)).mean())
    best = scores(Population(agent.actor.module, members), Target(0.3), obs).argmax()  # type: ignore[arg-type]
    away = [(Population(agent.actor.module, m.view(1, -1)).act(obs) - 0.3).square().mean() for m in members]
    assert int(best) == int(torch.stack(away).argmin())


# -- guidance --------------------------------------------------------------------------------------------------------


def actors() -> tuple[Any, Any, PGPS]:
    agent = PGPS("MlpPolicy", points(), **COUPLED)
    other = copy.deepcopy(agent.actor.module)
    unflatten(agent.search.draw(1)[0], other)
    return agent.actor.module, other, agent


def test_the_pull_has_the_gradient_of_a_mean_square() -> None:
    actor, guide, _ = actors()
    obs = torch.linspace(-1, 1, 5).view(5, 1)
    found = torch.autograd.grad(3 * distance(actor, guide, obs), list(actor.parameters()))
    actions = actor.mode(obs)
    at_output = 2 * 3 * (actions - guide.mode(obs)).detach() / actions.numel()
    expected = torch.autograd.grad(actions, list(actor.parameters()), at_output)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.grad is None for p in guide.parameters())


def test_the_guided_loss_is_both_losses() -> None:
    actor, guide, agent = actors()
    critics, obs, beta = agent.critics.module, torch.linspace(-1, 1, 5).view(5, 1), torch.tensor(3.0)
    loss, pulled = guided_loss(critics, actor, guide, obs, beta)
    torch.testing.assert_close(loss, actor_loss(critics, actor, obs), rtol=0, atol=0)
    expected = actor_loss(critics, actor, obs) + beta * distance(actor, guide, obs)
    grads = [torch.autograd.grad(value, list(actor.parameters())) for value in (pulled, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.grad is None for p in guide.parameters())


def test_no_strength_is_no_pull_and_much_is_imitation() -> None:
    batch = []
    for guide_strength in (None, 0.0):
        actor, guide, agent = actors()
        agent.learn(28)
        rows = agent.store.sample(8)
        strength = torch.tensor(guide_strength or 0.0)
        agent.gradient_learner.actor_step(rows, None if guide_strength is None else guide, strength)
        batch.append(flatten(actor))
    torch.testing.assert_close(*batch, atol=1e-7, rtol=0)
    actor, guide, agent = actors()
    agent.learn(28)
    for _ in range(400):
        agent.gradient_learner.actor_step(agent.sample(), guide, torch.tensor(1024.0))
    assert float(distance(actor, guide, agent.sample(50).obs).detach()) < 1e-3


def test_the_strength_follows_the_distance() -> None:
    assert [next_beta(1.0, found, 0.05) for found in (0.08, 0.05, 0.03)] == [2.0, 1.0, 0.5]
    beta = 1.0
    for _ in range(30):
        beta = next_beta(beta, 1.0, 0.05)
    assert beta == 1024
    for _ in range(30):
        beta = next_beta(beta, 0.0, 0.05)
    assert beta == 1 / 1024


def test_only_a_learner_that_falls_behind_is_guided() -> None:
    for earned, margin, guided in (
        ([1.0, 1.0, 1.0, 0.0], 0.0, True),
        ([0.0, 1.0, 0.0, 1.0], 0.0, False),
        ([1.0, 1.0, 1.0, 0.0], 1.0, True),  # 0 < 0.75 - 0.43
        ([1.0, 0.0, 2.0, 0.9], 1.0, False),
    ):
        agent = PGPS("MlpPolicy", points(), **COUPLED | {"guided_margin": margin}).learn(28)
        agent.learner_slot = 3
        agent.collector.fitness.copy_(torch.tensor(earned))
        agent.phases(28)
        assert agent.is_guided is guided
    agent.learner_slot = None
    agent.collector.fitness.copy_(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    agent.phases(28)
    assert not agent.is_guided


def test_the_slow_actor_becomes_the_elite() -> None:
    for lends in (True, False):
        agent = PGPS("MlpPolicy", points(), **COUPLED | {"target_from_elite": lends})
        agent.learn(28)
        agent.collector.fitness.copy_(torch.arange(4.0))
        agent.phases(28)
        assert torch.equal(flatten(agent.actor.target), agent.search.elite) is lends  # type: ignore[arg-type]


def test_rank_correlation() -> None:
    one = torch.tensor([3.0, 1.0, 2.0, 5.0])
    assert float(rank_correlation(one, one * 10 - 4)) == pytest.approx(1)
    assert float(rank_correlation(one, -one)) == pytest.approx(-1)
    assert float(rank_correlation(one, torch.tensor([3.0, 2.0, 1.0, 5.0]))) == pytest.approx(0.8)


# -- what settings reduce it to --------------------------------------------------------------------------------------


def test_a_population_of_the_learner_alone_is_td3() -> None:
    shared = {"net_arch": [8, 8], "activation": "elu", "batch_size": 8, "learning_starts": 14, "seed": 3}
    shared |= {"learning_rate": 1e-3, "device": "cpu", "buffer_size": 5000}
    td3 = TD3("MlpPolicy", Fixed(), action_noise_std=0.0, train_freq=(1, "episode"), gradient_steps=-1, **shared)
    pgps = PGPS(
        "MlpPolicy",
        Fixed(),
        **shared,
        population_size=1,
        update_order="delayed",
        elitism=False,
        surrogate=False,
        guided=False,
        target_from_elite=False,
        actor_learning_rate=None,
        weight_decay=0.0,
        max_grad_norm=None,
    )
    td3.learn(70)
    pgps.learn(70)
    ours, theirs = pgps.modules.state(), td3.modules.state()
    assert pgps.updates == td3.updates == 56
    same_tree({name: ours[name] for name in theirs}, theirs)
    assert torch.equal(pgps.store.state()["data.rewards"], td3.store.state()["data.rewards"])


def test_without_coupling_the_search_is_cem() -> None:
    cem = played(CEM("MlpPolicy", points(), **SEARCH), 100)
    for learner in ({}, {"learning_rate": 1e-2, "gamma": 0.5, "batch_size": 5}, {"learner": "sac"}):
        agent = PGPS("MlpPolicy", points(), **{**ALONE, **learner})
        if "learner" in learner:  # whose policies have other weights
            assert len(played(agent, 60).members) > 1
            continue
        found = played(agent, 100)
        assert agent.updates > 50
        same_tree([found.members, found.fitness], [cem.members, cem.fitness])


def test_inserted_alone_the_learner_is_one_member_of_cem() -> None:
    agent = PGPS("MlpPolicy", points(), **TINY | {"surrogate": False, "guided": False, "insert_every": 2})
    seen = played(agent, 150)
    assert seen.slots[:5] == [None, 3, None, 3, None]
    assert agent.beta == 1
    again = PGPS("MlpPolicy", points(make=Open), **TINY | {"surrogate": False, "guided": False, "insert_every": 2})
    again.learn(28)
    again.begin_generation()
    assert torch.equal(again.members[-1], flatten(again.actor.module))
    assert torch.equal(again.members[0], again.search.elite)  # type: ignore[arg-type]


def cem_rl_by_hand(agent: PGPS, steps: int) -> Tensor:
    """Train half of the next population as CEM-RL does, in plain torch, from a copy of the agent."""
    members = agent.search.ask()
    critics, slow = agent.critics.module, agent.critics.target
    assert slow is not None
    adam = torch.optim.Adam(critics.parameters(), lr=1e-3)
    for member in range(2):
        actor = copy.deepcopy(agent.actor.module)
        unflatten(members[member], actor)
        following = copy.deepcopy(actor)
        own = torch.optim.Adam(actor.parameters(), lr=1e-3)
        for _ in range(steps // 2):
            batch = agent.sample()
            target = smoothed_target(batch, following, slow, agent.config, agent.noise(8, 1))
            adam.zero_grad()
            critic_loss(critics, batch, target).backward()
            adam.step()
            for one, other in zip(slow.parameters(), critics.parameters(), strict=True):
                one.data.lerp_(other.data, 0.005)
        for _ in range(steps):
            own.zero_grad()
            actor_loss(critics, actor, agent.sample().obs).backward()
            own.step()
            for one, other in zip(following.parameters(), actor.parameters(), strict=True):
                one.data.lerp_(other.data, 0.005)
        members[member] = flatten(actor)
    return members


def test_the_preset_is_cem_rl() -> None:
    hyper = preset("pgps", "cem-rl", PGPS.config_class)
    hyper |= {"net_arch": [8, 8], "population_size": 4, "trained_members": 2, "batch_size": 8}
    agent, by_hand = (
        PGPS("MlpPolicy", points(make=Open), seed=3, device="cpu", **{**hyper, "gradients_start": start}).learn(28)
        for start in (27, 10**9)
    )
    expected = cem_rl_by_hand(by_hand, 28)
    torch.testing.assert_close(agent.members, expected, atol=2e-6, rtol=0)
    assert agent.updates == 2 * (14 + 28 + 2)
    assert [ORIGINS[int(code)] for code in agent.origins] == ["learner", "learner", "random", "random"]


# -- generations -----------------------------------------------------------------------------------------------------


def test_steps_are_those_of_the_members_after_the_warm_up() -> None:
    agent = PGPS("MlpPolicy", points(), **COUPLED | {"learning_starts": 10})
    seen = played(agent, 120)
    assert len(agent.store) == agent.num_timesteps
    assert agent.horizon == 1000
    assert seen.rows[0] == ""  # of random actions
    assert "best" in seen.rows[1]
    assert agent.generation == len(seen.rows) - 1
    assert agent.updates <= 2 * (agent.num_timesteps - 12)


def test_generations_of_random_actions_start_elsewhere_each_time() -> None:
    agent = PGPS("MlpPolicy", points(), **COUPLED | {"learning_starts": 84})
    agent.learn(84)
    starts = agent.store.state()["data.obs"].flatten()
    assert agent.played > 1
    assert len(starts.unique()) > 0.95 * len(starts)


def test_returns_do_not_depend_on_rows() -> None:
    found = [played(CEM("MlpPolicy", points(rows), **SEARCH), 60) for rows in (1, 3, 4, 6)]
    for other in found[1:]:
        for one, two in zip(found[0].fitness[:3], other.fitness[:3], strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_several_episodes_are_a_members_mean() -> None:
    agent = CEM("MlpPolicy", points(8), member_episodes=2, **SEARCH)
    seen = Generations()
    agent.learn(40, seen)
    assert seen.fitness[0].shape == (8,)
    means = seen.fitness[-1].view(4, 2).mean(1)
    assert torch.equal(agent.search.elite, seen.members[-1][means.argmax()])  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", ["fixed", "released"])
def test_a_cut_is_no_end(rules: str) -> None:
    agent = PGPS("MlpPolicy", points(make=Open), horizon=3, rules=rules, **COUPLED).learn(24)
    held = agent.store.state()
    cut = held["data.terminated"] if rules == "released" else held["data.truncated"]
    other = held["data.truncated"] if rules == "released" else held["data.terminated"]
    assert int(cut.sum()) == agent.num_timesteps // 3
    assert not other.any()
    lengths = {info["l"] for info in agent.ep_info_buffer or ()}
    assert lengths == {3}


def test_a_fall_is_an_end() -> None:
    agent = PGPS("MlpPolicy", points(), **COUPLED | {"learning_starts": 60}).learn(60)
    held = agent.store.state()
    assert held["data.terminated"].any()
    assert not (held["data.terminated"] & held["data.truncated"]).any()


def test_horizons_grow_with_experience() -> None:
    agent = CEM(
        "MlpPolicy", points(make=Open), initial_horizon=2, horizon_growth=2, horizon_interval=8, horizon=5, **SEARCH
    )
    lengths: list[int] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            lengths.extend(info["episode"]["l"] for info in self.locals["infos"] if "episode" in info)
            return True

    agent.learn(60, Look())
    assert lengths[:16] == [2] * 4 + [4] * 4 + [5] * 8


@pytest.mark.parametrize("rules", ["fixed", "released"])
def test_members_are_drawn_anew_but_for_an_accident(rules: str) -> None:
    seen = played(PGPS("MlpPolicy", points(), **COUPLED | {"surrogate_start": 100, "rules": rules}), 200)
    same = [
        [bool((one == other).all()) for one, other in zip(before[1:-1], after[1:-1], strict=True)]
        for before, after in zip(seen.members[:3], seen.members[1:4], strict=True)
    ]
    assert all(map(all, same)) if rules == "released" else not any(map(any, same))
    last = zip(seen.members[-2][1:-1], seen.members[-1][1:-1], strict=True)
    assert not any(bool((one == other).all()) for one, other in last)


def test_sac_can_be_the_learner() -> None:
    agent = PGPS("MlpPolicy", points(), **COUPLED | {"learner": "sac"}).learn(100)
    assert agent.updates > 50
    assert set(agent.modules.networks()) == {"actor", "critics", "critics_target", "temperature", "mean", "elite"}
    obs = np.zeros((3, 1), np.float32)
    assert np.array_equal(agent.predict(obs)[0], agent.predict(obs)[0])  # members do not draw


@pytest.mark.parametrize("acts", ["mean", "elite", "actor"])
def test_who_acts_can_be_chosen(acts: str, tmp_path: Any) -> None:
    agent = PGPS("MlpPolicy", points(), **COUPLED).learn(60)
    agent.save(tmp_path / "a")
    loaded = PGPS.load(tmp_path / "a", acts=acts)
    obs = torch.linspace(-1, 1, 4).view(4, 1)
    expected = getattr(agent, acts).module.mode(obs)
    assert np.allclose(loaded.predict(obs.numpy())[0], expected.detach().numpy(), atol=1e-6)


def test_a_loaded_policy_is_where_the_search_goes_on(tmp_path: Any) -> None:
    agent = CEM("MlpPolicy", points(), **SEARCH).learn(60)
    agent.save(tmp_path / "a")
    loaded = CEM.load(tmp_path / "a", points())
    mean = flatten(agent.mean.module)
    loaded.begin_generation()
    assert torch.equal(loaded.search.mean, mean)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"population_size": 0}, r"population_size must lie in \[1, inf\), got 0"),
        ({"n_parents": 5}, "n_parents must be at most population_size, 4, got 5"),
        ({"variance_decay": 1.5}, r"variance_decay must lie in \[0, 1\], got 1.5"),
        ({"trained_members": 5}, "trained_members must be at most population_size, 4, got 5"),
        ({"learner": "sac", "update_order": "delayed"}, "'delayed' is TD3's"),
        ({"rules": "new"}, "rules must be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(hyper: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PGPS("MlpPolicy", points(), **TINY | hyper)


def test_worlds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got Discrete"):
        PGPS("MlpPolicy", points(make=partial(Point, moves="discrete")), **TINY)
    with pytest.raises(ValueError, match=r"reads? vectors, the environment shows images of shape \(36, 36, 1\)"):
        CEM("CnnPolicy", points(make=partial(Point, form="image")), **SEARCH)
    with pytest.raises(ValueError, match=r"horizon is None, and nothing says that episodes of .* end"):
        CEM("MlpPolicy", points(), horizon=None, **SEARCH)
