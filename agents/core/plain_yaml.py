"""YAML as it was meant: what YAML 1.1 would silently read as something else is refused."""

import re
from typing import Any

import yaml

_OLD_NUMBER = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""Octal as in 010, and numbers to the base of 60 as in 1:30."""


class _Loader(yaml.SafeLoader):
    """Safe, without octal numbers, those to the base of 60, doubled keys, and data that hold themselves."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if _OLD_NUMBER.fullmatch(node.value):
            read = self.construct_yaml_int(node) if node.tag.endswith("int") else self.construct_yaml_float(node)
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value} is {read} in YAML 1.1: write that, or the number you mean", node.start_mark
            )
        return self.construct_yaml_int(node) if node.tag.endswith("int") else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


LARGEST = 100_000
"""Values that a text may stand for. Our choice."""


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count values, those that aliases repeat each time; a few lines can stand for more than any memory holds."""
    if isinstance(node, yaml.CollectionNode) and id(node) not in sizes:
        sizes[id(node)] = 1  # for what holds itself, which is found later
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] += sum(_check_size(part, sizes) for part in parts)
    size = sizes.get(id(node), 1)
    if size > LARGEST:
        raise yaml.YAMLError(f"it stands for more than {LARGEST:,} values, by aliases or without")
    return size


def read_yaml(text: str, source: str) -> Any:
    """Read YAML, which JSON is too.

    :param text: the text
    :param source: what errors call it
    :return: nested plain data
    :raises ValueError: it is no YAML, or could be misunderstood; in one line
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {})
        return loader.construct_object(node, deep=True)  # deep: finds what holds itself
    except (yaml.YAMLError, TypeError, RecursionError) as cause:  # TypeError: keys that cannot be hashed
        reason = " ".join(str(cause).replace('in "<unicode string>", ', "").split())
        raise ValueError(f"{source} is not YAML that can be read safely: {reason}") from cause
    finally:
        loader.dispose()
