"""Reads a configuration in the forms that tools have: JSON, YAML, NAME=VALUE lines, and a call in Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from mccompile.importing.errors import ConfigUnreadable

LARGEST = 1_000_000
_VARIABLE = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*?)\s*\\?")


def read_config(path: Path) -> Mapping[str, object]:
    """The keys and values of a file. Raises ConfigUnreadable (MC0901) with the place and the cause."""
    try:
        if not path.is_file():
            raise ConfigUnreadable(str(path), "there is no such file" if not path.exists() else "it is no regular file")
        if path.stat().st_size > LARGEST:
            raise ConfigUnreadable(str(path), f"it is larger than {LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigUnreadable(str(path), "it is no UTF-8 text") from None
    except OSError as error:
        raise ConfigUnreadable(str(path), (error.strerror or "no file").lower()) from None
    found: object = _python(path, text) if path.suffix == ".py" else _variables(text)
    if found is None:
        found = _data(path, text)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ConfigUnreadable(str(path), "it has no keys with values")
    return found


def _data(path: Path, text: str) -> object:
    """JSON where the file says so, YAML otherwise; a key that stands twice is an error in both."""
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_unique)
        return yaml.load(text, Loader=_Loader)
    except json.JSONDecodeError as error:
        raise ConfigUnreadable(f"{path}:{error.lineno}:{error.colno}", f"no JSON: {error.msg.lower()}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        raise ConfigUnreadable(place, f"no YAML: {error.problem or 'it cannot be read'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigUnreadable(str(path), str(error) or "it nests too deep") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{key}` stands twice")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, object]:
        return _unique([(self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value])


_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, True))


def _variables(text: str) -> dict[str, object] | None:
    """NAME=VALUE lines, as of an .env file or of a shell script; None where the text is something else."""
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith("#")]
    found = [match for line in said if (match := _VARIABLE.fullmatch(line))]
    if not found or any(re.match(r"[{\[]|[\w.]+\s*:\s", line) for line in said):
        return None
    pairs: list[tuple[str, object]] = [(match[1], match[2].strip().strip("'\"")) for match in found]
    return dict(pairs)


def _python(path: Path, text: str) -> dict[str, object]:
    """The one call of a configuration's class, with its literal arguments."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigUnreadable(f"{path}:{error.lineno}", f"no Python: {error.msg}") from None
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node).endswith("Config")]
    if len(calls) != 1:
        raise ConfigUnreadable(str(path), f"it has {len(calls)} calls of a configuration's class, and one is read")
    call = calls[0]
    found: dict[str, object] = {"_class_name": _name(call)}
    for argument in call.keywords:
        if argument.arg is None or call.args:
            raise ConfigUnreadable(f"{path}:{call.lineno}", "only arguments with names are read")
        found[argument.arg] = _literal(path, argument.value)
    return found


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _literal(path: Path, value: ast.expr) -> object:
    if isinstance(value, ast.Attribute):  # torch.bfloat16
        return ast.unparse(value)
    try:
        return ast.literal_eval(value)
    except ValueError:
        place = f"{path}:{value.lineno}:{value.col_offset + 1}"
        raise ConfigUnreadable(place, f"`{ast.unparse(value)}` is no literal") from None
