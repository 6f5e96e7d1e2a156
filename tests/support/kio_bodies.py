"""Random messages of any API and version, as dicts of field names and as kio's entities. For property tests."""

from __future__ import annotations

import datetime
import functools
import io
from typing import Any

from hypothesis import strategies as st
from kio.schema.errors import ErrorCode
from kio.serial import entity_writer

from agent.wire.schema import EntityPlan, FieldPlan, KioEntity, entity_plan

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _integers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


_PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "int8": _integers(8),
    "int16": _integers(16),
    "int32": _integers(32),
    "int64": _integers(64),
    "uint16": st.integers(0, 2**16 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "string": st.text(st.characters(codec="utf-8"), max_size=20),
    "bytes": st.binary(max_size=20),
    "records": st.binary(max_size=20),
    "uuid": st.one_of(st.none(), st.uuids()),
    "error_code": st.sampled_from(ErrorCode),
    "timedelta_i32": _integers(32).map(lambda ms: datetime.timedelta(milliseconds=ms)),
    "timedelta_i64": st.integers(0, 2**40).map(lambda ms: datetime.timedelta(milliseconds=ms)),
    "datetime_i64": st.integers(0, 2**41).map(lambda ms: _EPOCH + datetime.timedelta(milliseconds=ms)),
}


@functools.cache
def bodies(entity: KioEntity) -> st.SearchStrategy[dict[str, Any]]:
    """Dicts with every field of ``entity``, nested ones as dicts."""
    return _bodies(entity_plan(entity))


def _bodies(plan: EntityPlan) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({field.name: _values(field) for field in plan.fields + plan.tagged})


def _values(field: FieldPlan) -> st.SearchStrategy[Any]:
    inner = _bodies(field.entity) if field.entity is not None else _PRIMITIVES[field.kafka_type or ""]
    if field.is_array:
        inner = st.lists(inner, max_size=3).map(tuple)
    if field.nullable and field.tag is None:
        return st.one_of(st.none(), inner)
    return inner


def build(entity: KioEntity, body: dict[str, Any]) -> Any:
    """The kio entity with these fields."""
    types = {field.name: field for field in entity.__dataclass_fields__.values()}
    values = {}
    for field in entity_plan(entity).fields + entity_plan(entity).tagged:
        value = body[field.name]
        if field.entity is not None and value is not None:
            nested = _nested_class(types[field.name].type)
            value = tuple(build(nested, row) for row in value) if field.is_array else build(nested, value)
        values[field.name] = value
    return entity(**values)


def _nested_class(annotation: Any) -> KioEntity:
    if hasattr(annotation, "__dataclass_fields__"):
        return annotation  # type: ignore[no-any-return]
    for inner in annotation.__args__:
        if inner is not type(None) and inner is not Ellipsis:
            return _nested_class(inner)
    raise TypeError(annotation)


def written(entity: Any) -> bytes:
    """What kio's own writer makes of it."""
    out = io.BytesIO()
    entity_writer(type(entity))(out, entity)
    return out.getvalue()
