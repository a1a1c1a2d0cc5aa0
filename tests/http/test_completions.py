"""/v1/completions: every parameter, streamed and not, through the official client and as raw JSON."""
import random

import pytest

from choird import BOS, BYTES, EOS, SCRIPT, script

PROMPTS = ["The capital of France is", "Hello world", "A list of fruits:\n1."]


def joined(chunks, index=0):
    """One choice of a stream, put together as a client would."""
    out = {"text": "", "finish_reason": None, "stop_reason": None, "token_ids": [], "prompt_token_ids": None,
           "logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            assert out["finish_reason"] is None, "a chunk after the one with finish_reason"
            out["text"] += choice["text"]
            out["finish_reason"] = choice["finish_reason"]
            out["stop_reason"] = choice.get("stop_reason")
            out["token_ids"] += choice.get("token_ids", [])
            out["prompt_token_ids"] = choice.get("prompt_token_ids", out["prompt_token_ids"])
            for name, values in (choice["logprobs"] or {}).items():
                out["logprobs"][name] += values
    return out


def same(streamed, whole):
    assert streamed["text"] == whole["text"]
    assert streamed["finish_reason"] == whole["finish_reason"]
    assert streamed["stop_reason"] == whole["stop_reason"]
    assert streamed["token_ids"] == whole.get("token_ids", [])
    assert streamed["prompt_token_ids"] == whole.get("prompt_token_ids")
    if whole["logprobs"]:
        assert streamed["logprobs"] == whole["logprobs"]


def test_openai_client_whole_and_streamed(server):
    client = server.openai()
    model = client.models.list().data[0].id
    for prompt in PROMPTS:
        whole = client.completions.create(model=model, prompt=prompt, max_tokens=12, seed=5, logprobs=3)
        assert whole.object == "text_completion" and whole.id.startswith("cmpl-") and whole.model == model
        assert whole.system_fingerprint.startswith("fp_") and whole.created > 1.6e9
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert whole.usage.prompt_tokens_details.cached_tokens >= 0
        choice = whole.choices[0]
        assert choice.finish_reason in ("stop", "length")
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == whole.usage.completion_tokens
        text, last = "", None
        stream = client.completions.create(model=model, prompt=prompt, max_tokens=12, seed=5, logprobs=3, stream=True,
                                           stream_options={"include_usage": True})
        for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].text
            last = chunk
        assert text == choice.text
        assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("extra", [
    {}, {"logprobs": 0}, {"logprobs": 20, "return_token_ids": True}, {"echo": True},
    {"echo": True, "logprobs": 2, "return_token_ids": True}, {"n": 3, "logprobs": 1}, {"temperature": 0},
    {"ignore_eos": True, "max_tokens": 40}, {"min_tokens": 16}, {"skip_special_tokens": False}, {"top_k": 5},
    {"top_p": 0.5}, {"min_p": 0.2}, {"presence_penalty": 1.5}, {"frequency_penalty": -1.5}, {"repetition_penalty": 1.3},
    {"return_tokens_as_token_ids": True, "logprobs": 1}, {"priority": 3}, {"cache_salt": "tenant"},
    {"user": "someone", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
])
def test_streamed_equals_whole(server, extra):
    body = {"prompt": PROMPTS[0], "max_tokens": 16, "seed": 11, **extra}
    whole = server.complete(**body)
    chunks = server.stream("/v1/completions", body)
    for choice in whole["choices"]:
        same(joined(chunks, choice["index"]), choice)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all("usage" not in chunk for chunk in chunks)


def test_penalties_and_samplers_reach_the_engine(fake):
    base = fake.complete(prompt="x", max_tokens=20, seed=1, ignore_eos=True)["choices"][0]["text"]
    for extra in [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}, {"presence_penalty": 1}, {"frequency_penalty": 1},
                  {"repetition_penalty": 1.5}, {"temperature": 0.5}, {"seed": 2}, {"logit_bias": {"20": 1}}]:
        other = fake.complete(**{"prompt": "x", "max_tokens": 20, "seed": 1, "ignore_eos": True, **extra})
        assert other["choices"][0]["text"] != base, extra


def test_token_ids_and_text_prompts_are_the_same_request(server):
    ids = server.post("/tokenize", {"prompt": PROMPTS[1]}).json()["tokens"]
    by_text = server.complete(prompt=PROMPTS[1], max_tokens=8, seed=3, return_token_ids=True)["choices"][0]
    by_ids = server.complete(prompt=ids, max_tokens=8, seed=3, return_token_ids=True)["choices"][0]
    assert by_text == by_ids
    assert by_text["prompt_token_ids"] == ids


