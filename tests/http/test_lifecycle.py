"""Loading, readiness, drain and stop."""
import json
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

from choird import FAKE, FOREVER, SLOW, error_of, raw_request, script

LONG = {"prompt": script(SLOW, FOREVER), "max_tokens": 60, "ignore_eos": True, "stream": True}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def poll(url):
    try:
        return httpx.get(url, timeout=10)
    except httpx.TransportError:
        return None


def test_probes_while_loading(start):
    port = free_port()
    server = start("--port", str(port), env={"FAKE_LOAD_MS": "1500"}, wait=False)
    server.port = port
    deadline = time.monotonic() + 10
    while (health := poll(server.url + "/health")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert health.status_code == 503 and health.json() == {"status": "loading"}
    assert server.get("/ready").status_code == 503
    for path, body in (("/v1/completions", {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
        reply = server.post(path, body)
        assert reply.status_code == 503 and reply.headers["retry-after"]
        error_of(reply)
    assert server.metrics()["choir_ready"] == 0 and server.get("/v1/models").json()["data"]
    assert server.ready.wait(20)
    assert server.get("/health").status_code == server.get("/ready").status_code == 200
    server.stop()


def test_load_failure_is_told_with_a_hint(start):
    server = start(env={"FAKE_LOAD_FAIL": "1"}, wait=False)
    assert server.wait() == 1
    assert "The model file ends early." in "".join(server.log) and "Get it again." in "".join(server.log)


def test_taken_port_is_told_before_loading(start):
    first = start()
    server = start("--port", str(first.port), env={"FAKE_LOAD_MS": "60000"}, wait=False)
    assert server.wait(20) == 1 and any(line.startswith("choird: ") for line in server.log)


@pytest.mark.parametrize("args", [[], ["--port", "70000", "m"], ["m", "--nonsense"], ["m", "--api-key", "a b"],
                                  ["m", "--api-key-file", "/nonexistent"], ["m", "--kv-type", "f8"]])
def test_bad_options(args):
    run = subprocess.run([FAKE, *args], capture_output=True, text=True, timeout=20)
    assert run.returncode == 1 and run.stderr.startswith("choird: ") and len(run.stderr.splitlines()) >= 1


def test_help_and_version():
    text = subprocess.run([FAKE, "--help"], capture_output=True, text=True, timeout=20).stdout
    for option in ("--host", "--port", "--threads", "--kv-memory", "--kv-type", "--max-batch-tokens", "--max-seqs",
                   "--max-model-len", "--served-model-name", "--api-key", "--shutdown-timeout"):
        assert option in text
    assert subprocess.run([FAKE, "--version"], capture_output=True, text=True, timeout=20).returncode == 0


def test_options_from_environment_and_file(start, tmp_path):
    config = tmp_path / "choird.conf"
    config.write_text("served-model-name = from-file\nmax-model-len = 77\n")
    server = start("--config", str(config), env={"CHOIR_SERVED_MODEL_NAME": "from-environment"})
    model = server.openai().models.list().data[0]
    assert model.id == "from-environment" and model.max_model_len == 77


def test_sigterm_lets_requests_finish(start):
    server = start()
    chunks, replies = [], []
    whole = threading.Thread(target=lambda: replies.append(
        server.post("/v1/completions", {**LONG, "stream": False})))
    stream = threading.Thread(target=lambda: chunks.extend(server.stream("/v1/completions", LONG)))
    whole.start()
    stream.start()
    server.wait_metric("choir_requests_running", 2)
    server.signal()
    deadline = time.monotonic() + 5
    while server.get("/ready").status_code == 200:
        assert time.monotonic() < deadline
    assert server.get("/ready").json() == {"status": "draining"}
    assert server.get("/health").status_code == 200
    reply = server.post("/v1/completions", {"prompt": "x"})
    assert reply.status_code == 503 and reply.headers["retry-after"]
    assert error_of(reply)["code"] == "server_is_overloaded"
    whole.join()
    stream.join()
    assert replies[0].status_code == 200 and replies[0].json()["usage"]["completion_tokens"] == 60
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert server.wait() == 0


@pytest.mark.parametrize("how", ["second signal", "timeout", "interrupt"])
def test_a_drain_ends(start, how):
    server = start("--shutdown-timeout", "500ms" if how == "timeout" else "300s")
    connection = server.raw()
    connection.sendall(raw_request("/v1/completions", {**LONG, "max_tokens": 900}))
    whole = server.raw()
    whole.sendall(raw_request("/v1/completions", {**LONG, "max_tokens": 900, "stream": False}))
    server.wait_metric("choir_requests_running", 2)
    server.signal()
    if how != "timeout":
        while server.get("/ready").status_code == 200:
            pass
        server.signal(signal.SIGINT if how == "interrupt" else signal.SIGTERM)
    data = b""
    while piece := connection.recv(65536):
        data += piece
    assert b"data: {\"error\"" in data and b"[DONE]" not in data and not data.endswith(b"0\r\n\r\n")
    assert whole.recv(65536).startswith(b"HTTP/1.1 503")
    assert server.wait() == 0


def test_signal_while_loading(start):
    server = start(env={"FAKE_LOAD_MS": "60000"}, wait=False)
    time.sleep(0.3)
    server.signal()
    assert server.wait(20) == 0


def test_idle_server_stops_at_once(start):
    server = start()
    server.complete(prompt="x", max_tokens=2)
    server.signal()
    assert server.wait(20) == 0


def test_json_log(start):
    server = start("--log-format", "json")
    server.complete(prompt="x", max_tokens=2)
    server.stop()
    lines = [json.loads(line) for line in server.log if line.startswith("{")]
    assert any(line.get("completion_tokens") == 2 for line in lines)
