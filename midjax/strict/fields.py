# SPDX-License-Identifier: Apache-2.0
"""What the annotations of configuration dataclasses allow, and such trees as plain JSON.

    class -> components (every class it can hold)      fit(value, annotation) -> value or error
    object -> to_json -> plain JSON -> from_json -> equal object      changes(old, new)      leaves

Annotations in use: int, float, str, bool, None, Literal, unions, tuple, list, dict with string keys
and other dataclasses. Others are refused when the class is first looked at, not when a run uses it.
"""

import collections.abc
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

SCALARS = (int, float, str, bool)
SEQUENCES = {tuple: tuple, list: list, collections.abc.Sequence: tuple}
MAPPINGS = (dict, collections.abc.Mapping)
TAG = "class"  # key of the class name in JSON; a Python keyword, so no field can have this name
ABSENT = "(absent)"  # stands in `changes` for a key that one side does not have


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is all a user needs to see."""


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """` Did you mean 'x'?` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def inits(cls: type) -> dict[str, dataclasses.Field]:
    """The fields that the constructor takes, by name, in order."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def required(field: dataclasses.Field) -> bool:
    """Whether a field has no default."""
    return default_of(field) is dataclasses.MISSING


def default_of(field: dataclasses.Field) -> Any:
    """A field's default, or `dataclasses.MISSING`."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def hints(cls: type) -> dict[str, Any]:
    """Annotations of the fields that the constructor takes, resolved to types."""
    try:
        resolved = typing.get_type_hints(cls)
    except NameError as error:
        raise ConfigError(
            f"{cls.__name__}: an annotation cannot be resolved at run time: {error}. "
            "Import the name outside `if TYPE_CHECKING`."
        ) from error
    return {name: resolved[name] for name in inits(cls)}


def components(root: type) -> dict[str, type]:
    """Every dataclass that `root` can hold, by class name, itself included.

    Raises:
      ConfigError: two different classes share a name, or a field has an annotation that a value
        cannot be checked against.
    """
    found: dict[str, type] = {}
    todo = [root]
    while todo:
        cls = todo.pop(0)
        known = found.get(cls.__name__)
        if known is cls:
            continue
        if known is not None:
            raise ConfigError(
                f"Two classes are called {cls.__name__}: {known.__module__} and {cls.__module__}. "
                "A gin file could not tell them apart; rename one."
            )
        if not dataclasses.is_dataclass(cls):
            raise ConfigError(f"{cls.__module__}.{cls.__name__} must be a dataclass.")
        found[cls.__name__] = cls
        for name, annotation in hints(cls).items():
            todo += _classes_in(annotation, f"{cls.__name__}.{name}")
    return found


def holders(cls: type, classes: Mapping[str, type]) -> list[str]:
    """`Class.field` of every field that may hold a `cls`."""
    return [
        f"{owner.__name__}.{name}"
        for owner in classes.values()
        for name, annotation in hints(owner).items()
        if cls in _classes_in(annotation, name)
    ]


def is_union(annotation: Any) -> bool:
    """`A | B` or `Optional[A]`."""
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _classes_in(annotation: Any, where: str) -> list[type]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _classes_in(arguments[0], where)
    if annotation in SCALARS or annotation is type(None) or origin is typing.Literal:
        return []
    if is_union(annotation) or (origin in SEQUENCES and arguments):
        members = [argument for argument in arguments if argument is not ...]
        return [cls for member in members for cls in _classes_in(member, where)]
    if origin in MAPPINGS and arguments and arguments[0] is str:
        return _classes_in(arguments[1], where)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    raise ConfigError(
        f"{where} is annotated {annotation!r}, which a value cannot be checked against. Use int, "
        "float, str, bool, None, Literal, unions, tuple, list, dict[str, ...] and dataclasses."
    )


