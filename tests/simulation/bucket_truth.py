"""What must be true of the bucket and the database together, however the world went."""

from __future__ import annotations

from typing import Any


def check_bucket(world: Any) -> None:
    """Extents of each partition are dense, and the bytes they name are there."""
    objects = world.bucket.objects._objects
    for (_, partition), kept in world.database.store._partitions.items():
        following = 0
        for extent in kept.extents:
            if extent.base_offset != following:
                world.referee.violation("hole", f"extents of partition {partition} jump from {following} to {extent}")
            following = extent.last_offset + 1
            found = objects.get(extent.segment_key)
            if found is None:
                world.referee.violation("missing object", f"{extent.segment_key} of partition {partition}")
            elif len(found.data) < extent.byte_position + extent.byte_length:
                world.referee.violation("short object", f"{extent.segment_key} of partition {partition}")
