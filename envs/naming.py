"""Names that users write, and what to say of those that do not exist."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names come closest to a misspelt one.

    :param name: what was written
    :param known: the names that exist
    :return: a clause for an error message, such as "did you mean gamma?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"