def test_without_special_tokens(server):
    ids = server.post("/tokenize", {"prompt": "Hello", "add_special_tokens": False}).json()["tokens"]
    choice = server.complete(prompt="Hello", add_special_tokens=False, max_tokens=1, return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == ids


def test_batch_of_prompts_and_choices(server):
    ids = server.post("/tokenize", {"prompt": "Hello world"}).json()["tokens"]
    prompts = ["The capital", ids, "One two"]
    whole = server.complete(prompt=prompts, n=2, max_tokens=6, seed=9, logprobs=1)
    assert [c["index"] for c in whole["choices"]] == list(range(6))
    chunks = server.stream("/v1/completions", {"prompt": prompts, "n": 2, "max_tokens": 6, "seed": 9, "logprobs": 1})
    n_prompt = 0
    for p, prompt in enumerate(prompts):
        for i in range(2):
            alone = server.complete(prompt=prompt, max_tokens=6, seed=9 + i, logprobs=1)
            one = whole["choices"][2 * p + i]
            assert {**one, "index": 0} == alone["choices"][0]  # choice i draws with seed + i
            same(joined(chunks, 2 * p + i), one)
        n_prompt += alone["usage"]["prompt_tokens"]
    assert whole["usage"]["prompt_tokens"] == n_prompt


def test_list_of_one_prompt(server):
    for prompt in (["Hello"], [[*server.post("/tokenize", {"prompt": "Hello"}).json()["tokens"]]]):
        assert len(server.complete(prompt=prompt, max_tokens=2)["choices"]) == 1


def test_seed_is_reported_and_repeats(server):
    first = server.complete(prompt="Once", max_tokens=20, temperature=1)
    again = server.complete(prompt="Once", max_tokens=20, temperature=1, seed=first["seed"])
    assert again["choices"][0]["text"] == first["choices"][0]["text"] and again["seed"] == first["seed"]
    assert 0 <= first["seed"] < 2 ** 53
    others = {server.complete(prompt="Once", max_tokens=1)["seed"] for _ in range(4)}
    assert len(others) == 4


@pytest.mark.parametrize("seed", [0, -1, 2 ** 63 - 1, -2 ** 63])
def test_any_64_bit_seed(server, seed):
    assert server.complete(prompt="Once", max_tokens=2, seed=seed, n=2)["seed"] == seed


def test_max_tokens(server):
    assert server.complete(prompt="Once", ignore_eos=True)["usage"]["completion_tokens"] == 16
    for n in (1, 2, 33):
        body = server.complete(prompt="Once", max_tokens=n, ignore_eos=True)
        assert body["usage"]["completion_tokens"] == n and body["choices"][0]["finish_reason"] == "length"


def test_no_tokens_but_the_prompt(server):
    whole = server.complete(prompt="Hello world", max_tokens=0, echo=True, logprobs=2)
    choice = whole["choices"][0]
    assert choice["text"] == "Hello world" and choice["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == whole["usage"]["prompt_tokens"]
    same(joined(server.stream("/v1/completions", {"prompt": "Hello world", "max_tokens": 0, "echo": True,
                                                   "logprobs": 2})), choice)
    assert server.complete(prompt="Hello world", max_tokens=0, echo=True)["choices"][0]["text"] == "Hello world"
    only = server.complete(prompt="Hello world", max_tokens=0, prompt_logprobs=1)["choices"][0]
    assert only["text"] == "" and len(only["prompt_logprobs"]) == whole["usage"]["prompt_tokens"]


def test_legacy_logprobs(server):
    body = {"prompt": PROMPTS[0], "max_tokens": 8, "logprobs": 4, "echo": True, "seed": 1, "return_token_ids": True}
    choice = server.complete(**body)["choices"][0]
    lp = choice["logprobs"]
    n = len(choice["prompt_token_ids"]) + len(choice["token_ids"])
    assert len(lp["tokens"]) == len(lp["token_logprobs"]) == len(lp["top_logprobs"]) == len(lp["text_offset"]) == n
    assert lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None
    for token, value, top in list(zip(lp["tokens"], lp["token_logprobs"], lp["top_logprobs"]))[1:]:
        assert value <= 0 and top[token] == value and len(top) <= 5
        assert all(v <= value for t, v in top.items() if t != token) or len(top) >= 4
    # The offset of a token is where its text begins, in characters, the echoed prompt included.
    assert lp["text_offset"] == sorted(lp["text_offset"]) and lp["text_offset"][-1] <= len(choice["text"])
    for i, (token, at) in enumerate(zip(lp["tokens"], lp["text_offset"])):
        # (a SentencePiece prompt may drop the space before its first word; bytes that the token proves to be no
        # character appear with it)
        if token.isascii() and not token.startswith(("bytes:", "<")) and choice["text"][at:at + 1] != "\ufffd":
            assert choice["text"][at:].startswith((token, token.lstrip(" ") if i < 2 else token)), (i, token, at)
    plain = server.complete(**{**body, "echo": False})["choices"][0]["logprobs"]
    assert plain["token_logprobs"] == lp["token_logprobs"][-len(plain["tokens"]):]


def test_prompt_logprobs(server):
    choice = server.complete(prompt=PROMPTS[0], max_tokens=1, prompt_logprobs=3, return_token_ids=True)["choices"][0]
    ids, entries = choice["prompt_token_ids"], choice["prompt_logprobs"]
    assert len(entries) == len(ids) and entries[0] is None
    echoed = server.complete(prompt=PROMPTS[0], max_tokens=0, echo=True, logprobs=3)["choices"][0]["logprobs"]
    for i, entry in list(enumerate(entries))[1:]:
        own = entry[str(ids[i])]
        assert set(own) == {"logprob", "rank", "decoded_token"} and own["rank"] >= 1 and 3 <= len(entry) <= 4
        assert own["logprob"] == echoed["token_logprobs"][i]
        assert sorted(e["rank"] for e in entry.values())[:3] == [1, 2, 3]


def test_usage_in_streams(server):
    body = {"prompt": "Hello", "max_tokens": 5, "ignore_eos": True}
    chunks = server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 5
    chunks = server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True,
                                                                          "continuous_usage_stats": True}})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 5
    chunks = server.stream("/v1/completions", {**body, "stream_options": {"continuous_usage_stats": True}})
    assert chunks[-1]["choices"] and chunks[-1]["usage"]["completion_tokens"] == 5


