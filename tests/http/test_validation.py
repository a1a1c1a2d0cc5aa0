"""Bad requests, from the table of fields itself: each is a 400 that names the field, and the server lives on."""
import json
import math
import re
from pathlib import Path

import pytest

from choird import EOS, error_of, raw_request

TABLE = (Path(__file__).parents[2] / "server" / "api_fields.def").read_text()
PATHS = {"C": "/v1/completions", "H": "/v1/chat/completions", "T": "/tokenize", "D": "/detokenize"}
BASE = {"C": {"prompt": "x", "max_tokens": 2}, "H": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
        "T": {"prompt": "x"}, "D": {"tokens": []}}
LIMITS = {"INT32_MAX": 2 ** 31 - 1, "INT32_MIN": -2 ** 31, "TOP_LOGPROBS_MAX": 20, "CHOICES_PER_PROMPT_MAX": 64}


def rows(kind):
    for found in re.finditer(rf'^{kind}\((\w+), ([CHTD |]+), (.*), "[^"]*"\)$', TABLE, re.M):
        for where in found[2].split(" | "):
            yield where, found[1], [part.strip() for part in found[3].split(",")] if kind != "REFUSED" else found[3]


INTS = [(w, n, *(int(LIMITS.get(p, p)) for p in parts[1:])) for w, n, parts in rows("INT")]
REALS = [(w, n, *(float(p) for p in parts[1:])) for w, n, parts in rows("REAL")]
BOOLS = [(w, n) for w, n, _ in rows("BOOL")]
REFUSED = [(w, n, json.loads(json.loads(v)) if v != '""' else []) for w, n, v in rows("REFUSED")]


def test_the_table_was_read():
    assert len(INTS) > 10 and len(REALS) >= 12 and len(BOOLS) > 10 and len(REFUSED) > 50


def send(server, where, field, value):
    body = {**BASE[where], field: value}
    if field == "max_completion_tokens":
        del body["max_tokens"]
    if field == "max_tokens" and where == "H":
        body.pop("max_completion_tokens", None)
    return server.post(PATHS[where], json.dumps(body))


def refused(reply, field, status=400):
    assert reply.status_code == status, reply.text
    error = error_of(reply)
    assert error["type"] == "invalid_request_error" and error["param"] == field, error
    return error


@pytest.mark.parametrize("where, field, low, high", INTS)
def test_integer_boundaries(fake, where, field, low, high):
    outside = [low - 1, high + 1, 2 ** 53 + 1, -2 ** 53 - 1, 2 ** 63 - 1, -2 ** 63]
    for value in outside:
        assert refused(send(fake, where, field, value), field)["code"] == "invalid_value"
    for value in ("5", 5.0, 1.5, True, False, [1], {}, ""):
        assert refused(send(fake, where, field, value), field)["code"] == "invalid_type"
    assert send(fake, where, field, None).status_code == 200
    for value in {low, high, min(high, max(low, 1))}:
        reply = send(fake, where, field, value)
        assert reply.status_code in (200, 400), reply.text  # 400: for another rule, never for this range
        if reply.status_code == 400:
            assert error_of(reply)["code"] in ("context_length_exceeded", "invalid_value")
            assert "must be" not in error_of(reply)["message"] or field in ("max_tokens",), reply.text


@pytest.mark.parametrize("where, field, low, high", REALS)
def test_number_boundaries(fake, where, field, low, high):
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    for value in (below, above, -1e38, 1e38, 1e308, -1e-45 if low == 0 else -1e300):
        assert refused(send(fake, where, field, value), field)["code"] == "invalid_value"
    for value in ("0.5", True, [0.5], {}, "NaN"):
        assert refused(send(fake, where, field, value), field)["code"] == "invalid_type"
    for value in (low, high, None, 1 if low <= 1 <= high else low):
        assert send(fake, where, field, value).status_code == 200, value
    if low <= 0 <= high:
        for text in ("-0.0", "1e-45", "1e-320", "1e-400", "0"):
            body = json.dumps({**BASE[where], field: 0}).replace(f'"{field}": 0', f'"{field}": {text}')
            assert fake.post(PATHS[where], body).status_code == 200, text


@pytest.mark.parametrize("where, field", BOOLS)
def test_booleans(fake, where, field):
    for value in (0, 1, "true", [], {}, 1.0):
        assert refused(send(fake, where, field, value), field)["code"] == "invalid_type"
    for value in (True, False, None):
        assert send(fake, where, field, value).status_code == 200


@pytest.mark.parametrize("where, field, neutral", REFUSED)
def test_refused_fields(fake, where, field, neutral):
    for value in ("something", 12345, {"a": 1}, ["b"], True):
        if value not in neutral:
            assert refused(send(fake, where, field, value), field)["code"] == "unsupported_parameter"
    for value in [*neutral, None]:
        assert send(fake, where, field, value).status_code == 200, value


