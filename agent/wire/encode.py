"""From a handler's answer (a dict of field names) to bytes, without building kio's entities in between.

kio's own writer is pure Python and wants an instance of the exact version's class for every nested row. A writer
compiled from the same schema takes the dict as it is, drops what this version does not have, and refuses a name
that no version has (a typo must not become a silently missing field). Checked against kio's writer in tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from agent.wire.errors import EncodeError
from agent.wire.schema import EntityPlan, FieldPlan
from agent.wire.varint import write_uvarint

ANSWER_BYTES_MAX: Final = 32 * 1024 * 1024
"""Largest answer: far above any that a client needs, far below what would hurt everybody else."""

Writer = Callable[[bytearray, Any], None]
NameTree = dict[str, "NameTree"]
"""Every field name that any version has, with the names nested below it."""

_MILLISECOND = timedelta(milliseconds=1)
_NULL_UUID = bytes(16)
_pack_int16 = struct.Struct(">h").pack
_pack_int32 = struct.Struct(">i").pack
_pack_int64 = struct.Struct(">q").pack


def name_tree(plans: Sequence[EntityPlan]) -> NameTree:
    """The union of the field names of ``plans`` (the versions of one message)."""
    tree: NameTree = {}
    for plan in plans:
        for field in plan.fields + plan.tagged:
            nested = tree.setdefault(field.name, {})
            if field.entity is not None:
                _merge(nested, name_tree([field.entity]))
    return tree


def _merge(into: NameTree, other: NameTree) -> None:
    for name, nested in other.items():
        _merge(into.setdefault(name, {}), nested)


def entity_encoder(plan: EntityPlan, names: Callable[[], NameTree]) -> Writer:
    """A function that appends one entity, given as a mapping, to a bytearray.

    ``names`` are those of all versions: asked for with the first mapping that has one this version does not have.
    It raises :class:`EncodeError` for a name that is in no version, and whatever a value of the wrong type provokes
    (:func:`agent.wire.codec.encode_response` makes one error of these). An array of entities raises
    :class:`EncodeError` as soon as the answer is longer than :data:`ANSWER_BYTES_MAX`.
    """
    steps = tuple((field.name, _field_writer(field, plan.flexible, names), field.default) for field in plan.fields)
    tags = tuple((field, _field_writer(field, True, names)) for field in plan.tagged)
    known: Set[str] = {field.name for field in plan.fields + plan.tagged}
    name = plan.name
    flexible = plan.flexible

    def write(out: bytearray, body: Mapping[str, Any]) -> None:
        nonlocal known
        if not body.keys() <= known:
            known = names().keys()
            if not body.keys() <= known:
                unknown = ", ".join(sorted(body.keys() - known))
                raise EncodeError(f"{name} has no field {unknown} in any version")
        get = body.get
        for field_name, write_field, default in steps:
            write_field(out, get(field_name, default))
        if flexible:
            if tags:
                _write_tags(out, body, tags)
            else:
                out.append(0)

    return write


def _write_tags(out: bytearray, body: Mapping[str, Any], tags: Sequence[tuple[FieldPlan, Writer]]) -> None:
    """Tagged fields that are given, not null and not empty, in tag order, with their count before them."""
    present = [(field, write) for field, write in tags if body.get(field.name) not in (None, (), [], field.default)]
    write_uvarint(out, len(present))
    for field, write in present:
        content = bytearray()
        write(content, body[field.name])
        assert field.tag is not None
        write_uvarint(out, field.tag)
        write_uvarint(out, len(content))
        out += content


def _field_writer(field: FieldPlan, flexible: bool, names: Callable[[], NameTree]) -> Writer:
    tagged = field.tag is not None
    if field.entity is not None:
        inner = entity_encoder(field.entity, lambda: names()[field.name])
        if field.nullable and not field.is_array and not tagged:
            return _nullable_entity(inner)
        if field.is_array:
            inner = _bounded(inner)
    else:
        assert field.kafka_type is not None
        inner = _primitive(field.kafka_type, flexible)
    if not field.is_array:
        return inner
    return _compact_array(inner) if flexible else _legacy_array(inner)


def _nullable_entity(inner: Writer) -> Writer:
    """KIP-893: a byte says whether the structure follows."""

    def write(out: bytearray, value: Any) -> None:
        if value is None:
            out.append(0xFF)
        else:
            out.append(1)
            inner(out, value)

    return write


def _compact_array(inner: Writer) -> Writer:
    def write(out: bytearray, values: Sequence[Any] | None) -> None:
        if values is None:
            out.append(0)
            return
        write_uvarint(out, len(values) + 1)
        for value in values:
            inner(out, value)

    return write


def _legacy_array(inner: Writer) -> Writer:
    def write(out: bytearray, values: Sequence[Any] | None) -> None:
        if values is None:
            out += _pack_int32(-1)
            return
        out += _pack_int32(len(values))
        for value in values:
            inner(out, value)

    return write


def _bounded(inner: Writer) -> Writer:
    """An array's entity, after which the answer may be too long already: it must not get any longer."""

    def write(out: bytearray, value: Any) -> None:
        inner(out, value)
        if len(out) > ANSWER_BYTES_MAX:
            raise EncodeError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")

    return write


def _write_compact_bytes(out: bytearray, value: str | bytes | None) -> None:
    if value is None:
        out.append(0)
        return
    content = value.encode() if isinstance(value, str) else value
    write_uvarint(out, len(content) + 1)
    out += content


def _write_legacy_string(out: bytearray, value: str | None) -> None:
    if value is None:
        out += b"\xff\xff"
        return
    content = value.encode()
    out += _pack_int16(len(content))
    out += content


def _write_legacy_bytes(out: bytearray, value: bytes | None) -> None:
    if value is None:
        out += b"\xff\xff\xff\xff"
        return
    out += _pack_int32(len(value))
    out += value


def _write_uuid(out: bytearray, value: UUID | None) -> None:
    out += _NULL_UUID if value is None else value.bytes


def _write_bool(out: bytearray, value: bool) -> None:
    out.append(1 if value else 0)


def _write_timestamp(out: bytearray, value: datetime | int | None) -> None:
    if isinstance(value, datetime):
        value = round(value.timestamp() * 1000)
    out += _pack_int64(-1 if value is None else value)


def _packed(format_code: str) -> Writer:
    pack = struct.Struct(format_code).pack

    def write(out: bytearray, value: int | float) -> None:
        out += pack(value)

    return write


def _timespan(format_code: str) -> Writer:
    pack = struct.Struct(format_code).pack

    def write(out: bytearray, value: timedelta | int) -> None:
        out += pack(value // _MILLISECOND if isinstance(value, timedelta) else value)

    return write


_FIXED: dict[str, Writer] = {
    "int8": _packed(">b"),
    "int16": _packed(">h"),
    "int32": _packed(">i"),
    "int64": _packed(">q"),
    "uint8": _packed(">B"),
    "uint16": _packed(">H"),
    "uint32": _packed(">I"),
    "uint64": _packed(">Q"),
    "float64": _packed(">d"),
    "error_code": _packed(">h"),
    "bool": _write_bool,
    "uuid": _write_uuid,
    "timedelta_i32": _timespan(">i"),
    "timedelta_i64": _timespan(">q"),
    "datetime_i64": _write_timestamp,
}


def _primitive(kafka_type: str, flexible: bool) -> Writer:
    if kafka_type in _FIXED:
        return _FIXED[kafka_type]
    if flexible:
        return _write_compact_bytes
    return _write_legacy_string if kafka_type == "string" else _write_legacy_bytes
