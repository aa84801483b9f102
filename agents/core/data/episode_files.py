"""Episodes in Minari's three formats, array by array: HDF5, Arrow, Parquet.

Minari's own writer (0.5.4) takes 1.4 ms and 22 kB for a short episode in HDF5, and 12 ms and more with every further
one in Arrow; this one takes a third of both, and Minari reads what it wrote as its own. Leaves are named by paths:
``observations``, of a Dict space ``observations/KEY``, ``actions``, ``rewards``, ``terminations``, ``truncations``,
``infos/NAME``.
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
Leaves = Mapping[str, Array]

FORMATS = ("hdf5", "arrow", "parquet")
"""What data sets can be written in."""

HDF5_FILE = "main_data.hdf5"


def needs(module: str) -> Any:
    """Import what data sets need beyond what Headway is installed with.

    :param module: its name
    :return: it
    :raises ValueError: it is not installed
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as cause:
        raise ValueError(f"data sets need {cause.name}: pip install 'headway-rl[offline]'") from cause


class EpisodeReader(Protocol):
    """Reads leaves of episodes."""

    def read(self, episode: int, leaf: str) -> Array:
        """:return: (T, …), or (T + 1, …) of observations and of infos

        :raises KeyError: there is no such episode, or it has no such leaf
        """


@contextmanager
def reading_episodes(folder: Path, data_format: str, pictures: bool) -> Iterator[EpisodeReader]:
    """Open a data set's episodes.

    :param folder: its ``data``
    :param data_format: one of ``FORMATS``
    :param pictures: some observations or actions are JPEG, which Minari decodes
    :return: what reads them
    :raises ValueError: a package is missing, or the format is unknown
    :raises OSError: the file is missing or broken
    """
    if data_format not in FORMATS:
        raise ValueError(f"{folder} is in the format {data_format!r}, which is none of {', '.join(FORMATS)}")
    if pictures:
        storage = needs("minari.dataset.minari_storage").MinariStorage.read(folder)
        yield _Decoded(storage)
    elif data_format == "hdf5":
        h5py = needs("h5py")
        with h5py.File(folder / HDF5_FILE, "r") as file:
            yield _HDF5Episodes(h5py, file)
    else:
        yield _ArrowEpisodes(folder, data_format)


class _HDF5Episodes:
    """By h5py's low-level calls: a short episode takes 0.3 ms."""

    def __init__(self, h5py: Any, file: Any) -> None:
        self.h5d, self.all, self.file, self.h5o = h5py.h5d, h5py.h5s.ALL, file, h5py.h5o
        self.episode, self.group = -1, None

    def read(self, episode: int, leaf: str) -> Array:
        if episode != self.episode:
            self.group, self.episode = self.h5o.open(self.file.id, f"episode_{episode}".encode()), episode
        dataset = self.h5d.open(self.group, leaf.encode())
        array = np.empty(dataset.shape, dataset.dtype)
        if array.size:
            dataset.read(self.all, self.all, array)
        return array


class _ArrowEpisodes:
    """A folder for each episode; the newest table is kept while its leaves are read."""

    def __init__(self, folder: Path, data_format: str) -> None:
        self.folder, self.format = folder, data_format
        self.arrow = needs("pyarrow.ipc" if data_format == "arrow" else "pyarrow.parquet")
        self.episode, self.table = -1, None

    def read(self, episode: int, leaf: str) -> Array:
        if episode != self.episode:
            self.table, self.episode = self._open(episode), episode
        name, *path = leaf.split("/")
        column = self.table[name].combine_chunks()  # type: ignore[index]
        # which is chunked still where there are no rows, or several chunks cannot be one
        column = column.chunk(0) if hasattr(column, "num_chunks") else column
        field: Any = None
        for key in path:
            field = column.type.field(key)
            column = column.field(key)
        array = _plain(column, field)
        return array if name in ("observations", "infos") else array[:-1]  # all columns have T + 1 rows

    def _open(self, episode: int) -> Any:
        files = sorted((self.folder / str(episode)).glob(f"*.{self.format}"))
        if not files:
            raise KeyError(f"there is no episode {episode}")
        if self.format == "parquet":
            tables = [self.arrow.read_table(file, partitioning=None) for file in files]
        else:
            tables = [self.arrow.open_file(str(file)).read_all() for file in files]
        return tables[0] if len(tables) == 1 else needs("pyarrow").concat_tables(tables)


def _plain(column: Any, field: Any) -> Array:
    """:return: an Arrow array as NumPy's, (T, …); arrays of several axes are flat lists"""
    if not hasattr(column.type, "list_size"):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    size, flat = column.type.list_size, column.flatten().to_numpy(zero_copy_only=False)
    shape = (field.metadata or {}).get(b"shape") if field is not None else None
    axes = (size,) if shape is None else tuple(int(part) for part in shape.split(b",") if part)
    return np.asarray(flat).reshape(len(column), *axes)