UNKNOWN = ["max_token", "Temperature", "", "a" * 300, "\n", "__proto__", "continue_token_ids", "rank", "prompt_ids"]


@pytest.mark.parametrize("where", "CHTD")
def test_unknown_fields(fake, where):
    for name in UNKNOWN:
        reply = send(fake, where, name, 1)
        assert reply.status_code == 400 and error_of(reply)["code"] == "unknown_parameter"
        param = error_of(reply)["param"] or ""
        assert param == "?" or param in name  # control bytes are not repeated
    assert error_of(send(fake, where, "rank", None))["code"] == "unknown_parameter"


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"5", b'"x"', b"null", b"nul", b"{}x", b"{'prompt':'x'}", b'{"prompt":"x",}', b"[" * 100000,
    b'{"a":' * 5000, b'{"prompt":"x","n":' + b"9" * 2000000 + b"}", b'{"prompt":"x","temperature":1e400}',
    b'{"prompt":"x","n":9223372036854775808}', b'{"prompt":"x","seed":18446744073709551616}',
    b'{"prompt":"x","temperature":NaN}', b'{"prompt":"x","temperature":Infinity}', b'{"prompt":"\\ud800"}',
    b'{"prompt":"\xff"}', b'{"prompt":"\xed\xa0\x80"}', b'\xef\xbb\xbf{"prompt":"x"}', b'{"prompt":"x","prompt":"y"}',
    b'{"prompt":"\\u0000"}', b'{"prompt":"x"}\x00', b'{"prompt":"\x01"}', b"[" + b"{}," * 200000 + b"{}]",
    b'{"prompt":[' + b"[]," * 100000 + b"[]]}",
], ids=range(28))
def test_bad_json(fake, body):
    for path in PATHS.values():
        reply = fake.post(path, body)
        assert reply.status_code == 400, reply.text
        assert error_of(reply)["type"] == "invalid_request_error"


TOKEN_LISTS = [("C", "prompt", lambda i: [i]), ("C", "prompt", lambda i: [[1], [i]]),
               ("C", "stop_token_ids", lambda i: [i]), ("C", "allowed_token_ids", lambda i: [i]),
               ("H", "stop_token_ids", lambda i: [1, i]), ("H", "allowed_token_ids", lambda i: [1, i]),
               ("D", "tokens", lambda i: [i])]


@pytest.mark.parametrize("where, field, value", TOKEN_LISTS)
def test_token_ids_outside_the_vocabulary(fake, where, field, value):
    n_vocab = len_vocab(fake)
    for bad in (-1, n_vocab, n_vocab + 1, 2 ** 31, 2 ** 32, 2 ** 63 - 1):
        reply = fake.post(PATHS[where], {**BASE[where], field: value(bad), **({"min_tokens": 1} if where == "C" else {})})
        assert reply.status_code == 400 and error_of(reply)["param"].startswith(field + "[")
    for bad in ("1", 1.0, True, None, [1, [2]]):
        if field == "prompt" and bad == "1":
            continue  # a list with a text is a list of prompts
        reply = fake.post(PATHS[where], {**BASE[where], field: value(bad)})
        assert reply.status_code == 400 and error_of(reply)["param"].startswith(field)
    assert fake.post(PATHS[where], {**BASE[where], field: value(n_vocab - 1)}).status_code == 200


def len_vocab(server):
    """The smallest id that detokenize refuses."""
    low, high = 0, 1 << 20
    while low < high:
        mid = (low + high) // 2
        if server.post("/detokenize", {"tokens": [mid]}).status_code == 200:
            low = mid + 1
        else:
            high = mid
    return low


def test_logit_bias(fake):
    n_vocab = len_vocab(fake)
    for key in ("-1", str(n_vocab), "01", "+1", " 1", "1.0", "1e0", "", "x", "99999999999", "0x1"):
        reply = send(fake, "C", "logit_bias", {key: 1})
        assert reply.status_code == 400 and error_of(reply)["param"].startswith("logit_bias"), key
    for value in (100.5, -101, "1", None, True):
        assert send(fake, "C", "logit_bias", {"5": value}).status_code == 400
    assert send(fake, "C", "logit_bias", {str(i): 1 for i in range(1025)}).status_code == 400
    assert send(fake, "C", "logit_bias", {str(i): 0.5 for i in range(min(n_vocab, 1024))}).status_code == 200
    assert send(fake, "C", "logit_bias", {}).status_code == 200
    refused(send(fake, "C", "logit_bias", [1]), "logit_bias")


