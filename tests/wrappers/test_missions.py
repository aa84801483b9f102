"""Missions: tasks told in words, on Frostbite and on a second game that the wrapper knows nothing of."""

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("ale_py")

import stable_baselines3 as sb3
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from headway.envs.atari import AtariEnv, Game
from headway.envs.frostbite import FrostbiteEnv
from headway.envs.missions import (
    SPLITS,
    Reference,
    Task,
    check_instruction,
    find_task,
    read_instructions,
    register_references,
    register_task,
    tasks_of,
    told,
    vocabulary_of,
    words_of,
)
from headway.envs.pong import PongEnv
from headway.wrappers import Missions, verify_snapshot
from headway.wrappers.missions import END, FIRST_WORD, KNOWN, PAD, START, Tokenizer, make_text_game
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

DOWN, NOOP = 5, 0
FROSTBITE = "headway/TextFrostbite-v0"


def missions(**options: Any) -> Missions:
    return make_text_game("frostbite", **{"include_text": True, **options})


# -- sentences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", ["frostbite", "pong"])
def test_sentences_fit_and_say_one_thing(game: str) -> None:
    tokenizer, meaning = Tokenizer(vocabulary_of(game)), {}
    for task in tasks_of(game).values():
        for sentence in (*task.train, *task.text_known, *task.text_new):
            assert len(tokenizer.encode(sentence)) == 20
            assert meaning.setdefault(words_of(sentence), task.id) == task.id, sentence


def test_splits_of_sentences() -> None:
    tasks, vocabulary = tasks_of("frostbite").values(), set(vocabulary_of("frostbite"))
    trained = {words_of(sentence) for task in tasks for sentence in task.sentences("train")}
    for task in tasks:
        if task.held_out:
            assert [len(task.sentences(split)) > 0 for split in SPLITS] == [False, False, False, True]  # type: ignore[arg-type]
            continue
        assert len(task.train) >= 8
        assert task.sentences("task") == ()
        for split, knows in (("text_known", True), ("text_new", False)):
            sentences = task.sentences(split)  # type: ignore[arg-type]
            assert len(sentences) >= 3
            for sentence in sentences:
                assert words_of(sentence) not in trained
                assert (set(words_of(sentence)) <= vocabulary) is knows, sentence
    assert sum(task.held_out for task in tasks) == 7


