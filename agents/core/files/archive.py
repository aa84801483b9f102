"""Headway's one file format, for saved policies and training checkpoints: JSON and safetensors in a plain zip.

A file holds ``<name>.safetensors`` members and then ``manifest.json``, stored without compression. There is no pickle
in it, so reading a stranger's file runs no code. Three layers keep it whole:

* the manifest lists each member's size, CRC and SHA-256 under ``files``;
* the zip's own headers follow from that list, so the reader rebuilds them and accepts a file only if every byte agrees.
  That leaves no room for compression, encryption, overlapping or doubled members, or bytes in front, behind or between,
  and sizes add up to the file's before a member is read. Small files carry zip64 records like large ones: one layout,
  which every test exercises;
* the SHA-256 of the manifest is the zip's comment, the last bytes of the file. It could not stand in the manifest
  itself, a second member would need a checksum in turn, and a fixed-length ending shows any cut or addition at once.

This outer layer stays the same in later formats, so that an old Headway can read ``format_version`` and say so.
The checksums guard against accidents, not against forgery: whoever edits a file can compute them again, which is why
everything behind them is validated too.
"""

import collections
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .errors import RESTORE, one_line, refusal
from .replacing import replacing
from .trees import JSON, MAX_DEPTH, dense

Source: TypeAlias = "str | os.PathLike[str] | BinaryIO"

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 16 << 20  # parsed JSON can take 50 times its text; our choice
RESERVED_KEYS = ("format", "format_version", "files")

_JSON_DEPTH = 3 * MAX_DEPTH + 20  # a "$dict" takes three levels, the rest is the manifest around a tree
_MANIFEST = "manifest.json"
_SUFFIX = ".safetensors"
_MEMBER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Archive:
    """What a file holds: the manifest as it was given to the writer, and the tensors of each member by name."""

    manifest: dict[str, Any]
    members: dict[str, dict[str, Tensor]]


# ---- the zip: headers as a function of names, sizes and CRCs ---------------------------------------------------------

_LOCAL = struct.Struct("<4s5H3L2H")  # the name and _LOCAL_EXTRA follow
_LOCAL_EXTRA = struct.Struct("<2H2Q")  # zip64: both sizes
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # the name and _CENTRAL_EXTRA follow
_CENTRAL_EXTRA = struct.Struct("<2H3Q")  # zip64: both sizes, offset
_ENDING = struct.Struct("<4sQ2H2L4Q 4sLQL 4s4H2LH")  # zip64 end record, its locator, end record
_COMMENT = b"headway manifest sha256 "  # and 64 hexadecimal digits
_TAIL = _CENTRAL_EXTRA.size + _ENDING.size + len(_COMMENT) + 64  # from where the manifest lies to the last byte
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 record"
_ZIP64, _DATE = 45, 0x21  # zip version that reads zip64; 1 January 1980, so that equal content gives equal bytes


class _Entry(NamedTuple):
    name: str
    crc: int
    size: int
    offset: int

    def local_header(self) -> bytes:
        fields = (_ZIP64, 0, 0, 0, _DATE, self.crc, _MAX32, _MAX32, len(self.name), _LOCAL_EXTRA.size)
        extra = _LOCAL_EXTRA.pack(1, _LOCAL_EXTRA.size - 4, self.size, self.size)
        return _LOCAL.pack(b"PK\3\4", *fields) + self.name.encode("ascii") + extra

    def central_header(self) -> bytes:
        made_by, mode = 3 << 8 | _ZIP64, 0o100644 << 16  # a regular file from Unix
        fields = (made_by, _ZIP64, 0, 0, 0, _DATE, self.crc, _MAX32, _MAX32, len(self.name), _CENTRAL_EXTRA.size)
        extra = _CENTRAL_EXTRA.pack(1, _CENTRAL_EXTRA.size - 4, self.size, self.size, self.offset)
        return _CENTRAL.pack(b"PK\1\2", *fields, 0, 0, 0, mode, _MAX32) + self.name.encode("ascii") + extra

    @property
    def data(self) -> int:
        return self.offset + _LOCAL.size + len(self.name) + _LOCAL_EXTRA.size


def _append_entry(entries: list[_Entry], name: str, crc: int, size: int) -> _Entry:
    offset = entries[-1].data + entries[-1].size if entries else 0
    entries.append(_Entry(name, crc, size, offset))
    return entries[-1]


