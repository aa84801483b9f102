import json
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path

import pytest
import yaml
from headway.agents import AGENTS
from headway.agents.core.config import AgentConfig, Config, Count, OffPolicyConfig, Range, describe
from headway.agents.core.plain_yaml import read_yaml
from headway.agents.presets import preset, preset_for, preset_names
from headway.envs.naming import nearest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("agent", [agent for name, agent in AGENTS.items() if ":" not in name])
def test_every_field_is_documented(agent: type) -> None:
    for info in describe(agent.config_class).values():  # type: ignore[attr-defined]
        assert info.doc.endswith("."), info.name
        assert info.help.startswith(info.doc)


@pytest.mark.parametrize("agent", AGENTS)
def test_presets_are_valid_and_safe(agent: str) -> None:
    names = preset_names(agent.lower())
    assert names[0] == "default"
    for name in names:
        AGENTS[agent].config_class.from_dict(preset(agent.lower(), name, AGENTS[agent].config_class))


def test_unknown_preset_and_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no preset 'HalfCheeta-v5': did you mean HalfCheetah-v5"):
        preset("sac", "HalfCheeta-v5", OffPolicyConfig)
    (tmp_path / "sac.yaml").write_text("default: {gama: 1}")
    monkeypatch.setattr("headway.agents.presets.FOLDER", tmp_path)
    with pytest.raises(ValueError, match="unknown key 'gama': did you mean gamma"):
        preset("sac", "default", OffPolicyConfig)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "gamma": st.floats(0, 1),
            "learning_rate": st.floats(1e-9, 1),
            "net_arch": st.lists(st.integers(1, 512), max_size=4),
            "batch_size": st.integers(1, 10**6),
            "max_grad_norm": st.none() | st.floats(1e-3, 10),
            "train_freq": st.integers(1, 10) | st.tuples(st.integers(1, 10), st.sampled_from(["step", "episode"])),
            "activation": st.sampled_from(["relu", "tanh", "elu"]),
        },
    )
)
def test_round_trip_through_yaml_and_json(values: dict[str, object]) -> None:
    config = OffPolicyConfig.from_dict(values)
    assert OffPolicyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert OffPolicyConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert OffPolicyConfig.from_dict(config.changes()) == config


def test_configurations_are_frozen_and_hashable() -> None:
    config = OffPolicyConfig(net_arch=[3, 4])  # type: ignore[arg-type]
    assert config.net_arch == (3, 4)
    assert hash(config) == hash(OffPolicyConfig(net_arch=(3, 4)))
    with pytest.raises(FrozenInstanceError):
        config.gamma = 0.5  # type: ignore[misc]


def test_every_range_is_enforced_at_both_ends() -> None:
    for info in describe(OffPolicyConfig).values():
        for interval in info.ranges:
            for bound, step in ((interval.low, -1), (interval.high, 1)):
                if abs(bound) == float("inf") or info.name == "train_freq":
                    continue
                outside = bound + step if isinstance(info.default, int) else bound + step * 1e-3
                value = (outside,) if isinstance(info.default, tuple) else outside
                value = (int(outside),) if info.name == "net_arch" else value
                with pytest.raises(ValueError, match=f"{info.name} must lie in"):
                    OffPolicyConfig.from_dict({info.name: value})


def test_range_reads_as_an_interval() -> None:
    assert str(Range(0, 1, unit="s", open_low=True)) == "(0, 1] s"
    assert str(Range(1)) == "[1, inf)"
    assert 0 not in Range(0, open_low=True)
    assert float("nan") not in Range()


@pytest.mark.parametrize("value", [True, "3", None, 3.0])
def test_types_are_not_coerced(value: object) -> None:
    with pytest.raises(TypeError, match="batch_size must be int"):
        AgentConfig(batch_size=value)  # type: ignore[arg-type]


def test_nearest() -> None:
    assert nearest("gama", ["gamma", "tau"]) == "did you mean gamma?"
    assert nearest("zzz", ["gamma", "tau"]) == "known: gamma, tau"


