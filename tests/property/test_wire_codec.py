"""The hand-written codecs against kio, for every API and version that is served, on random messages."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kio.index import load_request_schema, load_response_schema
from kio.static.constants import EntityType

from agent.wire.apis import API_BY_KEY, APIS
from agent.wire.codec import decode_request, encode_response
from agent.wire.encode import write_uvarint
from agent.wire.schema import EntityPlan, FieldPlan, entity_plan, versions_of
from tests.support.kio_bodies import bodies, build, written

FEW = settings(
    max_examples=max(4, int(os.environ.get("FUZZ_EXAMPLES", "0")) // 100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SERVED = [(api.key, version) for api in APIS for version in range(api.served_min, api.max_version + 1)]
IDS = [f"{API_BY_KEY[key].name}-{version}" for key, version in SERVED]


@pytest.mark.parametrize(("api_key", "version"), SERVED, ids=IDS)
@FEW
@given(data=st.data())
def test_answers_are_written_as_kio_writes_them(api_key: int, version: int, data: st.DataObject) -> None:
    schema = load_response_schema(api_key, version)
    body = data.draw(bodies(schema))
    expected = written(build(schema, body))
    frame = encode_response(api_key, version, 7, body)
    start = 9 if version >= API_BY_KEY[api_key].flexible_from and api_key != 18 else 8
    assert struct.unpack_from(">ii", frame) == (len(frame) - 4, 7)
    assert frame[start:] == expected


@pytest.mark.parametrize(("api_key", "version"), SERVED, ids=IDS)
@FEW
@given(data=st.data())
def test_requests_survive_unknown_tags_everywhere(api_key: int, version: int, data: st.DataObject) -> None:
    schema = load_request_schema(api_key, version)
    request = build(schema, data.draw(bodies(schema)))
    plain = written(request)
    assert decode_request(api_key, version, plain + data.draw(st.binary(max_size=3))) == request
    if not schema.__flexible__:
        return
    tags = st.dictionaries(st.integers(40, 2**30), st.binary(max_size=5), max_size=2)
    strewn = with_unknown_tags(plain, entity_plan(schema), lambda: data.draw(tags))
    assert decode_request(api_key, version, strewn) == request


def test_the_union_of_names_holds_every_version() -> None:
    """A body written for the newest version is not refused by an older one."""
    for api in APIS:
        newest = load_response_schema(api.key, api.max_version)
        body: dict[str, Any] = {field.name: field.default for field in entity_plan(newest).fields}
        for version in versions_of(api.key, EntityType.response):
            if api.serves(version):
                encode_response(api.key, version, 1, body)


class _Cursor:
    """Reads a message field by field and writes it again, with more tags. Written apart from the code under test."""

    def __init__(self, data: bytes, draw_tags: Any) -> None:
        self.data, self.position, self.draw_tags = data, 0, draw_tags

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        assert len(piece) == count
        self.position += count
        return piece

    def uvarint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def entity(self, plan: EntityPlan) -> bytes:
        out = bytearray()
        for field in plan.fields:
            out += self.field(field)
        return bytes(out + self.tags(plan))

    def tags(self, plan: EntityPlan) -> bytes:
        found: dict[int, bytes] = dict(self.draw_tags())
        by_tag = {field.tag: field for field in plan.tagged}
        for _ in range(self.uvarint()):
            tag, length = self.uvarint(), self.uvarint()
            inner = _Cursor(self.take(length), self.draw_tags)
            found[tag] = inner.field(by_tag[tag], tagged=True)
        out = bytearray()
        write_uvarint(out, len(found))
        for tag in sorted(found):
            write_uvarint(out, tag)
            write_uvarint(out, len(found[tag]))
            out += found[tag]
        return bytes(out)

    def field(self, field: FieldPlan, tagged: bool = False) -> bytes:
        if not field.is_array:
            return self.value(field, tagged)
        out = bytearray()
        count = self.uvarint()
        write_uvarint(out, count)
        for _ in range(count - 1):
            out += self.value(field, True)
        return bytes(out)

    def value(self, field: FieldPlan, never_null: bool) -> bytes:
        if field.entity is not None:
            if field.nullable and not never_null:
                marker = self.take(1)
                return marker if marker == b"\xff" else marker + self.entity(field.entity)
            return self.entity(field.entity)
        sizes = {"int8": 1, "bool": 1, "int16": 2, "error_code": 2, "uint16": 2, "uuid": 16}
        sizes |= dict.fromkeys(("int32", "uint32", "timedelta_i32"), 4)
        sizes |= dict.fromkeys(("int64", "float64", "timedelta_i64", "datetime_i64"), 8)
        if field.kafka_type in sizes:
            return self.take(sizes[field.kafka_type])
        out = bytearray()
        length = self.uvarint()
        write_uvarint(out, length)
        return bytes(out + self.take(max(0, length - 1)))


def with_unknown_tags(body: bytes, plan: EntityPlan, draw_tags: Any) -> bytes:
    cursor = _Cursor(body, draw_tags)
    strewn = cursor.entity(plan)
    assert cursor.position == len(body)
    return strewn
