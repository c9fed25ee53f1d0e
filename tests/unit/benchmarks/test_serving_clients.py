import asyncio

import pytest
from benchmarks.serving_clients import known_requests, load_with_clients

SECONDS = 1.0


def port_of(served):
    return int(served.server.url.rpartition(":")[2])


def loaded(served, requests, clients):
    memory = iter(range(1000))
    return asyncio.run(
        load_with_clients(port_of(served), requests, clients, SECONDS, lambda: next(memory))
    )


@pytest.fixture(scope="module")
def requests(served):
    return asyncio.run(known_requests(port_of(served), ["base", "german", "french"], 400))


def test_clients_get_the_known_answers(served, requests):
    tally, resident, took = loaded(served, requests, 8)
    assert set(tally.statuses) == {200} and tally.statuses[200] >= 8
    assert (tally.wrong, tally.lost, tally.first_problem) == (0, 0, "")
    assert len(resident) > 5 and took >= SECONDS


def test_an_answer_of_another_request_is_counted(served, requests):
    swapped = [(request, requests[0][1]) for request, _ in requests[1:]]
    tally, _, _ = loaded(served, swapped, 2)
    assert tally.wrong > 0 and "expected" in tally.first_problem


def test_other_statuses_and_refused_connections_are_counted(served, requests):
    request, expected = requests[0]
    unknown = [(request.replace(b'"base"', b'"bass"'), expected)]
    tally, _, _ = loaded(served, unknown, 1)
    assert set(tally.statuses) == {404} and tally.first_problem.startswith("404")
    tally, _, _ = asyncio.run(load_with_clients(1, requests, 1, 0.05, lambda: 0))
    assert tally.lost and not tally.statuses


def test_a_full_queue_is_a_refusal(served_with, monkeypatch):
    from lorakit.serving.http.limits import Limits

    served = served_with(limits=Limits(waiting=1))
    requests = asyncio.run(known_requests(port_of(served), ["base"], 400))
    served.slow_down(monkeypatch)
    tally, _, _ = loaded(served, requests, 40)
    assert tally.statuses[429] and set(tally.statuses) <= {200, 429}
    assert not tally.wrong and not tally.lost
