"""Where settings come from: flags over environment over TOML file over defaults, merged and checked once at the start.

Every problem is reported at once, each with the setting's name, the value, where it came from and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError as SourceError

from runtime.settings import Settings, SettingsError

PREFIX = "TIDELOG_"

_OTHER_VARIABLES = re.compile(
    r"TIDELOG_(CONFIG|BOOTSTRAP|REQUIRE_ALL|SETUP_.*|TEST_.*"  # ours, but no settings: see docs/configuration.md
    # Kubernetes adds these to every container beside a Service whose name begins with "tidelog".
    r"|(.*_)?(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.*|PORT|PORT_[0-9]+_(TCP|UDP|SCTP).*))"
)

Tree = dict[str, Any]


def load_settings(flags: Mapping[str, object | None], config_file: Path | None = None) -> Settings:
    """The settings of this process. ``flags`` maps dotted names to values given on the command line; None: not given.

    :raises SettingsError: the message names every wrong or unknown setting.
    """
    if config_file is None and os.environ.get("TIDELOG_CONFIG"):
        config_file = Path(os.environ["TIDELOG_CONFIG"])
    from_file = _read_toml(config_file) if config_file is not None else {}
    from_environment = _read_environment()
    from_flags: Tree = {}
    for name, value in flags.items():
        if value is not None:
            _place(from_flags, name.split("."), value)
    sources = [("flag", from_flags), ("environment", from_environment), (str(config_file), from_file)]
    merged: Tree = {}
    for _, tree in reversed(sources):
        _merge(merged, tree)
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, sources)) from None


def setting_names() -> list[str]:
    """Every setting's dotted name, in the order of the code."""
    return [".".join(path) for path in _leaves(Settings)]


def environment_name(setting: str) -> str:
    """``ingest.linger_ms`` -> ``TIDELOG_INGEST__LINGER_MS``."""
    return PREFIX + setting.replace(".", "__").upper()


def _leaves(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, (*above, name))
        else:
            yield (*above, name)


def _read_toml(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config = {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config = {str(path)!r}: not TOML: {error}") from None


def _read_environment() -> Tree:
    """Variables of this prefix as a tree; one that is no setting is most likely a typing mistake, so it is an error."""
    known = {environment_name(name) for name in setting_names()}
    unknown = sorted(
        name
        for name in os.environ
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not _OTHER_VARIABLES.fullmatch(name.upper())
    )
    if unknown:
        raise SettingsError("\n".join(f"{name}: there is no such setting{_guess(name, known)}" for name in unknown))
    try:
        return dict(EnvSettingsSource(Settings)())
    except SourceError as error:
        raise SettingsError(f"environment: {error}") from None


def _guess(name: str, known: set[str]) -> str:
    close = [one for one in sorted(known) if one.endswith(f"_{name.removeprefix(PREFIX)}") or one.endswith(f".{name}")]
    close += difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _place(tree: Tree, path: list[str], value: object) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _merge(into: Tree, tree: Tree) -> None:
    for name, value in tree.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        elif isinstance(value, dict):
            into[name] = {}
            _merge(into[name], value)
        else:
            into[name] = value


def _explain(error: ValidationError, sources: list[tuple[str, Tree]]) -> str:
    names = set(setting_names())
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            reason = f"there is no such setting{_guess(name, names)}"
        else:
            reason = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        shown = "" if isinstance(value, dict) else f" = {value!r}"
        lines.append(f"{name}{shown} ({_origin(path, sources)}): {reason}")
    return "\n".join(lines)


def _origin(path: list[str], sources: list[tuple[str, Tree]]) -> str:
    name = ".".join(path)
    for source, tree in sources:
        found: object = tree
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return f"from {environment_name(name)}" if source == "environment" else f"from {_place_of(source, name)}"
    return "default"


def _place_of(source: str, name: str) -> str:
    return f"the flag for {name}" if source == "flag" else source
