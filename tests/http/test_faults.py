"""Faults and disconnects: what a client sees, and that the engine and the other requests are left in order."""
import json
import socket
import struct
import threading
import time

import httpx
import openai
import pytest

from choird import BYTES, DEADLINE, FOREVER, FULL, LOST, NAN, SLOW, STALL, error_of, raw_request, script, sse_events

LONG = {"prompt": script(SLOW, FOREVER), "max_tokens": 900, "ignore_eos": True}


def events_until_cut(server, body):
    """Events of a stream, and whether its chunked framing was broken off."""
    events, broken = [], False
    try:
        with httpx.stream("POST", server.url + "/v1/completions", json={**body, "stream": True}, timeout=60) as reply:
            assert reply.status_code == 200
            for event in sse_events(reply.iter_text()):
                events.append(event)
    except httpx.RemoteProtocolError:
        broken = True
    return events, broken


@pytest.mark.parametrize("fault, status", [(NAN, 500), (LOST, 503), (FULL, 429), (DEADLINE, 503)])
def test_a_failure_is_an_error_of_that_request(fake, fault, status):
    reply = fake.post("/v1/completions", {"prompt": script(fault, text=b"abcdefgh"), "max_tokens": 9})
    assert reply.status_code == status
    error_of(reply)
    if status in (429, 503):
        assert int(reply.headers["retry-after"]) >= 1
    if status == 500:
        assert reply.headers["x-should-retry"] == "false"
    assert fake.get("/health").status_code == 200


@pytest.mark.parametrize("fault, status", [(FULL, 429), (DEADLINE, 503)])
def test_a_failure_before_the_first_byte_of_a_stream_has_its_status(fake, fault, status):
    body = {"prompt": script(fault, text=b"abc"), "stream": True, "max_tokens": 9}
    assert fake.post("/v1/completions", body).status_code == status


@pytest.mark.parametrize("fault, kind", [(NAN, "server_error"), (LOST, "service_unavailable_error")])
def test_a_failure_in_a_stream_is_an_event_and_a_cut(fake, fault, kind):
    events, broken = events_until_cut(fake, {"prompt": script(fault, text=b"abcdefgh"), "max_tokens": 9})
    assert broken and "[DONE]" not in events
    *before, last = [json.loads(e) for e in events]
    assert last["error"]["type"] == kind and set(last["error"]) == {"message", "type", "param", "code"}
    assert "".join(c["choices"][0]["text"] for c in before) in ("a", "ab", "abc")
    client = fake.openai()
    with pytest.raises(openai.APIError):
        for _ in client.completions.create(model="fake-model", prompt=script(fault, text=b"abcdefgh"), max_tokens=9,
                                           stream=True):
            pass


def test_request_timeout(start):
    server = start("--request-timeout", "500ms")
    reply = server.post("/v1/completions", LONG)
    assert reply.status_code == 503 and error_of(reply)["code"] == "deadline_exceeded"
    events, broken = events_until_cut(server, LONG)
    assert broken and json.loads(events[-1])["error"]["code"] == "deadline_exceeded"
    server.wait_metric("choir_requests_running", 0)
    assert server.complete(prompt=script(text=b"abc"), max_tokens=9)["choices"][0]["text"] == "abc"
    server.stop()


def test_one_failing_choice_fails_the_request_and_nothing_else(fake):
    reply = fake.post("/v1/completions", {"prompt": [script(NAN, text=b"abcdefgh"), script(SLOW, FOREVER)],
                                          "max_tokens": 900})
    assert reply.status_code == 500
    fake.wait_metric("choir_requests_running", 0)


def test_queue_bound(start):
    server = start("--queue-requests", "4", "--max-seqs", "1")
    with httpx.stream("POST", server.url + "/v1/completions", json={**LONG, "stream": True}, timeout=60) as first:
        pieces = first.iter_text()
        next(pieces)
        reply = server.post("/v1/completions", {"prompt": ["a", "b", "c", "d"], "n": 2})
        assert reply.status_code == 400 and error_of(reply)["param"] == "n"  # could never fit
        waiting = [server.raw() for _ in range(4)]
        for connection in waiting:
            connection.sendall(raw_request("/v1/completions", LONG))
        server.wait_metric("choir_requests_waiting", 4)
        reply = server.post("/v1/completions", {"prompt": "x"})
        assert reply.status_code == 429 and error_of(reply)["code"] == "slow_down"
        assert reply.headers["retry-after"]
        for connection in waiting:
            connection.close()
    server.stop()


