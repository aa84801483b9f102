"""Looking ahead: every planner finds what is best, whoever guides it, and leaves the world as it was."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from headway.agents import BC, DQN, IQL, PPO, SAC, TD3, ActorCriticAgent, load
from headway.agents.mbpo import ModelEnv
from headway.agents.tpo import Guide, Search, SearchPolicy, guide_of
from headway.agents.tpo.planners import Roots, TreePlanner
from headway.agents.tpo.simulator import searched
from headway.agents.tpo.tree import TreeConfig
from headway.envs import BatchedEnv, make_batched
from headway.envs.splitmix import stream_of
from headway.envs.terminations import never
from headway.wrappers import BatchedVecEnv, as_batched
from headway.wrappers.random_delay import BatchedRandomDelay
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from support import same_tree
from toys import Point, planted, played, vec

CHEETAH = "headway/HalfCheetah-v5"
PLANNERS = {
    "tree": {"simulations": 32, "candidates": 16, "max_depth": 2, "exploration": 5.0},
    "shooting": {"simulations": 32, "horizon": 2},
    "mppi": {"simulations": 64, "horizon": 2},
    "smc": {"simulations": 32, "horizon": 1, "temperature": 0.1},
}


def ppo(env: Any = None, **options: Any) -> PPO:
    return PPO("MlpPolicy", vec() if env is None else env, seed=0, n_steps=8, batch_size=8, net_arch=(8,), **options)


class Knows(SearchPolicy):
    """Guided by somebody who pushes anywhere, and knows what places are worth."""

    def __init__(self, env: Any, planner: Any, **settings: Any) -> None:
        super().__init__(ppo(env), env, planner, **settings)
        self.planner.guide = guided(
            self.guide, lambda obs: (torch.cat((0 * obs, 0 * obs + 0.7), 1), -obs[:, 0].square())
        )


def guided(guide: Guide, look: Callable[[Any], Any]) -> Guide:
    fields = {name: getattr(guide, name) for name in Guide.__dataclass_fields__}
    return Guide(**fields | {"look": look})


# -- planners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", PLANNERS)
def test_every_planner_finds_the_way_home(planner: Any) -> None:
    env = vec(24)
    policy = Knows(env, planner, **PLANNERS[planner])
    env.seed(0)
    before = env.reset()
    actions, _ = policy.predict(before)
    after = before + actions
    assert np.abs(after).mean() < 0.5 * np.abs(before).mean()  # a push at random makes it worse
    spent = policy.simulated
    assert spent == 24 * PLANNERS[planner]["simulations"]
    again, _ = Knows(env, planner, **PLANNERS[planner]).predict(before)
    assert np.array_equal(again, actions)
    assert not np.array_equal(Knows(env, planner, seed=1, **PLANNERS[planner]).predict(before)[0], actions)


@pytest.mark.parametrize("planner", ["tree", "smc"])
def test_actions_can_be_drawn_by_how_good_they_look(planner: Any) -> None:
    env = vec(8)
    env.seed(0)
    obs = env.reset()
    drawn = [
        Knows(env, planner, seed=seed, **PLANNERS[planner]).predict(obs, deterministic=False)[0] for seed in range(3)
    ]
    best = [Knows(env, planner, seed=seed, **PLANNERS[planner]).predict(obs)[0] for seed in range(3)]
    far, near = (np.mean([np.abs(obs + actions).mean() for actions in each]) for each in (drawn, best))
    assert near < far < np.abs(obs).mean() + 0.7


def test_a_pole_is_balanced_by_looking_ahead_alone() -> None:
    env = DummyVecEnv([lambda: gym.make("CartPole-v1", max_episode_steps=60)] * 4)
    agent = PPO("MlpPolicy", env, seed=0, n_steps=8, batch_size=8, net_arch=(8,))
    policy = SearchPolicy(agent, env, simulations=24, check=False)

    def upright(obs: Any) -> tuple[Any, Any]:
        return torch.full((len(obs), 2), math.log(0.5)), -10 * (obs[:, 2] + 0.3 * obs[:, 3]).abs()

    policy.planner.guide = guided(policy.guide, upright)
    assert policy.planner.tree.candidates == 2  # type: ignore[attr-defined]
    reached, _ = evaluate_policy(policy, env, 4, warn=False)
    assert reached == 60
    alone, _ = evaluate_policy(agent, env, 4, warn=False, deterministic=False)
    assert alone < 40


def test_lines_of_discrete_actions_have_no_average() -> None:
    env = vec(2, moves="discrete")
    agent = PPO("MlpPolicy", env, seed=0, n_steps=8, batch_size=8)
    with pytest.raises(ValueError, match="MPPI averages actions, which Discrete ones do not allow"):
        SearchPolicy(agent, env, "mppi")
    obs = env.reset()
    for planner in ("tree", "shooting", "smc"):
        actions, _ = SearchPolicy(agent, env, planner, simulations=8).predict(obs)  # type: ignore[arg-type]
        assert actions.shape == (2,)
        assert env.action_space.contains(actions[0])


# -- worlds ------------------------------------------------------------------------------------------------------------


def steps_of(env: BatchedEnv, policy: Any, count: int) -> list[Any]:
    obs, _ = env.reset(seed=3)
    seen = [obs]
    for step in range(count):
        actions = torch.linspace(-1, 1, env.action_space.shape[0] * env.single_action_space.shape[0])  # type: ignore[index]
        if policy is not None:
            policy.predict(
                obs.numpy() if isinstance(obs, torch.Tensor) else {k: part.numpy() for k, part in obs.items()}
            )
        obs, rewards, *_ = env.step((actions.view(env.action_space.shape) * (step + 1)).sin())  # type: ignore[arg-type]
        seen += [obs, rewards]
    return [*seen, env.state(torch.arange(env.num_envs))]  # type: ignore[call-arg]


def test_a_search_leaves_the_world_as_it_is() -> None:
    def made() -> list[BatchedEnv]:
        cheetahs = make_batched(CHEETAH, 3, num_threads=1)
        delayed = BatchedRandomDelay(
            make_batched(CHEETAH, 2, num_threads=1), "uniform:1-3", "uniform:0-2", terminal_delivery="immediate"
        )
        spaces = (vec().observation_space, vec().action_space)
        model = ModelEnv(planted(0.25), never, torch.zeros(1, 1), spaces, num_envs=2, horizon=9)
        return [cheetahs, delayed, model, as_batched(vec(2))]

    for env, other in zip(made(), made(), strict=True):
        face = BatchedVecEnv(env)
        kind = "MultiInputPolicy" if isinstance(face.observation_space, gym.spaces.Dict) else "MlpPolicy"
        agent = PPO(kind, face, seed=0, n_steps=8, batch_size=8, net_arch=(8,))
        policy = SearchPolicy(agent, face, simulations=6, candidates=3)
        *seen, state = steps_of(env, policy, 8)
        *expected, untouched = steps_of(other, None, 8)
        same_tree(seen, expected)
        if "rows" not in state:  # which hold the streams of action spaces, seeded by nobody
            same_tree(state, untouched)
        assert policy.simulated == 8 * 6 * env.num_envs


def plans(rows: list[int], threads: int = 1, wave: int = 1, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Search from eight states of a cheetah, in so many parts; :return: visits, and what is done."""
    env: Any = make_batched(CHEETAH, 8, num_threads=threads)
    obs, _ = env.reset(seed=5)
    small: Any = {"seed": 0, "n_steps": 8, "batch_size": 8, "net_arch": (8,)}
    agent, same = (PPO("MlpPolicy", BatchedVecEnv(env), device=d, **small) for d in (device, "cpu"))
    agent.set_parameters(same.get_parameters())
    guide = guide_of(agent)
    found, start = [], 0
    obs, _ = env.reset(seed=5)
    for count in rows:
        part = torch.arange(start, start + count)
        planner = TreePlanner(guide, env, count, TreeConfig(simulations=16, candidates=4, wave=wave))
        decision = planner.plan(
            Roots(env.state(part), guide.encode(obs[part]), stream_of(0, obs[part]).to(guide.device))
        )
        found.append((torch.from_numpy(planner.tree.n[planner.tree.base]), decision.actions))
        start += count
    return torch.cat([n for n, _ in found]), torch.cat([actions for _, actions in found])


