"""KIP-482: tagged fields nobody knows must be skipped. kio 0.6.5 raises ``KeyError`` on them, anywhere in a body.

The rare request that has some is rewritten without them and decoded again. The walk follows the schema, touches
each byte once, and every step consumes at least one byte, so hostile counts end at the end of the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from agent.wire.errors import DecodeError
from agent.wire.schema import ELEMENTS_MAX, EntityPlan, FieldPlan
from agent.wire.varint import read_uvarint, write_uvarint

Edit = tuple[int, int, bytes]
"""Replace the bytes from start to end by these."""
Skipper = Callable[[bytes, int, "list[Edit]"], int]
"""Returns the position behind a value that starts at a position; appends what must change inside it."""

_FIXED_BYTES = {
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "int16": 2,
    "uint16": 2,
    "error_code": 2,
    "int32": 4,
    "uint32": 4,
    "timedelta_i32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "timedelta_i64": 8,
    "datetime_i64": 8,
    "uuid": 16,
}


def without_unknown_tags(body: bytes, plan: EntityPlan) -> bytes:
    """``body`` (a message of ``plan``, perhaps with bytes after it) without the tagged fields its schema lacks.

    :raises DecodeError: the body is cut short, or a length in it is negative.
    """
    edits: list[Edit] = []
    end = _entity_skipper(plan)(body, 0, edits)
    return _edited(body, 0, end, edits)


def _edited(body: bytes, start: int, end: int, edits: list[Edit]) -> bytes:
    pieces: list[bytes] = []
    position = start
    for edit_start, edit_end, replacement in edits:
        pieces += (body[position:edit_start], replacement)
        position = edit_end
    pieces.append(body[position:end])
    return b"".join(pieces)


def _advance(body: bytes, position: int, count: int) -> int:
    position += count
    if count < 0 or position > len(body):
        raise DecodeError("a field is longer than its message")
    return position


def _bounded(count: int) -> None:
    if count > ELEMENTS_MAX:
        raise DecodeError(f"{count} elements in one request")


@cache
def _entity_skipper(plan: EntityPlan) -> Skipper:
    steps = tuple(_field_skipper(field, plan.flexible) for field in plan.fields)
    known = {field.tag: _field_skipper(field, True) for field in plan.tagged}
    flexible = plan.flexible

    def skip(body: bytes, position: int, edits: list[Edit]) -> int:
        for step in steps:
            position = step(body, position, edits)
        return _skip_tags(body, position, known, edits) if flexible else position

    return skip


def _skip_tags(body: bytes, start: int, known: dict[int | None, Skipper], edits: list[Edit]) -> int:
    """A tagged section: unknown fields are dropped, known ones walked too, as they may hold unknown ones inside."""
    count, position = read_uvarint(body, start)
    _bounded(count)
    kept = bytearray()
    kept_count = 0
    for _ in range(count):
        tag, position = read_uvarint(body, position)
        length, position = read_uvarint(body, position)
        end = _advance(body, position, length)
        if tag in known:
            inner: list[Edit] = []
            if known[tag](body, position, inner) != end:
                raise DecodeError(f"tagged field {tag} is not as long as it says")
            content = _edited(body, position, end, inner)
            write_uvarint(kept, tag)
            write_uvarint(kept, len(content))
            kept += content
            kept_count += 1
        position = end
    replacement = bytearray()
    write_uvarint(replacement, kept_count)
    edits.append((start, position, bytes(replacement + kept)))
    return position


def _field_skipper(field: FieldPlan, flexible: bool) -> Skipper:
    if field.entity is not None:
        inner = _entity_skipper(field.entity)
        if field.nullable and not field.is_array and field.tag is None:
            inner = _nullable(inner)
    else:
        assert field.kafka_type is not None
        inner = _primitive(field.kafka_type, flexible)
    return _array(inner, flexible) if field.is_array else inner


def _nullable(inner: Skipper) -> Skipper:
    def skip(body: bytes, position: int, edits: list[Edit]) -> int:
        end = _advance(body, position, 1)
        return end if body[position] >= 0x80 else inner(body, end, edits)

    return skip


def _array(inner: Skipper, flexible: bool) -> Skipper:
    def skip(body: bytes, position: int, edits: list[Edit]) -> int:
        if flexible:
            count, position = read_uvarint(body, position)
            count -= 1
        else:
            end = _advance(body, position, 4)
            count = int.from_bytes(body[position:end], "big", signed=True)
            position = end
        _bounded(count)
        for _ in range(count):
            position = inner(body, position, edits)
        return position

    return skip


def _primitive(kafka_type: str, flexible: bool) -> Skipper:
    fixed = _FIXED_BYTES.get(kafka_type)
    if fixed is not None:
        return lambda body, position, _edits: _advance(body, position, fixed)
    if flexible:
        return _skip_compact
    prefix = 2 if kafka_type == "string" else 4
    return lambda body, position, _edits: _skip_prefixed(body, position, prefix)


def _skip_compact(body: bytes, position: int, _edits: list[Edit]) -> int:
    length, position = read_uvarint(body, position)
    return _advance(body, position, max(0, length - 1))


def _skip_prefixed(body: bytes, position: int, prefix: int) -> int:
    start = _advance(body, position, prefix)
    length = int.from_bytes(body[position:start], "big", signed=True)
    return _advance(body, start, max(0, length))
