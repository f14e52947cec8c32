"""Docker Compose's files, one read over the other, as far as ours need it."""

from pathlib import Path
from typing import Any

import msgspec
import yaml

ROOT = Path(__file__).parents[2]


class _Override(msgspec.Struct):
    """What replaces what a file below has."""

    value: Any


class _Reset(msgspec.Struct):
    """What removes it."""


class _Loader(yaml.SafeLoader):
    """Reads Docker Compose's own tags."""


def _overriding(loader: _Loader, node: yaml.Node) -> _Override:
    if isinstance(node, yaml.MappingNode):
        return _Override(loader.construct_mapping(node, deep=True))
    assert isinstance(node, yaml.SequenceNode)
    return _Override(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("!override", _overriding)
_Loader.add_constructor("!reset", lambda _loader, _node: _Reset())


def read_merged(*names: str) -> dict[str, Any]:
    """Return what the files say together, each read over those before it."""
    merged: dict[str, Any] = {}
    for name in names:
        merged = _merged(merged, yaml.load((ROOT / name).read_text(), _Loader))  # noqa: S506 - a SafeLoader with two tags
    return merged


def _merged(below: Any, above: Any) -> Any:
    if isinstance(above, _Override):
        return above.value
    if not isinstance(above, dict):
        # Compose adds some lists up and replaces others; ours say by a tag what they mean.
        assert not (isinstance(above, list) and below is not None), above
        return above
    kept = dict(below or {})
    for key, value in above.items():
        # Compose makes a list of what several files say there, in which a tag finds nothing.
        assert key != "environment" or isinstance(value, _Reset) or _Reset() not in value.values(), value
        if isinstance(value, _Reset):
            kept.pop(key, None)
        else:
            kept[key] = _merged(kept.get(key), value)
    return kept
