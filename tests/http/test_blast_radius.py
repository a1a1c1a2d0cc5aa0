"""Random invalid requests beside good ones: the good ones do not change by a byte, and nothing is left behind."""
import json
import random
import threading

import httpx

from choird import DEADLINE, FULL, LOST, NAN, error_of, script

VALUES = [None, True, False, 0, -1, 1, 5.5, -0.0, 1e38, 2 ** 31, 2 ** 53 + 1, -2 ** 63, "", "x", "5", [], [[]], [1], [-1],
          [2 ** 31], ["x"], {}, {"a": 1}, {"5": 1}, {"-1": 1}, ["x"] * 20, "\ufffd\u0000"[:1], "é" * 600]
FIELDS = ["prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "n", "temperature", "top_p", "top_k",
          "min_p", "seed", "stop", "stop_token_ids", "logit_bias", "allowed_token_ids", "logprobs", "top_logprobs",
          "prompt_logprobs", "echo", "stream", "stream_options", "return_token_ids", "priority", "cache_salt", "model",
          "response_format", "tools", "rank", "ignore_eos", "repetition_penalty", "metadata", "user"]


def random_body(rng):
    if rng.random() < 0.1:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    body = {"prompt": "x", "max_tokens": 4} if rng.random() < 0.5 else {
        "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    for _ in range(rng.randint(1, 3)):
        body[rng.choice(FIELDS)] = rng.choice(VALUES)
    text = json.dumps(body).encode()
    if rng.random() < 0.15:
        at = rng.randrange(len(text))
        text = text[:at] + bytes([rng.randrange(256)]) + text[at + rng.randrange(3):]
    return text


def test_bad_requests_change_nothing(server):
    goods = [{"prompt": f"Number {i} is", "max_tokens": 24, "temperature": i % 2, "seed": i, "logprobs": 2,
              "return_token_ids": True} for i in range(6)]
    expected = [server.complete(**good)["choices"] for good in goods]
    wrong, rng, stop = [], random.Random(7), threading.Event()

    def good_loop(i):
        with httpx.Client(timeout=120) as client:
            while not stop.is_set():
                got = client.post(server.url + "/v1/completions", json=goods[i]).json().get("choices")
                if got != expected[i]:
                    wrong.append((i, got))
                    return

    threads = [threading.Thread(target=good_loop, args=(i,)) for i in range(len(goods))]
    for thread in threads:
        thread.start()
    try:
        with httpx.Client(timeout=120) as client:
            for _ in range(600 if not server.real else 200):
                body, path = random_body(rng), rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize"])
                reply = client.post(server.url + path, content=body, headers={"content-type": "application/json"})
                assert reply.status_code in (200, 400, 404), (body, reply.text)
                if reply.status_code != 200:
                    error_of(reply)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[0]
    assert server.get("/health").status_code == 200
    server.wait_metric("choir_requests_running", 0)


def test_failing_requests_change_nothing(fake):
    good = {"prompt": "A good one", "max_tokens": 24, "seed": 3, "logprobs": 1}
    expected = fake.complete(**good)["choices"]
    for fault in [NAN, LOST, FULL, DEADLINE] * 10:
        bad = threading.Thread(target=fake.post, args=("/v1/completions", {"prompt": script(fault, text=b"abcdef"),
                                                                           "max_tokens": 9}))
        bad.start()
        assert fake.complete(**good)["choices"] == expected
        bad.join()
