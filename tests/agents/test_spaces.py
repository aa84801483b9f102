"""Observations encoded, actions scaled, spaces as JSON."""

import json
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents.core.spaces import (
    ActionScaler,
    ObservationCodec,
    check_action_space,
    space_from_json,
    space_to_json,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.preprocessing import preprocess_obs

CPU = torch.device("cpu")
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def batch(space: spaces.Space[Any], n: int) -> Any:
    """Samples as adapters give them: tensors with a leading axis, by key."""
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    return torch.from_numpy(np.stack(samples))


# -- observations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.float16])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 3)])
def test_boxes_of_any_shape_and_dtype_become_rows_of_float32(shape: tuple[int, ...], dtype: Any) -> None:
    space = spaces.Box(0, 100, shape, dtype, seed=0)
    codec = ObservationCodec(space)
    obs = batch(space, 5)
    encoded = codec.encode(obs, CPU)
    size = int(np.prod(shape))
    assert (codec.shape, codec.dtype, codec.is_image) == ((size,), torch.float32, False)
    assert (encoded.shape, encoded.dtype) == ((5, size), torch.float32)
    assert encoded.tolist() == obs.reshape(5, size).to(torch.float32).tolist()
    assert codec.features().features_dim == size
    assert codec.features()(encoded) is encoded


def test_a_dict_is_laid_out_in_the_order_of_its_space() -> None:
    parts = [
        ("z", spaces.Box(0, 1, (2, 2), np.float64)),
        ("a", spaces.Box(-5, 5, (), np.int64)),
        ("m", spaces.Box(0, 1, (3,))),
    ]
    space = spaces.Dict(OrderedDict(parts), seed=0)
    codec = ObservationCodec(space)
    obs = batch(space, 4)
    expected = torch.cat([obs["z"].reshape(4, 4), obs["a"].reshape(4, 1), obs["m"]], 1).float()
    assert codec.shape == (8,)
    assert torch.equal(codec.encode(obs, CPU), expected)
    # However the observation itself is ordered.
    assert torch.equal(codec.encode({key: obs[key] for key in "maz"}, CPU), expected)
    # A plain dict is sorted by Gymnasium, so then the order is the alphabet's.
    assert list(ObservationCodec(spaces.Dict(dict(parts))).parts) == ["a", "m", "z"]


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("start", [0, -2, 5])
def test_discrete_becomes_one_hot_as_in_the_peer(start: int, dtype: Any) -> None:
    space = spaces.Discrete(4, start=start, dtype=dtype)
    codec = ObservationCodec(space)
    obs = torch.arange(start, start + 4)
    for column in (obs, obs.view(4, 1), obs.to(torch.int32)):
        encoded = codec.encode(column, CPU)
        assert encoded.dtype is codec.dtype is torch.float32
        assert torch.equal(encoded, torch.eye(4))
    assert codec.shape == (4,)
    assert codec.features().features_dim == 4
    if start == 0:
        assert torch.equal(encoded, preprocess_obs(obs, space))  # type: ignore[arg-type]


def test_discrete_parts_of_a_dict_take_as_many_columns_as_values() -> None:
    parts = [("age", spaces.Discrete(3, start=1)), ("place", spaces.Box(-1, 1, (2,))), ("mode", spaces.Discrete(2))]
    codec = ObservationCodec(spaces.Dict(OrderedDict(parts)))
    obs = {"mode": torch.tensor([1, 0]), "age": torch.tensor([3, 1]), "place": torch.tensor([[0.5, -1], [0, 1]])}
    assert (codec.sizes, codec.shape) == ([3, 2, 2], (7,))
    assert codec.encode(obs, CPU).tolist() == [[0, 0, 1, 0.5, -1, 0, 1], [1, 0, 0, 0, 1, 1, 0]]
    where = ["observation['age'][]"] * 3 + ["observation['place'][0]", "observation['place'][1]"]
    assert [codec.locate(column) for column in range(7)] == [*where, *["observation['mode'][]"] * 2]


@pytest.mark.parametrize("value", [-1, 3])
def test_a_discrete_value_outside_of_its_space_is_refused(value: int) -> None:
    codec = ObservationCodec(spaces.Dict({"n": spaces.Discrete(3)}))
    with pytest.raises(RuntimeError, match="Class values must be"):
        codec.encode({"n": torch.tensor([value])}, CPU)


def test_images_keep_their_shape_and_their_bytes() -> None:
    codec = ObservationCodec(IMAGE)
    obs = batch(IMAGE, 2)
    encoded = codec.encode(obs, CPU)
    assert (codec.is_image, codec.shape, codec.dtype) == (True, (3, 36, 36), torch.uint8)
    assert encoded.dtype is torch.uint8
    assert torch.equal(encoded, obs)
    features = codec.features()
    assert features(encoded).shape == (2, features.features_dim)
    scaled = torch.full((1, 3, 36, 36), 255, dtype=torch.uint8)
    assert torch.allclose(features(scaled), features.cnn(torch.ones(1, 3, 36, 36)))  # type: ignore[operator]


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (3, 36, 36)), spaces.Box(0, 255, (36, 36), np.uint8)])
def test_what_only_resembles_an_image_is_a_vector(space: spaces.Box) -> None:
    codec = ObservationCodec(space)
    assert (codec.is_image, codec.dtype) == (False, torch.float32)
    assert codec.encode(batch(space, 2), CPU).shape == (2, int(np.prod(space.shape)))