def test_words_as_numbers() -> None:
    tokenizer = Tokenizer(["alpha", "beta"], 6)
    assert tokenizer.encode("Alpha, beta!".lower().replace("!", "")).tolist() == [
        START,
        FIRST_WORD,
        FIRST_WORD + 1,
        END,
        PAD,
        PAD,
    ]
    unseen = tokenizer.encode("gamma alpha")
    assert unseen[1] >= KNOWN
    assert unseen[1] == tokenizer.encode("beta gamma")[2]
    assert unseen in tokenizer.space
    assert tokenizer.decode(unseen.tolist()) == "? alpha"
    full = Tokenizer(vocabulary_of("frostbite"))
    for task in tasks_of("frostbite").values():
        for sentence in task.sentences("train"):
            assert full.decode(full.encode(sentence).tolist()) == " ".join(words_of(sentence))


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "an instruction needs a word"),
        (" ,- ", "an instruction needs a word"),
        ("Jump", "has 'J': only small letters"),
        ("jump; now", "has ';'"),
        ("ja " * 60, "at most 128 characters"),
        ("a b c d e f g h i j k l m n o p q r s", "at most 18 words, this has 19"),
    ],
)
def test_what_is_no_instruction(sentence: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        missions().reset(options={"mission": sentence})


def test_templates() -> None:
    assert told(["go {a}", "go {a} to {b}"], a=("x", "y"), b=("1", "2")) == (
        "go x", "go y", "go x to 1", "go x to 2", "go y to 1", "go y to 2",
    )  # fmt: skip
    assert told(["same", "same"]) == ("same",)


def test_sentences_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "told.csv"
    path.write_text(
        "task,split,instruction\ndont_move,train,freeze please\ndont_move,text_new,be a statue\nfish-1,train,eat\n"
    )
    given = read_instructions(path, "frostbite")
    assert given["dont_move"].train == ("freeze please",)
    assert given["dont_move"].text_new == ("be a statue",)
    assert given["fish-1"].text_known == ()
    env = missions(instructions=path)
    seen = {env.reset(seed=seed)[1]["mission"] for seed in range(12)}
    assert seen == {"freeze please", "eat"}
    rows = [{"task": "fish-1", "split": "text_known", "instruction": "eat now"}]
    other = tmp_path / "told.json"
    other.write_text(json.dumps(rows))
    assert read_instructions(other, "frostbite")["fish-1"].text_known == ("eat now",)
    for row, message in (
        ({"task": "dance"}, "entry 1: frostbite has no task 'dance': it has dont_move, "),
        ({"split": "task"}, "entry 1: split is 'task', it can be train, text_known, text_new"),
        ({"instruction": ""}, "entry 1: an instruction needs a word"),
    ):
        other.write_text(json.dumps([rows[0] | row]))
        with pytest.raises(ValueError, match=message):
            read_instructions(other, "frostbite")
    other.write_text('[{"task": "fish-1"}]')
    with pytest.raises(ValueError, match="entry 1: task, split and instruction are needed"):
        read_instructions(other, "frostbite")


# -- episodes ----------------------------------------------------------------------------------------------------------


def test_stock_checker() -> None:
    for obs, options in (("ram", {"include_text": True}), ("pixels", {"include_task": True})):
        env = gym.make(FROSTBITE, obs=obs, **options)
        with pytest.warns(UserWarning, match="different from the unwrapped version"):
            check_env(env, skip_render_check=True)  # which steps it, and holds what it gives to its spaces
    assert isinstance(gym.make(FROSTBITE, render_mode="rgb_array").unwrapped, FrostbiteEnv)


@pytest.mark.parametrize("name", list(tasks_of("frostbite")))
def test_every_task_can_be_asked_for(name: str) -> None:
    env = missions(include_task=True)
    obs, info = env.reset(seed=1, options={"task": name, "noops": 0})
    assert info["task"] == name
    assert info["mission"] in tasks_of("frostbite")[name].train
    assert obs["mission_task"] == list(tasks_of("frostbite")).index(name)
    assert obs["mission_tokens"].tolist() == env.tokenizer.encode(obs["mission"]).tolist()
    obs, _, _, _, info = env.step(NOOP)
    assert (obs["mission"], info["task"]) == (info["mission"], name)


def test_drawing() -> None:
    env = missions()
    drawn = [env.reset(seed=seed)[1] for seed in range(25)]
    for seed, info in enumerate(drawn):
        assert env.reset(seed=seed)[1]["mission"] == info["mission"]
    assert len({info["task"] for info in drawn}) > 10
    assert not any(find_task("frostbite", info["task"]).held_out for info in drawn)
    state = random.getstate(), np.random.get_state()  # noqa: NPY002
    following = [env.reset()[1]["task"] for _ in range(12)]  # without a seed a new one each time
    assert len({*following}) > 3
    assert random.getstate() == state[0]
    assert np.array_equal(np.random.get_state()[1], state[1][1])  # noqa: NPY002
    assert {env.reset(seed=k, options={"split": "task"})[1]["task"] for k in range(40)} == {
        task.id for task in tasks_of("frostbite").values() if task.held_out
    }
    only = missions(tasks=["fish-1", "survive"], split="text_new")
    assert {only.reset(seed=k)[1]["task"] for k in range(9)} == {"fish-1", "survive"}
    assert only.reset(seed=2)[1]["split"] == "text_new"


def test_a_sentence_of_ones_own_changes_no_rule() -> None:
    env = missions()
    _, info = env.reset(seed=3, options={"task": "land_row-1", "mission": "do the very opposite"})
    assert (info["task"], info["mission"]) == ("land_row-1", "do the very opposite")
    terminated, total = False, 0.0
    while not terminated:
        obs, reward, terminated, truncated, info = env.step(DOWN)
        total += reward
        assert not truncated
    assert obs["mission"] == "do the very opposite"
    assert (total, info["task_score"], info["success"], info["is_success"]) == (1.0, 1.0, True, True)


def test_rewards_sum_to_the_score_and_horizons_cut() -> None:
    rng = np.random.default_rng(0)
    for task in ("survive", "camp_row-1", "land_row-4", "max_points"):
        sums = {}
        actions = [int(a) for a in rng.integers(18, size=3_100)]
        for mode in ("delta", "sparse", "game"):
            env = missions(reward=mode)
            env.reset(seed=5, options={"task": task})
            sums[mode], over, games = 0.0, False, 0.0
            for action in actions:
                _, reward, terminated, truncated, info = env.step(action)
                sums[mode] += reward
                games += info["game_reward"]
                if over := terminated or truncated:
                    break
            assert over
            assert truncated is (not terminated)
            if truncated:
                assert info["frostbite"]["frames"] == find_task("frostbite", task).horizon
        assert sums["delta"] == pytest.approx(info["task_score"], abs=1e-6)
        assert sums["sparse"] == float(info["success"])
        assert sums["game"] == games == info["frostbite"]["score"]


def test_what_is_told_at_the_end() -> None:
    register_references("frostbite", {"lose_life": Reference(0.25, 0.75), "survive": Reference(0.5, 0.5)})
    try:
        env = missions()
        env.reset(seed=0, options={"task": "lose_life"})
        terminated = False
        while not terminated:
            *_, terminated, _, info = env.step(DOWN)
            assert ("normalized_score" in info) is terminated
        assert info["normalized_score"] == pytest.approx(min(1, max(0, (info["task_score"] - 0.25) / 0.5)))
        assert "published_score" not in info
        env.reset(seed=0, options={"task": "die_on_level-1"})
        terminated = False
        while not terminated:
            *_, terminated, _, info = env.step(DOWN)
        assert (info["task_score"], info["published_score"]) == (1.0, 1.0)
    finally:
        register_references("frostbite", {})


def test_states_are_exact() -> None:
    def play(env: Any, steps: int, rng: np.random.Generator) -> list[Any]:
        seen = []
        for _ in range(steps):
            obs, reward, terminated, truncated, info = env.step(int(rng.integers(18)))
            seen.append((obs["ram"].tolist(), obs["mission"], reward, terminated, truncated, info["task_score"]))
            if terminated or truncated:
                seen.append(env.reset()[1]["mission"])
        return seen

    env, other = (missions(repeat_action_probability=0.25) for _ in range(2))
    env.reset(seed=1)
    play(env, 200, np.random.default_rng(0))
    other.load_state(env.state())
    assert play(env, 400, np.random.default_rng(1)) == play(other, 400, np.random.default_rng(1))
    fresh = missions()
    other.load_state(fresh.state())  # before the first reset
    assert other.mission is None
    assert verify_snapshot(lambda: gym.make(FROSTBITE), steps=60).exact


def test_a_state_with_an_unknown_task_is_refused() -> None:
    env = missions()
    env.reset(seed=0)
    state = env.state()
    with pytest.raises(ValueError, match="frostbite has no task 'dance'"):
        env.load_state(state | {"mission": state["mission"] | {"task": "dance"}})
    env.reset(
        options={
            "task": Task(
                id="own", game="frostbite", tier="easy", horizon=9, score=lambda s: 0.0, success=bool, train=("a",)
            )
        }
    )
    with pytest.raises(ValueError, match="frostbite has no task 'own'"):
        env.state()
    with pytest.raises(ValueError, match="frostbite has no task 'own'"):  # it has no number either
        missions(include_task=True).reset(options={"task": env.mission.task})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split is 'test': it can be train, text_known, text_new, task"),
        ({"reward": "dense"}, "reward is 'dense': it can be 'delta', 'sparse' or 'game'"),
        ({"tasks": ["fly"]}, "frostbite has no task 'fly': it has dont_move, survive"),
        ({"tasks": ["fish-1"], "split": "task"}, "none of the tasks fish-1 is in the split 'task'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        missions(**options)


def test_options_that_do_not_fit_are_refused() -> None:
    env = missions()
    with pytest.raises(ValueError, match=r"frostbite has no task 'fly': it has .*far_then_still"):
        env.reset(options={"task": "fly"})
    with pytest.raises(ValueError, match="split is 'dev'"):
        env.reset(options={"split": "dev"})
    with pytest.raises(ValueError, match="reset has no option 'tempo'"):
        env.reset(options={"tempo": 3})
    with pytest.raises(ValueError, match="counts nothing of its episodes"):
        Missions(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"frostbite has a task 'survive' already"):
        register_task(tasks_of("frostbite")["survive"])
    with pytest.raises(ValueError, match="there are no tasks in 'breakout'"):
        Missions(AtariEnv(Game("breakout", 1, lambda ram: np.zeros(1, np.float32), env.env.unwrapped.game.monitor)))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="has a horizon of 0 frames"):
        Task(id="x", game="g", tier="easy", horizon=0, score=float, success=bool, train=("a",))
    with pytest.raises(ValueError, match="has no sentence for training"):
        Task(id="x", game="g", tier="easy", horizon=1, score=float, success=bool, train=())
    with pytest.raises(ValueError, match="an instruction needs a word"):
        check_instruction("")


# -- several at once ---------------------------------------------------------------------------------------------------


def _drawn_elsewhere(seed: int) -> list[Any]:
    obs, info = missions().reset(seed=seed)
    return [obs["mission_tokens"].tolist(), info["mission"], obs["ram"].tolist()]


def test_two_processes_agree() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_drawn_elsewhere, (6,)) == _drawn_elsewhere(6)


