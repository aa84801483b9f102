"""What users of Stable-Baselines3 ask for by its names counts, or is refused in words."""

import inspect
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from headway import agents
from headway.agents import AGENTS, PPO, SAC, ActorCriticAgent
from headway.agents.core.attributes import _Field, _Kept, _Lacking, _LearningRateSchedule
from headway.agents.core.config import describe
from headway.agents.core.sb3_names import ATTRIBUTES, HOOKS, KEYWORDS, POLICY_KEYWORDS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.sac.policies import SACPolicy
from test_conformance import CASES, Case, equal
from torch import nn
from toys import DelayedPoint, Point

Agent = ActorCriticAgent[Any]
BOTH = ("SAC", "TD3", "PPO", "DQN")
"""Algorithms that both libraries have."""
SMALL = {"net_arch": (8,), "device": "cpu", "seed": 0}


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def make(name: str = "SAC", **kwargs: Any) -> Agent:
    return case_of(name).make(**kwargs)


def parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    return {k: v for k, v in inspect.signature(cls.__init__).parameters.items() if k != "self"}


# -- keywords ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_every_keyword_of_the_other_constructor_is_decided(name: str) -> None:
    asked = parameters(getattr(stable_baselines3, name))
    known = parameters(AGENTS[name]).keys() | describe(AGENTS[name].config_class).keys() | KEYWORDS.keys()
    assert asked.keys() <= known
    defaults = {key: p.default for key, p in asked.items() if p.default is not inspect.Parameter.empty}
    agent = make(name, **defaults | {"buffer_size": 100} if name != "PPO" else defaults)
    assert agent.config.gamma == defaults["gamma"]


@pytest.mark.parametrize("base", [BaseAlgorithm, OffPolicyAlgorithm, OnPolicyAlgorithm, stable_baselines3.A2C])
def test_every_keyword_of_the_other_bases_is_decided(base: type[Any]) -> None:
    fields = {key for agent in AGENTS.values() for key in describe(agent.config_class)}
    internal = {"support_multi_env", "supported_action_spaces", "sde_support"}  # of its own subclasses
    assert parameters(base).keys() <= parameters(SAC).keys() | fields | KEYWORDS.keys() | internal


@pytest.mark.parametrize("name", BOTH)
def test_every_key_of_policy_kwargs_is_decided(name: str) -> None:
    policy = getattr(stable_baselines3, name).policy_aliases["MlpPolicy"]
    asked = {k: v.default for k, v in parameters(policy).items() if k not in ("observation_space", "action_space")}
    del asked["lr_schedule"]
    assert asked.pop("net_arch") is None
    agent = make(name, policy_kwargs=asked)
    if name == "PPO":
        assert agent.config.ortho_init is True
        agent = make(name, policy_kwargs={"log_std_init": -2.0, "ortho_init": False})
        assert (agent.config.log_std_init, agent.config.ortho_init) == (-2.0, False)