def test_columns_are_named_for_error_messages() -> None:
    codec = ObservationCodec(spaces.Dict({"b": spaces.Box(0, 1, (2, 2)), "a": spaces.Box(0, 1, ())}))
    names = ["observation['a'][]", *(f"observation['b'][{i}, {j}]" for i in range(2) for j in range(2))]
    assert [codec.locate(column) for column in range(5)] == names
    with pytest.raises(IndexError):
        codec.locate(5)
    assert ObservationCodec(spaces.Box(0, 1, (3,))).locate(2) == "observation[2]"


MATRIX = spaces.Box(np.array([[-np.inf, 0], [0, -1]], np.float32), np.ones((2, 2), np.float32))


@pytest.mark.parametrize(
    ("space", "where", "remedy"),
    [
        (spaces.MultiDiscrete([3, 2]), r"the observation space is MultiDiscrete", "FlattenObservation"),
        (spaces.MultiBinary(3), r"the observation space is MultiBinary\(3\)", "FlattenObservation"),
        (spaces.Tuple([MATRIX]), r"the observation space is Tuple\(Box", "FlattenObservation"),
        (spaces.Dict({"a": spaces.Dict({"b": MATRIX})}), r"observation key 'a' is Dict\('b'", "FlattenObservation"),
        (spaces.Dict({"a": MATRIX, "n": spaces.Text(2)}), r"observation key 'n' is Text", "FlattenObservation"),
        (spaces.Dict({"a": MATRIX, "eye": IMAGE}), r"observation key 'eye' is an image", "FilterObservation"),
    ],
)
def test_observation_spaces_that_are_refused(space: spaces.Space[Any], where: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"^{where}.*gymnasium\.wrappers\.{remedy}.*$") as error:
        ObservationCodec(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Dict({"a": spaces.Dict({"b": MATRIX})})]
)
def test_the_remedy_for_observations_helps(space: spaces.Space[Any]) -> None:
    env: gym.Env[Any, Any] = gym.Env()
    env.observation_space, env.action_space = space, spaces.Box(-1, 1, (1,))
    ObservationCodec(gym.wrappers.FlattenObservation(env).observation_space)


# -- actions -----------------------------------------------------------------------------------------------------------


def test_actions_are_scaled_to_the_bounds() -> None:
    space = spaces.Box(np.array([[-1, 0], [-3, 10]], np.float32), np.array([[3, 1], [-2, 30]], np.float32))
    scaler = ActionScaler(space, CPU)
    assert (scaler.size, scaler.shape) == (4, (2, 2))
    actions = torch.tensor([-1.0, 0.0, 0.5, 1.0]).unsqueeze(1).repeat(1, 4)
    expected = [[[-1, 0], [-3, 10]], [[1, 0.5], [-2.5, 20]], [[2, 0.75], [-2.25, 25]], [[3, 1], [-2, 30]]]
    assert scaler.to_env(actions).tolist() == expected
    assert torch.equal(scaler.from_env(scaler.to_env(actions).flatten(1)), actions)


