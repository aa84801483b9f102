"""The file format: exact round trips, refusal of everything else, and writes that leave the old file or the new one."""

import collections
import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import safetensors.torch
import torch
from headway.agents.core.files import (
    Archive,
    FileFormatError,
    archive,
    list_checkpoints,
    pack,
    read_archive,
    read_manifest,
    unpack,
    write_archive,
)
from headway.agents.core.files.checkpoints import checkpoint_path, newest_archive, prune_checkpoints
from headway.agents.core.files.trees import MAX_DEPTH
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def same(a, b):
    """Equal in type, dtype, shape, order of keys and every bit, NaN payloads and signs of zero included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return [*a] == [*b] and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return struct.pack(">d", a) == struct.pack(">d", b) if isinstance(a, float) else a == b


def bits(tensor):
    flat = tensor.detach().cpu().resolve_conj().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""


def same_archive(a, b):
    """Equal content; safetensors does not keep the order of tensors in a member."""
    members = [{name: dict(sorted(tensors.items())) for name, tensors in x.members.items()} for x in (a, b)]
    return same(a.manifest, b.manifest) and same(*members)


def to_bytes(manifest, members):
    file = io.BytesIO()
    write_archive(file, manifest, members)
    return file.getvalue()


def small_archive():
    tree, tensors = pack(
        {"counts": (1, 2**70), "rng": np.arange(40, dtype=np.uint32), "$odd": b"x" * 30, "nan": np.nan}
    )
    policy = {"actor.0.weight": torch.linspace(-1, 1, 12).reshape(3, 4), "actor.0.bias": torch.zeros(3)}
    manifest = {"class": "SAC", "config": {"gamma": 0.99, "layers": [256, 256], "note": "\u20ac\n{["}, "state": tree}
    return Archive(manifest, {"policy": policy, "critics": {"w": torch.ones(2, 5)}, "state": tensors, "empty": {}})


@pytest.fixture(scope="module")
def small():
    content = small_archive()
    return to_bytes(content.manifest, content.members)


def refuse(data, match=None):
    with pytest.raises(FileFormatError, match=match) as caught:
        read_archive(io.BytesIO(data))
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert message.startswith("the given stream: ")
    assert "; " in message
    return message


def reading(data):
    """What a file holds, or the one line that says why it is refused; anything else raised fails the test."""
    try:
        return read_archive(io.BytesIO(data))
    except FileFormatError as err:
        return str(err)


def refused_or_unchanged(data, original):
    """Hold the reader to its promise for any damage. True if the file is refused."""
    outcome = reading(data)
    assert outcome.isprintable() if isinstance(outcome, str) else same_archive(outcome, original)
    return isinstance(outcome, str)


def sign(raw, blobs):
    """A file with right structure and checksums around any manifest and any members, as a forger would make it."""
    out, entries = io.BytesIO(), []
    for name, blob in [*blobs.items(), ("manifest.json", raw)]:
        entry = archive._append_entry(entries, name, zlib.crc32(blob), len(blob))
        out.write(entry.local_header() + blob)
    return out.getvalue() + archive._directory(entries, hashlib.sha256(raw).hexdigest())


def forge(change=lambda manifest: None, blobs=None, **more):
    blobs = {"policy.safetensors": safetensors.torch.save({"w": torch.ones(2)})} if blobs is None else blobs
    files = {name.removesuffix(".safetensors"): record(blob) for name, blob in blobs.items()}
    manifest = {"format": "headway", "format_version": 1, "files": files, **more}
    change(manifest)
    return sign(json.dumps(manifest).encode(), blobs)


def record(blob):
    return {"bytes": len(blob), "crc32": zlib.crc32(blob), "sha256": hashlib.sha256(blob).hexdigest()}


def unzip(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(name, file.read(name)) for name in file.namelist()], file.comment


@pytest.mark.filterwarnings("ignore:Duplicate name")
def rezip(entries, comment, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name), data, compression)
        file.comment = comment
    return out.getvalue()


# ---- trees -----------------------------------------------------------------------------------------------------------

DTYPES = [np.dtype(kind) for kind in "?bB"] + [
    np.dtype(order + kind) for order in "<>" for kind in ("i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8")
]
TEXT = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates too
KEYS = st.one_of(TEXT, st.sampled_from(["$tuple", "$dict", "$", "$$", "format", ""]), st.integers(-3, 2**80))


def arrays(dtypes):
    dtype = st.sampled_from(dtypes)
    shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    return st.builds(view, dtype.flatmap(lambda d: hnp.arrays(d, shape)), st.integers(0, 3))


def view(array, kind):
    """The array itself, reversed, transposed, or read-only."""
    if kind == 3:
        array.setflags(write=False)
    return array if kind in (0, 3) else array.T if kind == 1 or not array.ndim else array[::-1]


TENSORS = st.one_of(
    arrays([d for d in DTYPES if d.isnative]).map(lambda a: torch.from_numpy(a.copy())),
    arrays([np.dtype("f")]).map(lambda a: torch.from_numpy(a.copy()).bfloat16().mT if a.ndim > 1 else torch.ones(())),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), st.floats(), TEXT, st.binary(max_size=9),
    arrays(DTYPES), TENSORS, st.sampled_from([d for d in DTYPES if d.isnative]).map(lambda d: np.zeros((), d)[()]),
    hnp.from_dtype(np.dtype("d")), st.lists(st.floats(), min_size=17, max_size=19),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=17, max_size=19),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
@given(TREES)
def test_any_tree_comes_back_exactly(tree):
    packed, tensors = pack(tree)
    assert same(unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors), tree)
    content = read_archive(io.BytesIO(to_bytes({"tree": packed}, {"state": tensors})))
    assert same(unpack(content.manifest["tree"], content.members["state"]), tree)


@pytest.mark.parametrize(
    "value",
    [
        [0.0, -0.0, float("inf"), -float("inf"), struct.unpack(">d", bytes.fromhex("fff8000000000abc"))[0]],
        [float(i) for i in range(16)] + [-0.0, struct.unpack(">d", bytes.fromhex("7ff8000000000abc"))[0]],
        [float(i) for i in range(17)] + [np.float64(1)],
        (*map(float, range(20)), 1),
        10**5000,
        -(2**63),
        2**63,
        "\ud83d\ude00",
        {"$tensor": "0", "\udc00": {}},
        {1: "a", "1": "b", -(2**90): ()},
        np.bool_(True),
        np.float16(0.5),
        np.uint64(2**64 - 1),
        np.arange(1)[::-1],
        np.zeros((0, 3), dtype=">f4")[::-1],
        np.broadcast_to(np.float32(2), (3, 4)),
        np.ones((2, 3, 4), dtype=np.complex64).transpose(2, 0, 1),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.float8_e5m2),
        torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        torch.arange(6).expand(4, 6),
        torch.empty(0, 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_come_back_exactly(value):
    packed, tensors = pack(value)
    content = read_archive(io.BytesIO(to_bytes({"v": packed}, {"t": tensors})))
    assert same(unpack(content.manifest["v"], content.members["t"]), value)


def test_numpy_twins_of_one_type_come_back_as_the_common_one():
    for twin in (np.longlong, np.ulonglong, np.intc, np.uintc):  # some are types of their own with an equal dtype
        for value in (twin(7), np.arange(3, dtype=twin)):
            restored = unpack(*pack(value))
            assert restored.dtype == value.dtype
            assert restored.tolist() == value.tolist()


def test_long_lists_of_numbers_become_one_tensor():
    mixed, huge = [1] * 20 + [0.5], [2**63] * 20
    packed, tensors = pack({"returns": [0.5] * 1000, "short": [0.5] * 16, "lengths": [7] * 99, "mixed": mixed})
    assert packed == {"returns": {"$floats": "0"}, "short": [0.5] * 16, "lengths": {"$ints": "1"}, "mixed": mixed}
    assert tensors["0"].shape == (1000,)
    assert unpack(*pack([huge, [True] * 20])) == [huge, [True] * 20]


def test_tensors_that_share_memory_come_apart():
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"base": base, "rows": base[1:], "turned": base.T, "again": base}
    packed, tensors = pack(tree)
    safetensors.torch.save(tensors)  # refuses shared or non-contiguous ones
    assert same(unpack(packed, tensors), tree)
    content = read_archive(io.BytesIO(to_bytes({}, {"m": tree})))
    assert same_archive(content, Archive({}, {"m": tree}))


def test_a_parameter_comes_back_as_a_plain_tensor():
    restored = unpack(*pack(torch.nn.Parameter(torch.ones(2))))
    assert type(restored) is torch.Tensor
    assert not restored.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_another_device(tmp_path):
    packed, tensors = pack({"t": torch.arange(3, device="cuda"), "n": np.float32(2)})
    write_archive(tmp_path / "x.zip", {"tree": packed}, {"m": tensors})
    content = read_archive(tmp_path / "x.zip", device="cuda")
    tree = unpack(content.manifest["tree"], content.members["m"])
    assert tree["t"].is_cuda
    assert same(tree, {"t": torch.arange(3, device="cuda"), "n": np.float32(2)})


@pytest.mark.parametrize(
    "value",
    [
        {1, 2}, 1j, object(), range(3), bytearray(b"x"), collections.OrderedDict(a=1), np.array([object()]),
        np.array(["a"]), np.str_("a"), np.array([b"a"]), np.array(["2020-01-01"], dtype="M8[D]"), np.longdouble(1),
        np.complex128(1), np.zeros(2, dtype=[("a", "f4")]), np.ma.masked_array([1]), torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex128), errno, type("IntSubclass", (int,), {})(3),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_types_are_refused_by_path(value):
    with pytest.raises(TypeError, match=r"^tree\['a'\]\[1\]\['b'\] is "):
        pack({"a": (0, {"b": value})})


@pytest.mark.parametrize("key", [None, True, 1.5, (1,), b"k"])
def test_other_keys_are_refused_by_path(key):
    with pytest.raises(TypeError, match=r"^tree\['a'\] has the key .*use strings"):
        pack({"a": {key: 1}})


def test_depth_is_limited_on_both_sides():
    def nest(depth, wrap):
        tree = 0
        for _ in range(depth):
            tree = wrap(tree)
        return tree

    wraps = [lambda x: [x], lambda x: (x,), lambda x: {"k": x}, lambda x: {"$k": x}]
    for wrap in wraps:
        deep = nest(MAX_DEPTH, wrap)
        packed, tensors = pack(deep)
        content = read_archive(io.BytesIO(to_bytes({"a": {"b": packed}}, {})))
        assert same(unpack(content.manifest["a"]["b"], tensors), deep)
        with pytest.raises(ValueError, match="nested over 64 deep, or contains itself"):
            pack(wrap(deep))
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        pack(loop)
    with pytest.raises(FileFormatError, match="nested over 64 deep"):
        unpack(nest(MAX_DEPTH + 1, lambda x: [x]), {})


@pytest.mark.parametrize(
    "node",
    [
        {"$what": 1}, {"$tuple": 1}, {"$tuple": [], "x": 1}, {"$dict": {}}, {"$dict": [[1]]}, {"$dict": [["a", 1, 2]]},
        {"$dict": [["a", 1], ["a", 2]]}, {"$dict": [[[], 1]]}, {"$int": "zz"}, {"$int": 5}, {"$float": "00"},
        {"$float": "x"}, {"$str": "ff"}, {"$tensor": "9"}, {"$tensor": 0}, {"$tensor": None},
        [{"$tensor": "f"}, {"$tensor": "f"}], {"$scalar": "f"}, {"$bytes": "f"}, {"$floats": "f"}, {"$array": "half"},
        {"$bigendian": "half"}, {"$array": "dims"}, {"$floats": "zero"}, {"$scalar": "half0"}, None,
    ],
    ids=str,
)  # fmt: skip
def test_unpack_refuses_what_pack_did_not_make(node):
    tensors = {"f": torch.ones(2), "half": torch.ones(2, dtype=torch.bfloat16), "dims": torch.ones([1] * 70)}
    tensors |= {"zero": torch.ones((), dtype=torch.float64), "half0": torch.ones((), dtype=torch.bfloat16)}
    with pytest.raises(FileFormatError) as caught:
        unpack(node, tensors)
    assert "\n" not in str(caught.value)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_round_trip_by_path_stream_and_other_zip_readers(tmp_path, small):
    content, path = small_archive(), tmp_path / "new" / "folder" / "policy.zip"
    write_archive(path, content.manifest, content.members)
    assert path.read_bytes() == small  # equal content, equal bytes
    assert [p.name for p in path.parent.iterdir()] == ["policy.zip"]
    with open(path, "rb", buffering=0) as raw:
        readings = [read_archive(path), read_archive(str(path)), read_archive(io.BytesIO(small)), read_archive(raw)]
        assert read_manifest(raw) == read_manifest(path) == content.manifest
    assert all(same_archive(reading, content) for reading in readings)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        names = [f"{name}.safetensors" for name in content.members]
        assert file.namelist() == [*names, "manifest.json"]
        manifest = json.loads(file.read("manifest.json"))
        assert {"format": "headway", "format_version": 1}.items() <= manifest.items()
        for name in content.members:
            assert manifest["files"][name] == record(file.read(f"{name}.safetensors"))
        assert file.comment.decode().endswith(hashlib.sha256(file.read("manifest.json")).hexdigest())


def test_a_file_of_format_1_as_it_was_first_written():
    """It reads as it did, and headers are a function of the content alone; JSON and safetensors may be spelt anew."""
    stored = (Path(__file__).parent / "data" / "format-1.zip").read_bytes()
    assert same_archive(read_archive(io.BytesIO(stored)), small_archive())
    *members, (_, raw) = unzip(stored)[0]
    assert sign(raw, dict(members)) == stored


def test_read_puts_tensors_on_the_device(small):
    members = read_archive(io.BytesIO(small), device="meta").members
    assert members["policy"]["actor.0.weight"].is_meta


def test_write_needs_nothing_but_write_and_starts_at_once(small):
    class Pipe:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += bytes(data[:1000])  # as a raw file may
            return min(len(data), 1000)

    pipe, content = Pipe(), small_archive()
    write_archive(pipe, content.manifest, content.members)
    assert pipe.data == small
    pipe.write = lambda data: None
    with pytest.raises(OSError, match="no bytes written"):
        write_archive(pipe, content.manifest, content.members)


def test_read_from_a_stream_that_gives_little_at_once(small):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 100))  # as a raw file may

    assert same_archive(read_archive(Slow(small)), small_archive())


def test_no_pickle_is_needed(tmp_path, monkeypatch, small):
    def refuse_pickle(*args, **kwargs):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(pickle, "load", refuse_pickle)
    monkeypatch.setattr(pickle, "loads", refuse_pickle)
    monkeypatch.setattr(pickle, "Unpickler", refuse_pickle)
    monkeypatch.setattr(torch, "load", refuse_pickle)
    checkpoint_path(tmp_path, 1).write_bytes(small)
    content = newest_archive(tmp_path)[1]
    assert same_archive(content, small_archive())
    state = unpack(content.manifest["state"], content.members["state"])
    assert state["counts"] == (1, 2**70)


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ({"format": 1}, "'format' is the format's own"),
        ({"files": {}}, "'files' is the format's own"),
        ({"a": np.float32(1)}, "not plain JSON"),
        ({"a": float("nan")}, "not plain JSON"),
        ({"a": 10**30}, "not plain JSON"),
        ({"a": (1,)}, "changes on its way"),
        ({"a": {1: 2}}, "changes on its way"),
        ({"a": "x" * archive.MAX_MANIFEST_BYTES}, "move data into tensors"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_manifests_that_json_cannot_hold(tmp_path, manifest, match):
    with pytest.raises(ValueError, match=match):
        write_archive(tmp_path / "x.zip", manifest, {})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("members", "error", "match"),
    [
        ({"../x": {}}, ValueError, "member name '../x'"),
        ({"": {}}, ValueError, "member name ''"),
        ({".hidden": {}}, ValueError, "member name"),
        ({"x\n": {}}, ValueError, "member name"),
        ({"x": {"__metadata__": torch.ones(1)}}, ValueError, "safetensors keeps"),
        ({"x": {"\ud800": torch.ones(1)}}, ValueError, "surrogates"),
        ({"x": {"w": torch.ones(1, dtype=torch.complex128)}}, TypeError, "tensor 'w' of 'x' is a torch.complex128"),
        ({"x": {"w": torch.ones(1).to_sparse()}}, TypeError, "tensor 'w' of 'x' is a .*sparse"),
    ],
    ids=repr,
)
def test_members_that_a_file_cannot_hold(tmp_path, members, error, match):
    with pytest.raises(error, match=match):
        write_archive(tmp_path / "x.zip", {}, members)
    assert not [*tmp_path.iterdir()]


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_missing_file_and_directory(tmp_path):
    for path, error in [(tmp_path / "no.zip", FileNotFoundError), (tmp_path, IsADirectoryError)]:
        for read in (read_archive, read_manifest):
            with pytest.raises(error) as caught:
                read(path)
            assert "\n" not in str(caught.value)
            assert str(path) in str(caught.value)


def test_refusals_name_the_file_in_one_line(tmp_path):
    path = tmp_path / "a\nb\x1b[2J.zip"
    path.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="is not a zip file; give a file that Headway saved") as caught:
        read_archive(path)
    assert str(caught.value).isprintable()
    assert "a b" in str(caught.value)


def test_truncation_at_every_byte(small):
    assert refuse(b"", "is empty")
    for length in range(1, len(small)):
        refuse(small[:length], "cut off")


def test_a_flipped_bit_at_every_byte(small):
    rng, original = random.Random(1), small_archive()
    for position in range(len(small)):
        data = bytearray(small)
        data[position] ^= 1 << rng.randrange(8)
        assert refused_or_unchanged(bytes(data), original), position  # not one byte is free


def test_the_manifest_alone_vouches_for_all_but_the_members(small):
    """Pruning keeps a checkpoint by its manifest, so no byte of what follows the members may be free."""
    rng = random.Random(5)
    for position in range(small.rindex(b"PK\3\4"), len(small)):
        data = bytearray(small)
        data[position] ^= 1 << rng.randrange(8)
        with pytest.raises(FileFormatError):
            read_manifest(io.BytesIO(data))


def test_any_other_file():
    for data in [
        b"\0" * 5000,
        os.urandom(5000),
        b'{"format": "headway"}',
        pickle.dumps({}),
        b"P",
        b"\x89HDF\r\n\x1a\n",
    ]:
        refuse(data)
    refuse(b"\0" * 5000, "not a zip file")
    refuse(b"PK\5\6" + bytes(18))
    refuse(b"PK\5\6" + bytes(18) + b"junk", "4 foreign bytes after")


def test_a_stable_baselines3_file(tmp_path):
    from stable_baselines3 import PPO

    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "sb3")
    with pytest.raises(FileFormatError, match=r"is a Stable-Baselines3 file .*has data, policy\.pth") as caught:
        read_archive(tmp_path / "sb3.zip")
    assert str(tmp_path / "sb3.zip") in str(caught.value)


def test_other_foreign_zips(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(FileFormatError, match=r"is a pickle from torch\.save"):
        read_archive(tmp_path / "model.pt")
    refuse(rezip([("readme.txt", b"hi"), ("\n\x1b]0;x", b"")], b""), "something else .*has readme.txt")
    refuse(rezip([], b""), "something else")


def test_members_changed_with_another_zip_program(small):
    entries, comment = unzip(small)
    by_name = dict(entries)
    policy, critics = by_name["policy.safetensors"], by_name["critics.safetensors"]

    def change(**renamed):
        return [(renamed.get(name.split(".")[0], name), data) for name, data in entries]

    refuse(rezip([*entries, ("../../evil.safetensors", b"")], comment), r"foreign member '../../evil.safetensors'")
    refuse(rezip([*entries, ("/etc/passwd", b"")], comment), "foreign member '/etc/passwd'")
    refuse(rezip(change(policy="policy.pkl"), comment), "foreign member 'policy.pkl'")
    refuse(rezip(change(policy="actor.safetensors"), comment))
    refuse(rezip([*entries, ("more.safetensors", critics)], comment))
    refuse(rezip(entries[1:], comment))
    refuse(rezip(entries[:-1], comment), "no manifest.json")
    with pytest.warns(UserWarning, match="Duplicate name"):
        doubled = rezip([entries[0], *entries], comment)
    refuse(doubled, "'policy.safetensors' twice")
    swapped = {"policy.safetensors": critics, "critics.safetensors": policy}
    refuse(rezip([(name, swapped.get(name, data)) for name, data in entries], comment))
    refuse(rezip(entries, comment, zipfile.ZIP_DEFLATED), "compressed member 'policy.safetensors'")
    refuse(rezip(entries, b""))
    refuse(rezip(entries, comment))  # the same members, but other headers than ours


def test_members_changed_with_our_structure(small):
    entries, _ = unzip(small)
    raw = entries[-1][1]
    blobs = dict(entries[:-1])
    assert sign(raw, blobs) == small
    policy, critics = blobs["policy.safetensors"], blobs["critics.safetensors"]
    listed = "does not hold just the members that its manifest lists"
    refuse(sign(raw, {**blobs, "more.safetensors": critics}), listed)
    refuse(sign(raw, {name: blobs[name] for name in [*blobs][1:]}), listed)
    refuse(sign(raw, {name: blobs[name] for name in [*blobs][::-1]}), listed)
    refuse(sign(raw, {("a" + name if name[0] == "p" else name): blob for name, blob in blobs.items()}), listed)
    refuse(sign(raw, {**blobs, "policy.safetensors": critics, "critics.safetensors": policy}), listed)
    refuse(sign(raw, {**blobs, "policy.safetensors": bytes(len(policy))}), listed)
    start = small.index(policy)
    refuse(small.replace(policy, bytes(len(policy))), "member 'policy.safetensors' that is damaged or not its own")
    refuse(small[: start - 1] + b"?" + small[start:], "damaged header before 'policy.safetensors'")
    refuse(small.replace(b'"gamma": 0.99', b'"gamma": 0.98'), "damaged or edited manifest")


def test_bytes_in_front_behind_and_between(small):
    for junk in [b"x", b"#!/bin/sh\n", b"\0" * 5000]:
        refuse(junk + small, "foreign bytes before")
        refuse(small + junk, f"{len(junk)} foreign bytes after")
    refuse(small + small)
    refuse(small[:4] + small)
    refuse(b"PK\3\4" + small)
    entries, _ = unzip(small)
    refuse(small.replace(entries[1][1], entries[1][1] + b"between"))


def test_encryption_is_named(small):
    data = bytearray(small)
    for mark, offset in [(b"PK\1\2", 8), (b"PK\3\4", 6)]:
        data[data.index(mark) + offset] |= 1
    refuse(bytes(data), "encrypted member 'policy.safetensors'")


def test_zip_bombs_are_refused_by_their_directory():
    bomb = rezip([("a.safetensors", b"\0" * 50_000_000), ("manifest.json", b"{}")], b"", zipfile.ZIP_DEFLATED)
    refuse(bomb, "said to hold 50000000")
    blob = safetensors.torch.save({"w": torch.ones(2)})
    for size in [2**31, 2**62, 2**64 - 1, 10**19]:  # declared by a forger who signs the manifest

        def claim(manifest, size=size):
            manifest["files"]["policy"]["bytes"] = size

        refuse(forge(claim, {"policy.safetensors": blob}))
    refuse(forge(blobs={"policy.safetensors": struct.pack("<Q", 2**62) + b"{}"}), "safetensors refuses")
    refuse(forge(blobs={"policy.safetensors": b""}), "safetensors refuses")


def test_huge_sizes_in_the_directory_allocate_nothing(small):
    position = len(small) - archive._TAIL
    for size, offset in [(2**63, 0), (2**24, 2**63), (2**64 - 1, 2**64 - 1), (1, 2**62), (10, 0)]:
        refuse(small[:position] + struct.pack("<HHQQQ", 1, 24, size, size, offset) + small[position + 28 :])


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "not plain JSON"),
        (b"not json", "not plain JSON"),
        (b"\xff\xfe", "not plain JSON"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number of 5000 digits"),
        (b"[" * 1_000_000, "nested 1000000 deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested 100000 deep"),
        (b'["]]]]]]", ' * 5000, "nested 5000 deep"),
        (b'["\\"]]]]]]", ' * 5000, "nested 5000 deep"),
        (b'"' + b"\\" * 1_000_001, "not plain JSON"),
        (b'"\\' * 500_000, "not plain JSON"),
        (b"[]", "without 'format'"),
        (b"{}", "without 'format'"),
        (b'{"format": "other"}', "without 'format'"),
        (b'{"format": "headway"}', "'format_version' or 'files' is missing"),
        (b'{"format": "headway", "format_version": 1}', "'format_version' or 'files' is missing"),
        (b'{"format": "headway", "format_version": 1, "files": []}', "'format_version' or 'files' is missing"),
        (b'{"format": "headway", "format_version": true, "files": {}}', "'format_version' or 'files' is missing"),
        (b'{"format": "headway", "format_version": 0, "files": {}}', "'format_version' or 'files' is missing"),
        (b'{"format": "headway", "format_version": "2", "files": {}}', "'format_version' or 'files' is missing"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_hostile_manifests(raw, match):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)  # the worst case: Python itself would not stop a deep recursion
    try:
        began = time.perf_counter()
        refuse(sign(raw, {}), match)
        assert time.perf_counter() - began < 5  # a hang takes minutes; a slow machine does not
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("key", ["bytes", "crc32", "sha256"])
@pytest.mark.parametrize("value", [None, -1, "x", 1.5, [], 2**70 - 1, "absent"])
def test_hostile_member_records(key, value):
    def change(manifest):
        manifest["files"]["policy"][key] = value
        if value == "absent":
            del manifest["files"]["policy"][key]

    refuse(forge(change))


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\\b", "x\n", "", ".x", "\u202e", "x" * 200, "c:x"])
def test_unsafe_names_in_the_manifest(name):
    def change(manifest):
        manifest["files"] = {name: manifest["files"]["policy"]}

    refuse(forge(change), "unsafe name")


def test_a_record_that_is_no_object():
    refuse(forge(lambda manifest: manifest["files"].update(policy=[])), "missing or broken")


def test_a_newer_format(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(archive, "FORMAT_VERSION", 2)
        data = to_bytes({"a": 1}, {})
    message = refuse(data, r"written by a newer Headway \(format 2 > 1\)")
    assert message.endswith("; upgrade with pip install -U headway-rl")
    refuse(forge(lambda manifest: manifest.update(format_version=3, files="moved elsewhere")), r"\(format 3 > 1\)")


@pytest.mark.parametrize(
    "header",
    [
        "", "[]", "null", "{", '{"a":' * 5000, '{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"X","shape":[],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[0,1152921504606846976,1152921504606846976],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}',
        '{"a\\n":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}',
        '{"__metadata__":{"a":1}}',
    ],
    ids=lambda value: value[:50],
)  # fmt: skip
@pytest.mark.parametrize("data", [b"", b"\0"])
def test_hostile_safetensors_headers(header, data):
    blob = struct.pack("<Q", len(header)) + header.encode() + data
    refuse(forge(blobs={"policy.safetensors": blob}), "'policy.safetensors' that safetensors refuses")


def test_random_edits_by_a_forger_who_signs_them(small):
    """Any manifest and any member bytes behind right checksums: refused, or plain data; nothing else is raised."""
    rng = random.Random(3)
    entries, _ = unzip(small)
    raw, blobs = entries[-1][1], dict(entries[:-1])
    alphabet = rb'{}[]",:0123456789.-eE\$abcdefu' + bytes(range(0, 256, 51))
    refused = 0
    for _ in range(400):
        data, name = bytearray(raw), rng.choice([*blobs])
        if rng.random() < 0.5:
            blob = bytearray(blobs[name])
            blob[rng.randrange(min(len(blob), 200))] = rng.choice(alphabet)
            manifest = json.loads(raw)
            manifest["files"][name.split(".")[0]] = record(blob)
            forged = sign(json.dumps(manifest).encode(), {**blobs, name: bytes(blob)})
        else:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.choice(alphabet)
            forged = sign(bytes(data), blobs)
        outcome = reading(forged)
        refused += isinstance(outcome, str)
        if isinstance(outcome, Archive):
            with contextlib.suppress(FileFormatError):
                unpack(outcome.manifest.get("state"), outcome.members["state"])
    assert 100 < refused < 400


def change_members(entries, rng):
    """The members swapped, added, dropped, doubled or renamed."""
    changed = list(entries)
    i, j = rng.sample(range(len(entries)), 2)
    match rng.randrange(5):
        case 0:
            changed[i], changed[j] = (entries[i][0], entries[j][1]), (entries[j][0], entries[i][1])
        case 1:
            changed.insert(j, (f"x{rng.randrange(99)}.safetensors", entries[i][1]))
        case 2:
            del changed[i]
        case 3:
            changed.insert(j, entries[i])
        case 4:
            changed[i] = (f"x{entries[j][0]}", entries[i][1])
    return changed


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_random_structural_corruptions(small):
    rng = random.Random(2)
    entries, comment = unzip(small)
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    for _ in range(200):
        changed, junk = change_members(entries, rng), rng.randbytes(rng.randint(1, 300))
        names = [name for name, _ in changed]
        refuse(rezip(changed, comment, rng.choice(methods)))
        refuse(rezip(entries, comment, rng.choice(methods)))
        refuse(rng.choice([junk + small, small + junk]))
        if names.count("manifest.json") == 1 and len(set(names)) == len(names):  # the same change by a forger
            changed.sort(key=lambda item: item[0] == "manifest.json")
            refuse(sign(changed[-1][1], dict(changed[:-1])))


def corrupt(data, rng):
    """The data with one random injury, and whether that changes it."""
    i, j = sorted(rng.sample(range(len(data)), 2))
    size = rng.randint(1, 4096)
    match rng.randrange(6):
        case 0:
            return data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :]
        case 1:
            return data[:i]
        case 2:
            return data[:i] + data[j:]
        case 3:
            return data[:i] + rng.randbytes(size) + data[i:]
        case 4:
            return data[:i] + bytes(min(size, len(data) - i)) + data[i + size :]
        case _:
            return (
                data[: i - size] + data[i : i + size] + data[i - size : i] + data[i + size :] if i > size else b"PK\3\4"
            )


def injure_a_policy(count):
    generator = torch.Generator().manual_seed(0)
    layers = {
        f"{net}.{i}.weight": torch.randn(128, 128, generator=generator) for net in ("actor", "c") for i in range(2)
    }
    content = Archive(
        {"class": "SAC", "config": {"gamma": 0.99}}, {"policy": layers, "optimizer": {"m": torch.ones(9)}}
    )
    data, rng, refused = to_bytes(content.manifest, content.members), random.Random(4), 0
    for _ in range(count):
        injured = corrupt(data, rng)
        was_refused = refused_or_unchanged(injured, content)
        assert was_refused == (injured != data)
        refused += was_refused
    return refused


def test_random_injuries_of_a_policy():
    assert injure_a_policy(60) > 50


@pytest.mark.slow
def test_a_thousand_random_injuries_of_a_policy():
    assert injure_a_policy(1000) > 900


# ---- writes that fail or die -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free space"), (errno.EFBIG, "file size limit"), (errno.EIO, "check the path and the disk")],
)
@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("old", [True, False])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, small, number, remedy, after, old):
    path, content, write, calls = tmp_path / "a.zip", small_archive(), archive._write, []
    if old:
        path.write_bytes(b"old")

    def failing(file, data):
        calls.append(data)
        if len(calls) > after:
            write(file, bytes(data)[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        write(file, data)

    monkeypatch.setattr(archive, "_write", failing)
    with pytest.raises(OSError, match="cannot write") as caught:
        write_archive(path, content.manifest, content.members)
    message = str(caught.value)
    assert caught.value.errno == number
    assert "\n" not in message
    assert all(part in message for part in (str(path), os.strerror(number), remedy))
    assert message.endswith("; the previous file is intact") == old
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * old


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_fsync_or_rename_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.zip"
    path.write_bytes(b"old")

    def failing(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(archive.os, step, failing)
    with pytest.raises(PermissionError, match="choose a place you may write to and save again; the previous file is"):
        write_archive(path, {}, {})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(b"old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(archive.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_archive(path, {}, {})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder.zip").mkdir()
    for path in (tmp_path / "file" / "a.zip", tmp_path / "folder.zip", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match="cannot write") as caught:
            write_archive(path, {}, {})
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.zip"]


def run_script(script, *args):
    """Run code that has this module as ``archive`` in a process of its own, which may be hurt."""
    load = "import sys, torch\nfrom headway.agents.core.files import archive\n"
    command = [sys.executable, "-c", load + script, *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_real_file_size_limit(tmp_path, small):
    path = tmp_path / "a.zip"
    path.write_bytes(small)
    script = """
