"""Observations encoded, actions scaled, spaces as JSON."""

import json
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import PPO, SAC, TD3
from headway.agents.core.spaces import (
    BoxActions,
    FieldSpec,
    ObservationCodec,
    actions_of,
    check_actions,
    space_from_json,
    space_to_json,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.preprocessing import preprocess_obs
from toys import FORMS, Counter

CPU = torch.device("cpu")
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def batch(space: spaces.Space[Any], n: int) -> Any:
    """Samples as adapters give them: tensors with a leading axis, by key."""
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    return torch.from_numpy(np.stack(samples))


# -- observations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 3)])
def test_boxes_of_any_shape_and_precision_become_rows_of_float32(shape: tuple[int, ...], dtype: Any) -> None:
    space = spaces.Box(0, 100, shape, dtype, seed=0)
    codec = ObservationCodec(space)
    obs = batch(space, 5)
    encoded = codec.encode(obs, CPU)
    size = int(np.prod(shape))
    assert codec.spec == FieldSpec((size,), torch.float32)
    assert isinstance(encoded, torch.Tensor)
    assert (encoded.shape, encoded.dtype) == ((5, size), torch.float32)
    assert encoded.tolist() == obs.reshape(5, size).to(torch.float32).tolist()
    assert codec.features().features_dim == size
    assert codec.features()(encoded) is encoded


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_integers_keep_their_shape_and_every_bit(shape: tuple[int, ...], dtype: Any) -> None:
    top = np.iinfo(dtype).max
    space = spaces.Box(0, top, shape, dtype)
    obs = torch.from_numpy(np.full((2, *shape), top, dtype))
    encoded = ObservationCodec(space).encode(obs, CPU)
    assert isinstance(encoded, torch.Tensor)
    assert not encoded.dtype.is_floating_point
    assert encoded.shape == (2, *shape)
    assert (encoded == int(top)).all()
    features = ObservationCodec(space).features()
    assert features(encoded).shape == (2, features.features_dim)
    flat = ObservationCodec(space, flatten=True).encode(obs, CPU)
    assert torch.equal(flat, obs.reshape(2, -1).float())  # type: ignore[arg-type]


def test_images_and_tokens_inside_a_dict_are_tensors_of_their_own() -> None:
    words, place = spaces.Box(0, 2**40, (5,), np.int64), spaces.Box(-1, 1, (2,))
    space = spaces.Dict({"eye": IMAGE, "words": words, "place": place, "mode": spaces.Discrete(3)}, seed=0)
    codec = ObservationCodec(space)
    obs = batch(space, 4)
    obs["words"][0] = 2**24 + 1  # the first integer that float32 does not know
    encoded = codec.encode(obs, CPU)
    assert isinstance(encoded, dict)
    assert codec.spec == {
        "eye": FieldSpec((3, 36, 36), torch.uint8),
        "words": FieldSpec((5,), torch.int64),
        "vector": FieldSpec((5,), torch.float32),
    }
    assert torch.equal(encoded["eye"], obs["eye"])
    assert torch.equal(encoded["words"], obs["words"])
    assert (encoded["words"][0] == 2**24 + 1).all()
    assert torch.equal(encoded["vector"], torch.cat([torch.eye(3)[obs["mode"].flatten()], obs["place"]], 1))
    features = codec.features()
    assert features.features_dim == 256 + 5 + 5
    assert features(encoded).shape == (4, 266)
    assert codec.numbers(encoded).keys() == {"vector"}
    assert [codec.locate(column) for column in (0, 3)] == ["observation['mode'][]", "observation['place'][0]"]


def test_a_part_may_be_called_vector() -> None:
    codec = ObservationCodec(spaces.Dict({"vector": IMAGE, "place": spaces.Box(-1, 1, (2,))}))
    assert list(codec.fields) == ["vector", "vector_"]


def test_multidiscrete_and_multibinary_are_read_as_in_the_peer() -> None:
    several, flags = spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)
    obs = torch.tensor([[2, 0], [0, 1]])
    assert torch.equal(ObservationCodec(several).encode(obs, CPU), preprocess_obs(obs, several))  # type: ignore[arg-type]
    assert ObservationCodec(spaces.MultiDiscrete([3, 2], start=[1, 5])).encode(
        obs + torch.tensor([1, 5]), CPU
    ).tolist() == [  # type: ignore[union-attr]
        [0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    bits = torch.tensor([[1, 0, 1]], dtype=torch.int8)
    assert torch.equal(ObservationCodec(flags).encode(bits, CPU), preprocess_obs(bits, flags))  # type: ignore[arg-type]


def test_a_dict_is_laid_out_in_the_order_of_its_space() -> None:
    parts = [
        ("z", spaces.Box(0, 1, (2, 2), np.float64)),
        ("a", spaces.Box(-5, 5, (), np.float16)),
        ("m", spaces.Box(0, 1, (3,))),
    ]
    space = spaces.Dict(OrderedDict(parts), seed=0)
    codec = ObservationCodec(space)
    obs = batch(space, 4)
    expected = torch.cat([obs["z"].reshape(4, 4), obs["a"].reshape(4, 1), obs["m"]], 1).float()
    assert codec.spec == FieldSpec((8,), torch.float32)
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
        assert encoded.dtype is torch.float32
        assert torch.equal(encoded, torch.eye(4))
    assert codec.spec == FieldSpec((4,), torch.float32)
    assert codec.features().features_dim == 4
    if start == 0:
        assert torch.equal(encoded, preprocess_obs(obs, space))  # type: ignore[arg-type]


def test_discrete_parts_of_a_dict_take_as_many_columns_as_values() -> None:
    parts = [("age", spaces.Discrete(3, start=1)), ("place", spaces.Box(-1, 1, (2,))), ("mode", spaces.Discrete(2))]
    codec = ObservationCodec(spaces.Dict(OrderedDict(parts)))
    obs = {"mode": torch.tensor([1, 0]), "age": torch.tensor([3, 1]), "place": torch.tensor([[0.5, -1], [0, 1]])}
    assert codec.sizes == [3, 2, 2]
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
    assert codec.spec == FieldSpec((3, 36, 36), torch.uint8)
    assert encoded.dtype is torch.uint8
    assert torch.equal(encoded, obs)
    features = codec.features()
    assert features(encoded).shape == (2, features.features_dim)
    scaled = torch.full((1, 3, 36, 36), 255, dtype=torch.uint8)
    assert torch.allclose(features(scaled), features.cnn(torch.ones(1, 3, 36, 36)))  # type: ignore[operator]


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (3, 36, 36)), spaces.Box(0, 255, (36, 36), np.float32)])
def test_what_only_resembles_an_image_is_a_vector(space: spaces.Box) -> None:
    codec = ObservationCodec(space)
    assert codec.encode(batch(space, 2), CPU).shape == (2, int(np.prod(space.shape)))


