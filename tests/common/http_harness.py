"""What the tests of the HTTP server share: a server process, and a client that sees every byte. Standard library only."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

BINARY = os.environ.get("HTTP_TEST_SERVER", "")


class Server:
    """The test server with the given options: Server("--body", "1K")."""

    def __init__(self, *options):
        self.process = subprocess.Popen([BINARY, *options], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("port "):
            raise RuntimeError("the server did not start: " + line)
        self.port = int(line.split()[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        self.process.stdout.close()
        if code != 0:  # a sanitizer report, a crash or a hang is a failure of whatever test ran
            raise AssertionError(f"the server ended with {code}")

    def connect(self, timeout=10.0, receive_buffer=None):
        s = socket.socket()
        if receive_buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        s.settimeout(timeout)
        s.connect(("127.0.0.1", self.port))
        return s

    def exchange(self, raw, timeout=10.0):
        """Sends bytes, reads until the server closes; (bytes, how it ended: closed, reset, open)."""
        s = self.connect(timeout)
        try:
            try:
                s.sendall(raw)
            except OSError:
                pass  # it may refuse before it has read everything
            return read_all(s)
        finally:
            s.close()

    def get(self, path, *headers, method="GET", body=b""):
        """One request on a connection of its own; a Reply."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        if body or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body)}")
        raw = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        data, _ = self.exchange(raw)
        replies = parse_replies(data, [method])
        assert len(replies) == 1, data
        return replies[0]

    def post(self, path, body, *headers):
        return self.get(path, "Content-Type: application/json", *headers, method="POST", body=body)

    def stats(self):
        return json.loads(self.get("/stats").body)

    def wait_stats(self, condition, timeout=10.0):
        """Polls until condition(stats); the seconds it took, or None."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout:
            if condition(self.stats()):
                return time.monotonic() - begin
            time.sleep(0.02)
        return None


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def header(self, name):
        values = [v for n, v in self.headers if n.lower() == name.lower()]
        assert len(values) <= 1 or name.lower() == "vary", f"{name} twice: {values}"
        return values[0] if values else None

    def json(self):
        return json.loads(self.body)


def read_all(s):
    data = b""
    try:
        while True:
            piece = s.recv(65536)
            if not piece:
                return data, "closed"
            data += piece
    except socket.timeout:
        return data, "open"
    except ConnectionResetError:
        return data, "reset"


def read_until(s, mark, limit=1 << 20):
    data = b""
    while mark not in data and len(data) < limit:
        piece = s.recv(65536)
        if not piece:
            break
        data += piece
    return data


class Broken(Exception):
    """Bytes that are not a sequence of complete HTTP/1.1 replies."""


def parse_replies(data, methods=()):
    """Strictly parses a byte string as consecutive complete replies; raises Broken otherwise."""
    replies = []
    while data:
        head, mark, rest = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        m = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [ -~]*", lines[0])
        if not mark or not m:
            raise Broken(data[:200])
        status = int(m[1])
        headers = []
        for line in lines[1:]:
            h = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~]*)", line)
            if not h:
                raise Broken(line)
            headers.append((h[1].decode(), h[2].decode()))
        names = {n.lower(): v for n, v in headers}
        method = methods[len(replies)] if len(replies) < len(methods) else "GET"
        if status == 100 or method == "HEAD" or status == 204:
            body, data = b"", rest
            if status == 100:
                continue
        elif "content-length" in names:
            n = int(names["content-length"])
            if len(rest) < n:
                raise Broken("body is cut")
            body, data = rest[:n], rest[n:]
        elif names.get("transfer-encoding") == "chunked":
            body, data = parse_chunks(rest)
        else:
            body, data = rest, b""
        replies.append(Reply(status, headers, body))
    return replies


def parse_chunks(data):
    body = b""
    while True:
        line, mark, data = data.partition(b"\r\n")
        if not mark or not re.fullmatch(rb"[0-9a-fA-F]+", line):
            raise Broken("chunk size is cut")
        n = int(line, 16)
        if len(data) < n + 2 or data[n : n + 2] != b"\r\n":
            raise Broken("chunk is cut")
        body, data = body + data[:n], data[n + 2 :]
        if n == 0:
            return body, data


def assert_error_shape(reply):
    """OpenAI's error shape, with nothing besides."""
    assert reply.header("Content-Type") == "application/json", reply.headers
    error = reply.json()
    assert set(error) == {"error"}, error
    error = error["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str) and error["message"], error
    assert isinstance(error["type"], str) and error["type"], error
    assert error["param"] is None or isinstance(error["param"], str), error
    assert error["code"] is None or isinstance(error["code"], str), error


def main(module):
    import unittest

    if len(sys.argv) > 1:
        global BINARY
        BINARY = os.environ["HTTP_TEST_SERVER"] = sys.argv.pop(1)
    unittest.main(module, verbosity=2)