@pytest.mark.parametrize("where, field, value, param", [
    ("C", "stop", [""], "stop[0]"), ("C", "stop", "", "stop"), ("C", "stop", ["x"] * 17, "stop"),
    ("C", "stop", ["x"] * 100000, "stop"), ("C", "stop", "x" * 1025, "stop"), ("C", "stop", [5], "stop[0]"),
    ("C", "stop", 5, "stop"), ("C", "stop", {}, "stop"), ("H", "stop", [None], "stop[0]"),
    ("C", "stop_token_ids", list(range(129)), "stop_token_ids"), ("C", "stop_token_ids", 5, "stop_token_ids"),
    ("C", "allowed_token_ids", [], "allowed_token_ids"), ("C", "allowed_token_ids", [1] * 1025, "allowed_token_ids"),
    ("C", "prompt", [], "prompt"), ("C", "prompt", [[]], "prompt[0]"), ("C", "prompt", {}, "prompt"),
    ("C", "prompt", ["x", 5], "prompt[1]"), ("C", "prompt", [5, "x"], "prompt[1]"), ("C", "prompt", [None], "prompt[0]"),
    ("C", "prompt", ["x"] * 65, "prompt"), ("C", "prompt", ["x"] * 100000, "prompt"), ("C", "prompt", True, "prompt"),
    ("C", "logprobs", -1, "logprobs"), ("C", "logprobs", 21, "logprobs"), ("C", "logprobs", True, "logprobs"),
    ("C", "logprobs", 10 ** 6, "logprobs"), ("H", "logprobs", 5, "logprobs"), ("H", "top_logprobs", 5, "top_logprobs"),
    ("C", "seed", 1.5, "seed"), ("C", "seed", "1", "seed"), ("C", "seed", True, "seed"),
    ("C", "min_tokens", 3, "min_tokens"), ("C", "max_tokens", 0, "max_tokens"),
    ("C", "stream_options", {"include_usage": True}, "stream_options"), ("C", "stream_options", 5, "stream_options"),
    ("C", "cache_salt", "", "cache_salt"), ("C", "cache_salt", "x" * 1025, "cache_salt"), ("C", "cache_salt", 5, "cache_salt"),
    ("C", "user", 5, "user"), ("C", "metadata", [], "metadata"), ("C", "metadata", {"a": 5}, "metadata.a"),
    ("C", "metadata", {str(i): "x" for i in range(17)}, "metadata"), ("C", "metadata", {"a": "x" * 513}, "metadata.a"),
    ("C", "metadata", {"k" * 65: "x"}, "metadata"), ("C", "model", 5, "model"),
    ("H", "messages", [], "messages"), ("H", "messages", {}, "messages"), ("H", "messages", "x", "messages"),
    ("H", "messages", [{"role": "user", "content": "x"}] * 4097, "messages"),
    ("H", "max_completion_tokens", 5, "max_tokens"),
    ("T", "prompt", ["x"], "prompt"), ("T", "messages", [{"role": "user", "content": "x"}], "messages"),
])
def test_bad_values(fake, where, field, value, param):
    refused(fake.post(PATHS[where], {**BASE[where], field: value}), param)


