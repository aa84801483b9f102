"""What is said of a file that cannot be read: one line with the file, what is wrong with it, and what to do."""

RESTORE = "restore it from a copy or save it again"


class FileFormatError(ValueError):
    """A file that is not a sound Headway archive; the message is one line: which file, what is wrong, what to do."""


def refusal(label: str, what: str, remedy: str = RESTORE) -> FileFormatError:
    """:return: the error for a file: what it is, what is wrong with it, and what to do."""
    return FileFormatError(one_line(f"{label}: {what}; {remedy}"))


def one_line(text: str) -> str:
    """:return: the text without line breaks or terminal controls, which a hostile name may hold, and not too long."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= 1000 else f"{text[:600]} ... {text[-300:]}"