@given(st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_actions_stay_within_the_bounds(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.float16, np.int32]))
    width = 16 if dtype is np.float16 else 32 if dtype is np.float32 else 64
    largest = 3e4 if width == 16 else 1e9
    number = st.floats(-largest, largest, width=width) if dtype is not np.int32 else st.integers(-(2**31), 2**31 - 1)  # type: ignore[arg-type]
    bounds = [sorted(data.draw(st.tuples(number, number))) for _ in range(3)]
    low, high = np.array(bounds, dtype).T
    # Bounds that no float32 lies between leave nothing to choose from.
    inside = np.nextafter(low.astype(np.float32), np.float32(np.inf)).astype(np.float64) <= high
    if not inside.all():
        return
    space = spaces.Box(low, high, dtype=dtype)
    numbers = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=5))
    actions = torch.tensor([-1.0, 1.0, *numbers]).unsqueeze(1).repeat(1, 3)
    scaled = ActionScaler(space, CPU).to_env(actions).numpy()
    assert scaled.dtype == np.float32
    assert (scaled.astype(np.float64) >= low).all()
    assert (scaled.astype(np.float64) <= high).all()


def test_actions_come_back_from_the_bounds() -> None:
    space = spaces.Box(np.array([-2, 0.5, 10], np.float32), np.array([1, 3, 10.5], np.float32))
    scaler = ActionScaler(space, CPU)
    actions = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    back = scaler.from_env(scaler.to_env(actions.view(20, 3)).view(5, 4, 3))
    assert torch.allclose(back, actions, atol=1e-5)  # 10.2 in float32 is known to 1e-6, a quarter of the room to 4e-6
    edges = torch.tensor(np.stack([space.low, space.high]))
    assert scaler.from_env(edges).tolist() == [[-1] * 3, [1] * 3]


def test_bounds_that_float32_cannot_hold_are_rounded_inwards() -> None:
    space = spaces.Box(np.array([-0.1]), np.array([0.1]), dtype=np.float64)
    assert float(np.float32(0.1)) > 0.1  # which is why
    for action in ActionScaler(space, CPU).to_env(torch.tensor([[-1.0], [1.0]])).numpy():
        assert space.contains(action)
        assert abs(action) == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(4), r"^X needs a Box action space, got Discrete\(4\): try Y$"),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), r"^X needs a Box action space, got MultiDiscrete.*: try Y$"),
        (spaces.Dict({"a": spaces.Box(0, 1)}), r"^X needs a Box action space, got Dict.*: try Y$"),
        (
            spaces.Box(-np.inf, np.inf, (2,)),
            r"^X needs an action space with finite bounds, got Box.*TransformAction.*$",
        ),
        (MATRIX, r"^X needs an action space with finite bounds, got Box.*TransformAction.*$"),
        (spaces.Box(-3e38, 3e38, (1,)), r"^X needs an action space with finite bounds.*$"),
        (spaces.Box(-1e39, 0, (1,), np.float64), r"^X needs an action space with finite bounds.*$"),
        (spaces.Box(1e39, 1.0000001e39, (1,), np.float64), r"^X needs an action space with finite bounds.*$"),
        (spaces.Box(-1.5e308, 1.5e308, (1,), np.float64), r"^X needs an action space with finite bounds.*$"),
        (
            spaces.Box(np.array([0, 1], np.float32), np.array([1, 1], np.float32)),
            r"^X needs action bounds with low < high in every dim.*$",
        ),
    ],
)
def test_action_spaces_that_are_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_action_space(space, "X", "try Y")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space", [spaces.Box(-1e38, 1e38, (1,)), spaces.Box(0, 5, (2, 2), np.int32), spaces.Box(-1, 2)]
)
def test_action_spaces_that_are_taken(space: spaces.Box) -> None:
    check_action_space(space, "X", "try Y")
    actions = torch.tensor([-1.0, 0.0, 1.0]).unsqueeze(1).repeat(1, int(np.prod(space.shape)))
    assert torch.isfinite(ActionScaler(space, CPU).to_env(actions)).all()


def test_the_remedy_for_unbounded_actions_helps() -> None:
    env: gym.Env[Any, Any] = gym.Env()
    env.observation_space, env.action_space = spaces.Box(-1, 1), spaces.Box(-np.inf, np.inf, (2,))
    bounded = gym.wrappers.TransformAction(env, lambda action: action, spaces.Box(-1, 1, (2,)))
    check_action_space(bounded.action_space, "X", "try Y")


# -- spaces as JSON ----------------------------------------------------------------------------------------------------


