"""What is written to disk and read back. No pickle: reading a stranger's file runs no code."""

from .archive import Archive, read_archive, read_manifest, write_archive
from .checkpoints import list_checkpoints
from .errors import FileFormatError
from .trees import pack, unpack

__all__ = [
    "Archive",
    "FileFormatError",
    "list_checkpoints",
    "pack",
    "read_archive",
    "read_manifest",
    "unpack",
    "write_archive",
]
