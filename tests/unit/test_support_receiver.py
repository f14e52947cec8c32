"""The tests' receiver hears only what is meant for it."""

import httpx
import pytest

from tests.support.receiver import receiving


async def test_a_job_of_another_test_finds_nobody() -> None:
    async with receiving("db-1") as receiver, httpx.AsyncClient() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(receiver.url, headers={"timemachine-db": "db-2", "timemachine-job-id": "late"})

        assert receiver.received == []


@pytest.mark.parametrize("headers", [{"timemachine-db": "db-1"}, {"timemachine-db": "db-1_A"}, {}], ids=str)
async def test_what_comes_from_the_tests_own_dbs_is_received(headers: dict[str, str]) -> None:
    async with receiving("db-1") as receiver, httpx.AsyncClient() as http:
        assert (await http.post(receiver.url, headers=headers)).status_code == 200

        assert len(receiver.received) == 1