@pytest.mark.parametrize("form", FORMS)
def test_what_was_stored_is_decoded(form: str) -> None:
    space = FORMS[form]
    space.seed(0)
    codec, obs = ObservationCodec(space), batch(space, 4)
    decoded = codec.decode(codec.encode(obs, CPU, raw=True))
    assert isinstance(decoded, dict) == isinstance(obs, dict)
    for key in obs if isinstance(obs, dict) else [None]:
        one, other = (obs, decoded) if key is None else (obs[key], decoded[key])  # type: ignore[index]
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-7, atol=0)  # float64 is stored as float32


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
        (spaces.Tuple([MATRIX]), r"the observation space is Tuple\(Box", "FlattenObservation"),
        (spaces.Dict({"a": spaces.Dict({"b": MATRIX})}), r"observation key 'a' is Dict\('b'", "FlattenObservation"),
        (spaces.Dict({"a": MATRIX, "n": spaces.Text(2)}), r"observation key 'n' is Text", "FlattenObservation"),
    ],
)
def test_observation_spaces_that_are_refused(space: spaces.Space[Any], where: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"^{where}.*gymnasium\.wrappers\.{remedy}.*$") as error:
        ObservationCodec(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space", [spaces.Tuple([MATRIX, spaces.Discrete(2)]), spaces.Dict({"a": spaces.Dict({"b": MATRIX})})]
)
def test_the_remedy_for_observations_helps(space: spaces.Space[Any]) -> None:
    env: gym.Env[Any, Any] = gym.Env()
    env.observation_space, env.action_space = space, spaces.Box(-1, 1, (1,))
    ObservationCodec(gym.wrappers.FlattenObservation(env).observation_space)