def test_plans_depend_neither_on_company_nor_on_threads() -> None:
    visits, actions = plans([8])
    for other in (plans([4, 4]), plans([1, 2, 5]), plans([8], threads=2)):
        assert torch.equal(other[0], visits)
        torch.testing.assert_close(other[1], actions, atol=1e-6, rtol=0)  # networks round by the number of rows
    assert (plans([8], wave=4)[0].sum(1) == 16).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_networks_on_a_gpu_find_the_same_plans() -> None:
    visits, actions = plans([8])
    found = plans([8], device="cuda")
    assert torch.equal(found[0], visits)
    torch.testing.assert_close(found[1].cpu(), actions, atol=1e-5, rtol=0)


def test_searches_keep_what_came_true() -> None:
    env = make_batched(CHEETAH, 2, num_threads=1)
    face = BatchedVecEnv(env)
    policies = [SearchPolicy(ppo(face), face, simulations=20, candidates=3, reuse=reuse) for reuse in (True, False)]
    face.seed(0)
    obs = face.reset()
    for _ in range(5):
        obs, *_ = face.step(policies[0].predict(obs)[0])
    assert 40 < policies[0].simulated < 200
    face.seed(0)
    obs = face.reset()
    for _ in range(5):
        obs, *_ = face.step(policies[1].predict(obs)[0])
    assert policies[1].simulated == 200


