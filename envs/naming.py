"""Names that users write, and what to say of those that do not exist."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Say which known names come closest to a misspelt one.

    :param name: what was written
    :param known: the names that exist
    :param otherwise: what to say where none comes close; by default they are all listed
    :return: a clause for an error message, such as "did you mean gamma?"
    """
    written = {word.lower(): word for word in sorted(known)}
    # Of a file's, a name can be megabytes long, which takes minutes to compare.
    close = difflib.get_close_matches(name.lower(), written, n=3, cutoff=0.5) if len(name) <= 200 else ()
    if close:
        return f"did you mean {' or '.join(written[word] for word in close)}?"
    return f"known: {', '.join(written.values()) or 'none'}" if otherwise is None else otherwise