def test_vector_forms_tell_the_same() -> None:
    expected = [missions().reset(seed=seed)[0] for seed in (4, 5)]
    for workers in (False, True):
        env = gym.make_vec(FROSTBITE, num_envs=2, workers=workers, include_text=True)
        obs, _ = env.reset(seed=4)
        assert list(obs["mission"]) == [one["mission"] for one in expected]
        assert np.array_equal(obs["mission_tokens"], np.stack([one["mission_tokens"] for one in expected]))
        env.close()
    for kind in (DummyVecEnv, SubprocVecEnv):
        venv = kind([lambda: missions(include_text=False)] * 2)
        venv.seed(4)
        seen: Any = venv.reset()
        assert np.array_equal(seen["mission_tokens"], np.stack([one["mission_tokens"] for one in expected]))
        venv.close()


def test_gymnasium_corrupts_text_in_shared_memory() -> None:
    """Why our vector form does not share memory; should this fail, Gymnasium has been mended."""
    env = AsyncVectorEnv([missions] * 2, shared_memory=True, autoreset_mode=AutoresetMode.SAME_STEP)
    obs, info = env.reset(seed=4)
    assert list(obs["mission"]) != list(info["mission"])
    assert np.array_equal(obs["mission_tokens"][0], Tokenizer(vocabulary_of("frostbite")).encode(info["mission"][0]))
    env.close()