# -- actions -----------------------------------------------------------------------------------------------------------


def test_actions_are_scaled_to_the_bounds() -> None:
    space = spaces.Box(np.array([[-1, 0], [-3, 10]], np.float32), np.array([[3, 1], [-2, 30]], np.float32))
    scaler = BoxActions(space, CPU)
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
    scaled = BoxActions(space, CPU).to_env(actions).numpy()
    assert scaled.dtype == (np.int32 if dtype is np.int32 else np.float32)
    assert (scaled.astype(np.float64) >= low).all()
    assert (scaled.astype(np.float64) <= high).all()


def test_actions_come_back_from_the_bounds() -> None:
    space = spaces.Box(np.array([-2, 0.5, 10], np.float32), np.array([1, 3, 10.5], np.float32))
    scaler = BoxActions(space, CPU)
    actions = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    back = scaler.from_env(scaler.to_env(actions.view(20, 3)).view(5, 4, 3))
    assert torch.allclose(back, actions, atol=1e-5)  # 10.2 in float32 is known to 1e-6, a quarter of the room to 4e-6
    edges = torch.tensor(np.stack([space.low, space.high]))
    assert scaler.from_env(edges).tolist() == [[-1] * 3, [1] * 3]


def test_bounds_that_float32_cannot_hold_are_rounded_inwards() -> None:
    space = spaces.Box(np.array([-0.1]), np.array([0.1]), dtype=np.float64)
    assert float(np.float32(0.1)) > 0.1  # which is why
    for action in BoxActions(space, CPU).to_env(torch.tensor([[-1.0], [1.0]])).numpy():
        assert space.contains(action)
        assert abs(action) == pytest.approx(0.1, rel=1e-7)


class X:
    """An agent, as far as actions go."""

    action_kinds = ("Box",)
    squashes = True


class Clips(X):
    action_kinds = ("Box", "Discrete", "MultiDiscrete")
    squashes = False


def test_discrete_actions_are_counted_from_zero() -> None:
    actions = actions_of(spaces.Discrete(4, start=-1), CPU, squashes=True)
    drawn = actions.random(1000, torch.Generator().manual_seed(0))
    assert (actions.size, actions.field, actions.choices) == (4, FieldSpec((), torch.int64, 4), 4)
    assert drawn.unique().tolist() == [0, 1, 2, 3]
    assert actions.to_env(drawn).unique().tolist() == [-1, 0, 1, 2]
    assert torch.equal(actions.from_env(actions.to_env(drawn)), drawn)


def test_multidiscrete_actions_are_counted_from_zero() -> None:
    space = spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[5, 0], [0, 7]])
    actions = actions_of(space, CPU, squashes=False)
    drawn = actions.random(200, torch.Generator().manual_seed(0))
    assert (actions.size, actions.choices, drawn.shape) == (10, (2, 3, 4, 1), (200, 4))
    assert [column.unique().tolist() for column in drawn.unbind(1)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [0]]
    assert all(space.contains(action) for action in actions.to_env(drawn).numpy())
    assert torch.equal(actions.from_env(actions.to_env(drawn)), drawn)