def _directory(entries: list[_Entry], digest: str) -> bytes:
    """The bytes after the last member: directory, end records, and the manifest's checksum as the comment."""
    central = b"".join(entry.central_header() for entry in entries)
    start = entries[-1].data + entries[-1].size
    end64 = (b"PK\6\6", 44, _ZIP64, _ZIP64, 0, 0, len(entries), len(entries), len(central), start)
    locator = (b"PK\6\7", 0, start + len(central), 1)
    end = (b"PK\5\6", 0, 0, _MAX16, _MAX16, _MAX32, _MAX32, len(_COMMENT) + 64)
    return central + _ENDING.pack(*end64, *locator, *end) + _COMMENT + digest.encode("ascii")


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_archive(
    path_or_file: Source, manifest: Mapping[str, Any], members: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write a file, all of it or nothing: a path gets the new content by a rename once that is safely on disk.

    Folders on the way are made. Equal arguments give equal bytes. One member at a time is held in memory as bytes.

    :param path_or_file: the file's path, or a binary stream, which gets the bytes by ``write`` alone
    :param manifest: plain JSON data (see :func:`pack` for the rest), without ``RESERVED_KEYS``
    :param members: tensors by member name (letters, digits, ``_``, ``-``, ``.``) and tensor name
    :raises OSError: if it cannot be written; for a path one line with cause and remedy, and what stood there still does
    :raises ValueError: for a manifest or a name that a file cannot hold
    :raises TypeError: for a tensor that safetensors cannot hold, naming it
    """
    _check_manifest(manifest)
    if not isinstance(path_or_file, (str, os.PathLike)):
        return _write_stream(path_or_file, manifest, members)
    path = Path(path_or_file)
    try:
        with replacing(path, sync=True) as temporary, open(temporary, "wb", buffering=0) as file:
            _write_stream(file, manifest, members)
    except OSError as err:
        raise _write_error(path, err) from err


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    taken = [key for key in RESERVED_KEYS if key in manifest]
    if taken:
        raise ValueError(f"the manifest's key {taken[0]!r} is the format's own; choose another name")
    try:
        plain = _parse_json(json.dumps(dict(manifest), allow_nan=False).encode()) == dict(manifest)
    except (TypeError, ValueError, RecursionError) as err:
        raise ValueError(f"the manifest is not plain JSON data ({err}); use pack() for other data") from err
    if not plain:
        raise ValueError("the manifest changes on its way through JSON (tuples, other keys than strings?); use pack()")


def _write_stream(file: BinaryIO, manifest: Mapping[str, Any], members: Mapping[str, Mapping[str, Tensor]]) -> None:
    entries: list[_Entry] = []
    files: dict[str, JSON] = {}
    for name, tensors in members.items():
        if not _MEMBER_NAME.fullmatch(name):
            raise ValueError(f"member name {name!r} is not 1 to 100 letters, digits, '_', '-' or '.'; rename it")
        files[name] = _write_member(file, entries, name, tensors)
    content = {"format": "headway", "format_version": FORMAT_VERSION, "files": files, **manifest}
    raw = json.dumps(content, allow_nan=False).encode()
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ValueError(f"the manifest takes {len(raw)} bytes of {MAX_MANIFEST_BYTES}; move data into tensors")
    entry = _append_entry(entries, _MANIFEST, zlib.crc32(raw), len(raw))
    _write(file, entry.local_header() + raw + _directory(entries, hashlib.sha256(raw).hexdigest()))


def _write_member(file: BinaryIO, entries: list[_Entry], name: str, tensors: Mapping[str, Tensor]) -> JSON:
    storages: set[int] = set()
    plain = {key: dense(tensor, f"tensor {key!r} of {name!r}", storages) for key, tensor in tensors.items()}
    if "__metadata__" in plain:
        raise ValueError(f"member {name!r} has a tensor '__metadata__', a name safetensors keeps; rename it")
    blob = safetensors.torch.save(plain)
    entry = _append_entry(entries, name + _SUFFIX, zlib.crc32(blob), len(blob))
    _write(file, entry.local_header())
    _write(file, blob)
    return {"bytes": len(blob), "crc32": entry.crc, "sha256": hashlib.sha256(blob).hexdigest()}


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of it: an unbuffered file takes at most 2 GiB at once, and less when the disk fills up."""
    view = memoryview(data)
    while view:
        written = file.write(view)
        if not written:
            raise OSError(errno.EIO, "the stream's write() reports no bytes written")
        view = view[written:]


def _write_error(path: Path, err: OSError) -> OSError:
    remedies = {errno.EFBIG: "raise the file size limit (ulimit -f)"}
    remedies |= dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space")
    remedies |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place you may write to")
    remedy = remedies.get(err.errno or 0, "check the path and the disk")
    intact = "; the previous file is intact" if os.path.lexists(path) else ""
    message = f"cannot write {path}: {err.strerror or err}; {remedy} and save again{intact}"
    return OSError(err.errno or errno.EIO, one_line(message))


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_archive(path_or_file: Source, *, device: str | torch.device = "cpu") -> Archive:
    """Read and check a whole file. No content, however broken or hostile, runs code or asks for undue memory.

    :param path_or_file: the file's path, or a seekable binary stream, read from its beginning
    :param device: where to put the tensors
    :return: the manifest and the members' tensors
    :raises FileFormatError: for any content that :func:`write_archive` did not write
    :raises OSError: if the file is missing or cannot be read
    """
    target = torch.device(device)
    members = {}
    with _opened(path_or_file) as (file, label):
        manifest, digests = _read_manifest(file, label)
        for entry, digest in digests.items():
            tensors = _read_member(file, label, entry, digest)
            members[entry.name.removesuffix(_SUFFIX)] = {name: tensor.to(target) for name, tensor in tensors.items()}
    return Archive(manifest, members)


def read_manifest(path_or_file: Source) -> dict[str, Any]:
    """Read the manifest alone. It and the file's structure are checked, what the members hold is not.

    :param path_or_file: as for :func:`read_archive`
    :return: the manifest as given to :func:`write_archive`
    :raises FileFormatError: as :func:`read_archive`
    :raises OSError: if the file is missing or cannot be read
    """
    with _opened(path_or_file) as (file, label):
        return _read_manifest(file, label)[0]


@contextlib.contextmanager
def _opened(path_or_file: Source) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(path_or_file, (str, os.PathLike)):
        with open(path_or_file, "rb") as file:
            yield file, str(path_or_file)
    else:
        name = getattr(path_or_file, "name", None)
        yield path_or_file, name if isinstance(name, str) else "the given stream"


def _read_manifest(file: BinaryIO, label: str) -> tuple[dict[str, Any], dict[_Entry, str]]:
    """The user's manifest and the members' checksums, once all bytes outside the members follow from them."""
    size = file.seek(0, os.SEEK_END)
    tail = _read(file, size - _TAIL, _TAIL) if size >= _TAIL else bytes(_TAIL)
    length, offset = _CENTRAL_EXTRA.unpack_from(tail)[3:]  # the manifest is the directory's last entry
    start = _Entry(_MANIFEST, 0, length, offset).data
    raw = _read(file, start, length) if start + length < size and length <= MAX_MANIFEST_BYTES else b""
    digest = hashlib.sha256(raw).hexdigest()
    if tail[-64:] != digest.encode():
        raise refusal(label, *_diagnose(file, size, "has a damaged or edited manifest"))
    manifest = _parse_manifest(raw, label)
    entries: list[_Entry] = []
    for name, record in manifest["files"].items():
        _append_entry(entries, name + _SUFFIX, record["crc32"], record["bytes"])
    digests = {entry: manifest["files"][entry.name.removesuffix(_SUFFIX)]["sha256"] for entry in entries}
    entry = _append_entry(entries, _MANIFEST, zlib.crc32(raw), len(raw))
    sound = entry.offset == offset  # first of all, as forged sizes can exceed what a header holds
    expected = entry.local_header() + raw + _directory(entries, digest) if sound else b""
    if len(expected) != size - offset or _read(file, offset, len(expected)) != expected:
        raise refusal(label, *_diagnose(file, size, "does not hold just the members that its manifest lists"))
    return {key: value for key, value in manifest.items() if key not in RESERVED_KEYS}, digests


def _parse_manifest(raw: bytes, label: str) -> dict[str, Any]:
    try:
        manifest = _parse_json(raw)
    except (ValueError, RecursionError) as err:
        raise refusal(label, f"has a manifest that is not plain JSON ({err})") from err
    if not isinstance(manifest, dict) or manifest.get("format") != "headway":
        raise refusal(label, "has a manifest without 'format': 'headway'", "give a file that Headway saved")
    version, files = manifest.get("format_version"), manifest.get("files")
    if type(version) is int and version > FORMAT_VERSION:
        what = f"was written by a newer Headway (format {version} > {FORMAT_VERSION})"
        raise refusal(label, what, "upgrade with pip install -U headway-rl")
    if type(version) is not int or version < 1 or not isinstance(files, dict):
        raise refusal(label, "has a manifest whose 'format_version' or 'files' is missing or broken")
    for name, record in files.items():
        if not _MEMBER_NAME.fullmatch(name):
            raise refusal(label, f"has a member with the unsafe name {name!r}")
        match record:
            case {"bytes": int(size), "crc32": int(crc), "sha256": str()} if size >= 0 and 0 <= crc <= _MAX32:
                continue
        raise refusal(label, f"has a manifest whose 'bytes', 'crc32' or 'sha256' of {name!r} is missing or broken")
    return manifest


def _parse_json(raw: bytes) -> Any:
    """Parse JSON in time and memory linear in its length, whatever it holds."""
    # The C parser recurses, and a raised recursion limit would let it overflow the stack, so count brackets first:
    # without escapes every string ends at its next quote, and without strings every bracket is one.
    skeleton = np.frombuffer(re.sub(rb'"[^"]*"?', b"", re.sub(rb"(?s)\\.", b"", raw)), dtype=np.uint8)
    steps = np.isin(skeleton, list(b"[{")).astype(np.int32) - np.isin(skeleton, list(b"]}"))
    depth = int(steps.cumsum().max(initial=0))
    if depth > _JSON_DEPTH:
        raise ValueError(f"nested {depth} deep, at most {_JSON_DEPTH} allowed")
    text = raw.decode("utf-8")
    return json.loads(text, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_no_constant)


def _parse_int(text: str) -> int:
    if len(text) > 20:  # reading long decimals takes quadratic time; pack() writes them otherwise
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    if not math.isfinite(number := float(text)):  # as of 1e999
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _read_member(file: BinaryIO, label: str, entry: _Entry, digest: str) -> dict[str, Tensor]:
    header = entry.local_header()
    if _read(file, entry.offset, len(header)) != header:
        raise refusal(label, f"has a damaged header before {entry.name!r}")
    blob = _read(file, entry.data, entry.size)
    if hashlib.sha256(blob).hexdigest() != digest:
        raise refusal(label, f"has a member {entry.name!r} that is damaged or not its own (its checksum differs)")
    try:
        return safetensors.torch.load(blob)
    except Exception as err:  # whatever safetensors or torch think of a hostile header
        raise refusal(label, f"has a member {entry.name!r} that safetensors refuses ({err})") from err


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    """``count`` bytes, fewer only at the end of the file; callers hold ``count`` against the file's size."""
    file.seek(offset)
    data = file.read(count)
    while 0 < len(data) < count:  # an unbuffered file gives at most 2 GiB at once
        more = file.read(count - len(data))
        if not more:
            break
        data += more
    return data


# ---- saying what is wrong --------------------------------------------------------------------------------------------


def _diagnose(file: BinaryIO, size: int, fallback: str) -> tuple[str, str]:
    """What is wrong, and the remedy, for a file whose structure is not ours. It looks at 1 MiB at most."""
    start, tail = _read(file, 0, 4), _read(file, max(size - (1 << 20), 0), min(size, 1 << 20))
    end = tail.rfind(b"PK\5\6")
    if size == 0:
        return "is empty", RESTORE
    if end < 0 and not b"PK\3\4".startswith(start):
        return "is not a zip file", "give a file that Headway saved"
    excess = len(tail) - (end + 22 + int.from_bytes(tail[end + 20 : end + 22], "little"))
    if end < 0 or excess < 0:
        return "is cut off: its end is missing", RESTORE
    if excess > 0:
        return f"has {excess} foreign bytes after its end", RESTORE
    try:
        infos = zipfile.ZipFile(io.BytesIO(tail)).infolist()
    except Exception:  # zipfile raises many kinds for broken directories
        return "has a damaged zip directory", RESTORE
    if problem := _diagnose_members(infos):
        return problem
    return fallback if start == b"PK\3\4" else "has foreign bytes before its beginning", RESTORE


def _diagnose_members(infos: list[zipfile.ZipInfo]) -> tuple[str, str] | None:
    names = [info.orig_filename for info in infos]
    if {"data", "policy.pth"} <= set(names):
        what = "is a Stable-Baselines3 file (has data, policy.pth), not one of Headway's"
        return what, "load it with the Stable-Baselines3 class that saved it"
    if any(name.endswith("/data.pkl") for name in names):
        return "is a pickle from torch.save, which Headway does not load", "save it with Headway"
    if _MANIFEST not in names:
        return f"is a zip file of something else (has {', '.join(names[:5])}, no {_MANIFEST})", "give a Headway file"
    counts = collections.Counter(names)
    for info, name in zip(infos, names, strict=True):
        if info.flag_bits & 1:
            return f"has the encrypted member {name!r}", RESTORE
        if info.compress_type != zipfile.ZIP_STORED:
            sizes = f"{info.compress_size} bytes said to hold {info.file_size}"
            return f"has the compressed member {name!r} ({sizes}), which Headway never writes", RESTORE
        if name != _MANIFEST and not (name.endswith(_SUFFIX) and _MEMBER_NAME.fullmatch(name.removesuffix(_SUFFIX))):
            return f"has the unsafe or foreign member {name!r}", RESTORE
        if counts[name] > 1:
            return f"has the member {name!r} twice", RESTORE
    return None
