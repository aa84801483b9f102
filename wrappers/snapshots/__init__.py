"""How objects are described by plain data, and written back: a kind of object is saved and loaded in one place.

A description is a tree of nodes. Leaves, arrays and tensors are themselves; all else is a dict with its ``kind``, which
the module of that kind makes and reads: :mod:`.objects`, :mod:`.values`, :mod:`.arrays`, :mod:`.code`, :mod:`.streams`,
:mod:`.physics` and :mod:`.workers`. :mod:`.kinds` lists them, :mod:`.walking` leads through an environment from one to
the next. Two kinds are the walk's own: "shared", a second way to the same object, and "far", one that lies deep.
"""