def test_cached_tokens_are_reported(server):
    prompt = "A sentence that is long enough to fill several blocks of the cache. " * 4
    server.complete(prompt=prompt, max_tokens=1)
    usage = server.complete(prompt=prompt, max_tokens=1)["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    other = server.complete(prompt=prompt, max_tokens=1, cache_salt="another")["usage"]
    assert other["prompt_tokens_details"]["cached_tokens"] == 0


# ---- stops ----

def expected_stop(text, offsets, stops, min_tokens):
    """By the definition: the match that ends first, of these the longest; (text before it, its string, tokens)."""
    ends = offsets[1:] + [len(text)]
    for end in range(1, len(text) + 1):
        n_tokens = next(i for i, e in enumerate(ends) if e >= end) + 1
        hits = [s for s in stops if text[:end].endswith(s)]
        if hits and n_tokens >= min_tokens:
            stop = max(hits, key=lambda s: len(s.encode()))
            return text[:end - len(stop)], stop, n_tokens
    return None


def test_stop_strings_over_token_borders(server):
    rng = random.Random(4)
    base = {"prompt": PROMPTS[0], "max_tokens": 48, "seed": 21, "ignore_eos": True, "return_token_ids": True}
    whole = server.complete(**base, logprobs=0)["choices"][0]
    text, offsets = whole["text"], whole["logprobs"]["text_offset"]
    n_hits = 0
    for _ in range(25):
        stops = []
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) - 1)
            stops.append(text[at:at + rng.randint(1, 9)])
        stops.append("never in it " + str(rng.random()))
        min_tokens = rng.choice([0, 0, 5, 20])
        expected = expected_stop(text, offsets, stops, min_tokens)
        for keep in (False, True):
            body = {**base, "stop": stops, "min_tokens": min_tokens, "include_stop_str_in_output": keep}
            reply = server.complete(**body)
            choice = reply["choices"][0]
            if expected:
                before, stop, n_tokens = expected
                n_hits += 1
                assert choice["text"] == before + (stop if keep else "")
                assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
                assert reply["usage"]["completion_tokens"] == n_tokens
                assert choice["token_ids"] == whole["token_ids"][:n_tokens]
            else:
                assert choice["text"] == text and choice["finish_reason"] == "length"
            same(joined(server.stream("/v1/completions", body)), choice)
    assert n_hits > 20


