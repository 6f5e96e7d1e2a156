"""The bytes of the journal: what was written once can be read for ever, and nothing else is."""

from __future__ import annotations

import msgspec
import pytest

from metadata.group_model import OffsetRecord
from metadata.journal.buffer import JournalBuffer
from metadata.journal.chain import read_chain, to_prune
from metadata.journal.format import (
    EntryName,
    JournalCorrupt,
    SnapshotComplete,
    SnapshotName,
    SnapshotPart,
    decode_complete,
    decode_entry,
    decode_part,
    encode_complete,
    encode_entry,
    encode_part,
    encode_write,
    parse_entry_key,
    parse_snapshot_key,
)
from metadata.store.port import (
    AgentSaved,
    AnswersSettled,
    Change,
    CounterSaved,
    OffsetsSaved,
    ProducerSaved,
    SegmentAdded,
    TopicDropped,
    TopicSaved,
)
from metadata.store.tables import Column, Table
from tests.support.metadata import added, extent, topic, topic_id

NAME = EntryName(3, 7)
WRITES: list[list[Change]] = [
    [TopicSaved(topic(1, 2, "logs"), 5), CounterSaved("agent_epoch", 1)],
    [
        *added(4, extent(0, 9, key="segments/4")),
        ProducerSaved(topic_id(1), 1, 9, b"\x00\xff", 6_000),
        AnswersSettled(1, 3),
        OffsetsSaved("group", (OffsetRecord(topic_id(1), 0, 4, -1, "", 6_000),)),
        AgentSaved("agent-1", 1, 1, "zone-a", "default", roles=("proxy",)),
        TopicDropped(topic_id(2)),
    ],
]
ENTRY = bytes.fromhex(
    "28b52ffd644002350f00b65b5d3b5069d31c30539b994ffd3ab3e0e884fdff6f7fe9a42e3908d63456013e8e25e1b295dbfadbb64e12ba"
    "047e04f6b04f929e6226020a0221a068df764d004d005000f5ef42aed44207baecd4e0dbbdbe8c032bc568f2b31a3d2fbf363976ecea68"
    "052bb1a43eb9493d0c0007c67689f022e5aee023eef122e50499534953102c2c2e385c1de87280eadb5ef9ace722b2629cfa06763acb04"
    "e2b253eb384dfc301de882b4342fdb5ba240332080cd48bea0590dc3dffc65707b79e02174f4fc24fd31b9787ea58b5490c7f4ade725a7"
    "a9ef7999c0a6a132cba8c1d802126844c5b583ae3f5d32eaa1bbdc3058580585ad0ac6462f57c9f66d141dd840b2fb0feba0402320bd99"
    "0cd6e0bc5ddbea41f360e023ee8100a3824d20ae0e7441f6c0d804ca2ddbf33d61e001938f3c0d4ab91678f31186d5b78dd22b8664822b"
    "ad28f6926b55991c6d7dc4aa58fb0aa16bb41bb2615d995295b60ca15a5e171d3a894fa6b07c3205f5c0d80e795a02242c182fa6e72547"
    "262a202002a24cd9f9a984356037e09b819d028472cdea8c1679b3def4cd30c007053437569cb0c27162684cf7da671abbb2d1111f83b8"
    "1828be050e62605491fa92694c16c24a41ef7738a140ecc680688f210ce61a8039e097b583e1abf2f47578c3817e8d8d5d60874b580953"
    "0f9ee3fdc1"
)
"""Written by the first release of the format. Never changed: these bytes are in somebody's bucket."""
PART = bytes.fromhex(
    "28b52ffd24518902009701a7636c757374657203010093a8636f756e746572739292a46e616d65a47465787492a576616c7565a7696e74"
    "6567657291a46e616d659292ab6167656e745f65706f63680192a76e6f64655f696402544dbf69"
)
TABLE = Table("counters", (Column("name", "text"), Column("value", "integer")), ("name",))


def without_answers(changes: list[Change]) -> tuple[Change, ...]:
    return tuple(
        msgspec.structs.replace(change, answer=b"") if isinstance(change, SegmentAdded) else change
        for change in changes
    )