class Shared(Point):
    """Counts in a class attribute, which all objects of it share, and tells by its reward."""

    count = 0

    def step(self, action: Any) -> Any:
        type(self).count += 1
        obs, reward, *rest = super().step(action)
        return obs, reward + self.count, *rest


def test_worlds_that_cannot_be_copied_are_refused() -> None:
    env = DummyVecEnv([Shared])
    with pytest.raises(
        ValueError, match=r"cannot be searched, since what is tried would not be what happens: .*step 1 of"
    ):
        SearchPolicy(ppo(env), env)
    with pytest.raises(TypeError, match="the rows of a VecFrameStack cannot be reached one by one"):
        searched(VecFrameStack(vec(), 2))
    with pytest.raises(ValueError, match=r"3 observations were given, and the environment that is searched has 2 rows"):
        SearchPolicy(ppo(vec(2)), vec(2)).predict(np.zeros((3, 1), np.float32))
    with pytest.raises(ValueError, match=r"the environment's observation space is .*, the policy's Box"):
        SearchPolicy(ppo(), make_batched(CHEETAH, 1))
    fewer = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(ValueError, match=r"the environment's observation space is .*, the policy's Box"):
        SearchPolicy(ppo(vec(moves="discrete")), fewer)
    box, choices = vec(), vec(moves="discrete")
    with pytest.raises(ValueError, match=r"the environment's action space is Discrete\(5\), the policy's Box"):
        SearchPolicy(ppo(box), choices)
    choices.envs[0].unwrapped.action_space = gym.spaces.Discrete(4)  # type: ignore[misc]
    choices.action_space = gym.spaces.Discrete(4)
    with pytest.raises(
        ValueError, match=r"the environment's action space is Discrete\(4\), the policy's Discrete\(5\)"
    ):
        SearchPolicy(ppo(vec(moves="discrete")), choices)


def test_one_environment_is_searched_without_its_axis() -> None:
    env = vec(1)
    policy = SearchPolicy(ppo(env), env, simulations=4, candidates=2)
    actions, state = policy.predict(env.reset()[0])
    assert (actions.shape, state) == ((1,), None)


# -- guides ------------------------------------------------------------------------------------------------------------


MODELS: dict[str, Callable[[], Any]] = {
    "PPO": lambda: ppo(vec(2)),
    "SAC": lambda: SAC("MlpPolicy", vec(2), seed=0, net_arch=(8,)),
    "TD3": lambda: TD3("MlpPolicy", vec(2), seed=0, net_arch=(8,)),
    "IQL": lambda: IQL("MlpPolicy", dataset=played(Point()), seed=0, net_arch=(8,)),
    "peer's PPO": lambda: sb3.PPO("MlpPolicy", vec(2), policy_kwargs={"net_arch": [8]}, seed=0),
    "peer's A2C": lambda: sb3.A2C("MlpPolicy", vec(2), policy_kwargs={"net_arch": [8]}, seed=0),
    "peer's SAC": lambda: sb3.SAC("MlpPolicy", vec(2), policy_kwargs={"net_arch": [8]}, seed=0),
    "peer's TD3": lambda: sb3.TD3("MlpPolicy", vec(2), policy_kwargs={"net_arch": [8]}, seed=0),
}


@pytest.mark.parametrize("name", MODELS)
def test_guides_say_what_their_agents_do(name: str) -> None:
    model = MODELS[name]()
    guide, obs = guide_of(model), torch.linspace(-1, 1, 5).unsqueeze(1)
    with torch.no_grad():
        outputs, values = guide.look(guide.encode(obs))
        acted, _ = model.predict(obs.numpy(), deterministic=True)
        np.testing.assert_allclose(guide.to_env(guide.mode(outputs)).numpy(), acted, atol=1e-6)
        assert values.shape == (5,)
        if isinstance(model, sb3.PPO | sb3.A2C):
            np.testing.assert_allclose(values, model.policy.predict_values(obs).squeeze(1), atol=1e-6)
        if isinstance(model, sb3.SAC | sb3.TD3):
            worth = torch.cat(model.critic(obs, torch.as_tensor(model.policy.scale_action(acted))), 1).amin(1)
            np.testing.assert_allclose(values, worth, atol=1e-6)
        if isinstance(model, ActorCriticAgent) and isinstance(model, SAC | TD3):
            worth = model.critics.module(obs, model.actions.from_env(torch.as_tensor(acted))).amin(0)
            np.testing.assert_allclose(values, worth, atol=1e-6)
    words = torch.arange(4000)
    draws, _ = guide.candidates(outputs[:1].expand(4000, -1), words, 3)
    mean, std = outputs[0].chunk(2)
    np.testing.assert_allclose(draws.mean((0, 1)), mean, atol=0.05)
    np.testing.assert_allclose(draws.std((0, 1)), std, rtol=0.05)
    assert torch.equal(guide.candidates(outputs[:1], words[:1], 3, include_mean=True)[0][0, 0], mean)


