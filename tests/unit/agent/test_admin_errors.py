import pytest
from kio.schema.errors import ErrorCode

from agent.errors import FAILURES, REFUSALS, ErrorClass, error_class, error_code, failure_code
from ingest.ticket import IngestFailed
from metadata.model import Fenced, MetadataError, MetadataUnavailable, Refusal, Refused
from storage.store import ObjectNotFound, StorageError, StorageThrottled


@pytest.mark.parametrize("refusal", list(Refusal))
def test_every_refusal_has_the_code_of_its_name(refusal: Refusal) -> None:
    assert error_code(refusal) is ErrorCode[refusal.value]


def test_the_table_has_no_refusal_twice_and_none_is_missing() -> None:
    assert set(REFUSALS) == set(Refusal)
    codes = [code for code, _ in REFUSALS.values()]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("refusal", list(Refusal))
def test_a_refusal_changed_nothing_so_its_class_is_kafkas_retriability(refusal: Refusal) -> None:
    expected = ErrorClass.RETRIABLE if ErrorCode[refusal.value].retriable else ErrorClass.FATAL
    assert error_class(refusal) is expected
    assert error_class(Refused(refusal, "why")) is expected


@pytest.mark.parametrize(("kind", "code", "found"), FAILURES)
def test_every_failure_is_one_that_clients_retry(kind: type[Exception], code: ErrorCode, found: ErrorClass) -> None:
    assert code.retriable
    assert found is not ErrorClass.FATAL
    assert failure_code(kind("x")) is code
    assert error_class(kind("x")) is found


def test_all_exceptions_of_the_metadata_port_are_known() -> None:
    for kind in MetadataError.__subclasses__():
        error = Refused(Refusal.INVALID_TOPIC, "x") if kind is Refused else kind("x")
        assert failure_code(error) is not ErrorCode.unknown_server_error, kind


def test_outcomes_that_are_unknown_are_called_so() -> None:
    assert error_class(MetadataUnavailable("x")) is ErrorClass.UNKNOWN
    assert error_class(IngestFailed("x")) is ErrorClass.UNKNOWN
    assert failure_code(Fenced("x")) is ErrorCode.not_leader_or_follower
    assert failure_code(StorageThrottled("x")) is ErrorCode.kafka_storage_error
    assert failure_code(ObjectNotFound("x")) is ErrorCode.kafka_storage_error
    assert issubclass(ObjectNotFound, StorageError)
    assert failure_code(ValueError("a bug")) is ErrorCode.unknown_server_error
    assert error_class(ValueError("a bug")) is ErrorClass.UNKNOWN
