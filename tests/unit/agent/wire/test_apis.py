"""The table of APIs agrees with Kafka's schemas as kio has them, and with what clients need of it."""

from __future__ import annotations

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.static.constants import EntityType

from agent.wire.apis import API_BY_KEY, APIS, FETCH, PRODUCE, Api
from agent.wire.schema import versions_of


def name(api: Api) -> str:
    return api.name


@pytest.mark.parametrize("api", APIS, ids=name)
def test_every_served_version_exists(api: Api) -> None:
    known = versions_of(api.key, EntityType.request)
    assert known[0] <= api.served_min <= api.max_version <= known[-1]
    assert api.min_version <= api.served_min
    assert load_request_schema(api.key, api.max_version).__name__ == f"{api.name}Request"


@pytest.mark.parametrize("api", APIS, ids=name)
def test_flexible_versions_begin_where_the_schema_says(api: Api) -> None:
    for version in range(api.served_min, api.max_version + 1):
        request = load_request_schema(api.key, version)
        flexible = version >= api.flexible_from
        assert request.__flexible__ is flexible
        assert request.__header_schema__.__version__ == (2 if flexible else 1)
        assert load_response_schema(api.key, version).__flexible__ is flexible


def test_keys_are_unique() -> None:
    assert len(API_BY_KEY) == len(APIS)


def test_the_ranges_that_librdkafka_draws_conclusions_from() -> None:
    """Traps 3 and 4: old librdkafka wants Produce from 0 and with 3 and 7, Fetch with 4 and 10."""
    produce, fetch = API_BY_KEY[PRODUCE], API_BY_KEY[FETCH]
    assert (produce.min_version, produce.served_min, produce.max_version) == (0, 3, 12)
    assert not produce.serves(2) and produce.serves(3) and not produce.serves(13)
    assert fetch.min_version == 4 and fetch.max_version >= 10
