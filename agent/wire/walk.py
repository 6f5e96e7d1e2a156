"""What a request's body has to go through before kio's native reader may see it.

kio 0.6.5 reserves memory for as many elements as an array claims to have, and a claim of four billion ends the whole
process; so every count and length is checked first. It also raises ``KeyError`` on tagged fields it does not know,
which KIP-482 says to skip, in header and body; so those are taken out.

The walk follows the schema, looks at lengths and never at contents, and steps over runs of fixed size at once. Every
array element has at least one byte, so hostile counts end at the end of the body.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from agent.wire.errors import DecodeError
from agent.wire.schema import EntityPlan, FieldPlan
from agent.wire.varint import read_uvarint, write_uvarint

ELEMENTS_MAX: Final = 50_000
"""Most array elements and tagged fields in one request other than Produce: what a handler may have to walk through on
the event loop."""

_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_FIXED_BYTES: Final = {
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


class _Walk:
    """What one walk has found: ``edits`` say which (start, end) to replace by what; ``elements`` is the count."""

    __slots__ = ("edits", "elements")

    def __init__(self) -> None:
        self.edits: list[tuple[int, int, bytes]] = []
        self.elements = 0

    def count(self, elements: int, remaining: int) -> None:
        self.elements += elements
        if elements > remaining or self.elements > ELEMENTS_MAX:
            raise DecodeError(f"{elements} elements in {max(0, remaining)} bytes")


Step = Callable[[bytes, int, _Walk], int]
"""The position behind what begins at a position. It may lie behind the end of the body, which the next look at a byte,
or the end of the walk, finds out."""


def checked(body: bytes, plan: EntityPlan) -> bytes:
    """``body`` (a message of ``plan``, perhaps with bytes after it), without the tagged fields its schema lacks.

    :raises DecodeError: the body is cut short, or something in it cannot be as long as it says.
    """
    walk = _Walk()
    try:
        end = _entity_step(plan)(body, 0, walk)
    except (IndexError, struct.error):
        raise DecodeError("a request is cut short") from None
    if end > len(body):
        raise DecodeError("a request is cut short")
    return _edited(body, 0, end, walk.edits) if walk.edits else body


def _edited(body: bytes, start: int, end: int, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    pieces: list[bytes] = []
    for edit_start, edit_end, replacement in edits:
        pieces += (body[start:edit_start], replacement)
        start = edit_end
    pieces.append(body[start:end])
    return b"".join(pieces)


@cache
def _entity_step(plan: EntityPlan) -> Step:
    steps = _steps(plan.fields, plan.flexible)
    tags = {field.tag: _field_step(field, True) for field in plan.tagged}
    flexible = plan.flexible

    def entity(body: bytes, position: int, walk: _Walk) -> int:
        for step in steps:
            position = step(body, position, walk)
        if not flexible:
            return position
        if body[position] == 0:
            return position + 1
        return _tags(body, position, tags, walk)

    return entity


def _steps(fields: Sequence[FieldPlan], flexible: bool) -> list[Step]:
    """A step per field, but one for each run of fields of fixed size."""
    steps: list[Step] = []
    run = 0
    for field in fields:
        size = _fixed_size(field)
        if size is not None:
            run += size
            continue
        if run:
            steps.append(_fixed(run))
            run = 0
        steps.append(_field_step(field, flexible))
    if run:
        steps.append(_fixed(run))
    return steps


def _fixed_size(field: FieldPlan) -> int | None:
    return None if field.is_array or field.kafka_type is None else _FIXED_BYTES.get(field.kafka_type)


def _fixed(size: int) -> Step:
    return lambda _body, position, _walk: position + size


def _tags(body: bytes, start: int, known: dict[int | None, Step], walk: _Walk) -> int:
    """A section of tagged fields: unknown ones are dropped, known ones walked too, as they may hold some inside."""
    count, position = read_uvarint(body, start)
    walk.count(count, len(body) - position)
    outer, walk.edits = walk.edits, []
    kept = bytearray()
    kept_count = 0
    for _ in range(count):
        tag, position = read_uvarint(body, position)
        length, position = read_uvarint(body, position)
        end = position + length
        if tag in known:
            if known[tag](body, position, walk) != end:
                raise DecodeError(f"tagged field {tag} is not as long as it says")
            content = _edited(body, position, end, walk.edits)
            walk.edits.clear()
            write_uvarint(kept, tag)
            write_uvarint(kept, len(content))
            kept += content
            kept_count += 1
        position = end
    replacement = bytearray()
    write_uvarint(replacement, kept_count)
    replacement += kept
    walk.edits = outer
    if replacement != body[start:position]:
        outer.append((start, position, bytes(replacement)))
    return position


def _field_step(field: FieldPlan, flexible: bool) -> Step:
    element_bytes = None
    if field.entity is not None:
        inner = _entity_step(field.entity)
        sizes = [_fixed_size(nested) for nested in field.entity.fields]
        if not field.entity.flexible and None not in sizes:
            element_bytes = sum(size or 0 for size in sizes)
        if field.nullable and not field.is_array and field.tag is None:
            inner = _nullable(inner)
    else:
        assert field.kafka_type is not None
        element_bytes = _FIXED_BYTES.get(field.kafka_type)
        inner = _primitive(field.kafka_type, flexible)
    if not field.is_array:
        return inner
    return _array(inner, element_bytes, flexible)


def _nullable(inner: Step) -> Step:
    def nullable(body: bytes, position: int, walk: _Walk) -> int:
        return position + 1 if body[position] >= 0x80 else inner(body, position + 1, walk)

    return nullable


def _array(inner: Step, element_bytes: int | None, flexible: bool) -> Step:
    def array(body: bytes, position: int, walk: _Walk) -> int:
        if flexible:
            count, position = read_uvarint(body, position)
            count -= 1
        else:
            (count,) = _INT32.unpack_from(body, position)
            position += 4
        if count <= 0:
            return position
        walk.count(count, len(body) - position)
        if element_bytes is not None:
            return position + count * element_bytes
        for _ in range(count):
            position = inner(body, position, walk)
        return position

    return array


def _primitive(kafka_type: str, flexible: bool) -> Step:
    size = _FIXED_BYTES.get(kafka_type)
    if size is not None:
        return _fixed(size)
    if flexible:
        return _compact
    return _legacy_string if kafka_type == "string" else _legacy_bytes


def _compact(body: bytes, position: int, _walk: _Walk) -> int:
    length, position = read_uvarint(body, position)
    return position + length - 1 if length else position


def _legacy_string(body: bytes, position: int, _walk: _Walk) -> int:
    (length,) = _INT16.unpack_from(body, position)
    return position + 2 + (length if length > 0 else 0)


def _legacy_bytes(body: bytes, position: int, _walk: _Walk) -> int:
    (length,) = _INT32.unpack_from(body, position)
    return position + 4 + (length if length > 0 else 0)
