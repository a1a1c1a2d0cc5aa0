"""Starts a choird, asks it, and keeps every bit of what it answers. Python's standard library only.

Used by scripts/demo-exact and tests/exact. An Answer holds token ids and the log-probabilities as the bits of their
fp32 values: choird writes the shortest decimal that reads back as the same float, so nothing is lost in between.
"""

import hashlib
import http.client
import json
import re
import struct
import subprocess
import threading
import uuid

READY_TIMEOUT_S = 120
REPLY_TIMEOUT_S = 300


def bits(x):
    """The 32 bits of a float that was printed from fp32."""
    return struct.pack("<f", x).hex()


class Answer:
    def __init__(self):
        self.token_ids, self.rows, self.text, self.finish, self.usage, self.prompt_rows = [], [], "", None, {}, None

    def add_choice(self, choice):
        """One choice of a whole reply, or of one event of a stream."""
        self.text += choice.get("text") or ""
        self.token_ids += choice.get("token_ids") or []
        self.finish = choice.get("finish_reason") or self.finish
        logprobs = choice.get("logprobs")
        if logprobs:
            for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
                self.rows.append((bits(own), tuple(sorted((name, bits(p)) for name, p in top.items()))))
        if choice.get("prompt_logprobs"):
            self.prompt_rows = [row and tuple(sorted((k, bits(v["logprob"]), v["rank"]) for k, v in row.items()))
                                for row in choice["prompt_logprobs"]]

    @property
    def cached_tokens(self):
        return (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    def content(self):
        """All that must not depend on anything but model, request and seed."""
        return self.token_ids, self.rows, self.text, self.finish, self.prompt_rows

    def fingerprint(self):
        return hashlib.sha256(repr(self.content()).encode()).hexdigest()[:16]


class Replica:
    """One choird on a free port. Options become flags: max_seqs=4 is --max-seqs 4, prefix_cache=False its negation."""

    def __init__(self, binary, model, **options):
        argv = [binary, model, "--host", "127.0.0.1", "--port", "0"]
        for name, value in options.items():
            flag = name.replace("_", "-")
            argv += [f"--{flag}={str(value).lower() if isinstance(value, bool) else value}"]
        self.log, self.port = [], None
        self._ready = threading.Event()
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        errors="replace")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(READY_TIMEOUT_S) or self.port is None or not self._answers_ready():
            self.stop()
            raise RuntimeError("choird did not become ready:\n" + "".join(self.log[-20:]))

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"http://[^ \"]*:(\d+)", line)
            if found and "ready" in line:
                self.port = int(found.group(1))
                self._ready.set()
        self._ready.set()

    def _answers_ready(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_TIMEOUT_S)
        connection.request("GET", "/ready")
        status = connection.getresponse().status
        connection.close()
        return status == 200

    def stop(self):
        """Asks it to stop; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join()
        self.process.stderr.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REPLY_TIMEOUT_S)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            text = reply.read()[:500]
            connection.close()
            raise RuntimeError(f"{path}: {reply.status} {text!r}")
        return connection, reply

    def _complete(self, request, stream=False, salt=None):
        """A new salt each time unless one is given, so that no earlier request's KV is reused."""
        body = {"logprobs": 5, "return_token_ids": True, "return_tokens_as_token_ids": True, **request, "stream": stream,
                "cache_salt": salt or uuid.uuid4().hex}
        if stream:
            body["stream_options"] = {"include_usage": True}
        return self._post("/v1/completions", body)

    def ask_text(self, request):
        """The reply to one request as it was written."""
        connection, reply = self._complete(request)
        text = reply.read().decode()
        connection.close()
        return text

    def ask(self, request, stream=False, salt=None):
        """The answers to one /v1/completions request, one per choice."""
        answers = {}
        connection, reply = self._complete(request, stream, salt)
        for piece in sse_events(reply) if stream else [json.load(reply)]:
            if "error" in piece:
                raise RuntimeError(piece["error"])
            for choice in piece["choices"]:
                answers.setdefault(choice["index"], Answer()).add_choice(choice)
            if piece.get("usage"):
                for answer in answers.values():
                    answer.usage = piece["usage"]
        connection.close()
        return [answers[i] for i in sorted(answers)]

    def ask_all(self, requests, **how):
        """All requests at once; the first answer of each, in the order of the requests."""
        results = [None] * len(requests)

        def run(i):
            try:
                results[i] = self.ask(requests[i], **how)[0]
            except Exception as e:  # raised again below, in the caller's thread
                results[i] = e

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(requests))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for r in results:
            if isinstance(r, Exception):
                raise r
        return results

    def metric(self, name):
        """The value of a counter or gauge, summed over its labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REPLY_TIMEOUT_S)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        values = [float(v) for v in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M)]
        if not values:
            raise KeyError(name)
        return sum(values)


def sse_events(reply):
    """The JSON events of a stream, which has to end with [DONE]."""
    for line in reply:
        line = line.strip()
        if line == b"data: [DONE]":
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    raise RuntimeError("the stream ended without [DONE]")