import resource
for limit in (0, 10, 100_000, 3_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        archive.write_archive(sys.argv[1], {}, {"a": {"w": torch.ones(10)}, "b": {"w": torch.ones(1_000_000)}})
    except OSError as err:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(err.errno, err)
"""
    result = run_script(script, path)
    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stderr
    for line in lines:
        assert line.startswith(f"{errno.EFBIG} ")
        assert line.endswith("raise the file size limit (ulimit -f) and save again; the previous file is intact")
    assert path.read_bytes() == small
    assert [*tmp_path.iterdir()] == [path]


def test_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    script = """
import os, pathlib, random, signal, time
torch.set_num_threads(1)
path, rng, left, seen = pathlib.Path(sys.argv[1]) / "a.zip", random.Random(0), 0, set()

def write(number):
    members = {name: {"w": torch.full((200_000,), float(number))} for name in "abc"}
    archive.write_archive(path, {"number": number}, members)

write(0)
for turn in range(5):
    child = os.fork()
    if not child:
        number = turn * 1_000_000
        while True:
            number += 1
            write(number)
    time.sleep(rng.uniform(0.05, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    content = archive.read_archive(path)
    number = content.manifest["number"]
    for name in "abc":
        assert content.members[name]["w"].eq(number).all()
    seen.add(number // 1_000_000)
    left += len(list(path.parent.iterdir())) - 1
print("whole", len(seen), left)
"""
    result = run_script(script, tmp_path)
    assert result.stdout.startswith("whole "), result.stderr
    turns, left = map(int, result.stdout.split()[1:])
    assert turns >= 4  # the writers got somewhere
    assert left > 0  # and at least one died in the middle of a file


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def save(directory, step):
    write_archive(checkpoint_path(directory, step), {"step": step}, {"m": {"w": torch.full((3,), float(step))}})
    return checkpoint_path(directory, step)


def test_checkpoint_names():
    assert checkpoint_path("runs/x", 12345) == Path("runs/x/checkpoint-000000012345.zip")
    for step in (-1, 10**18):
        with pytest.raises(ValueError, match="it must be from 0"):
            checkpoint_path("x", step)


def test_list_is_newest_first_and_ignores_the_rest(tmp_path):
    assert list_checkpoints(tmp_path / "missing") == []
    paths = [save(tmp_path, step) for step in (10**13, 999, 100, 5)]
    others = ["checkpoint-12.zip", "checkpoint-000000000007.zip.bak", "final.zip", "checkpoint-00000000000\u0663.zip"]
    for name in [*others, ".checkpoint-000000000008.zip.tmp-77", "checkpoint-last.zip"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "checkpoint-000000000009.zip").mkdir()
    assert list_checkpoints(str(tmp_path)) == paths


def test_newest_falls_back_over_broken_ones(tmp_path, caplog):
    for step in (1, 2, 3, 4):
        path = save(tmp_path, step)
    assert newest_archive(tmp_path)[0] == path
    path.write_bytes(path.read_bytes()[:-1])
    data = bytearray(checkpoint_path(tmp_path, 3).read_bytes())
    data[data.index(b"data_offsets")] ^= 1  # in the member, so only a complete reading shows it
    checkpoint_path(tmp_path, 3).write_bytes(data)
    read_manifest(checkpoint_path(tmp_path, 3))
    with caplog.at_level(logging.WARNING):
        found, content = newest_archive(tmp_path)
    assert found == checkpoint_path(tmp_path, 2)
    assert content.manifest == {"step": 2}
    assert content.members["m"]["w"].tolist() == [2, 2, 2]
    messages = [entry.getMessage() for entry in caplog.records]
    assert [("000004" in m, "000003" in m, "\n" in m) for m in messages] == [(True, False, False), (False, True, False)]


def test_newest_of_nothing_says_what_to_do(tmp_path):
    for count, match in [(0, "there is no checkpoint in "), (2, "none of the 2 checkpoints can be read in ")]:
        for step in range(count):
            checkpoint_path(tmp_path, step).write_bytes(b"broken")
        with pytest.raises(FileNotFoundError, match=match) as caught:
            newest_archive(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "name the folder of a run that saved one" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_prune_keeps_the_newest_sound_ones(tmp_path):
    paths = {step: save(tmp_path, step) for step in range(6)}
    (tmp_path / "final.zip").write_bytes(b"")
    paths[5].write_bytes(b"broken")
    prune_checkpoints(tmp_path, 2)
    assert list_checkpoints(tmp_path) == [paths[5], paths[4], paths[3]]
    prune_checkpoints(tmp_path, 10)
    assert len(list_checkpoints(tmp_path)) == 3
    prune_checkpoints(tmp_path, 1)
    assert newest_archive(tmp_path)[0] == paths[4]
    assert (tmp_path / "final.zip").exists()
    prune_checkpoints(tmp_path / "missing", 1)
    with pytest.raises(ValueError, match="keep is 0; it must be at least 1"):
        prune_checkpoints(tmp_path, 0)


def test_prune_removes_what_killed_writers_left(tmp_path):
    fresh, stale, other = (
        tmp_path / name
        for name in (".checkpoint-000000000008.zip.tmp-77", ".checkpoint-000000000007.zip.tmp-77", ".x.tmp")
    )
    for path in (fresh, stale, other):
        path.write_bytes(b"half")
    for path in (stale, other):
        os.utime(path, (time.time() - 7200,) * 2)
    prune_checkpoints(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == sorted([fresh, other])