def test_stable_baselines3_learns_from_frames_and_tokens() -> None:
    for obs in ("ram", "pixels"):
        env = gym.make(FROSTBITE, obs=obs, tasks=["land_row-1", "dont_move"])
        model = sb3.PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
        before = [p.clone() for p in model.policy.parameters()]
        model.learn(32)
        assert any(not bool((a == b).all()) for a, b in zip(before, model.policy.parameters(), strict=True))


# -- a second game -----------------------------------------------------------------------------------------------------


def test_pong_has_missions_too() -> None:
    env = gym.make("headway/TextPong-v0")
    assert isinstance(env.unwrapped, PongEnv)
    assert isinstance(env.observation_space, spaces.Dict)
    assert env.observation_space["ram"].shape == (6,)
    env.reset(seed=0, options={"task": "lose_point"})
    terminated, total, games = False, 0.0, 0.0
    while not terminated:
        _, reward, terminated, truncated, info = env.step(NOOP)
        total, games = total + float(reward), games + info["game_reward"]
        assert not truncated
    assert (total, games, info["pong"]["lost"], info["success"]) == (1.0, -1.0, 1, True)


def test_pongs_paddle_is_where_the_memory_says() -> None:
    places = []
    for action in (2, 5):  # its joystick is turned by a quarter: right goes up
        env = PongEnv(noop_max=0, frame_skip=1)
        env.reset()
        for _ in range(200):
            env.step({2: 3, 5: 4}[action])
        green = (env.ale.getScreenRGB()[34:194] == np.array((92, 186, 92))).all(-1)
        places.append((env.ram()[51], float(np.nonzero(green)[0].mean())))
    assert places[0][0] < places[1][0]
    assert places[0][1] < places[1][1]
    assert env.monitor.frames == 200
