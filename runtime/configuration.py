"""Where settings come from: flags over environment over TOML file over defaults, merged and checked once at the start.

Every problem is reported at once, each with the setting's name, the value, where it came from and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError as SourceError

from runtime.settings import Settings, SettingsError, without_password

PREFIX = "TIDELOG_"

_OTHER_VARIABLES = re.compile(
    # Ours, but no settings: see docs/configuration.md.
    r"TIDELOG_(CONFIG|BOOTSTRAP|TLS_(CA|CERT|KEY)|REQUIRE_ALL|SETUP_.*|TEST_.*"
    # Kubernetes adds these to every container beside a Service whose name begins with "tidelog".
    r"|(.*_)?(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.*|PORT|PORT_[0-9]+_(TCP|UDP|SCTP).*))"
)

_WORDINGS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
}

_SET = "--set"
_ENVIRONMENT = "environment"

Tree = dict[str, Any]
Source = tuple[str | Mapping[str, str], Tree]
"""Where from (for flags: how those are called that are not called like their setting), and what."""


def load_settings(
    flags: Mapping[str, object | None],
    config_file: Path | None = None,
    named: Mapping[str, str] | None = None,
    checks: Mapping[str, Callable[[str], object]] | None = None,
    flag_names: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of this process.

    ``flags`` maps dotted names to values given with flags of their own (None: not given), which are called like the
    last part of the name, or as ``flag_names`` says (``{"listen.metadata": "--listen"}``); ``named`` has those given
    with ``--set``. ``checks`` are what other rooms demand of a setting: called with its text, they raise ValueError.

    :raises SettingsError: the message names every wrong or unknown setting.
    """
    if config_file is None and os.environ.get("TIDELOG_CONFIG"):
        config_file = Path(os.environ["TIDELOG_CONFIG"])
    from_file = _read_toml(config_file) if config_file is not None else {}
    from_environment, problems = _read_environment()
    known = set(setting_names())
    from_flags: Tree = {}
    from_named: Tree = {}
    for name, value in flags.items():
        if value is not None:
            _place(from_flags, name.split("."), value)
    for name, text in (named or {}).items():
        if name in known:
            _place(from_named, name.split("."), text)
        else:
            problems.append(f"{name} (from --set): there is no such setting{_guess(name)}")
    sources: list[Source] = [
        (_SET, from_named),
        (flag_names or {}, from_flags),
        (_ENVIRONMENT, from_environment),
        (str(config_file), from_file),
    ]
    merged: Tree = {}
    for _, tree in reversed(sources):
        _merge(merged, tree)
    settings = None
    wrong: set[str] = set()
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        wrong = {_name(problem) for problem in error.errors(include_url=False)}
        problems += [_explain(problem, sources) for problem in error.errors(include_url=False)]
    for name, check in (checks or {}).items():
        text_given = _find(merged, name.split("."))
        if isinstance(text_given, str) and name not in wrong:
            problems += _checked(name, text_given, check, _origin(name.split("."), sources))
    if settings is None or problems:
        raise SettingsError("\n".join(problems))
    return settings


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


def _read_environment() -> tuple[Tree, list[str]]:
    """Variables of this prefix as a tree, and what is wrong: one that is no setting is most likely a typing mistake."""
    known = {environment_name(name) for name in setting_names()}
    unknown = sorted(
        name
        for name in os.environ
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not _OTHER_VARIABLES.fullmatch(name.upper())
    )
    try:
        tree = dict(EnvSettingsSource(Settings)())
    except SourceError as error:
        raise SettingsError(f"environment: {error}") from None
    problems = []
    for name in unknown:
        dotted = name.upper().removeprefix(PREFIX).replace("__", ".").lower()
        problems.append(f"{name}: there is no such setting{_guess(dotted, environment_name)}")
        _remove(tree, dotted.split("."))
    return tree, problems


def _guess(name: str, shown: Callable[[str], str] = str) -> str:
    known = setting_names()
    parts = {one.rpartition(".")[2]: one for one in reversed(known)}
    last = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    close = close or [parts[part] for part in difflib.get_close_matches(last, list(parts), n=1, cutoff=0.75)]
    return f"; did you mean {shown(close[0])}?" if close else ""


def _place(tree: Tree, path: list[str], value: object) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _remove(tree: Tree, path: list[str]) -> None:
    for part in path[:-1]:
        below = tree.get(part)
        if not isinstance(below, dict):
            return
        tree = below
    tree.pop(path[-1], None)


def _merge(into: Tree, tree: Tree) -> None:
    for name, value in tree.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        elif isinstance(value, dict):
            into[name] = {}
            _merge(into[name], value)
        else:
            into[name] = value


def _find(tree: Tree, path: list[str]) -> object:
    found: object = tree
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _checked(name: str, text: str, check: Callable[[str], object], origin: str) -> list[str]:
    """What ``check`` says. Where its message does not quote the value, the value holds a secret and is not shown."""
    try:
        check(text)
    except ValueError as error:
        quoted = f"{name} {text!r}: "
        if str(error).startswith(quoted):
            return [f"{name} = {text!r} ({origin}): {str(error).removeprefix(quoted)}"]
        return [f"{error} ({origin})"]
    return []


def _name(problem: ErrorDetails) -> str:
    return ".".join(map(str, problem["loc"]))


def _explain(problem: ErrorDetails, sources: list[Source]) -> str:
    name, value = _name(problem), problem["input"]
    if not name:  # about several sections together; it says which
        return _reason(problem)
    if problem["type"] == "extra_forbidden":
        reason = f"there is no such setting{_guess(name)}"
    elif problem["type"] == "model_type":
        reason = f"must be a table: [{name}]"
    else:
        reason = _reason(problem)
    shown = "" if isinstance(value, dict) or name == "secret" else f" = {without_password(repr(value))}"
    return f"{name}{shown} ({_origin(name.split('.'), sources)}): {reason}"


def _reason(problem: ErrorDetails) -> str:
    """Pydantic's reason in the words of somebody who sets a setting."""
    wording = _WORDINGS.get(problem["type"])
    if wording is None:
        return problem["msg"].removeprefix("Value error, ")
    return wording.format(**problem.get("ctx", {}))


def _origin(path: list[str], sources: list[Source]) -> str:
    for source, tree in sources:
        if _find(tree, path) is not None:
            return f"from {_place_of(source, path)}"
    return "default"


def _place_of(source: str | Mapping[str, str], path: list[str]) -> str:
    if not isinstance(source, str):
        return source.get(".".join(path), f"--{path[-1]}")
    return environment_name(".".join(path)) if source == _ENVIRONMENT else source
