"""`tokentra simulate` and the endpoints that control a running simulator."""

from __future__ import annotations

import signal
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

from tokentra_dagster.simulator.server import RunningSimulator


def test_the_command_serves_until_interrupted_and_leaves_the_port_free(request_to, start_command, free_port: int):
    url = f"http://127.0.0.1:{free_port}"
    with start_command("--now", "2026-06-30T12:00Z", "--port", str(free_port)) as process:
        assert request_to(f"{url}/_simulator/state").json["now"] == "2026-06-30T12:00:00+00:00"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and err == ""
    assert f"{url}/openai/v1" in out and f"{url}/anthropic" in out
    socket.create_server(("127.0.0.1", free_port)).close()


def test_a_port_in_use_is_said_in_one_sentence(run_command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command("--port", str(port))
    said = f"tokentra: The simulator cannot listen on 127.0.0.1:{port} (Address already in use); choose another port."
    assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", said)


def test_leaving_the_context_frees_the_port_even_while_an_answer_is_slow(request_to):
    with RunningSimulator(now=datetime(2026, 6, 30, tzinfo=UTC)) as simulator:
        port = int(simulator.url.rpartition(":")[2])
        simulator.simulation.fault("timeout", seconds=60)
        slow = socket.create_connection(("127.0.0.1", port))
        slow.sendall(b"GET /openai/v1/organization/users HTTP/1.1\r\nHost: x\r\n\r\n")
        while simulator.simulation.faults.described():
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 8
    slow.close()
    socket.create_server(("127.0.0.1", port)).close()


def test_the_clock_is_set_advanced_and_released_by_http(simulator: RunningSimulator, request_to):
    clock = f"{simulator.url}/_simulator/clock"
    assert request_to(clock, body={"now": "2026-12-01T00:00Z"}).json["now"] == "2026-12-01T00:00:00+00:00"
    assert request_to(clock, body={"advance_seconds": 3600}).json["now"] == "2026-12-01T01:00:00+00:00"
    released = request_to(clock, body={"now": None}).json
    assert released["clock"] == "real"
    assert abs(datetime.fromisoformat(released["now"]) - datetime.now(UTC)) < timedelta(minutes=2)


def test_the_past_is_restated_and_withdrawn_by_http(simulator: RunningSimulator, request_to):
    day = datetime(2026, 11, 10, tzinfo=UTC)
    honest = simulator.simulation.totals("acme", "openai", "images", day, day + timedelta(days=1))
    body = {"org": "acme", "provider": "openai", "factor": 3, "match": {"model": "gpt-image-1"}, "start": "2026-11-10T00:00Z"}
    state = request_to(f"{simulator.url}/_simulator/restate", body=body).json
    assert state["adjustments"][0]["factor"] == 3 and state["adjustments"][0]["start"] == "2026-11-10T00:00:00+00:00"
    tripled = simulator.simulation.totals("acme", "openai", "images", day, day + timedelta(days=1))
    assert tripled["requests"] == 3 * honest["requests"]
    body = {"org": "acme", "provider": "openai", "match": {"model": "gpt-image-1"}}
    assert request_to(f"{simulator.url}/_simulator/withdraw", body=body).status == 200
    assert simulator.simulation.totals("acme", "openai", "images", day, day + timedelta(days=1)) == {}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("clock", {"now": "yesterday"}),
        ("clock", {"now": "2026-12-01T00:00"}),
        ("clock", {}),
        ("faults", {"kind": "gremlins"}),
        ("faults", {"kind": "dropped", "colour": "red"}),
        ("restate", {"org": "initech", "provider": "openai", "factor": 2}),
        ("withdraw", {"org": "acme", "provider": "openai", "match": {"model": "abacus"}}),
        ("restate", {"org": "acme", "provider": "openai", "factor": 2, "start": "2026-11-10T00:30Z"}),
        ("restate", {"org": "acme", "provider": "openai", "factor": 2, "end": "2026-11-10T00:00"}),
        ("faults", {"kind": "rate_limit", "retry_after": "soon"}),
    ],
)
def test_a_wrong_request_to_the_controls_says_what_is_wrong(simulator: RunningSimulator, request_to, path: str, body: dict):
    reply = request_to(f"{simulator.url}/_simulator/{path}", body=body)
    assert reply.status == 400 and reply.json["error"]
