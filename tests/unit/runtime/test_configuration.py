import os
from pathlib import Path

import pytest

from metadata.store.factory import open_metadata_store
from runtime.configuration import environment_name, load_settings, setting_names
from runtime.settings import Settings, SettingsError, parse_address, setting_text, without_password
from storage.urls import LocalUrl, parse_storage_url


@pytest.fixture(autouse=True)
def _only_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TIDELOG_"):
            monkeypatch.delenv(name)


def toml(folder: Path, text: str) -> Path:
    path = folder / "tidelog.toml"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold() -> None:
    settings = load_settings({"listen.kafka": None})
    assert settings == Settings()
    assert settings.listen.kafka == "127.0.0.1:9092"
    assert settings.ingest.linger_ms == 250


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml(tmp_path, '[ingest]\nlinger_ms = 1\nuploads_max = 2\nhedge_after_ms = 3\n[listen]\nhttp = "h:1"\n')
    monkeypatch.setenv("TIDELOG_INGEST__LINGER_MS", "10")
    monkeypatch.setenv("TIDELOG_INGEST__UPLOADS_MAX", "20")
    settings = load_settings({"ingest.linger_ms": 100}, path)
    assert (settings.ingest.linger_ms, settings.ingest.uploads_max, settings.ingest.hedge_after_ms) == (100, 20, 3)
    assert settings.listen.http == "h:1"
    assert settings.listen.kafka == "127.0.0.1:9092", "a section that is named in part keeps its other defaults"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDELOG_CONFIG", str(toml(tmp_path, 'zone = "b"\n')))
    assert load_settings({}).zone == "b"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "TIDELOG_INGEST__LINGER_MS",
            "soon",
            ["ingest.linger_ms", "'soon'", "TIDELOG_INGEST__LINGER_MS", "whole number"],
        ),
        ("TIDELOG_INGEST__LINGER_MS", "-1", ["ingest.linger_ms", "must be at least 0"]),
        ("TIDELOG_INGEST__LINGER", "5", ["TIDELOG_INGEST__LINGER", "no such", "TIDELOG_INGEST__LINGER_MS"]),
        ("TIDELOG_LINGER_MS", "5", ["TIDELOG_LINGER_MS", "no such setting"]),
        ("TIDELOG_INGEST_LINGER_MS", "5", ["no such setting; did you mean TIDELOG_INGEST__LINGER_MS"]),
        ("TIDELOG_ZONE", "", ["zone = ''", "must not be empty"]),
        ("TIDELOG_S3__ATTEMPTS_MAX", "", ["s3.attempts_max = ''", "must be a whole number"]),
        ("TIDELOG_TOPICS__AUTO_CREATE", "maybe", ["topics.auto_create = 'maybe'", "must be true or false"]),
        ("TIDELOG_STORAGE", "ftp://x", ["storage", "'ftp://x'", "s3://bucket"]),
        ("TIDELOG_METADATA", "mysql://x", ["metadata", "'mysql://x'", "sqlite:///file"]),
        ("TIDELOG_METADATA", "sqlite:///", ["metadata", "'sqlite:///'", "sqlite:///file"]),
        ("TIDELOG_LISTEN__KAFKA", "9092", ["listen.kafka", "'9092'", "host:port"]),
        ("TIDELOG_LOG__LEVEL", "loud", ["log.level", "'loud'", "'debug'"]),
        ("TIDELOG_GROUPS__SESSION_TIMEOUT_MS_MIN", "1800001", ["groups", "session_timeout_ms_min is above"]),
        ("TIDELOG_ROUTING__PRINCIPALS", "alice,bob", ["routing.principals", "needs tls.client_ca"]),
        ("TIDELOG_TLS__CERTIFICATE", "server.pem", ["tls (", "certificate and key go together"]),
    ],
)
def test_a_wrong_variable_names_itself(
    name: str, value: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings({})
    for word in words:
        assert word in str(refused.value)


def test_all_problems_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDELOG_INGEST__LINGER_MS", "soon")
    path = toml(tmp_path, "[ingest]\nuplaods_max = 3\n[nonsense]\na = 1\n")
    with pytest.raises(SettingsError) as refused:
        load_settings({"listen.kafka": "nowhere"}, path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    assert any(
        line.startswith(f"ingest.uplaods_max = 3 (from {path})") and "ingest.uploads_max" in line for line in lines
    )
    assert any(line.startswith("nonsense") for line in lines)
    assert any(line.startswith("listen.kafka = 'nowhere' (from --kafka)") for line in lines)
    assert any("TIDELOG_INGEST__LINGER_MS" in line for line in lines)


def test_what_was_named_with_set_says_so_and_gets_a_hint() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(
            {}, named={"ingest.linger": "1", "uploads_max": "1", "nonsense": "1", "ingest.segment_bytes_max": "x"}
        )
    assert str(refused.value).splitlines() == [
        "ingest.linger (from --set): there is no such setting; did you mean ingest.linger_ms?",
        "uploads_max (from --set): there is no such setting; did you mean ingest.uploads_max?",
        "nonsense (from --set): there is no such setting",
        "ingest.segment_bytes_max = 'x' (from --set): must be a whole number",
    ]
    assert load_settings({"listen.kafka": "a:1"}, named={"listen.kafka": "b:2"}).listen.kafka == "b:2"


def test_a_value_where_a_table_belongs_is_told_so(tmp_path: Path) -> None:
    path = toml(tmp_path, "ingest = 3\n")
    with pytest.raises(SettingsError) as refused:
        load_settings({}, path)
    assert str(refused.value) == f"ingest = 3 (from {path}): must be a table: [ingest]"


def test_what_other_rooms_demand_is_checked_with_the_rest_and_secrets_are_not_repeated() -> None:
    checks = {"storage": parse_storage_url}
    with pytest.raises(SettingsError) as refused:
        load_settings({"storage": "s3://_", "listen.http": "x"}, named={"zone": ""}, checks=checks)
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("storage = 's3://_' (from --storage): '_' is not a bucket name")
    with pytest.raises(SettingsError) as refused:
        load_settings({"storage": "s3://me:secret@logs"}, checks=checks)
    assert "(from --storage)" in str(refused.value)
    assert "secret" not in str(refused.value)
    with pytest.raises(SettingsError) as refused:
        load_settings({"storage": "ftp://x"}, checks=checks)
    assert len(str(refused.value).splitlines()) == 1, "what is wrong already is not checked again"
    assert load_settings({"storage": "s3://logs"}, checks=checks).storage == "s3://logs"


@pytest.mark.parametrize(
    "name",
    [
        "TIDELOG_REQUIRE_ALL",
        "TIDELOG_BOOTSTRAP",
        "TIDELOG_TEST_REFERENCE",
        "TIDELOG_SERVICE_HOST",
        "TIDELOG_SERVICE_PORT_KAFKA",
        "TIDELOG_PORT",
        "TIDELOG_PORT_9092_TCP_ADDR",
        "TIDELOG_METADATA_PORT_8080_TCP",
    ],
)
def test_variables_of_the_harness_and_of_kubernetes_are_no_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:9092")
    assert load_settings({}) == Settings()


def test_a_config_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml.*No such file"):
        load_settings({}, tmp_path / "absent.toml")
    with pytest.raises(SettingsError, match=r"tidelog\.toml.*not TOML.*line 1"):
        load_settings({}, toml(tmp_path, "linger = = 1"))


def test_every_setting_has_an_environment_name_that_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = setting_names()
    assert len(names) == len(set(names)) > 40
    for name in names:
        value: object = Settings()
        for part in name.split("."):
            value = getattr(value, part)
        if value is not None:
            monkeypatch.setenv(environment_name(name), setting_text(value))
    assert load_settings({}) == Settings()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9092", ("127.0.0.1", 9092)),
        ("[::1]:0", ("::1", 0)),
        ("broker.example:65535", ("broker.example", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address("listen.kafka", text) == address


@pytest.mark.parametrize("text", ["", "9092", ":9092", "host", "host:", "host:x", "host:65536", "::1:9092", "host:-1"])
def test_what_is_no_address_names_the_setting(text: str) -> None:
    with pytest.raises(SettingsError, match=r"listen\.kafka"):
        parse_address("listen.kafka", text)


async def test_a_data_folder_with_odd_characters_makes_urls_that_lead_back_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c?d%20é"
    settings = load_settings({"data": folder})
    where = parse_storage_url(settings.storage_url())
    assert isinstance(where, LocalUrl)
    assert where.root == folder / "objects"
    store = open_metadata_store(settings.metadata_url())
    await store.open("cluster")
    await store.close()
    assert (folder / "metadata.sqlite").is_file()


def test_storage_and_metadata_are_under_data_unless_said_otherwise(tmp_path: Path) -> None:
    settings = load_settings({"data": tmp_path})
    assert settings.storage_url() == f"file://{tmp_path}/objects"
    assert settings.metadata_url() == f"sqlite:///{tmp_path}/metadata.sqlite"
    elsewhere = load_settings({"data": tmp_path, "storage": "memory://", "metadata": "sqlite:///x/y"})
    assert (elsewhere.storage_url(), elsewhere.metadata_url()) == ("memory://", "sqlite:///x/y")


def test_a_flag_that_is_called_differently_is_named_as_it_was_given() -> None:
    with pytest.raises(SettingsError, match=r"listen\.metadata = 'nowhere' \(from --listen\): not host:port"):
        load_settings({"listen.metadata": "nowhere"}, flag_names={"listen.metadata": "--listen"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a/b", "sqlite:///a/b"),
        ("postgresql://user@host/database", "postgresql://user@host/database"),
        ("postgresql://user:s3:cr@t@host:5432/database?x=1", "postgresql://user:***@host:5432/database?x=1"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
