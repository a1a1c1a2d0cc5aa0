"""Starting, asking and watching one server under test: llama-server or choird. Standard library only."""

import http.client
import json
import os
import random
import socket
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
VOCAB_FIRST, VOCAB_LAST = 1000, 200000  # ordinary tokens of the default model
BOS = 2


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def random_prompt(n_tokens):
    """Token ids that share nothing with any other prompt but BOS: no server's prefix cache can help."""
    return [BOS] + [random.randint(VOCAB_FIRST, VOCAB_LAST) for _ in range(n_tokens - 1)]


def cpu_busy_s():
    """Seconds of CPU that the whole machine has spent on anything but idling."""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    return (sum(v) - v[3] - v[4]) / TICK


def process_cpu_s(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def own_cpu_s():
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


class Server:
    """One process. kind decides the fields of a request; everything else is the same for both."""

    def __init__(self, name, kind, argv, log_folder):
        self.name, self.kind, self.argv = name, kind, argv
        self.log_path = os.path.join(log_folder, name.replace(" ", "_") + ".log")
        self.process = self.port = None

    def start(self):
        self.port = free_port()
        argv = [a.replace("{port}", str(self.port)) for a in self.argv]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self):
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    @property
    def pid(self):
        return self.process.pid

    def body(self, prompt, n_out, stream):
        body = {"prompt": prompt, "max_tokens": n_out, "temperature": 0, "ignore_eos": True, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if self.kind == "llama":
            body["cache_prompt"] = False
        return json.dumps(body)

    def post(self, prompt, n_out, stream=False, timeout=600):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request("POST", "/v1/completions", self.body(prompt, n_out, stream), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def complete(self, n_in, n_out):
        """Output tokens of one request, answered whole."""
        connection, reply = self.post(random_prompt(n_in), n_out)
        data = reply.read()
        connection.close()
        if reply.status != 200:
            raise RuntimeError(f"{self.name}: {reply.status} {data[:300]!r}")
        return json.loads(data)["usage"]["completion_tokens"]

    def stream(self, n_in, n_out):
        """(seconds to the first token, seconds between first and last, output tokens) of one streamed request."""
        began = time.monotonic()
        connection, reply = self.post(random_prompt(n_in), n_out, stream=True)
        if reply.status != 200:
            raise RuntimeError(f"{self.name}: {reply.status} {reply.read()[:300]!r}")
        first = last = None
        n_tokens = 0
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            now = time.monotonic()
            event = json.loads(line[6:])
            if event.get("usage"):
                n_tokens = event["usage"]["completion_tokens"]
            if event.get("choices") and not event["choices"][0].get("finish_reason"):
                first = first or now
                last = now
        connection.close()
        return first - began, last - first, n_tokens

    def wait_ready(self, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.complete(4, 1)
                return
            except (OSError, RuntimeError, http.client.HTTPException):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} did not become ready; see {self.log_path}") from None
                time.sleep(0.05)

    def first_token_s(self):
        """Seconds from starting the process to its first token, asking until it answers."""
        began = time.monotonic()
        self.start()
        try:
            while time.monotonic() - began < 120:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} stopped; see {self.log_path}")
                try:
                    self.complete(8, 1)
                    return time.monotonic() - began
                except (OSError, RuntimeError, http.client.HTTPException):
                    time.sleep(0.004)
            raise RuntimeError(f"{self.name} gave no token in 120 s")
        finally:
            self.stop()

    def memory(self):
        """Megabytes resident now and at most, and the part of them that is not pages of a mapped file."""
        with open(f"/proc/{self.pid}/status") as f:
            kb = {line.split(":")[0]: int(line.split()[1]) for line in f if line.startswith(("VmRSS", "VmHWM", "RssAnon"))}
        return {"rss_mb": kb["VmRSS"] / 1024, "peak_mb": kb["VmHWM"] / 1024, "anonymous_mb": kb["RssAnon"] / 1024}


def run_clients(server, n_clients, n_requests, n_in, n_out):
    """Output tokens per second of n_clients that each send n_requests, one after the other."""
    totals, failures = [], []
    start = threading.Barrier(n_clients + 1)

    def client():
        start.wait()
        try:
            for _ in range(n_requests):
                totals.append(server.complete(n_in, n_out))
        except Exception as e:  # reported by the caller; a thread's exception would be lost
            failures.append(e)

    threads = [threading.Thread(target=client) for _ in range(n_clients)]
    for t in threads:
        t.start()
    start.wait()
    began = time.monotonic()
    for t in threads:
        t.join()
    seconds = time.monotonic() - began
    if failures:
        raise failures[0]
    return sum(totals) / seconds


class Disturbance:
    """The CPU share that processes other than the server and this one took during a `with` block."""

    def __init__(self, server=None):
        self.pid = server.pid if server else None
        self.share = 0.0

    def __enter__(self):
        self.began = time.monotonic(), cpu_busy_s(), own_cpu_s(), process_cpu_s(self.pid) if self.pid else 0.0
        return self

    def __exit__(self, *_):
        wall = time.monotonic() - self.began[0]
        ours = own_cpu_s() - self.began[2]
        if self.pid:
            ours += process_cpu_s(self.pid) - self.began[3]
        self.share = max(0.0, cpu_busy_s() - self.began[1] - ours) / max(wall, 1e-3)