def describe(annotation: Any) -> str:
    """An annotation as people write it: `float | None`, `'none' or 'full'`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if annotation is type(None):
        return "None"
    if annotation is ...:
        return "..."
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if is_union(annotation):
        return " | ".join(describe(member) for member in arguments)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(describe(member) for member in arguments)}]"
    return annotation.__name__


def literals(annotation: Any) -> list[Any]:
    """The choices of every Literal within an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for member in typing.get_args(annotation) for choice in literals(member)]


def fit(value: Any, annotation: Any, where: str, *, decode: bool = False) -> Any:
    """`value` if it fits the annotation: exactly, but that an int may stand for a float.

    Args:
      value: literals, containers and dataclass instances.
      annotation: resolved type.
      where: path of the value, for the message.
      decode: read plain JSON: lists stand for tuples, tagged objects for dataclasses.

    Raises:
      ConfigError: it does not fit; says what was given and what is allowed.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return fit(value, arguments[0], where, decode=decode)
    if is_union(annotation):
        return _fit_union(value, annotation, where, decode)
    if origin is typing.Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif annotation is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif annotation in (int, str, bool, type(None)):
        if type(value) is annotation:
            return value
    elif origin in SEQUENCES:
        kind = SEQUENCES[origin]
        if type(value) is kind or (decode and type(value) is list):
            return kind(_fit_items(value, annotation, where, decode))
    elif origin in MAPPINGS:
        if type(value) is dict and all(type(key) is str for key in value):
            return {
                key: fit(item, arguments[1], f"{where}[{key!r}]", decode=decode)
                for key, item in value.items()
            }
    elif decode and type(value) is dict:
        return _decode(value, annotation, where)
    elif type(value) is annotation:
        return value
    raise ConfigError(
        f"{where} must be {describe(annotation)}, got {_shown(value)}.{_hint(value, annotation)}"
    )


def _fit_items(value: Any, annotation: Any, where: str, decode: bool) -> list[Any]:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and ... not in arguments:
        if len(value) != len(arguments):
            raise ConfigError(
                f"{where} must have {len(arguments)} elements ({describe(annotation)}), "
                f"got {len(value)}: {_shown(value)}."
            )
        members = arguments
    else:
        members = arguments[:1] * len(value)
    pairs = enumerate(zip(value, members, strict=True))
    return [fit(item, member, f"{where}[{i}]", decode=decode) for i, (item, member) in pairs]


def _fit_union(value: Any, annotation: Any, where: str, decode: bool) -> Any:
    members = typing.get_args(annotation)
    if value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    tagged = [
        member
        for member in members
        if decode
        and isinstance(value, dict)
        and value.get(TAG) == getattr(member, "__name__", None)
    ]
    candidates = tagged or members
    if len(candidates) == 1 and isinstance(value, (tuple, list, dict)):
        return fit(value, candidates[0], where, decode=decode)  # its message is the more exact one
    loose = []
    for member in candidates:
        try:
            fitted = fit(value, member, where, decode=decode)
        except ConfigError:
            continue
        if type(fitted) is type(value):
            return fitted
        loose.append(fitted)
    if loose:
        return loose[0]
    raise ConfigError(
        f"{where} must be {describe(annotation)}, got {_shown(value)}.{_hint(value, annotation)}"
    )


def _shown(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return f"@{type(value).__name__}()"
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _hint(value: Any, annotation: Any) -> str:
    text = describe(annotation)
    members = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    if type(value) is float and value.is_integer() and int in members:
        return f" Write {int(value)}."
    if type(value) is bool and (int in members or float in members):
        return " True and False are not numbers here."
    if type(value) is str and any(member in (int, float, bool) for member in members):
        return " Numbers, True and False are written without quotes."
    if type(value) is str and literals(annotation):
        return suggest(
            value, [choice for choice in literals(annotation) if isinstance(choice, str)]
        )
    if type(value) in (int, float) and str in members:
        return f" Quote it to make it a string: '\"{value}\"'."
    if type(value) is list and "tuple[" in text:
        return " A tuple is written (a, b)."
    if "tuple[" in text and not isinstance(value, tuple):
        return " A tuple of one element needs its comma: (a,)."
    return ""


def to_json(value: Any) -> Any:
    """A tree as plain JSON: dataclasses become objects tagged by class, tuples lists."""
    if dataclasses.is_dataclass(value):
        return {TAG: type(value).__name__} | {
            name: to_json(getattr(value, name)) for name in inits(type(value))
        }
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type, data: Any) -> Any:
    """The object that `to_json` was given. A field with a default may be absent: an older midjax,
    which did not have it yet, wrote the file.

    Raises:
      ConfigError: unknown or missing keys, another class, or a value that does not fit.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{cls.__name__} must be a JSON object, got {_shown(data)}.")
    return _decode(data, cls, cls.__name__)