def leave(connection, how):
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("phase", ["body", "first", "middle", "whole"])
def test_a_client_that_leaves_frees_its_work(fake, how, phase):
    before = fake.metrics()
    gone = before.get('choir_request_failed_total{status="499"}', 0)
    connection = fake.raw()
    request = raw_request("/v1/completions", {**LONG, "stream": phase != "whole", "n": 3})
    if phase == "body":
        connection.sendall(request[:-20])
        time.sleep(0.05)
        leave(connection, how)
        connection.close()
        fake.wait_connections(before["choir_http_connections"])
        return
    connection.sendall(request)
    if phase == "middle":
        data = b""
        while data.count(b"data: ") < 8:
            data += connection.recv(65536)
    elif phase == "first":
        fake.wait_metric("choir_requests_running", 3)
    else:
        fake.wait_metric("choir_requests_running", 3)
        time.sleep(0.1)
    leave(connection, how)
    fake.wait_metric("choir_requests_running", 0, seconds=3)
    fake.wait_metric('choir_request_failed_total{status="499"}', gone + 1)
    connection.close()
    assert fake.complete(prompt=script(text=b"ok"), max_tokens=5)["choices"][0]["text"] == "ok"


def test_a_client_that_leaves_the_queue(start):
    server = start("--max-seqs", "1")
    with httpx.stream("POST", server.url + "/v1/completions", json={**LONG, "stream": True}, timeout=60) as first:
        pieces = first.iter_text()
        next(pieces)
        connection = server.raw()
        connection.sendall(raw_request("/v1/completions", LONG))
        server.wait_metric("choir_requests_waiting", 1)
        connection.close()
        server.wait_metric("choir_requests_waiting", 0)
    server.stop()


def test_many_aborts_leave_nothing(fake):
    before = fake.metrics()["choir_http_connections"]
    for i in range(60):
        connection = fake.raw()
        connection.sendall(raw_request("/v1/completions", {**LONG, "stream": i % 2 == 0}))
        if i % 3:
            time.sleep(0.005 * (i % 7))
        leave(connection, ["close", "reset"][i % 2])
    fake.wait_metric("choir_requests_running", 0)
    fake.wait_metric("choir_requests_waiting", 0)
    fake.wait_connections(before)


def test_health_tells_when_the_engine_stands_still(start):
    server = start("--stall-timeout", "1s", env={"FAKE_STALL_MS": "4000"})
    connection = server.raw()
    connection.sendall(raw_request("/v1/completions", {**LONG, "stream": True}))
    data = b""
    while b"data: " not in data:
        data += connection.recv(65536)
    whole = server.raw()
    whole.sendall(raw_request("/v1/completions", {"prompt": script(STALL, text=b"late"), "max_tokens": 9}))
    deadline = time.monotonic() + 10
    while server.get("/health").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.get("/ready").status_code == 503 and server.get("/health").json() == {"status": "stalled"}
    assert server.post("/v1/completions", {"prompt": "x"}).status_code == 503
    assert whole.recv(65536).startswith(b"HTTP/1.1 503")
    while b"error" not in data:
        piece = connection.recv(65536)
        assert piece
        data += piece
    assert b"server_is_overloaded" in data and b"[DONE]" not in data
    while server.get("/health").status_code != 200:
        assert time.monotonic() < deadline + 10
        time.sleep(0.05)
    assert server.complete(prompt=script(text=b"again"), max_tokens=9)["choices"][0]["text"] == "again"
    server.stop()


def test_a_slow_reader_does_not_stop_others(fake):
    connection = fake.raw()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = {"prompt": script(FOREVER), "max_tokens": 900, "ignore_eos": True, "stream": True, "n": 64, "logprobs": 20}
    connection.sendall(raw_request("/v1/completions", body))
    for _ in range(20):
        assert fake.complete(prompt=script(text=b"quick"), max_tokens=9)["choices"][0]["text"] == "quick"
    fake.wait_metric("choir_requests_running", 0, seconds=60)
    connection.close()


def test_idle_uses_no_processor_time(start):
    server = start()
    server.complete(prompt="x", max_tokens=3)
    server.get("/health")

    def ticks():
        with open(f"/proc/{server.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(0.3)
    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 1  # of 10 ms
    server.stop()


def test_no_prompt_text_in_the_log(start):
    server = start("--log-level", "debug")
    server.complete(prompt="secret-prompt-text", max_tokens=3, user="secret-user", stop="secret-stop")
    server.post("/v1/completions", {"prompt": "secret-prompt-text", "temperature": "secret-value"})
    server.post("/v1/completions", b'{"prompt":"secret-prompt-text"')
    server.stop()
    log = "".join(server.log)
    assert "secret" not in log and "completion_tokens=3" in log


def peak_rss(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def test_bodies_cost_what_they_weigh(start):
    """Row 16: bodies at the limit whose tree would be many times their size, as many at once as can be."""
    server = start("--max-body", "4M")
    server.complete(prompt="x", max_tokens=2)
    before = peak_rss(server)
    body = b"[" + b"{}," * ((4 << 20) // 3 - 10) + b"{}]"
    threads = [threading.Thread(target=server.post, args=("/v1/completions", body)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.post("/v1/completions", body).status_code == 400
    assert peak_rss(server) - before < 8 * 20 * len(body)
    server.stop()