def same(one: spaces.Space[Any], two: spaces.Space[Any]) -> bool:
    """Equal to the last bit, which Gymnasium's own comparison is not about, and in the same order."""
    if isinstance(one, spaces.Box) and isinstance(two, spaces.Box):
        bits = all(getattr(one, name).tobytes() == getattr(two, name).tobytes() for name in ("low", "high"))
        return one == two and one.dtype == two.dtype and bits
    if isinstance(one, spaces.Dict) and isinstance(two, spaces.Dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    return one == two


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    dtype = np.dtype(draw(st.sampled_from(["float32", "float64", "float16", "uint8", "int32", "int64", "uint64"])))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    if dtype.kind == "f":
        width = dtype.itemsize * 8
        number: Any = st.floats(allow_nan=False, width=width)  # type: ignore[arg-type]
    else:
        number = st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max)
    size = int(np.prod(shape))
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(number, number)))
        pairs = [(low, high)] * size
    else:
        pairs = [tuple(sorted(draw(st.tuples(number, number)))) for _ in range(size)]
    low, high = (np.array(bound, dtype).reshape(shape) for bound in zip(*pairs, strict=True))
    if dtype.kind == "f":  # not -inf..-inf, which no Box has
        low, high = np.where(low == np.inf, 0, low).astype(dtype), np.where(high == -np.inf, np.inf, high).astype(dtype)
        high = np.maximum(low, high)
    return spaces.Box(low, high, shape, dtype.type)


discretes = st.builds(
    lambda n, start, dtype: spaces.Discrete(n, start=start, dtype=dtype),
    st.integers(1, 99),
    st.integers(-20, 20),
    st.sampled_from([np.int64, np.int32]),
)
leaves = st.one_of(boxes(), discretes)
trees = st.recursive(
    leaves,
    lambda children: st.lists(
        st.tuples(st.text(max_size=4), children), min_size=1, max_size=3, unique_by=lambda p: p[0]
    ).map(spaces.Dict),
    max_leaves=5,
)


@given(trees)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_spaces_go_round_through_strict_json(space: spaces.Space[Any]) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert same(space_from_json(json.loads(text)), space)


def test_infinities_and_images_are_short() -> None:
    assert space_to_json(spaces.Box(-np.inf, np.inf, (400,))) == {
        "type": "Box",
        "shape": [400],
        "dtype": "float32",
        "low": "-inf",
        "high": "inf",
    }
    mixed = spaces.Box(np.array([-np.inf, 0.1]), np.array([1, np.inf]), dtype=np.float64)
    assert (space_to_json(mixed)["low"], space_to_json(mixed)["high"]) == (["-inf", 0.1], [1.0, "inf"])
    assert same(space_from_json(space_to_json(mixed)), mixed)
    image = spaces.Box(0, 255, (3, 210, 160), np.uint8)
    assert len(json.dumps(space_to_json(image))) < 100
    assert same(space_from_json(space_to_json(image)), image)


def test_the_order_of_a_dict_is_kept() -> None:
    space = spaces.Dict(OrderedDict(z=spaces.Box(0, 1, (1,)), a=spaces.Discrete(2)))
    assert list(space_from_json(space_to_json(space))) == ["z", "a"]  # type: ignore[call-overload]


def test_a_discrete_space_without_a_dtype_is_of_64_bits() -> None:
    assert space_from_json({"type": "Discrete", "n": 3, "start": 1}) == spaces.Discrete(3, start=1)


@pytest.mark.parametrize("space", [spaces.MultiBinary(2), spaces.Tuple([spaces.Discrete(2)]), spaces.Text(3)])
def test_spaces_that_cannot_be_described(space: spaces.Space[Any]) -> None:
    with pytest.raises(
        ValueError, match=rf"^a {type(space).__name__} space cannot be saved: use Box, Discrete or a Dict"
    ):
        space_to_json(space)
    with pytest.raises(ValueError, match="cannot be saved"):
        space_to_json(spaces.Dict({"a": space}))


@pytest.mark.parametrize(
    "description",
    [
        {},
        [],
        None,
        {"type": "Tuple"},
        {"type": "Box", "shape": [1], "dtype": "float32", "low": 0},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": [0, 0, 0], "high": 1},
        {"type": "Box", "shape": [1], "dtype": "float31", "low": 0, "high": 1},
        {"type": "Box", "shape": [1], "dtype": "uint8", "low": 0, "high": 300},
        {"type": "Box", "shape": [1], "dtype": "float32", "low": "low", "high": 1},
        {"type": "Box", "shape": [-1], "dtype": "float32", "low": 0, "high": 1},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Discrete", "n": "3", "start": 0},
        {"type": "Dict", "spaces": {"a": {}}},
        {"type": "Dict", "spaces": [["a"]]},
        {"type": "Dict", "spaces": [["a", {"type": "Discrete", "n": 3}]]},
    ],
)
def test_descriptions_that_are_refused(description: Any) -> None:
    with pytest.raises(ValueError, match=r"^not the description of a space: .+$"):
        space_from_json(description)
