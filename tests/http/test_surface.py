"""The other endpoints: models, tokenize, detokenize, health, ready, version, metrics; what is not there; keys."""
import pytest

from choird import error_of

METRICS = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
           "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total",
           "time_to_first_token_seconds_count", "inter_token_latency_seconds_count",
           "e2e_request_latency_seconds_count", "request_queue_time_seconds_count", "request_prompt_tokens_sum",
           "request_generation_tokens_sum"]


def test_models(server):
    client = server.openai()
    models = client.models.list().data
    one = client.models.retrieve(models[0].id)
    assert one.id == models[0].id and one.object == "model" and one.max_model_len > 0
    reply = server.get("/v1/models/no/such")
    assert reply.status_code == 404 and error_of(reply)["code"] == "model_not_found"


@pytest.mark.parametrize("text", ["", "Hello world", "日本語 and é\n\n", "a" * 5000, "<s> </s>"])
def test_tokenize_and_back(server, text):
    body = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) and body["max_model_len"] > 0
    plain = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    assert "token_strs" not in plain and body["tokens"][-len(plain["tokens"]):] == plain["tokens"] or not text
    back = server.post("/detokenize", {"tokens": plain["tokens"]}).json()
    assert back["prompt"].lstrip(" ") == text.lstrip(" ")


def test_detokenize_nothing(server):
    assert server.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}


def test_health_ready_version(server):
    assert server.get("/health").status_code == 200
    assert server.get("/ready").status_code == 200
    version = server.get("/version").json()
    assert version["version"] and version["system_fingerprint"].startswith("fp_")


def test_metrics(server):
    before = server.metrics()
    n_prompt = server.complete(prompt="Hello", max_tokens=7, ignore_eos=True)["usage"]["prompt_tokens"]
    after = server.metrics()
    for name in METRICS:
        assert "vllm:" + name in after, name

    def grew(name):
        return after[name] - before.get(name, 0)

    assert grew("choir_generation_tokens_total") == grew("vllm:generation_tokens_total") == 7
    assert grew("choir_prompt_tokens_total") == n_prompt
    assert grew('choir_request_success_total{finished_reason="length"}') == 1
    assert grew('vllm:request_success_total{finished_reason="length"}') == 1
    assert grew("choir_time_to_first_token_seconds_count") == 1
    assert grew("choir_inter_token_latency_seconds_count") == 6
    assert grew("choir_request_generation_tokens_sum") == 7
    assert any(name.startswith("vllm:cache_config_info{") for name in after)
    assert after["choir_ready"] == 1


def test_what_is_not_there(server):
    for path in ("/", "/v1", "/v1/embeddings", "/v1/completions/", "//v1//models", "/v1/%6dodels", "/metrics;x"):
        reply = server.get(path)
        assert reply.status_code == 404, path
        error_of(reply)
    reply = server.get("/v1/completions")
    assert reply.status_code == 405
    error_of(reply)


def test_served_names_and_default_name(start):
    server = start("--served-model-name", "first", "--served-model-name", "org/second")
    assert [m.id for m in server.openai().models.list().data] == ["first", "org/second"]
    assert server.get("/v1/models/org/second").json()["id"] == "org/second"
    for name in ("first", "org/second", None):
        assert server.complete(model=name, prompt="x", max_tokens=1)["model"] == "first"
    reply = server.post("/v1/completions", {"model": "third", "prompt": "x"})
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "model_not_found" and error_of(reply)["param"] == "model"
    assert start().openai().models.list().data[0].id == "fake-model"


ROUTES = [("GET", "/v1/models"), ("GET", "/v1/models/x"), ("POST", "/v1/completions"),
          ("POST", "/v1/chat/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/metrics"),
          ("GET", "/version")]


def test_keys_guard_everything_but_health(start, tmp_path):
    import httpx
    keys = tmp_path / "keys"
    keys.write_text("# of two tenants\nfile-key-1\r\n\nfile-key-2\n")
    server = start("--api-key", "flag-key", "--api-key-file", str(keys))
    for method, path in ROUTES:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer flag-ke"},
                        {"authorization": "Bearer flag-keyx"}, {"authorization": "flag-key"}):
            reply = httpx.request(method, server.url + path, headers=headers,
                                  **({"json": {}} if method == "POST" else {}))
            assert reply.status_code == 401, (path, headers)
            assert error_of(reply)["code"] == "invalid_api_key"
    assert server.get("/health").status_code == 200 and server.get("/ready").status_code == 200
    for key in ("flag-key", "file-key-1", "file-key-2"):
        assert server.openai(key).models.list().data


def test_tenants_share_no_prefix(start):
    server = start("--api-key", "one", "--api-key", "two")
    prompt = list(range(20, 120))

    def cached(key, **extra):
        reply = server.openai(key).completions.create(model="fake-model", prompt=prompt, max_tokens=1,
                                                      extra_body=extra)
        return reply.usage.prompt_tokens_details.cached_tokens

    assert cached("one") == 0 and cached("one") > 0
    assert cached("two") == 0 and cached("two") > 0
    assert cached("one", cache_salt="s") == 0 and cached("one", cache_salt="s") > 0
    assert cached("two", cache_salt="s") == 0
