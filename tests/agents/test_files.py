"""Damaged policies and checkpoints: refused in one line, or loaded with the original's content; never anything else."""

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from headway import agents
from headway.agents import SAC, FileFormatError
from headway.agents.core.files import list_checkpoints, read_archive, write_archive
from headway.agents.core.files.contents import load_store
from toys import vec

Damage = Callable[[bytes, random.Random], bytes]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def swap_ranges(data: bytes, rng: random.Random) -> bytes:
    size = rng.randint(1, 200)
    first, second = sorted(rng.sample(range(0, len(data) - size), 2))
    if second < first + size:
        return flip_bits(data, rng)
    parts = data[:first], data[second : second + size], data[first + size : second], data[first : first + size]
    return b"".join([*parts, data[second + size :]])


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 50)) + data[at:]


def rebuild(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """Write the zip anew with members swapped, added, dropped or edited, by an ordinary zip writer."""
    source, target = folder / "source.zip", folder / "target.zip"
    source.write_bytes(data)
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        comment = archive.comment
    names = list(members)
    match rng.randrange(4):
        case 0:
            a, b = rng.sample(names, 2)
            members[a], members[b] = members[b], members[a]
        case 1:
            members[rng.choice(["../evil.py", "data.pkl", "networks2.safetensors"])] = rng.randbytes(30)
        case 2:
            del members[rng.choice(names)]
        case _:
            name = rng.choice(names)
            members[name] = flip_bits(members[name], rng)
    with zipfile.ZipFile(target, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = comment
    return target.read_bytes()


def damage(data: bytes, rng: random.Random, folder: Path) -> bytes:
    kind = rng.randrange(5)
    return rebuild(data, rng, folder) if kind == 4 else (cut, flip_bits, swap_ranges, insert)[kind](data, rng)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    agent = SAC(
        "MlpPolicy", vec(2), seed=0, device="cpu", net_arch=[8], buffer_size=100, learning_starts=20, batch_size=8
    )
    agent.learn(80)
    agent.save(folder / "policy.zip")
    agent.save_checkpoint(folder / "checkpoints")
    return folder


def check(original: Path, load: Callable[[Path], object], count: int, folder: Path) -> int:
    """Damage a file in ``count`` ways; :return: how many were refused."""
    data, content = original.read_bytes(), read_archive(original)
    refusals = []
    place = folder / original.name
    for seed in range(count):
        place.write_bytes(damage(data, random.Random(seed), folder))
        try:
            load(place)
        except ValueError as error:
            refusals.append(str(error))
            continue
        read = read_archive(place)
        assert read.manifest == content.manifest, seed
        assert read.members.keys() == content.members.keys(), seed
        for name, tensors in read.members.items():
            assert all((tensors[key] == content.members[name][key]).all() for key in content.members[name]), seed
    assert not [message for message in refusals if "\n" in message]
    return len(refusals)


def test_a_thousand_damaged_policies(trained: Path, tmp_path: Path) -> None:
    assert check(trained / "policy.zip", agents.load, 1000, tmp_path) > 950  # some damage may change nothing


def test_two_hundred_damaged_checkpoints(trained: Path, tmp_path: Path) -> None:
    (checkpoint,) = list_checkpoints(trained / "checkpoints")
    places = tmp_path / "checkpoints"
    places.mkdir()

    def resume(path: Path) -> object:
        try:
            return SAC.resume(path.parent, vec(2))
        except FileNotFoundError as error:  # the only one there is broken; what was wrong with it is in the log
            raise ValueError(str(error)) from error

    assert check(checkpoint, resume, 200, places) > 190


def test_experience_may_be_read_from_a_checkpoint_but_not_from_a_policy(trained: Path) -> None:
    agent = SAC.load(trained / "policy.zip", env=vec(2))
    (checkpoint,) = list_checkpoints(trained / "checkpoints")
    load_store(agent.store, checkpoint)
    assert len(agent.store) == 80
    with pytest.raises(ValueError, match="is a policy file, expected a store or checkpoint file"):
        agent.load_replay_buffer(trained / "policy.zip")


def test_a_stable_baselines_file_is_named(tmp_path: Path) -> None:
    import stable_baselines3

    stable_baselines3.SAC("MlpPolicy", vec(), policy_kwargs={"net_arch": [4]}).save(tmp_path / "peer.zip")
    with pytest.raises(ValueError, match="Stable-Baselines3") as error:
        agents.load(tmp_path / "peer.zip")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["networks", "counters"])
def test_a_member_that_is_missing_is_named(trained: Path, tmp_path: Path, name: str) -> None:
    (checkpoint,) = list_checkpoints(trained / "checkpoints")
    content = read_archive(checkpoint)
    members = {key: tensors for key, tensors in content.members.items() if key != name}
    write_archive(tmp_path / checkpoint.name, content.manifest, members)
    with pytest.raises(FileFormatError, match=f"has no {name}"):
        SAC.resume(tmp_path, vec(2))


@pytest.mark.parametrize("key", ["env", "policy", "device", "policy_kwargs", "_init_setup_model"])
def test_a_file_cannot_name_what_the_constructor_takes(trained: Path, tmp_path: Path, key: str) -> None:
    content = read_archive(trained / "policy.zip")
    manifest = content.manifest | {"config": content.manifest["config"] | {key: "no_such_module:Id-v0"}}
    write_archive(tmp_path / "forged.zip", manifest, content.members)
    with pytest.raises(
        FileFormatError, match=f"does not describe a SAC of this version: SACConfig has no field '{key}'"
    ):
        SAC.load(tmp_path / "forged.zip")


def test_experience_of_another_kind_of_device_draws_on_from_the_stream_that_is_there(tmp_path: Path) -> None:
    agent, other = (
        SAC("MlpPolicy", vec(), device="cpu", seed=seed, learning_starts=9, batch_size=4) for seed in (0, 1)
    )
    agent.learn(12)
    stream = agent.store.generator
    agent.store.generator = SimpleNamespace(get_state=lambda: torch.zeros(16, dtype=torch.uint8))  # as on a GPU
    agent.save_replay_buffer(tmp_path / "experience")
    agent.store.generator, before = stream, other.store.generator.get_state()
    other.load_replay_buffer(tmp_path / "experience")
    assert torch.equal(other.store.generator.get_state(), before)
    assert torch.equal(other.store.take("rewards", torch.arange(12)), agent.store.take("rewards", torch.arange(12)))
