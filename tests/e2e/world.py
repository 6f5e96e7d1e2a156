"""One Tidelog under load from two producers and a group, and the judgement of what they were told."""

from __future__ import annotations

from pathlib import Path

from tests.support.cluster import TidelogProcess
from tests.support.history import History
from tests.support.load import GroupLoad, ProducerLoad, ask_committed, read_everything, wait_for_progress
from tests.support.members import wait_until
from tests.support.raw_kafka import RawKafka

TOPIC, GROUP, PARTITIONS = "crash", "crash-group", 3
SETTINGS = {
    "INGEST__LINGER_MS": "20",
    "INGEST__SEGMENT_BYTES_MAX": "65536",
    "GROUPS__INITIAL_REBALANCE_DELAY_MS": "100",
    "LOG__FORM": "json",
}


class World:
    """One Tidelog with two producers and a group, and the history of them all."""

    def __init__(self, server: TidelogProcess, *, plain_ordered: bool = True) -> None:
        self.server = server
        self.history = History()
        self.logged = 0
        with RawKafka(server.bootstrap) as connection:
            connection.create_topic(TOPIC, PARTITIONS)
        self.producers = [
            ProducerLoad(self.history, server.bootstrap, TOPIC, PARTITIONS, idempotent=True),
            ProducerLoad(self.history, server.bootstrap, TOPIC, PARTITIONS, idempotent=False, ordered=plain_ordered),
        ]
        self.group = GroupLoad(self.history, server.bootstrap, TOPIC, PARTITIONS, GROUP)

    def wait_for_acknowledgements(self, count: int = 200, within_s: float = 40) -> None:
        wait_for_progress(
            lambda: self.history.acknowledged_count,
            count,
            within_s,
            lambda: f"acknowledgements\n{self.server.log_tail()}",
        )

    def ask_committed(self) -> None:
        ask_committed(self.history, self.server.bootstrap, TOPIC, PARTITIONS, GROUP)

    def finish_and_judge(self) -> None:
        """Stop the load, read everything once more, also after one more restart, and judge."""
        for producer in self.producers:
            producer.finish()
        wait_until(
            lambda: self.history.acknowledged_but_unread() == 0,
            40,
            lambda: f"the group misses {self.history.acknowledged_but_unread()} records\n{self.server.log_tail()}",
        )
        self.group.finish()
        self.ask_committed()
        assert self.server.terminate() == 0, self.server.log_tail()
        self.server.start()
        self.ask_committed()
        count = read_everything(self.history, self.server.bootstrap, TOPIC, PARTITIONS)
        violations = self.history.violations()
        self.logged = count
        print(
            f"{self.history.sent_count} sent, {self.history.acknowledged_count} acknowledged, {count} in the log, "
            f"{self.group.read_count} read by the group, {len(violations)} violations"
        )
        assert not violations, "\n".join(map(str, violations[:20]))
        for load in (*self.producers, self.group):
            assert load.errors == []
        assert self.history.acknowledged_count == self.history.sent_count, "every record was acknowledged in the end"


def leaked_files(data: Path) -> list[str]:
    """Every file but the metadata's, its journal's and whole segments: there are none while nothing is uploaded."""
    names = [str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()]
    return [name for name in names if not name.startswith(("metadata.sqlite", "objects/segments/", "objects/meta/"))]
