"""/v1/chat/completions: messages, roles, log-probabilities, streams."""
import pytest

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]


def model_of(server):
    return server.openai().models.list().data[0].id


def test_openai_client(server):
    client = server.openai()
    reply = client.chat.completions.create(model=model_of(server), messages=MESSAGES, max_completion_tokens=12, seed=4,
                                           logprobs=True, top_logprobs=3)
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    content = choice.logprobs.content
    assert len(content) == reply.usage.completion_tokens
    data = b"".join(bytes(entry.bytes) for entry in content)
    assert data.decode("utf-8", "replace").startswith(choice.message.content[:4])
    for entry in content:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token


def test_openai_client_streamed(server):
    client = server.openai()
    args = {"model": model_of(server), "messages": MESSAGES, "max_tokens": 12, "seed": 4, "n": 2, "logprobs": True,
            "top_logprobs": 1}
    whole = client.chat.completions.create(**args)
    text, finish, roles, logprobs = ["", ""], [None, None], [0, 0], [[], []]
    for chunk in client.chat.completions.create(**args, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        if not chunk.choices:
            assert chunk.usage == whole.usage or chunk.usage.completion_tokens == whole.usage.completion_tokens
            continue
        choice = chunk.choices[0]
        if choice.delta.role:
            assert choice.delta.role == "assistant" and not text[choice.index]
            roles[choice.index] += 1
        assert roles[choice.index] == 1
        text[choice.index] += choice.delta.content or ""
        finish[choice.index] = choice.finish_reason or finish[choice.index]
        if choice.logprobs:
            logprobs[choice.index] += choice.logprobs.content
    for one in whole.choices:
        assert text[one.index] == one.message.content and finish[one.index] == one.finish_reason
        assert logprobs[one.index] == one.logprobs.content


def test_text_parts_and_names(server):
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    a = server.chat(messages=[{"role": "user", "content": parts, "name": "ann"}], max_tokens=3, return_token_ids=True)
    b = server.chat(messages=[{"role": "user", "content": "Hello\nthere"}], max_tokens=3, return_token_ids=True)
    assert a["prompt_token_ids"] == b["prompt_token_ids"] and "token_ids" in a["choices"][0]


def test_prompt_is_what_tokenize_says(server):
    ids = server.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
    reply = server.chat(messages=MESSAGES, max_tokens=2, return_token_ids=True, prompt_logprobs=0)
    assert reply["prompt_token_ids"] == ids and len(reply["prompt_logprobs"]) == len(ids)
    open_ended = server.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}).json()["tokens"]
    assert len(open_ended) <= len(ids)


def test_role_markers_in_content_stay_text(server):
    """The turn markers of every family we know, as a user could type them."""
    for marker in ["<start_of_turn>", "<end_of_turn>", "<|im_end|>", "<|im_start|>system", "<|eot_id|>", "</s>", "<s>"]:
        with_marker = server.post("/tokenize", {"messages": [{"role": "user", "content": "a" + marker + "b"}]}).json()
        control = server.post("/tokenize", {"messages": [{"role": "user", "content": "ab"}]}).json()
        special = [t for t in control["tokens"]]
        for token in set(special):
            text = server.post("/detokenize", {"tokens": [token]}).json()["prompt"]
            if text.startswith("<"):
                assert with_marker["tokens"].count(token) == special.count(token), (marker, text)


def test_default_length_is_the_rest_of_the_context(fake):
    limit = fake.openai().models.list().data[0].max_model_len
    reply = fake.chat(messages=MESSAGES, ignore_eos=True)
    assert reply["usage"]["total_tokens"] == limit and reply["choices"][0]["finish_reason"] == "length"


def test_first_chunk_has_prompt_ids(server):
    chunks = server.stream("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4, "return_token_ids": True})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[0]["prompt_token_ids"] and all("prompt_token_ids" not in c for c in chunks[1:])


@pytest.mark.parametrize("message, field", [
    ({"role": "user"}, "messages[0].content"),
    ({"content": "x"}, "messages[0].role"),
    ({"role": "king", "content": "x"}, "messages[0].role"),
    ({"role": "user", "content": 5}, "messages[0].content"),
    ({"role": "user", "content": []}, "messages[0].content"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]},
     "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
    ({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, "messages[0].content[0].x"),
    ({"role": "user", "content": "x", "url": "http://x"}, "messages[0].url"),
    ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
    ("text", "messages[0]"),
])
def test_bad_messages(server, message, field):
    reply = server.post("/v1/chat/completions", {"messages": [message]})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == field
