"""What users of Stable-Baselines3 ask for by its names: taken where it means the same here, refused in words otherwise.

Every keyword of its constructors and policies, and every attribute and method that its users set or override, is in
one of the tables below, or is a field of a configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn, optim

from ...envs.naming import nearest
from .config import Config, describe
from .registry import AGENTS

POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")


@dataclass(frozen=True)
class Missing:
    """A name of Stable-Baselines3's for something that Headway has not.

    :param way: what there is instead
    :param neutral: values that ask for nothing, which are accepted; the first is what an agent's attribute reads as
    """

    way: str
    neutral: tuple[Any, ...] = ()

    def accepts(self, value: Any) -> bool:
        """:return: whether a value asks for nothing"""
        return any(value is one or (type(value) is type(one) and value == one) for one in self.neutral)


_OWN_STORES = "agents keep their own experience, agent.store or agent.rollout"
_NO_SDE = "state-dependent exploration; agents explore by their own distributions"

KEYWORDS = {
    "action_noise": Missing(
        "noise objects; TD3 has action_noise_std, the others explore by their own distributions", (None,)
    ),
    "use_sde": Missing(_NO_SDE, (False,)),
    "sde_sample_freq": Missing(_NO_SDE, (-1,)),
    "use_sde_at_warmup": Missing(_NO_SDE, (False,)),
    "n_steps": Missing("returns over several steps; a target looks one step ahead", (1,)),
    "replay_buffer_class": Missing(f"{_OWN_STORES}; hindsight needs an agent of your own, with keep()", (None,)),
    "replay_buffer_kwargs": Missing(_OWN_STORES, (None, {})),
    "rollout_buffer_class": Missing(_OWN_STORES, (None,)),
    "rollout_buffer_kwargs": Missing(_OWN_STORES, (None, {})),
    "optimize_memory_usage": Missing("a store without next observations; lower buffer_size", (False,)),
    "monitor_wrapper": Missing("environments without a Monitor; episodes are always counted", (True,)),
    "use_rms_prop": Missing("RMSprop; networks are trained by Adam", (False,)),
    "rms_prop_eps": Missing("RMSprop; networks are trained by Adam"),
    "top_quantiles_to_drop_per_net": Missing("quantile critics; headway train sb3_contrib:TQC has them"),
}
"""Keywords of constructors; attributes of the same names are decided likewise."""

POLICY_KEYWORDS = {
    "features_extractor_class": Missing("feature extractors; an agent of your own can have any network", (None,)),
    "features_extractor_kwargs": Missing("feature extractors; an agent of your own can have any network", (None, {})),
    "share_features_extractor": Missing("a choice of it: PPO's actor and value share theirs, no other networks do"),
    "normalize_images": Missing("images that are not bytes; they are divided by 255", (True,)),
    "optimizer_class": Missing("other optimisers than Adam; an agent of your own can have any", (None, optim.Adam)),
    "optimizer_kwargs": Missing("settings of Adam besides learning_rate, and PPO's adam_eps", (None, {})),
    "use_sde": Missing(_NO_SDE, (False,)),
    "sde_net_arch": Missing(_NO_SDE, (None,)),
    "full_std": Missing(_NO_SDE, (True,)),
    "use_expln": Missing(_NO_SDE, (False,)),
    "clip_mean": Missing(_NO_SDE, (2.0,)),
    "log_std_init": Missing(f"{_NO_SDE}; PPO has log_std_init", (-3, -3.0)),
    "squash_output": Missing("PPO with squashed actions; it clips them", (False,)),
    "ortho_init": Missing("a choice of initial weights but in PPO", (False,)),
    "n_quantiles": Missing("quantile critics; headway train sb3_contrib:TQC has them"),
}
"""Keys of ``policy_kwargs``."""

ATTRIBUTES = {
    "critic": Missing("this name; all critics are one stack, agent.critics.module"),
    "critic_target": Missing("this name; all target critics are one stack, agent.critics.target"),
    "actor_target": Missing("this name; it is agent.actor.target"),
    "q_net": Missing("this name; it is agent.q.module"),
    "q_net_target": Missing("this name; it is agent.q.target"),
    "log_ent_coef": Missing("this name; it is agent.temperature.module.log_alpha"),
    "ent_coef_optimizer": Missing("this name; it is agent.temperature.optimizer"),
    "exploration_schedule": Missing("this name; exploration_fraction, …_initial_eps and …_final_eps can be set"),
    "rollout_buffer": Missing("this name; it is agent.rollout"),
    "policy_kwargs": Missing("networks that change; they are made once, by the constructor", ({},)),
}
"""Attributes of its algorithms that are not keywords."""

KEPT = {
    "env": "use agent.set_env(env)",
    "policy": "copy weights by agent.policy.load_state_dict(other.policy.state_dict()) or agent.set_parameters(path)",
    "policy_class": "networks are made once, by the constructor",
    "device": "use load(path, device=…)",
}
"""Attributes that are read as there; an assignment to the agent once it is built would change half of it."""

HOOKS = {
    "train": "override _update(phase), which takes one gradient step, and phases(collected), which says how many",
    "collect_rollouts": "override explore(obs), keep(step) or _make_collector()",
    "_sample_action": "override explore(obs), or choose() for what comes before learning_starts",
    "_store_transition": "override keep(step)",
    "_on_step": "use a callback, or override keep(step)",
    "_create_aliases": "make networks in _build()",
    "_convert_train_freq": "override _make_collector()",
    "_setup_lr_schedule": "use learning_rate_schedule",
    "_update_learning_rate": "use learning_rate_schedule",
    "_excluded_save_params": "files hold what track(…) and register(…) were given",
    "_get_torch_save_params": "files hold what track(…) and register(…) were given",
    "_wrap_env": "wrap the environment before the agent gets it",
    "policy_aliases": "make networks in _build()",
}
"""What a subclass there may override, and nothing here would call."""

ZOO = {
    "n_timesteps": "it is total_timesteps",
    "normalize": "wrap the environment in VecNormalize, in Python",
    "policy": "it follows from the observations",
    "policy_kwargs": "write net_arch, activation, n_critics as keys of their own",
    "noise_type": "TD3 has action_noise_std",
    "noise_std": "TD3 has action_noise_std",
    "env_wrapper": "register an environment that has its wrappers",
    "vec_env_wrapper": "register an environment that has its wrappers",
    "frame_stack": "register an environment that has its wrappers",
    "callback": "use Python",
    "env_kwargs": "register an id that has them",
}
"""Keys of RL Zoo's hyper-parameter files that are no keywords of an agent, and what to do instead."""

