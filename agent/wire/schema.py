"""Kafka's message schemas as kio carries them, compiled once per class into what encoding and walking need.

kio generates one frozen dataclass per API, version and nesting level; a field's wire type, tag and nesting are in
its metadata and annotation. Here they become plain data.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from kio.schema.index import api_key_map, schema_name_map
from kio.static.constants import EntityType

KioEntity = type[Any]


@dataclass(frozen=True, slots=True, eq=False)
class FieldPlan:
    """One field: a ``kafka_type`` or a nested ``entity``, once or as an array.

    ``default`` is what is sent when an answer leaves the field out: the schema's default, else zero, empty or null.
    """

    name: str
    kafka_type: str | None
    entity: EntityPlan | None
    is_array: bool
    nullable: bool
    tag: int | None
    default: Any


@dataclass(frozen=True, slots=True, eq=False)
class EntityPlan:
    """A message or nested structure in wire order. ``tagged`` is in tag order, as KIP-482 wants it."""

    name: str
    flexible: bool
    fields: tuple[FieldPlan, ...]
    tagged: tuple[FieldPlan, ...]


_ZEROS: dict[str, Any] = {
    "bool": False,
    "string": "",
    "bytes": b"",
    "records": None,
    "uuid": None,
    "float64": 0.0,
    "datetime_i64": -1,
}


@cache
def entity_plan(entity: KioEntity) -> EntityPlan:
    """Compile a kio class; nested classes with it."""
    untagged: list[FieldPlan] = []
    tagged: list[FieldPlan] = []
    for field in fields(entity):
        inner, is_array, nullable = _shape(field.type)
        nested = entity_plan(inner) if hasattr(inner, "__dataclass_fields__") else None
        kafka_type = None if nested is not None else str(field.metadata["kafka_type"])
        tag = field.metadata.get("tag")
        default: Any
        if is_array:
            default = field.default if field.default is not MISSING else ()
        elif nested is not None:
            default = None if nullable else {}
        elif field.default is not MISSING:
            default = field.default
        else:
            default = None if nullable else _ZEROS.get(kafka_type or "", 0)
        plan = FieldPlan(field.name, kafka_type, nested, is_array, nullable, tag, default)
        (untagged if tag is None else tagged).append(plan)
    assert entity.__flexible__ or not tagged, f"{entity.__name__} has tags but is not flexible"
    return EntityPlan(
        entity.__name__,
        entity.__flexible__,
        tuple(untagged),
        tuple(sorted(tagged, key=lambda plan: plan.tag or 0)),
    )


def _shape(annotation: Any) -> tuple[Any, bool, bool]:
    """(inner type, is an array, may be null) of a kio annotation: T, T | None, tuple[T, ...], tuple[T, ...] | None."""
    nullable = False
    if get_origin(annotation) in (UnionType, Union):
        members = [member for member in get_args(annotation) if member is not NoneType]
        assert len(members) == 1, f"unexpected union {annotation}"
        annotation, nullable = members[0], True
    if get_origin(annotation) is tuple:
        inner, _ellipsis = get_args(annotation)
        return inner, True, nullable
    return annotation, False, nullable


def versions_of(api_key: int, kind: EntityType) -> list[int]:
    """The versions of an API that kio knows, lowest first."""
    by_version = schema_name_map[api_key_map[api_key]]
    return sorted(version for version, kinds in by_version.items() if kind in kinds)