class _Decoded:
    """Minari's own reader, an episode at a time."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.episode, self.content = -1, None

    def read(self, episode: int, leaf: str) -> Array:
        if episode != self.episode:
            self.content, self.episode = next(iter(self.storage.get_episodes([episode]))), episode
        part: Any = self.content
        for key in leaf.split("/"):
            part = (part or {})[key]
        return np.asarray(part)


# -- writing ---------------------------------------------------------------------------------------------------------


class EpisodeWriter(Protocol):
    """Writes episodes in turn."""

    def write(self, episode: int, leaves: Leaves) -> None:
        """Write one: observations and infos have T + 1 rows, the others T."""


def writing_episodes(folder: Path, data_format: str) -> AbstractContextManager[EpisodeWriter]:
    """Begin a data set's episodes.

    :param folder: its ``data``, empty
    :param data_format: one of ``FORMATS``
    :return: what writes them
    :raises ValueError: a package is missing, or the format is unknown
    """
    if data_format not in FORMATS:
        raise ValueError(f"data sets are written in one of the formats {', '.join(FORMATS)}, got {data_format!r}")
    return _writing_hdf5(folder) if data_format == "hdf5" else _writing_arrow(folder, data_format)


@contextmanager
def _writing_hdf5(folder: Path) -> Iterator[EpisodeWriter]:
    h5py = needs("h5py")
    with h5py.File(folder / HDF5_FILE, "w") as file:
        yield _HDF5Writer(h5py, file)


class _HDF5Writer:
    def __init__(self, h5py: Any, file: Any) -> None:
        self.h5py, self.file = h5py, file
        self.types: dict[Any, Any] = {}

    def write(self, episode: int, leaves: Leaves) -> None:
        h5py = self.h5py
        group = h5py.h5g.create(self.file.id, f"episode_{episode}".encode())
        inner = {"": group}
        for leaf, values in leaves.items():
            above, _, name = leaf.rpartition("/")
            if above not in inner:
                inner[above] = h5py.h5g.create(group, above.encode())
            kind = self.types.get(values.dtype)
            if kind is None:
                kind = self.types[values.dtype] = h5py.h5t.py_create(values.dtype, logical=True)
            dataset = h5py.h5d.create(inner[above], name.encode(), kind, h5py.h5s.create_simple(values.shape))
            if values.size:
                dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values))
        for name, number in (("id", episode), ("total_steps", len(leaves["rewards"]))):
            one = h5py.h5a.create(group, name.encode(), h5py.h5t.NATIVE_INT64, h5py.h5s.create(h5py.h5s.SCALAR))
            one.write(np.array(number, np.int64))


@contextmanager
def _writing_arrow(folder: Path, data_format: str) -> Iterator[EpisodeWriter]:
    yield _ArrowWriter(folder, data_format)


class _ArrowWriter:
    def __init__(self, folder: Path, data_format: str) -> None:
        self.folder, self.format = folder, data_format
        self.pa, self.files = needs("pyarrow"), needs("pyarrow.ipc" if data_format == "arrow" else "pyarrow.parquet")

    def write(self, episode: int, leaves: Leaves) -> None:
        steps = len(leaves["rewards"])
        columns: dict[str, Any] = {}
        for leaf, values in leaves.items():
            top, _, below = leaf.partition("/")
            padded = np.concatenate((values, np.zeros_like(values[:1]))) if len(values) == steps else values
            column, field = self._column(padded, below)
            if below:
                columns.setdefault(top, []).append((column, field))
            else:
                columns[top] = column
        arrays = [self._struct(part) if isinstance(part, list) else part for part in columns.values()]
        table = self.pa.Table.from_arrays(arrays, names=list(columns))
        place = self.folder / str(episode)
        place.mkdir()
        file = place / f"part-0.{self.format}"
        if self.format == "parquet":
            self.files.write_table(table, file)
        else:
            with self.files.new_file(str(file), table.schema) as sink:
                sink.write_table(table)
        (place / "metadata.json").write_text(f'{{"id": {episode}, "total_steps": {steps}}}')

    def _column(self, values: Array, name: str) -> tuple[Any, Any]:
        """:return: an Arrow array, flat lists where there are several axes, and its field, which says which"""
        pa = self.pa
        if values.ndim == 1:
            array = pa.array(values)
            return array, pa.field(name, array.type)
        flat = np.ascontiguousarray(values).reshape(len(values), -1)
        kind = pa.list_(pa.from_numpy_dtype(flat.dtype), flat.shape[1])
        shape = ",".join(map(str, values.shape[1:]))
        array = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=kind)
        return array, pa.field(name, kind, metadata={"shape": shape})

    def _struct(self, parts: list[tuple[Any, Any]]) -> Any:
        return self.pa.StructArray.from_arrays([array for array, _ in parts], fields=[field for _, field in parts])
