from pathlib import Path

import pytest

from agent.wire.apis import APIS
from metadata.topic_configs import TOPIC_CONFIGS
from runtime.configuration import environment_name, setting_names
from tidelog import docs


def test_the_configuration_page_has_every_setting() -> None:
    page = docs.configuration()
    for name in setting_names():
        assert f"| `{name}` | `{environment_name(name)}` |" in page


def test_the_api_page_has_every_api_and_says_where_served_differs_from_advertised() -> None:
    page = docs.apis()
    for api in APIS:
        assert f"| {api.key} | {api.name} | {api.min_version}-{api.max_version} |" in page
    assert "| 0 | Produce | 0-12 | 3-12 |" in page


def test_the_topic_config_page_has_every_config_with_its_reason() -> None:
    page = docs.topic_configs()
    for row in TOPIC_CONFIGS.values():
        assert f"`{row.name}`" in page
        assert row.support.value in page


def test_the_metrics_page_shows_names_as_they_are_scraped_with_labels_and_meaning() -> None:
    page = docs.metrics()
    rows = [line for line in page.splitlines() if line.startswith("| `tidelog_")]
    assert len(rows) > 40
    assert "| `tidelog_storage_operations_total` | counter | `operation`, `outcome` |" in page
    assert "| `tidelog_agent_closed_connections_total` | counter | `reason` |" in page
    for row in rows:
        assert row.rstrip(" |").split("|")[-1].strip(), row


def test_check_names_the_page_that_differs_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "FOLDER", tmp_path)
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    (tmp_path / "apis.md").write_text("something else")
    assert docs.main(["--check"]) == 1
    assert "docs/apis.md differs" in capsys.readouterr().err
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    assert docs.main(["--no-such-flag"]) == 2