_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.ELU: "elu"}
_EXTRACTORS = {"MlpPolicy": FlattenExtractor, "CnnPolicy": NatureCNN, "MultiInputPolicy": CombinedExtractor}


def check_subclass(cls: type[Any]) -> None:
    """See that a subclass overrides nothing that is never called.

    :param cls: an agent's class
    :raises TypeError: it does; the message says what to override instead
    """
    for name, way in HOOKS.items():
        if name in vars(cls):
            raise TypeError(f"{cls.__name__}.{name} would never be called by Headway: {way} (docs/agents.md)")


def check_policy(policy: Any, space: spaces.Space[Any] | None) -> None:
    """See that a policy's name says what the networks will do.

    :param policy: what the user gave
    :param space: of observations; None where there is no environment yet
    :raises TypeError: no name
    :raises ValueError: an unknown one, or one that says something else than what the observations call for
    """
    if not isinstance(policy, str):
        raise TypeError(
            f"policy is {policy!r}, and policy classes are not offered by Headway: pass one of {', '.join(POLICIES)} "
            "(an agent of your own can have any network: docs/agents.md)"
        )
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}: {nearest(policy, POLICIES)}")
    image = isinstance(space, spaces.Box) and is_image_space(space)
    if policy == "CnnPolicy" and isinstance(space, spaces.Space) and not isinstance(space, spaces.Dict) and not image:
        raise ValueError(
            f"CnnPolicy convolves images, Boxes of bytes from 0 to 255 in three axes, and this is {space}: use "
            "MlpPolicy, or let the environment show uint8"
        )
    if policy == "MlpPolicy" and image:
        raise ValueError(f"MlpPolicy does not convolve, and {space} is an image: use CnnPolicy")