def test_actions_in_the_environments_unit_are_clipped() -> None:
    space = spaces.Box(np.array([-2, -np.inf], np.float32), np.array([0.5, np.inf], np.float32))
    check_actions(space, Clips, [])
    actions = actions_of(space, CPU, squashes=False)
    assert actions.to_env(torch.tensor([[-3.0, 1e9], [0.25, -7.0]])).tolist() == [[-2, 1e9], [0.25, -7]]
    drawn = actions.random(1000, torch.Generator().manual_seed(0))
    assert drawn[:, 0].min() >= -2
    assert drawn[:, 0].max() <= 0.5
    assert abs(drawn[:, 1].std() - 1) < 0.1  # 1000 draws: the standard error is 0.02


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(4), r"^X needs a Box action space, got Discrete\(4\): agents that take it: Y$"),
        (
            spaces.MultiDiscrete([[2, 3], [4, 5]]),
            r"^X needs a Box action space, got MultiDiscrete.*: agents that take it: Y$",
        ),
        (spaces.Dict({"a": spaces.Box(0, 1)}), r"^X needs a Box action space, got Dict.*: agents that take it: Y$"),
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
        check_actions(space, X, ["Y"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space", [spaces.Box(-1e38, 1e38, (1,)), spaces.Box(0, 5, (2, 2), np.int32), spaces.Box(-1, 2)]
)
def test_action_spaces_that_are_taken(space: spaces.Box) -> None:
    check_actions(space, X, ["Y"])
    actions = torch.tensor([-1.0, 0.0, 1.0]).unsqueeze(1).repeat(1, int(np.prod(space.shape)))
    assert torch.isfinite(BoxActions(space, CPU).to_env(actions)).all()


def test_the_remedy_for_unbounded_actions_helps() -> None:
    env: gym.Env[Any, Any] = gym.Env()
    env.observation_space, env.action_space = spaces.Box(-1, 1), spaces.Box(-np.inf, np.inf, (2,))
    bounded = gym.wrappers.TransformAction(env, lambda action: action, spaces.Box(-1, 1, (2,)))
    check_actions(bounded.action_space, X, ["Y"])


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
others = st.sampled_from(
    [spaces.MultiBinary(2), spaces.MultiBinary([2, 3]), spaces.MultiDiscrete([3, 2], start=[1, 0])]
)
leaves = st.one_of(boxes(), discretes, others)
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


@pytest.mark.parametrize("space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Text(3)])
def test_spaces_that_cannot_be_described(space: spaces.Space[Any]) -> None:
    with pytest.raises(
        ValueError, match=rf"^a {type(space).__name__} space cannot be saved: use Box, Discrete, Multi.*, or a Dict"
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


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("make", [SAC, TD3, PPO])
def test_integer_boxes_get_whole_actions(make: Any, dtype: Any) -> None:
    env = Counter(actions=(0, 10, dtype))
    sizes: dict[str, Any] = {"net_arch": (4,), "seed": 0, "device": "cpu"}
    agent = make("MlpPolicy", env, **sizes, **({"n_steps": 8, "batch_size": 8} if make is PPO else {"buffer_size": 50}))
    agent.learn(8)
    assert all(env.action_space.contains(action) for action in env.taken)
    assert env.action_space.contains(agent.predict(np.zeros(2, np.float32))[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
@pytest.mark.parametrize("end", [-50.0, 50.0])
@pytest.mark.parametrize("make", [TD3, PPO])
def test_predicted_actions_are_in_the_space_to_the_last_bit(make: Any, end: float, dtype: Any) -> None:
    bounds = (-3, 7) if dtype is np.int16 else (-0.1, 0.3)
    agent = make("MlpPolicy", Counter(actions=(*bounds, dtype)), net_arch=(4,), device="cpu", seed=0)
    network = next(net for name, net in agent.modules.networks().items() if not name.endswith("target"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(end)
    action, _ = agent.predict(np.ones(2, np.float32), deterministic=True)
    assert agent.action_space.contains(action)