def test_stop_as_one_string_through_the_client(server):
    client = server.openai()
    model = client.models.list().data[0].id
    text = client.completions.create(model=model, prompt="Once", max_tokens=20, seed=1).choices[0].text
    stop = text[4:7]
    choice = client.completions.create(model=model, prompt="Once", max_tokens=20, seed=1, stop=stop).choices[0]
    assert choice.text == text[:text.index(stop)] and choice.finish_reason == "stop"


def test_text_that_only_begins_a_stop_string_is_sent_at_the_end(fake):
    body = {"prompt": script(text=b"one two EN"), "stop": "END", "max_tokens": 50}
    choice = fake.complete(**body)["choices"][0]
    assert choice["text"] == "one two EN" and choice["stop_reason"] is None
    same(joined(fake.stream("/v1/completions", body)), choice)
    chunks = fake.stream("/v1/completions", {"prompt": script(text=b"a ENx END b"), "stop": "END", "max_tokens": 50})
    assert joined(chunks)["text"] == "a ENx " and joined(chunks)["stop_reason"] == "END"
    assert all("E" not in chunk["choices"][0]["text"] or "ENx" in chunk["choices"][0]["text"] for chunk in chunks)


def test_stop_token_ids(server):
    base = {"prompt": PROMPTS[0], "max_tokens": 30, "seed": 2, "ignore_eos": True, "return_token_ids": True}
    ids = server.complete(**base)["choices"][0]["token_ids"]
    stop = ids[7]
    reply = server.complete(**base, stop_token_ids=[stop, stop])
    choice = reply["choices"][0]
    assert choice["token_ids"] == ids[:ids.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    same(joined(server.stream("/v1/completions", {**base, "stop_token_ids": [stop]})), choice)


def test_end_token(fake):
    reply = fake.complete(prompt=script(text=b"hi"), max_tokens=9)
    assert reply["choices"][0]["text"] == "hi" and reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["stop_reason"] is None and reply["usage"]["completion_tokens"] == 2
    named = fake.complete(prompt=script(text=b"hi"), max_tokens=9, stop_token_ids=[EOS])["choices"][0]
    assert named["stop_reason"] == EOS


def test_logit_bias_and_allowed_tokens(server):
    ids = server.post("/tokenize", {"prompt": " the and", "add_special_tokens": False}).json()["tokens"]
    forced = server.complete(prompt="Once", max_tokens=5, temperature=0, logit_bias={str(ids[0]): 100},
                             return_token_ids=True)["choices"][0]["token_ids"]
    assert forced == [ids[0]] * 5
    allowed = server.complete(prompt="Once", max_tokens=30, allowed_token_ids=ids, return_token_ids=True)
    assert set(allowed["choices"][0]["token_ids"]) <= set(ids)


# ---- text ----

def test_characters_are_never_cut(fake):
    text = "naïve 日本語 😀 end"
    body = {"prompt": script(text=text.encode()), "max_tokens": 99}
    assert fake.complete(**body)["choices"][0]["text"] == text
    chunks = fake.stream("/v1/completions", body)
    assert joined(chunks)["text"] == text and not any("\ufffd" in c["choices"][0]["text"] for c in chunks)


@pytest.mark.parametrize("data", [b"ok \xe6\x97", b"\xff\xfe", b"a\xc3(", b"\xf0\x9f\x98", b"\xed\xa0\x80x"])
def test_bytes_that_are_no_text(fake, data):
    body = {"prompt": script(text=data), "max_tokens": 99, "logprobs": 0, "seed": 1}
    choice = fake.complete(**body)["choices"][0]
    assert choice["text"] == data.decode("utf-8", "replace")
    same(joined(fake.stream("/v1/completions", body)), choice)
    names = [f"bytes:\\x{b:02x}" if b > 0x7f else chr(b) for b in data]
    assert choice["logprobs"]["tokens"] == names


def test_special_tokens_in_text(fake):
    prompt = [SCRIPT, BYTES + ord("a"), BOS, BYTES + ord("b")]
    assert fake.complete(prompt=prompt, max_tokens=9)["choices"][0]["text"] == "ab"
    assert fake.complete(prompt=prompt, max_tokens=9, skip_special_tokens=False)["choices"][0]["text"] == "a<s>b"


def test_null_is_absent(server):
    names = ["max_tokens", "temperature", "n", "stop", "stream", "logprobs", "seed", "suffix", "user", "logit_bias"]
    assert server.complete(prompt="Once", **{name: None for name in names})["choices"]