def as_fields(config_class: type[Config], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Translate keywords of Stable-Baselines3's constructors.

    :param config_class: of the agent
    :param keywords: names to values; what is unknown there too stays as it is
    :return: fields of the configuration
    :raises TypeError: something that Headway has not
    """
    known = describe(config_class)
    fields: dict[str, Any] = {}
    for name, value in keywords.items():
        if name in known:
            fields |= _plain(name, value, known)
        elif name in KEYWORDS:
            if not KEYWORDS[name].accepts(value):
                raise TypeError(f"{name}={value!r} is not offered by Headway: {KEYWORDS[name].way}")
        elif name in POLICY_KEYWORDS:
            raise TypeError(f"{name} is not offered by Headway: {POLICY_KEYWORDS[name].way}")
        elif name in ATTRIBUTES or name in ZOO:
            way = ZOO[name] if name in ZOO else ATTRIBUTES[name].way
            raise TypeError(f"{name} is not offered by Headway as a keyword: {way}")
        elif others := [key for key, agent in AGENTS.items() if name in describe(agent.config_class)]:
            raise TypeError(f"{config_class.__name__} has no field {name!r}: it is one of {', '.join(others)}")
        else:
            fields[name] = value
    return fields


def _plain(name: str, value: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Undo Stable-Baselines3's schedules, which files cannot hold, and its other types for plain values."""
    while isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        return {name: value.val}
    schedule = f"{name}_schedule"
    if isinstance(value, LinearSchedule) and schedule in known and value.end == 0 and value.end_fraction == 1:
        return {name: value.start, schedule: "linear"}
    if isinstance(value, tuple):  # TrainFreq, whose unit is an Enum
        value = tuple(getattr(item, "value", item) for item in value)
    return {name: value}


def policy_fields(policy: str, config_class: type[Config], shares: bool, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Translate ``policy_kwargs``.

    :param policy: name of the policy
    :param config_class: of the agent
    :param shares: whether its networks share the features they read
    :param keywords: what was given
    :return: fields of the configuration
    :raises TypeError: something that Headway has not
    """
    known = describe(config_class)
    fields: dict[str, Any] = {}
    for name, value in keywords.items():
        if name == "activation_fn":
            if value not in _ACTIVATIONS:
                raise TypeError(
                    f"policy_kwargs: activation_fn={value!r} is not offered by Headway: ReLU, Tanh, ELU are"
                )
            fields["activation"] = _ACTIVATIONS[value]
        elif name == "net_arch":
            fields[name] = _widths(value)
        elif name == "n_critics" or (name in ("log_std_init", "ortho_init") and name in known):
            fields[name] = value
        elif name in POLICY_KEYWORDS:
            neutral = POLICY_KEYWORDS[name].accepts(value)
            neutral |= name == "features_extractor_class" and value is _EXTRACTORS.get(policy)
            neutral |= name == "share_features_extractor" and value is shares
            if not neutral:
                raise TypeError(
                    f"policy_kwargs: {name}={value!r} is not offered by Headway: {POLICY_KEYWORDS[name].way}"
                )
        else:
            near = nearest(name, ("net_arch", "n_critics", "activation_fn"))
            raise TypeError(f"policy_kwargs cannot hold {name}={value!r}: {near}")
    return fields


def _widths(value: Any) -> Any:
    """One list of widths, where Stable-Baselines3 may have one for each network."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):  # its form before 1.8
        value = value[0]
    if not isinstance(value, dict):
        return value
    widths = list(value.values())
    if not widths or any(one != widths[0] for one in widths):
        raise TypeError(
            f"policy_kwargs: net_arch={value!r} is not offered by Headway: all networks have the same widths"
        )
    return widths[0]