def test_a_frozen_entry_is_read() -> None:
    entry = decode_entry(ENTRY, NAME)
    assert (entry.cluster_id, entry.first_ms, entry.last_ms) == ("cluster", 1_000, 2_000)
    assert entry.writes == tuple(without_answers(write) for write in WRITES)


def test_a_frozen_snapshot_part_is_read() -> None:
    part = decode_part(PART, SnapshotName(3, 1), 0)
    assert (part.table, part.rows) == (TABLE, [["agent_epoch", 1], ["node_id", 2]])


def test_entries_and_snapshots_travel() -> None:
    data = encode_entry("cluster", NAME, 1, 2, [encode_write(write) for write in WRITES])
    assert decode_entry(data, NAME).writes == tuple(without_answers(write) for write in WRITES)
    part = SnapshotPart(1, "cluster", 3, 1, 4, TABLE, [["ünï", 2**62], ["b", -1]])
    assert decode_part(encode_part(part), SnapshotName(3, 1), 4) == part
    complete = SnapshotComplete(1, "cluster", 3, 1, 7, 1_000, 5, 99, {"counters": 2})
    assert decode_complete(encode_complete(complete), SnapshotName(3, 1)) == complete


def test_no_flipped_byte_and_no_truncation_goes_unseen() -> None:
    for position in range(len(ENTRY)):
        damaged = bytearray(ENTRY)
        damaged[position] ^= 0x10
        for wrong in (bytes(damaged), ENTRY[:position]):
            try:
                assert decode_entry(wrong, NAME) == decode_entry(ENTRY, NAME), position
            except JournalCorrupt:
                continue
    with pytest.raises(JournalCorrupt, match="says that it is 3-7"):
        decode_entry(ENTRY, EntryName(3, 8))


def test_a_newer_format_is_not_guessed_at() -> None:
    newer = msgspec.structs.replace(SnapshotPart(1, "cluster", 3, 1, 0, TABLE, []), version=2)
    with pytest.raises(JournalCorrupt, match="newer Tidelog"):
        decode_part(encode_part(newer), SnapshotName(3, 1), 0)


def test_keys_parse_back_and_nothing_else_does() -> None:
    assert parse_entry_key(NAME.key) == NAME
    assert parse_snapshot_key(SnapshotName(3, 1).part_key(9)) == (SnapshotName(3, 1), False)
    assert parse_snapshot_key(SnapshotName(3, 1).complete_key) == (SnapshotName(3, 1), True)
    for key in ("meta/journal/3-7", NAME.key + "x", "segments/0/x", "meta/snapshot/0000000003-000001/part"):
        assert parse_entry_key(key) is None and parse_snapshot_key(key) is None


def test_a_full_buffer_leaves_a_number_out() -> None:
    buffer = JournalBuffer(entry_bytes=100, bytes_max=400)
    change = [CounterSaved("x" * 40, 1)]
    held = 0
    while buffer.add(change, 5):
        held += 1
        assert buffer.byte_length <= 400
    assert held >= 2 and buffer.gaps == 1 and buffer.byte_length == 0 and buffer.take() is None
    assert buffer.add(change, 6)
    taken = buffer.take()
    assert taken is not None and taken.number > held // 2 + 1
    assert buffer.cut() == taken.number


def test_only_what_two_newer_snapshots_make_useless_goes() -> None:
    first, second, later = SnapshotName(1, 1), SnapshotName(2, 1), SnapshotName(3, 1)
    entries = [EntryName(1, 4), EntryName(2, 3), EntryName(2, 4), EntryName(3, 1)]
    keys = [name.key for name in entries]
    for name in (first, second, later):
        keys += [name.part_key(0), name.complete_key]
    chain = read_chain(keys)
    assert to_prune(chain, 3, {second: 3}) == [first.complete_key, first.part_key(0), entries[0].key, entries[1].key]
    assert to_prune(chain, 1, {}) == []
    assert to_prune(chain, 2, {first: 2, second: 3, later: 1}) == [], "a deposed leader leaves its successor alone"
    assert chain.following(2, 2) == [EntryName(2, 3), EntryName(2, 4)]
    assert chain.following(2, 4) == []