REFUSED: list[tuple[str, Mapping[str, Any], str]] = [
    ("SAC", {"use_sde": True}, "use_sde=True is not offered by Headway: state-dependent"),
    ("TD3", {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))}, "not offered by Headway.*action_noise_std"),
    ("SAC", {"replay_buffer_class": dict}, "not offered by Headway.*hindsight"),
    ("SAC", {"n_steps": 3}, "not offered by Headway: returns over several steps"),
    ("SAC", {"optimize_memory_usage": True}, "not offered by Headway.*buffer_size"),
    ("SAC", {"n_epochs": 3}, "SACConfig has no field 'n_epochs': it is one of PPO"),
    ("PPO", {"tau": 0.1}, "it is one of .*SAC"),
    ("PPO", {"use_rms_prop": True}, "not offered by Headway: RMSprop"),
    ("SAC", {"features_extractor_class": NatureCNN}, "not offered by Headway"),
    ("SAC", {"n_timesteps": 1000}, "it is total_timesteps"),
    ("SAC", {"gama": 0.9}, "did you mean gamma"),
    ("SAC", {"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, "not offered by Headway: other optimisers"),
    ("SAC", {"policy_kwargs": {"features_extractor_class": NatureCNN}}, "not offered by Headway: feature"),
    ("SAC", {"policy_kwargs": {"share_features_extractor": True}}, "not offered by Headway"),
    ("PPO", {"policy_kwargs": {"share_features_extractor": False}}, "not offered by Headway"),
    ("SAC", {"policy_kwargs": {"activation_fn": nn.SiLU}}, "not offered by Headway: ReLU, Tanh, ELU"),
    ("SAC", {"policy_kwargs": {"net_arch": {"pi": [3], "qf": [4]}}}, "not offered by Headway: .*same widths"),
    ("SAC", {"learning_rate": "lin_7e-4"}, "pass 7e-4, and learning_rate_schedule='linear'"),
    ("SAC", {"learning_rate": lambda left: 0.1 * left}, "learning_rate_schedule='linear'"),
    ("SAC", {"learning_rate": LinearSchedule(1e-3, 1e-4, 0.5)}, "learning_rate_schedule='linear'"),
    ("SAC", {"learning_starts": 1e4}, "must be int, got 10000.0: write 10000"),
    ("SAC", {"policy": SACPolicy}, "policy classes are not offered"),
    ("SAC", {"policy": int}, "policy classes are not offered"),
    ("SAC", {"policy": "MlpLstmPolicy"}, "there is no policy 'MlpLstmPolicy': did you mean MlpPolicy"),
]


@pytest.mark.parametrize(("name", "hyper", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_offered_is_named(name: str, hyper: Mapping[str, Any], message: str) -> None:
    env = case_of(name).vec()
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        AGENTS[name](**{"policy": "MlpPolicy", "env": env, **SMALL, **hyper})
    assert "\n" not in str(caught.value)


def test_a_known_name_is_never_taken_for_a_misspelling() -> None:
    for name in KEYWORDS.keys() | POLICY_KEYWORDS.keys() | ATTRIBUTES.keys():
        if name not in describe(SAC.config_class).keys() | parameters(SAC).keys():
            with pytest.raises(TypeError) as caught:
                SAC(**{name: object()})
            assert "did you mean" not in str(caught.value)


TAKEN: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
    ("SAC", {"learning_rate": ConstantSchedule(0.02)}, {"learning_rate": 0.02}),
    ("SAC", {"learning_rate": FloatSchedule(ConstantSchedule(0.02))}, {"learning_rate": 0.02}),
    ("SAC", {"learning_rate": FloatSchedule(0.02)}, {"learning_rate": 0.02}),
    ("PPO", {"clip_range": ConstantSchedule(0.1)}, {"clip_range": 0.1, "clip_range_schedule": "constant"}),
    ("PPO", {"clip_range": LinearSchedule(0.1, 0, 1)}, {"clip_range": 0.1, "clip_range_schedule": "linear"}),
    ("SAC", {"learning_rate": np.float32(0.5), "batch_size": np.int64(7)}, {"learning_rate": 0.5, "batch_size": 7}),
    ("SAC", {"train_freq": TrainFreq(2, TrainFrequencyUnit.EPISODE)}, {"train_freq": (2, "episode")}),
    ("SAC", {"train_freq": "2 episode"}, {"train_freq": (2, "episode")}),
    ("SAC", {"policy_kwargs": {"net_arch": {"pi": [4], "qf": [4]}}}, {"net_arch": (4,)}),
    ("PPO", {"policy_kwargs": {"net_arch": [{"pi": [4], "vf": [4]}]}}, {"net_arch": (4,)}),
    ("SAC", {"policy_kwargs": {"activation_fn": nn.Tanh}}, {"activation": "tanh"}),
]


@pytest.mark.parametrize(("name", "hyper", "fields"), TAKEN, ids=lambda value: str(value)[:40])
def test_what_means_the_same_is_taken(name: str, hyper: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    agent = make(name, **hyper)
    assert {field: getattr(agent.config, field) for field in fields} == fields
    assert all(type(getattr(agent.config, field)) is type(value) for field, value in fields.items())


class Seen(Point):
    """A point that shows a space's zeros."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.observation_space = space


FLOAT_IMAGE, VECTOR = spaces.Box(0, 1, (3, 40, 40), np.float32), spaces.Box(-1, 1, (4,), np.float32)
IMAGE, WORDS = spaces.Box(0, 255, (3, 40, 40), np.uint8), spaces.Box(0, 9, (4,), np.uint8)


@pytest.mark.parametrize(
    ("policy", "space", "message"),
    [
        ("CnnPolicy", FLOAT_IMAGE, "use MlpPolicy, or let the environment show uint8"),
        ("CnnPolicy", VECTOR, "CnnPolicy convolves images"),
        ("CnnPolicy", WORDS, "CnnPolicy convolves images"),
        ("CnnPolicy", spaces.Discrete(3), "CnnPolicy convolves images"),
        ("MlpPolicy", IMAGE, "use CnnPolicy"),
    ],
)
@pytest.mark.parametrize("agent", [SAC, PPO])
def test_the_policy_is_what_its_name_says(agent: Any, policy: str, space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent(policy, Seen(space), **SMALL)


@pytest.mark.parametrize(("policy", "space"), [("CnnPolicy", IMAGE), ("MlpPolicy", FLOAT_IMAGE), ("MlpPolicy", WORDS)])
def test_only_images_are_convolved(policy: str, space: Any) -> None:
    agent = PPO(policy, Seen(space), **SMALL)
    convolves = any(isinstance(module, nn.Conv2d) for module in agent.policy.modules())
    assert convolves == (policy == "CnnPolicy")


# -- attributes --------------------------------------------------------------------------------------------------------

AS_THERE = {"action_space", "actor", "ep_info_buffer", "ep_success_buffer", "n_envs", "num_timesteps", "replay_buffer"}
AS_THERE |= {"observation_space", "seed", "start_time", "tensorboard_log", "verbose", "exploration_rate"}


@pytest.mark.parametrize("name", BOTH)
def test_every_attribute_of_the_other_agents_is_decided(name: str) -> None:
    env = "CartPole-v1" if name == "DQN" else "Pendulum-v1"
    other = getattr(stable_baselines3, name)(
        "MlpPolicy", env, device="cpu", **{"buffer_size": 9} if name != "PPO" else {}
    )
    decided = (_Field, _Kept, _Lacking, _LearningRateSchedule)
    for attribute in vars(other):
        known = isinstance(inspect.getattr_static(AGENTS[name], attribute, None), decided)
        assert known or attribute in AS_THERE or attribute.startswith("_") or "batch_norm" in attribute, attribute


def other_value(config: Any, field: str) -> Any:
    """An admissible value that is not the present one."""
    special = {
        "train_freq": (1, "episode"),
        "ent_coef": 0.7,
        "target_entropy": -7.0,
        "clip_range_vf": 0.01,
        "target_kl": 1e-9,
        "max_grad_norm": 1e-3,
        "actor_bc_coef": 0.7,
        "critic_bc_coef": 0.7,
        "policy_loss": "nll",
        "kl_coef": 0.7,
        "kl_stop": 1e-9,
    }
    value = getattr(config, field)
    if field in special:
        return special[field]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "linear"
    return value + 3 if isinstance(value, int) else value / 2


def live_fields() -> list[tuple[str, str]]:
    """By agent, those that count in the small world of its first case; learning from data, nothing is collected."""
    firsts = {case.name: case for case in reversed(CASES)}.values()
    collecting = {"learning_starts", "train_freq", "gradient_steps", "online_share"}
    return [
        (case.name, field)
        for case in firsts
        for field in sorted(case.agent.config_class.live - (collecting if "offline" in case.can else set()))
    ]


COUNTS_WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("HDCR", "upper_clip"): {"normaliser": "dataset"},
    ("IQL", "bc_coef"): {"extraction": "ddpg+bc"},
    ("IQL", "max_weight"): {"max_weight": 1.0},
    ("MBPO", "real_ratio"): {"real_ratio": 0.5},
    ("MBPO", "spread_weight"): {"variant": "sombrl"},
    ("PGPS", "policy_delay"): {"update_order": "delayed"},
    ("TDT", "label_smoothing"): {"label_smoothing": 0.2},
    ("TPO", "a0c_temperature"): {"policy_loss": "a0c"},
    ("TPO", "kl_stop"): {"kl_stop": None},
    **{
        ("TPO", field): {"bootstrap_steps": 1_000}
        for field in (
            "batch_size",
            "clip_range",
            "clip_range_schedule",
            "clip_range_vf",
            "normalize_advantage",
            "target_kl",
        )
    },
}
"""What a live field counts with only."""


@pytest.mark.parametrize(("name", "field"), live_fields())
def test_setting_a_live_field_counts(name: str, field: str) -> None:
    case = case_of(name)
    kwargs: dict[str, Any] = {"learning_rate": 0.01, **COUNTS_WITH.get((name, field), {})}
    if "ent_coef" in describe(case.agent.config_class):
        kwargs["ent_coef"] = "auto" if field == "target_entropy" else 0.1
    if name == "DQN":
        kwargs |= {"exploration_fraction": 1.0, "exploration_final_eps": 0.6}
    if "learning_starts" in case.hyper:
        kwargs["learning_starts"] = 24 if field == "learning_starts" else 12
    changed, same = (make(name, **kwargs) for _ in range(2))
    for agent in (changed, same):
        agent.learn(16)
    equal(changed, same)
    assert getattr(changed, field) == getattr(changed.config, field)
    value = other_value(changed.config, field)
    setattr(changed, field, value)
    assert getattr(changed, field) == getattr(changed.config, field) == value
    for agent in (changed, same):
        agent.learn(40 if name in ("PPO", "TPO") else 24, reset_num_timesteps=False)
    with pytest.raises(AssertionError):
        equal(changed, same)


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_setting_any_other_field_is_refused(name: str) -> None:
    settled: dict[str, dict[str, Any]] = {"HDCR": {"normaliser": "dataset"}, "MBPO": {"variant": "ps"}}
    agent = make(name, **settled.get(name, {}))
    other = {"net_arch": (3,), "activation": "elu", "precision": "bfloat16", "compile": "default"}
    other |= {"reward_scaling": "returns", "max_steps": 1, "weight": "linear", "normaliser": "batch", "keep_best": 0.5}
    other |= {"variant": "ops", "model_target": "absolute", "bootstrap": "kept", "rollout_schedule": (0, 3, 1, 3)}
    other |= {"model_net_arch": (3,), "acts": "elite", "rules": "released", "learner": "sac", "update_order": "delayed"}
    other |= {"std": "shared", "gate": "warn", "correction": "raw", "prior": "density", "backup": "max"}
    other |= {"max_depth": 2, "widening": (1.0, 0.5)}
    other |= {
        "mode": "bc_mlp",
        "width": 32,
        "heads": 4,
        "vocabulary": 7,
        "freeze": "encoder",
        "transfer_scope": "encoder",
    }
    other |= {
        "n_parents": 2,
        "actor_learning_rate": 0.1,
        "target_divergence": 0.1,
        "extraction": "ddpg+bc",
        "actor_schedule": "constant",
        "actor_critic": "least",
    }
    for field in describe(type(agent.config)).keys() - agent.config.live:
        before = getattr(agent, field)
        setattr(agent, field, before)  # which changes nothing
        value = other.get(field, not before if isinstance(before, bool) else None)
        value = "relu" if value == before == "elu" else value
        with pytest.raises(AttributeError, match=f"{name}.{field} is .* once the agent is built"):
            # Half of a share is a share; others may be one more.
            setattr(agent, field, value if value is not None else before / 2 if 0 < before < 1 else 1 + before)
        assert getattr(agent, field) == getattr(agent.config, field) == before


def test_a_changed_learning_rate_is_that_of_the_optimisers() -> None:
    agent = make()
    agent.learning_rate = ConstantSchedule(0.02)
    assert agent.current_learning_rate == agent.lr_schedule(1.0) == 0.02
    assert [tracked.optimizer.param_groups[0]["lr"] for tracked in agent.modules] == [0.02] * 3
    agent.learn(20)
    agent.learning_rate_schedule = "linear"
    agent.learn(20)
    assert agent.actor.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 / 20, abs=0.02 / 20)
    agent.learning_rate_schedule = "constant"
    assert [tracked.optimizer.param_groups[0]["lr"] for tracked in agent.modules] == [0.02] * 3


def test_changed_fields_are_in_files(tmp_path: Path) -> None:
    agent = make()
    agent.learn(20)
    agent.gamma, agent.batch_size = 0.5, 4
    agent.save_checkpoint(tmp_path)
    again = SAC.resume(tmp_path, case_of("SAC").vec())
    assert (again.gamma, again.config.batch_size) == (0.5, 4)
    equal(agent.learn(20, reset_num_timesteps=False), again.learn(20, reset_num_timesteps=False))


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("gamma", 1.5, "gamma must lie in"),
        ("gamma", "much", "gamma must be float"),
        ("ent_coef", 0.1, "ent_coef is 'auto' and cannot become 0.1"),
        ("ent_coef", "auto_0.1", "log_alpha"),
        ("train_freq", (1, "episode"), "needs one environment"),
        ("config", {"gamma": 0.1}, "dataclasses.replace"),
        ("env", None, "set_env"),
        ("policy", nn.Identity(), "load_state_dict"),
        ("policy_class", int, "networks are made once"),
        ("device", torch.device("meta"), "load"),
        ("lr_schedule", lambda _: 1e-3, "set agent.learning_rate"),
        ("action_noise", NormalActionNoise(np.zeros(1), np.ones(1)), "not offered by Headway"),
        ("use_sde", True, "not offered by Headway"),
        ("replay_buffer", None, "load_replay_buffer"),
        ("critic", nn.Identity(), "agent.critics.module"),
        ("policy_kwargs", {"net_arch": [3]}, "once, by the constructor"),
    ],
)
def test_assignments_that_cannot_count_are_refused(attribute: str, value: Any, message: str) -> None:
    agent = make(env=case_of("SAC").vec(2))
    before = vars(agent).copy()
    with pytest.raises((AttributeError, TypeError, ValueError), match=message):
        setattr(agent, attribute, value)
    assert vars(agent) == before


def test_what_is_lacking_reads_as_nothing() -> None:
    agent = make()
    assert (agent.action_noise, agent.use_sde, agent.n_steps, agent.policy_kwargs) == (None, False, 1, {})
    assert not hasattr(agent, "critic")
    agent.action_noise = None
    assert make("PPO").n_steps == 8


@pytest.mark.parametrize("hook", HOOKS)
def test_overriding_what_is_never_called_is_refused(hook: str) -> None:
    with pytest.raises(TypeError, match=f"Mine.{hook} would never be called by Headway: "):
        type("Mine", (SAC,), {hook: lambda self: None})


# -- load, resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "told", "temperature"),
    [("auto", 0.3, 0.3), ("auto", "auto_0.1", 0.1), (0.3, "auto_0.1", 0.1), (0.3, 0.4, 0.4), ("auto", "auto", None)],
)
@pytest.mark.parametrize("name", ["SAC", "DCAC"])
def test_loading_with_another_temperature(name: str, saved: Any, told: Any, temperature: Any, tmp_path: Path) -> None:
    agent = make(name, ent_coef=saved, learning_rate=0.1).learn(20)
    agent.save(tmp_path / "p")
    loaded = AGENTS[name].load(tmp_path / "p", case_of(name).vec(), ent_coef=told, device="cpu")
    expected = agent.temperature.module.alpha.item() if temperature is None else temperature
    found = loaded.temperature.module.alpha if loaded.config.learns_alpha else loaded._fixed_alpha
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(*(one.actor.module.mlp.weights[0] for one in (agent, loaded)))
    loaded.learn(20, reset_num_timesteps=False)


def test_custom_objects_are_overrides(tmp_path: Path) -> None:
    make().save(tmp_path / "p")
    loaded = SAC.load(tmp_path / "p", custom_objects={"learning_rate": ConstantSchedule(1e-5), "gamma": 0.5}, gamma=0.6)
    assert (loaded.learning_rate, loaded.gamma) == (1e-5, 0.6)
    assert agents.load(tmp_path / "p", batch_size=3, verbose=0, stats_window_size=4)._stats_window_size == 4
    for objects, message in (
        ({"lr_schedule": lambda _: 0.0}, "lr_schedule"),
        ({"clip_range": 0.1}, "one of PPO"),
        ({"action_noise": 3}, "not offered"),
        ({"observation_space": VECTOR}, "observation_space"),
    ):
        with pytest.raises(TypeError, match=message):
            SAC.load(tmp_path / "p", custom_objects=objects)


def test_what_loading_cannot_heed_is_refused(tmp_path: Path) -> None:
    make("PPO").save(tmp_path / "p")
    with pytest.raises(TypeError, match="log_std_init says what weights begin with"):
        PPO.load(tmp_path / "p", log_std_init=-1.0)
    with pytest.raises(ValueError, match=r"PPO.resume\(folder, env\)"):
        PPO.load(tmp_path / "p", force_reset=False)
    with pytest.raises(ValueError, match="does not fit net_arch: network tensor"):
        PPO.load(tmp_path / "p", net_arch=(3,))


def test_what_resuming_cannot_heed_is_refused(tmp_path: Path) -> None:
    agent = make().learn(20)
    agent.save_checkpoint(tmp_path)
    for option in ({"seed": 3}, {"buffer_size": 9}, {"ent_coefficient": 1}):
        with pytest.raises(TypeError, match=f"the run as it was, {next(iter(option))} included"):
            SAC.resume(tmp_path, case_of("SAC").vec(), **option)
    assert SAC.resume(tmp_path, case_of("SAC").vec(), verbose=0, gamma=0.5).gamma == 0.5


def test_parameters_go_from_agent_to_agent(tmp_path: Path) -> None:
    one, other, third = make().learn(20), make(seed=6), make(seed=7)
    one.save(tmp_path / "p")
    other.set_parameters(tmp_path / "p")
    third.set_parameters(one.get_parameters())
    for agent in (other, third):
        for key, value in one.policy.state_dict().items():
            assert torch.equal(agent.policy.state_dict()[key], value)
    with pytest.raises(ValueError, match="does not fit this SAC"):
        make(net_arch=(3,)).set_parameters(tmp_path / "p")


# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SAC", "PPO", "DCAC"])
def test_without_a_seed_the_environments_are_kept(name: str) -> None:
    learnt, untouched = (make_vec_env(DelayedPoint if name == "DCAC" else Point, 2, seed=3) for _ in range(2))
    agent = make(name, env=learnt, seed=None)
    agent.learn(2)
    untouched.reset()
    assert agent.seed_is_drawn
    assert agent.env is learnt
    draws = [[one.unwrapped.np_random_seed for one in env.envs] for env in (learnt, untouched)]
    assert draws == [[3, 4]] * 2


@pytest.mark.parametrize("env", ["Pendulum-v1", Point, lambda: DummyVecEnv([Point])])
def test_without_a_seed_global_streams_are_left_alone(env: Any, tmp_path: Path) -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.rand())  # noqa: NPY002

    def seed() -> None:
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002

    seed()
    expected = draw()
    seed()
    agent = SAC("MlpPolicy", env if isinstance(env, str) else env(), net_arch=(4,), device="cpu", learning_starts=99)
    agent.learn(3)
    agent.save(tmp_path / "p")
    SAC.load(tmp_path / "p", env if isinstance(env, str) else env())
    assert draw() == expected


def test_a_seed_of_torch_counts_where_none_is_given() -> None:
    first, second = ((torch.manual_seed(3), make(seed=None))[1] for _ in range(2))
    assert first.seed == second.seed
    equal(first, second)


def test_a_seed_given_later_counts() -> None:
    first, second = make(seed=1), make(seed=2)
    for agent in (first, second):
        agent.set_random_seed(9)
    second.modules.load_state(first.modules.state())
    equal(first.learn(30), second.learn(30))


def test_environments_that_the_agent_makes_follow_its_drawn_seed() -> None:
    first = SAC("MlpPolicy", "Pendulum-v1", device="cpu", net_arch=(4,)).learn(2)
    again = SAC("MlpPolicy", "Pendulum-v1", device="cpu", net_arch=(4,), seed=first.seed).learn(2)
    assert torch.equal(first.store.state()["data.obs"], again.store.state()["data.obs"])


def test_agents_take_gymnasiums_ids_without_a_version() -> None:
    with pytest.warns(match="latest versioned environment"):
        agent = SAC("MlpPolicy", "Pendulum", device="cpu", net_arch=(4,))
    assert agent.env_id == "Pendulum-v1"
    assert isinstance(agent.env, DummyVecEnv)
    assert isinstance(agent.env.envs[0], gym.Wrapper)
    assert agent.env.envs[0].render_mode == "rgb_array"