def from_plain(cls: type, data: Any) -> Any:
    """`from_json` of what `dataclasses.asdict` made: no object says of which class it is.

    Raises:
      ConfigError: as `from_json`.
    """
    return from_json(cls, _tagged(data, cls))


def _tagged(value: Any, annotation: Any) -> Any:
    classes = _classes_in(annotation, describe(annotation))
    if isinstance(value, dict) and len(classes) == 1:
        (cls,) = classes
        known = hints(cls)
        inner = {k: _tagged(v, known[k]) if k in known else v for k, v in value.items()}
        return {TAG: cls.__name__} | inner
    return value


def _decode(data: dict[str, Any], cls: type, where: str) -> Any:
    if data.get(TAG) != cls.__name__:
        raise ConfigError(f"{where} must be a {cls.__name__}, got {TAG} {data.get(TAG)!r}.")
    annotations, known = hints(cls), inits(cls)
    for name in data:
        if name != TAG and name not in known:
            raise ConfigError(f"{where} has no field {name!r}.{suggest(name, known)}")
    missing = [name for name, field in known.items() if name not in data and required(field)]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.")
    values = {
        name: fit(data[name], annotations[name], f"{where}.{name}", decode=True)
        for name in known
        if name in data
    }
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def changes(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two `to_json` trees differ, as (path, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(old) + [key for key in new if key not in old]
        found = []
        for key in keys:
            inner = f"{path}.{key}" if path else key
            found += changes(old.get(key, ABSENT), new.get(key, ABSENT), inner)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for i, (a, b) in pairs for change in changes(a, b, f"{path}[{i}]")]
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if same else [(path, old, new)]


class Leaf(typing.NamedTuple):
    """One line of `show`: where, the value as text, and whether it is the default."""

    path: str
    text: str
    is_default: bool


def leaves(value: Any, default: Any = dataclasses.MISSING, path: str = "") -> Iterator[Leaf]:
    """Every value of a tree; a nested dataclass gives a line for its class as well."""
    if dataclasses.is_dataclass(value):
        same_class = type(default) is type(value)
        if path:
            yield Leaf(path, f"@{type(value).__name__}()", same_class)
        for name, field in inits(type(value)).items():
            usual = getattr(default, name) if same_class else default_of(field)
            yield from leaves(getattr(value, name), usual, f"{path}.{name}" if path else name)
    elif isinstance(value, Mapping) and value:
        usual = default if isinstance(default, Mapping) and set(default) == set(value) else {}
        for key, item in value.items():
            yield from leaves(item, usual.get(key, dataclasses.MISSING), f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)) and _has_dataclass(value):
        paired = isinstance(default, (tuple, list)) and len(default) == len(value)
        usuals = default if paired else [dataclasses.MISSING] * len(value)
        for i, (item, usual) in enumerate(zip(value, usuals, strict=True)):
            yield from leaves(item, usual, f"{path}[{i}]")
    else:
        yield Leaf(path, repr(value), type(default) is type(value) and default == value)


def _has_dataclass(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_dataclass(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return any(_has_dataclass(item) for item in value)
    return dataclasses.is_dataclass(value)
