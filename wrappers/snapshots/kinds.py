"""All kinds of objects, in the order in which they are tried: what saves itself comes early, plain objects last."""

from . import arrays, code, objects, physics, streams, values, workers
from .walking import Kinds

KINDS: Kinds = {
    **objects.SPECIAL,
    **physics.KINDS,
    **streams.KINDS,
    **code.KINDS,
    **arrays.KINDS,
    **values.KINDS,
    **workers.KINDS,
    **objects.ANY,
}
