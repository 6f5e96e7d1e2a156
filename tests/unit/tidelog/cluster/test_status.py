"""``tidelog cluster status`` against metadata processes that answer what a test says."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tidelog import cli
from tidelog.cluster import status
from tidelog.cluster.page import ask_all, leader_of
from tidelog.cluster.state_file import ClusterState, ProcessState, write_state
from tidelog.cluster.status import Looker, as_dict, byte_count, draw
from tidelog.connecting import CommandFailed

TOPIC_ID = "00" * 15 + "07"


def _agent(node_id: int, zone: str, group: str, **more: Any) -> dict[str, Any]:
    return {
        "agent": f"{zone}/{group}/{node_id}",
        "node_id": node_id,
        "epoch": 100 + node_id,
        "zone": zone,
        "group": group,
        "kafka": f"127.0.0.1:{9000 + node_id}",
        "http": f"127.0.0.1:{8000 + node_id}",
        "version": "0.1.0",
        "roles": ["proxy", "jobs"],
        "condition": "ready",
        "reason": "",
        "silent_seconds": 0.4,
        "load": {"bytes_in": 1_500.0, "cross_zone_bytes": 0.0, "cross_zone_bytes_total": 0},
        **more,
    }


PAGE: dict[str, Any] = {
    "leader": True,
    "generation": 7,
    "agents": [
        _agent(1, "a", "vip"),
        _agent(2, "a", "vip"),
        _agent(3, "b", "vip", condition="sick", reason="its uploads fail"),
        _agent(4, "a", "tls", load={"cross_zone_bytes": 10.0, "cross_zone_bytes_total": 4_096}),
    ],
    "topics_count": 1,
    "partitions_count": 30,
    "topics": [{"topic": "logs", "id": TOPIC_ID, "partitions": 30, "records": 5}],
    "groups_count": 30,
    "groups": [
        {"group": f"g{number:02}", "state": "Stable", "lag_records": number, "lag_seconds": 0.1 * number}
        for number in range(30)
    ],
    "something": "that a later version adds",
}
STANDBY = {"leader": False, "generation": -1}


@contextmanager
def _server(content: object, status_code: int = 200, secret: str | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            refused = secret is not None and self.headers.get("Authorization") != f"Bearer {secret}"
            self.send_response(401 if refused else status_code)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode() if self.path == "/cluster" else b"no")

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(5)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:
        yield lambda *arguments, **more: stack.enter_context(_server(*arguments, **more))


@pytest.fixture
def nobody() -> str:
    with _server({}) as url:
        return url


def _drawn(looker: Looker, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(draw(looker.look()))
    return out.getvalue()


def test_everything_is_shown(serve: Callable[..., str], nobody: str) -> None:
    text = _drawn(Looker([serve(STANDBY), serve(PAGE), nobody], None))
    lines = text.splitlines()
    assert [line.split()[1] for line in lines[1:3]] == ["standby", "leader"]
    assert "no answer: connection refused" in lines[3]
    agents = [line.split() for line in lines if line.startswith(("a ", "b "))]
    assert [(row[0], row[1], row[2]) for row in agents] == [
        ("a", "tls", "4"),
        ("a", "vip", "1"),
        ("a", "vip", "2"),
        ("b", "vip", "3"),
    ]
    assert "b/vip 127.0.0.1:9003 is sick: its uploads fail" in text
    assert "crossed zones: 10 B/s, 4.0 KiB since these agents started" in text
    assert "1 topic, 30 partitions, 30 consumer groups" in text
    assert "g29" in text, "the one that lags most"
    assert "and 10 more" in text
    assert "g09" not in text


def test_partitions_are_led_by_ready_agents_of_each_zone_and_group(serve: Callable[..., str]) -> None:
    found = as_dict(Looker([serve(PAGE)], None).look())
    led = {agent["node_id"]: agent["partitions_led"] for agent in found["agents"]}
    assert led[1] + led[2] == 30
    assert min(led[1], led[2]) > 5, "spread over both"
    assert led[3] == 0, "a sick one leads nothing"
    assert led[4] == 30, "alone in its group"


def test_json_has_everything(serve: Callable[..., str]) -> None:
    first, second = serve(STANDBY), serve(PAGE)
    found = json.loads(json.dumps(as_dict(Looker([first, second], None).look())))
    assert found["metadata"] == [
        {"url": first, "role": "standby", "generation": -1, "problem": None},
        {"url": second, "role": "leader", "generation": 7, "problem": None},
    ]
    assert found["generation"] == 7
    assert found["cross_zone"] == {"bytes": 4_096, "bytes_per_second": 10.0}
    assert found["agents"][0]["load"]["bytes_in"] == 1_500
    assert found["topics"] == [{"topic": "logs", "id": TOPIC_ID, "partitions": 30, "records": 5}]
    assert len(found["groups"]) == 30


def test_of_two_that_lead_the_newer_one_counts(serve: Callable[..., str]) -> None:
    answers = ask_all([serve(PAGE), serve({**PAGE, "generation": 9}), serve({**PAGE, "generation": 8})], None)
    page = leader_of(answers)
    assert page is not None
    assert page.generation == 9


def test_nobody_leads_and_everybodys_reason_is_told(serve: Callable[..., str], nobody: str) -> None:
    urls = [
        serve(STANDBY),
        nobody,
        serve({"leader": True, "generation": 3, "problem": "the store is away"}, 503),
        serve(PAGE, secret="s3cret"),
        serve("what is this"),
    ]
    with pytest.raises(CommandFailed) as failed:
        Looker(urls, "wrong").look()
    for words in (
        f"{urls[0]}: stands by",
        f"{urls[1]}: no answer: connection refused",
        f"{urls[2]}: the store is away",
        f"{urls[3]}: refused: give the cluster's `secret` in TIDELOG_SECRET",
        f"{urls[4]}: no metadata process of a version that is known here",
    ):
        assert words in str(failed.value)
    assert Looker([urls[3]], "s3cret").look().page.generation == 7


def test_the_command_finds_the_processes_of_a_local_cluster(
    serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDELOG_SECRET", raising=False)
    address = serve(PAGE).removeprefix("http://")
    process = ProcessState("metadata-1", 1, address, "log", 0)
    write_state(tmp_path, ClusterState("0", 1, 0, ["a"], ["vip"], "s", "m", None, [process], []))
    for arguments in (["--data", str(tmp_path)], ["--metadata", f"http://{address}/"], ["--metadata", address]):
        done = CliRunner().invoke(cli.app, ["cluster", "status", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["generation"] == 7


def test_without_a_cluster_the_command_fails_and_says_what_to_give(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["cluster", "status", "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert "no cluster runs with --data" in done.stderr
    (tmp_path / "cluster.json").write_text("{")
    done = CliRunner().invoke(cli.app, ["cluster", "status", "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert "cluster.json" in done.stderr


def test_watching_goes_on_while_nobody_leads(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter([CommandFailed("nobody leads"), Looker([serve(PAGE)], None).look(), KeyboardInterrupt()])

    def look(_: Looker) -> object:
        found = next(looks)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(Looker, "look", look)
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    status.show(["http://127.0.0.1:1"], None, as_json=True, watch=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"problem": "nobody leads"}
    assert second["generation"] == 7


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (0.4, "0 B"), (912, "912 B"), (1_536, "1.5 KiB"), (20.3 * 2**20, "20.3 MiB"), (5 * 2**40, "5.0 TiB")],
)
def test_byte_counts_are_short(count: float, text: str) -> None:
    assert byte_count(count) == text