def test_inherited_fields_keep_their_documentation() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Child(OffPolicyConfig):
        extra: int = 1
        """Something of its own."""

    assert describe(Child)["extra"].doc == "Something of its own."
    assert describe(Child)["gamma"].doc == describe(AgentConfig)["gamma"].doc
    assert [field.name for field in fields(Child)] == list(describe(Child))


@dataclass(frozen=True, kw_only=True)
class Fit(Config):
    """Settings of something that is no agent."""

    widths: tuple[Count, ...] = (3,)
    """Of layers."""

    learning_rate: float = 0.1
    """Of Adam."""


def test_settings_of_no_agent_are_checked_alike() -> None:
    made = Fit.from_dict({"widths": [4, 5]})
    assert made.to_dict() == {"widths": [4, 5], "learning_rate": 0.1}
    assert made.changes() == {"widths": (4, 5)}
    assert Fit.from_dict(made.to_dict()) == made
    with pytest.raises(ValueError, match=r"Fit.widths must lie in \[1, inf\), got 0"):
        Fit(widths=(4, 0))
    with pytest.raises(TypeError, match="Fit has no field 'width': did you mean widths"):
        Fit.from_dict({"width": [4]})


def test_remedies_name_only_what_there_is() -> None:
    with pytest.raises(TypeError, match="for a linear decay pass a number and learning_rate_schedule='linear'"):
        AgentConfig(learning_rate=lambda left: left)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Fit\.learning_rate must be float, got .*>$"):
        Fit(learning_rate=lambda left: left)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 010", "010 is 8 in YAML 1.1"),
        ("seed: -0_17", "is -15 in YAML 1.1"),
        ("widths: [1, 1:30]", "1:30 is 90 in YAML 1.1"),
        ("x: 1:30.5", "is 90.5 in YAML 1.1"),
        ("gamma: 0.9\ntau: 0.1\ngamma: 0.5", "the key 'gamma' is there twice.* line 3"),
        ("a: {b: 1, b: 2}", "the key 'b' is there twice"),
        ("a: &a [*a]", "recursive"),
        ("a: &a {b: *a}", "recursive"),
        ("a: [1", "expected ',' or ']'"),
        ("? [1]\n: 2", "unhashable"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "single document"),
    ],
)
def test_yaml_that_can_be_misunderstood_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"here is not YAML.*{message}") as caught:
        read_yaml(text, "here")
    assert "\n" not in str(caught.value)


def test_other_yaml_is_read_as_ever() -> None:
    text = "a: &a {x: 1, y: 0}\nb: {<<: *a, y: 3}\nc: [0, 1_000, 0x10, -7, 0.5, 1e3, 1.0e+5, off, null]\n'1': 0.05\n"
    assert read_yaml(text, "here") == yaml.safe_load(text)
    assert read_yaml("", "here") is None
    assert read_yaml('{"a": [1.5, null, true]}', "here") == {"a": [1.5, None, True]}


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("HalfCheetah-v5", "HalfCheetah-v5"),
        ("headway/HalfCheetah-v5", "HalfCheetah-v5"),
        ("HalfCheetah-v4", "HalfCheetah-v5"),
        ("headway/HalfCheetah", "HalfCheetah-v5"),
        ("HalfCheetah", "HalfCheetah-v5"),
        ("others/HalfCheetah-v5", "default"),
        ("Half", "default"),
        ("", "default"),
    ],
)
def test_the_preset_for_an_environment(env_id: str, expected: str) -> None:
    assert preset_for("sac", env_id) == expected


def test_the_newest_of_other_versions_is_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.agents.presets.FOLDER", tmp_path)
    (tmp_path / "sac.yaml").write_text("default: {}\nA-v9: {}\nA-v10: {}\nB: {}\n")
    assert [preset_for("sac", name) for name in ("A-v3", "A", "A-v9", "B-v1")] == ["A-v10", "A-v10", "A-v9", "B"]