@pytest.mark.parametrize("cls", [sb3.PPO, PPO], ids=["peer", "ours"])
def test_observations_are_seen_as_in_training(cls: Any) -> None:
    env = VecNormalize(vec(2), norm_reward=True)
    model = cls("MlpPolicy", env, n_steps=32, batch_size=8, seed=0)
    model.learn(64)
    guide, raw = guide_of(model), torch.tensor([[0.5], [-1.0]])
    shown = torch.as_tensor(env.normalize_obs(raw.numpy()), dtype=torch.float32)
    torch.testing.assert_close(guide.encode(raw).float(), guide.read(shown))  # type: ignore[union-attr]
    assert guide.reward_unit == pytest.approx(math.sqrt(env.ret_rms.var + env.epsilon))
    SearchPolicy(model, env, simulations=4, candidates=2).predict(env.reset())


def test_the_unit_of_rewards_is_in_policy_files(tmp_path: Any) -> None:
    agent = ppo(vec(2), reward_scaling="returns")
    assert agent.reward_unit == 1.0
    agent.learn(64)
    assert agent.reward_unit == pytest.approx(float((agent.reward_scale.var + 1e-8).sqrt()))
    assert agent.reward_unit != 1.0
    agent.save(tmp_path / "policy.zip")
    assert guide_of(load(tmp_path / "policy.zip")).reward_unit == agent.reward_unit


def test_agents_without_a_policy_or_a_value_guide_nobody() -> None:
    for agent, lacks in (
        (DQN("MlpPolicy", vec(moves="discrete")), "DQN has no policy that candidates could be drawn from"),
        (BC("MlpPolicy", dataset=played(Point())), "BC has no value of states or actions"),
        (sb3.DQN("MlpPolicy", vec(moves="discrete")), "DQN has no policy and value that are known here"),
    ):
        with pytest.raises(TypeError, match=f"{lacks}: a search needs both, as PPO, A2C, SAC"):
            guide_of(agent)
    with pytest.raises(
        ValueError, match="a search chooses in a Box or Discrete action space, this policy acts in Multi"
    ):
        guide_of(ppo(vec(moves="multidiscrete")))


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_searches_are_read() -> None:
    assert Search.of("tree:32,8") == Search("tree", {"simulations": 32, "candidates": 8})
    assert Search.of("tree") == Search("tree", {})
    full = Search.of("tree:16,exploration=0.5,reuse,max_depth=null,root=puct")
    assert full == Search(
        "tree", {"simulations": 16, "exploration": 0.5, "max_depth": None, "root": "puct"}, reuse=True
    )
    assert Search.of("smc:32,4,temperature=1") == Search("smc", {"simulations": 32, "horizon": 4, "temperature": 1})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bush:3", ValueError, "'bush' is no planner, it can be tree, shooting, mppi, smc"),
        ("tree:0", ValueError, r"TreeConfig.simulations must lie in \[1, inf\), got 0"),
        ("tree:3,0", ValueError, r"TreeConfig.candidates must lie in \[1, inf\), got 0"),
        (
            "tree:3,4,5",
            ValueError,
            "'5' needs a name, as in exploration=0.5; only simulations and candidates go without",
        ),
        ("tree:3,simulations=4", ValueError, "simulations is given twice"),
        ("tree:3,explore=1", TypeError, "TreeConfig has no field 'explore': .*exploration"),
        ("tree:three", TypeError, "TreeConfig.simulations must be int, got 'three'"),
        ("shooting:3,4", ValueError, "3 simulations make no line of 4 steps: take more of them, or a shorter horizon"),
        ("mppi:4,4", ValueError, "4 simulations make no line"),
        ("smc:8,4,reuse", ValueError, "'reuse' needs a name"),
    ],
)
def test_searches_that_cannot_be(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Search.of(text)