@pytest.mark.parametrize("body, param", [
    ({"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"n": 64, "prompt": ["x"] * 5}, "n"),
    ({"max_tokens": 0, "echo": True, "n": 2}, "n"),
    ({"prompt": None}, "prompt"),
    ({"min_tokens": 1, "allowed_token_ids": [20, 21], "stop_token_ids": [21, 20, 22]}, "allowed_token_ids"),
    ({"min_tokens": 1, "allowed_token_ids": [EOS]}, "allowed_token_ids"),
    ({"min_tokens": 2, "allowed_token_ids": [20, EOS], "stop_token_ids": [20]}, "allowed_token_ids"),
    ({"min_tokens": 1, "allowed_token_ids": [EOS], "stop_token_ids": [EOS], "ignore_eos": True}, "allowed_token_ids"),
])
def test_bad_combinations(fake, body, param):
    refused(fake.post("/v1/completions", {**BASE["C"], **body}), param)


@pytest.mark.parametrize("body", [
    {"min_tokens": 0, "allowed_token_ids": [20], "stop_token_ids": [20]},
    {"min_tokens": 1, "allowed_token_ids": [20, 21], "stop_token_ids": [20]},
    {"min_tokens": 1, "allowed_token_ids": [EOS], "ignore_eos": True},
])
def test_possible_combinations(fake, body):
    assert fake.post("/v1/completions", {**BASE["C"], **body}).status_code == 200


@pytest.mark.parametrize("body", [{"prompt": "x", "foo": 1}, {"prompt": True}, {"prompt": "x", "n": 0}, {"prompt": "x", "suffix": "y"},
                                  {"prompt": "x", "n": "5"}, {"prompt": "x", "model": 5}, {"prompt": "x", "stop": ""}])
def test_a_message_names_its_field_once(fake, body):
    error = error_of(fake.post("/v1/completions", body))
    assert error["message"].count(f"'{error['param']}'") == 1, error
    assert error["message"].endswith(".") and ".:" not in error["message"] and ".." not in error["message"], error


def test_text_to_tokenize_is_bounded(fake):
    limit = 1 << 20
    assert fake.post("/tokenize", {"prompt": " " * limit}).status_code == 200
    assert refused(fake.post("/tokenize", {"prompt": "x" * (limit + 1)}), "prompt")["code"] == "invalid_value"
    message = {"role": "user", "content": "x" * (limit // 4 + 1)}
    assert refused(fake.post("/tokenize", {"messages": [message] * 4}), "messages")["code"] == "invalid_value"


def test_prompts_that_can_never_wait_together(start):
    server = start("--queue-tokens", "100")
    ask = lambda **body: server.post("/v1/completions", {"max_tokens": 1, **body})
    assert refused(ask(prompt=[[20] * 40] * 3), "prompt")["code"] == "invalid_value"
    assert ask(prompt=[[20] * 40] * 2).status_code == 200
    assert ask(prompt=[20] * 120).status_code == 200  # an empty queue takes any one prompt
    assert ask(prompt=[20] * 90, n=4).status_code == 200  # choices share their prompt
    server.stop()


def test_missing_fields(fake):
    for where, param in (("C", "prompt"), ("H", "messages"), ("T", "prompt"), ("D", "tokens")):
        assert refused(fake.post(PATHS[where], {}), param)["code"] == "missing_required_parameter"


def test_context_boundaries(fake):
    limit = fake.openai().models.list().data[0].max_model_len
    for n_prompt, max_tokens, status in [(limit - 1, 1, 200), (limit, 1, 400), (limit + 1, 1, 400), (limit - 5, 5, 200),
                                         (limit - 5, 6, 400), (1, limit, 400), (1, limit - 1, 200), (1, 2 ** 31 - 1, 400)]:
        reply = fake.post("/v1/completions", {"prompt": [20] * n_prompt, "max_tokens": max_tokens})
        assert reply.status_code == status, (n_prompt, max_tokens, reply.text)
        if status == 400:
            assert error_of(reply)["code"] == "context_length_exceeded" and error_of(reply)["param"] == "prompt"
    assert fake.post("/v1/completions", {"prompt": [20] * limit, "max_tokens": 0, "echo": True}).status_code == 200
    reply = fake.post("/v1/completions", {"prompt": [20] * (limit - 3)})
    assert reply.json()["usage"]["total_tokens"] <= limit  # the default length gives way
    reply = fake.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * limit}]})
    assert error_of(reply)["code"] == "context_length_exceeded" and error_of(reply)["param"] == "messages"
    reply = fake.post("/v1/completions", {"prompt": "", "add_special_tokens": False})
    assert reply.status_code == 400 and error_of(reply)["param"] == "prompt"
    assert fake.post("/v1/completions", {"prompt": ""}).status_code == 200  # BOS alone


def test_reply_size_is_bounded(fake):
    reply = fake.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 64, "logprobs": True,
                                               "top_logprobs": 20})
    assert refused(reply, "top_logprobs")
    fits = {"prompt": [20] * 100, "max_tokens": 97, "logprobs": 20, "n": 64}  # 64 * 97 * 21 = 130,368 of 131,072
    assert fake.post("/v1/completions", fits).status_code == 200
    assert refused(fake.post("/v1/completions", {**fits, "max_tokens": 98}), "logprobs")
    assert fake.process.poll() is None


def test_urls_are_never_fetched(fake):
    for part in ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
                 {"type": "file", "file": {"file_url": "file:///etc/passwd"}}, {"type": "input_audio", "input_audio": {}}):
        reply = fake.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
        assert reply.status_code == 400 and error_of(reply)["code"] == "unsupported_parameter"


def test_wrong_content_type_and_size(start):
    import httpx
    server = start("--max-body", "2K")
    reply = httpx.post(server.url + "/v1/completions", content=b'{"prompt":"x"}', headers={"content-type": "text/plain"})
    assert reply.status_code == 415
    error_of(reply)
    reply = server.post("/v1/completions", {"prompt": "x" * 3000})
    assert reply.status_code == 413
    error_of(reply)


def test_client_request_ids_are_only_echoed(fake):
    reply = fake.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] != "mine-1" and reply.headers["x-client-request-id"] == "mine-1"
    assert reply.json()["id"] != "mine-1"


def test_every_documented_field_is_in_the_docs():
    docs = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    names = re.findall(r"^(?:INT|REAL|BOOL|PART|NOOP|REFUSED)\((\w+),", TABLE, re.M)
    assert len(names) > 60
    for name in names:
        assert f"`{name}`" in docs, name
