import errno
from typing import Any, cast

import pytest

from metadata.store.port import StoreUnavailable
from runtime.settings import ListenSettings, Settings, SettingsError
from storage.store import StorageRefused, StorageUnavailable
from tidelog.up import _start

SETTINGS = Settings(listen=ListenSettings(kafka="127.0.0.1:9999", http="127.0.0.1:8888"), storage="s3://logs")


class Failing:
    """A process whose start fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def start(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SettingsError("listen.advertise = 'x': not host:port"), 2, "listen.advertise"),
        (ValueError("storage 's3://_': '_' is not a bucket name"), 2, "storage"),
        (StorageRefused("access denied"), 2, "storage = 's3://logs': access denied"),
        (StorageUnavailable("timed out"), 1, "storage = 's3://logs': timed out"),
        (StoreUnavailable("database is locked"), 1, "metadata = 'sqlite:///"),
        (
            OSError(errno.EADDRINUSE, "Address already in use"),
            2,
            "listen.kafka = '127.0.0.1:9999': Address already in use",
        ),
        (OSError(errno.EACCES, "Permission denied"), 2, "listen.kafka = '127.0.0.1:9999': Permission denied"),
        (
            OSError(errno.EADDRINUSE, "error while attempting to bind on address ('127.0.0.1', 8888): in use"),
            2,
            "listen.http = '127.0.0.1:8888'",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "cannot start: "),
    ],
)
async def test_what_stops_the_start_names_the_setting(error: Exception, code: int, words: str) -> None:
    problem = await _start(cast(Any, Failing(error)), SETTINGS)
    assert problem is not None
    assert problem[0] == code
    assert words in problem[1]


async def test_a_good_start_has_no_problem_and_a_bug_is_not_hidden() -> None:
    assert await _start(cast(Any, Failing(None)), SETTINGS) is None
    with pytest.raises(ZeroDivisionError):
        await _start(cast(Any, Failing(ZeroDivisionError())), SETTINGS)
