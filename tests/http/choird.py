"""Starting choird (or choird_fake) for a test, and talking to it at every level."""
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import httpx
import openai

FAKE = os.environ.get("CHOIR_TEST_FAKE", "build/tests/http/choird_fake")
CHOIRD = os.environ.get("CHOIR_TEST_CHOIRD", "build/bin/choird")
MODEL = os.environ.get("CHOIR_TEST_MODEL")
TIMEOUT = 60

# The fake engine's control tokens: see fake_engine.c.
BOS, EOS, SCRIPT, SLOW, NAN, LOST, FULL, STALL, DEADLINE, FOREVER = range(1, 11)
BYTES = 13  # the token of byte b is BYTES + b


def script(*faults, text=b""):
    """A prompt that the fake engine answers with this text, byte by byte."""
    return [SCRIPT, *faults, *[BYTES + b for b in text]]


class Choird:
    def __init__(self, binary, model, *args, env=None, wait=True):
        command = [binary, model, "--port", "0", "--log-level", "info", *args]
        self.real = binary != FAKE
        self.log = []
        self.port = None
        self.ready = threading.Event()
        self.listening = threading.Event()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, **(env or {})}, text=True,
                                        errors="replace")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if wait and not self.ready.wait(TIMEOUT):
            self.process.kill()
            raise RuntimeError("not ready:\n" + "".join(self.log))

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"http://[^ \"]*:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                self.listening.set()
            if found and "ready" in line:
                self.ready.set()
        self.ready.set()
        self.listening.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def openai(self, key="none", **kwargs):
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=TIMEOUT, **kwargs)

    def get(self, path, **kwargs):
        return httpx.get(self.url + path, timeout=TIMEOUT, **kwargs)

    def post(self, path, body, **kwargs):
        if isinstance(body, (bytes, str)):
            return httpx.post(self.url + path, content=body, timeout=TIMEOUT,
                              headers={"content-type": "application/json", **kwargs.pop("headers", {})}, **kwargs)
        return httpx.post(self.url + path, json=body, timeout=TIMEOUT, **kwargs)

    def complete(self, **body):
        reply = self.post("/v1/completions", body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def chat(self, **body):
        reply = self.post("/v1/chat/completions", body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def stream(self, path, body):
        """All chunks of a stream that ends as it should."""
        chunks, done = [], False
        with httpx.stream("POST", self.url + path, json={**body, "stream": True}, timeout=TIMEOUT) as reply:
            assert reply.status_code == 200, reply.read()
            assert reply.headers["content-type"].startswith("text/event-stream")
            for event in sse_events(reply.iter_text()):
                assert not done
                if event == "[DONE]":
                    done = True
                else:
                    chunks.append(json.loads(event))
        assert done
        return chunks

    def metrics(self):
        """{name or name{labels without model_name}: value}"""
        out = {}
        for line in self.get("/metrics").text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = re.sub(r'model_name="[^"]*",?', "", name).replace("{}", "").replace(",}", "}")
                out[name] = float(value)
        return out

    def wait_metric(self, name, value, seconds=10):
        self.wait_metrics(lambda metrics: metrics.get(name, 0) == value, f"{name} to be {value}", seconds)

    def wait_metrics(self, condition, what, seconds=10):
        end = time.monotonic() + seconds
        while not condition(metrics := self.metrics()):
            assert time.monotonic() < end, f"waited for {what}: {metrics}"
            time.sleep(0.02)

    def wait_connections(self, at_most):
        """At most, because those of earlier tests may close meanwhile."""
        self.wait_metrics(lambda m: m["choir_http_connections"] <= at_most, f"at most {at_most} connections")

    def raw(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=TIMEOUT):
        status = self.process.wait(timeout)
        self.reader.join(5)
        return status

    def stop(self):
        if self.process.poll() is None:
            self.signal()
            try:
                self.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        assert self.process.wait() == 0, "".join(self.log[-50:])


def sse_events(pieces):
    """Data of each event; comment lines are left out."""
    text = ""
    for piece in pieces:
        text += piece
        while "\n\n" in text:
            event, text = text.split("\n\n", 1)
            lines = [line for line in event.split("\n") if not line.startswith(":")]
            if lines:
                assert len(lines) == 1 and lines[0].startswith("data: "), event
                yield lines[0][len("data: "):]


def error_of(reply):
    """The error object, after checking the shape that every path promises."""
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    assert reply.headers["content-type"].startswith("application/json")
    return body["error"]


def raw_request(path, body, headers=()):
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json",
             f"Content-Length: {len(payload)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload
