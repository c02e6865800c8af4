"""Strict configuration: YAML plus `key=value` overrides into frozen dataclasses.

    YAML file --load--> mapping --overrides--> mapping --build--> dataclass --to_plain--> run.json

A field's type annotation is the schema. Supported: scalars, `Literal`, `X | None`, tuples and lists,
`dict[str, X]`, nested dataclasses. Anything else in a file is an error that names the nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from infinity_mm.errors import explain

T = TypeVar("T")


# libyaml's parser, where PyYAML was built with it, is ten times as fast.
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):
    """YAML that refuses a key given twice and reads `1e-3` as a number."""


def _no_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise explain(
                what=f"key `{key}` is given twice",
                where=f"YAML line {key_node.start_mark.line + 1}",
                fix="keep one of the two",
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _no_duplicates)


def load_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file into `cls`, apply `key.sub=value` overrides, and validate.

    Raises `UserError` for an unreadable file, an unknown key (with the nearest name), a wrong type
    or a missing required value.
    """
    return build(cls, read_config(path, overrides), where=str(path))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping of a YAML file with `key.sub=value` overrides, for what takes it apart before building."""
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.yaml")], n=1)
        raise explain(
            what=f"there is no configuration file {file}",
            where="--config",
            fix=f"did you mean {file.parent / near[0]}?" if near else "give the path of a YAML file",
        )
    data = read_yaml(file)
    for override in overrides:
        _apply(data, override)
    return data


def read_yaml(file: Path) -> dict[str, Any]:
    """Read one YAML mapping; an empty file is an empty mapping."""
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise explain(
            what=f"not valid YAML: {error}", where=str(file), fix="correct the YAML syntax"
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise explain(
            what=f"expected `key: value` lines, found a {type(data).__name__}",
            where=str(file),
            fix="start the file with a key",
        )
    return data


def build(
    cls: type[T], data: Mapping[str, Any], *, overrides: Sequence[str] = (), where: str = "configuration"
) -> T:
    """Build the dataclass `cls` from a plain mapping and `key.sub=value` overrides."""
    merged = _copy(dict(data))
    for override in overrides:
        _apply(merged, override)
    return _build(cls, merged, where=where, path="")


def to_plain(config: Any) -> Any:
    """The JSON-able form of a config, from which `build` makes an equal one."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _apply(data: dict[str, Any], override: str) -> None:
    key, sep, raw = override.partition("=")
    if not sep or not key:
        raise explain(
            what=f"`{override}` is not an override",
            where="command line",
            fix="write it as key=value, for example train.steps=200",
        )
    parts = key.split(".")
    node = data
    for part in parts[:-1]:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise explain(
                what=f"`{part}` in the override `{override}` is not a section",
                where="command line",
                fix=f"override the whole value: {part}=...",
            )
        node = child
    try:
        node[parts[-1]] = yaml.load(raw, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise explain(
            what=f"the value of the override `{override}` is not valid YAML",
            where="command line",
            fix="quote it for the shell, for example 'names=[a, b]'",
        ) from error


def _build(cls: type[Any], data: Any, *, where: str, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise explain(
            what=f"`{path or cls.__name__}` must be a section of `key: value` lines, not {data!r}",
            where=where,
            fix=f"known keys: {', '.join(f.name for f in dataclasses.fields(cls))}",
        )
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
            raise explain(
                what=f"unknown key `{_join(path, key)}`",
                where=where,
                fix=(f"did you mean `{_join(path, near[0])}`? " if near else "")
                + f"known keys: {', '.join(known)}",
            )
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], where=where, path=_join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise explain(
                what=f"`{_join(path, name)}` is required and missing",
                where=where,
                fix=f"set {_join(path, name)}",
            )
    return cls(**values)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(hint: Any, value: Any, *, where: str, path: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, where=where, path=path)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise _wrong(value, "one of " + ", ".join(repr(a) for a in get_args(hint)), where, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where=where, path=path)
    if origin in (tuple, list):
        return _convert_sequence(origin, get_args(hint), value, where=where, path=path)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, "a section of `key: value` lines", where, path)
        item = get_args(hint)[1]
        return {str(k): _convert(item, v, where=where, path=_join(path, k)) for k, v in value.items()}
    return _convert_scalar(hint, value, where=where, path=path)


def _convert_union(options: tuple[Any, ...], value: Any, *, where: str, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _convert(rest[0], value, where=where, path=path)
    for option in rest:
        if isinstance(option, type) and type(value) is option:
            return value
    for option in rest:
        try:
            return _convert(option, value, where=where, path=path)
        except ValueError:
            continue
    raise _wrong(value, " or ".join(str(option) for option in rest), where, path)


def _convert_sequence(origin: Any, args: tuple[Any, ...], value: Any, *, where: str, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, "a list", where, path)
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(args) != len(value):
            raise _wrong(value, f"a list of {len(args)} values", where, path)
        return tuple(
            _convert(a, v, where=where, path=f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value))
        )
    item = args[0] if args else Any
    return origin(_convert(item, v, where=where, path=f"{path}[{i}]") for i, v in enumerate(value))


def _convert_scalar(hint: Any, value: Any, *, where: str, path: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _number(value)
        if number is not None and number == int(number):
            return int(number)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _number(value)
        if number is not None:
            return float(number)
    if hint is str and isinstance(value, str):
        return value
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    raise _wrong(value, getattr(hint, "__name__", str(hint)), where, path)


def _number(value: int | float | str) -> int | float | None:
    """YAML 1.1 reads `1e-3` as text; accept it as the number it looks like."""
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _wrong(value: Any, expected: str, where: str, path: str) -> ValueError:
    return explain(what=f"`{path}` is {value!r}", where=where, fix=f"give {expected}")
