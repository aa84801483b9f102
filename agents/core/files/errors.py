"""What is said of a file that cannot be read: one line with the file, what is wrong with it, and what to do."""

import contextlib
from collections.abc import Iterator

RESTORE = "restore it from a copy or save it again"


class FileFormatError(ValueError):
    """A file that is not a sound Headway archive; the message is one line: which file, what is wrong, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def refusal(label: str, what: str, remedy: str = RESTORE) -> FileFormatError:
    """:return: the error for a file: what it is, what is wrong with it, and what to do."""
    return FileFormatError(f"{label}: {what}; {remedy}")


def one_line(text: str) -> str:
    """:return: the text without line breaks or terminal controls, which a hostile name may hold, and not too long."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= 1000 else f"{text[:600]} ... {text[-300:]}"


_CONTENT = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError)


@contextlib.contextmanager
def reading(label: object) -> Iterator[None]:
    """While this context is entered, what the content of a file brings about is told as an error of that file.

    This is the second line behind the checks of each field, for what they do not foresee.

    :param label: the file, and the part of it that is read
    :raises FileFormatError: for whatever unfit content makes Python, NumPy or torch raise
    """
    try:
        yield
    except FileFormatError:
        raise
    except _CONTENT as cause:
        kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
        raise FileFormatError(f"{label}: {kind}{' '.join(str(cause).split())}") from cause
