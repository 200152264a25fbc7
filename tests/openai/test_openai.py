"""What the official OpenAI client sees."""

import concurrent.futures
import json
import time
import urllib.error
import urllib.request

import openai
import pytest

PROMPT = "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute("
MODEL = "demo"


def complete(client, **settings):
    """One completion; `cosec` goes into the body's object of that name."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "seed": 7} | settings
    cosec = body.pop("cosec", None)
    return client.completions.create(**body, extra_body={"cosec": cosec} if cosec else None)


def streamed_text(client, **settings):
    return "".join(
        chunk.choices[0].text for chunk in complete(client, stream=True, **settings) if chunk.choices
    )


def test_lists_the_model(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_completes_with_usage(client):
    answer = complete(client)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chats(client):
    messages = [{"role": "user", "content": "write a function that reads a user's row from sqlite"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=16, seed=1)
    assert answer.choices[0].message.role == "assistant"
    chunks = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=16, seed=1, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in chunks:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == answer.choices[0].message.content
    assert usage.completion_tokens == answer.usage.completion_tokens


def test_a_stream_goes_on_behind_the_last_event_id(client):
    """The client's own decoder of events gives the ids; the rest comes through the client as any stream does."""
    settings = {"max_tokens": 40, "logit_bias": {"0": -100}}
    body = {"model": MODEL, "prompt": PROMPT, "stream": True} | settings
    with client.completions.with_streaming_response.create(**body) as response:
        text = response.read().decode()
    events = [event for event in openai._streaming.SSEDecoder().iter_bytes(iter([text.encode()]))]
    assert events[-1].data == "[DONE]"
    said = [event.json()["choices"][0]["text"] for event in events[:-1]]
    for seen in (1, len(said) // 2, len(said)):
        headers = {"Last-Event-ID": events[seen - 1].id}
        rest = client.completions.create(**body, extra_headers=headers)
        assert "".join(said[:seen] + [chunk.choices[0].text for chunk in rest]) == "".join(said)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**body, extra_headers={"Last-Event-ID": "x" + events[0].id})
    assert refused.value.param == "Last-Event-ID"
    with pytest.raises(openai.ConflictError):
        client.completions.create(**(body | {"max_tokens": 41}), extra_headers=headers)


@pytest.mark.parametrize("rule", ["cosec", "linear", "base_only", "expert_only", "product"])
def test_same_seed_same_text_streamed_or_not(client, rule):
    cosec = {"rule": rule}
    whole = complete(client, cosec=cosec).choices[0].text
    assert complete(client, cosec=cosec).choices[0].text == whole
    assert streamed_text(client, cosec=cosec) == whole


@pytest.mark.parametrize("transport", ["gather", "nucleus", "sample", "full"])
def test_every_transport_gives_the_same_text(client, transport):
    for seed in range(5):
        automatic = complete(client, seed=seed).choices[0].text
        if transport == "sample":
            # The base alone is what a worker can draw by itself.
            automatic = complete(client, seed=seed, cosec={"rule": "base_only"}).choices[0].text
            chosen = complete(client, seed=seed, cosec={"rule": "base_only", "transport": transport})
        else:
            chosen = complete(client, seed=seed, cosec={"transport": transport})
        assert chosen.choices[0].text == automatic


def test_alone_or_among_sixteen(client):
    alone = [complete(client, seed=seed).choices[0].text for seed in range(16)]
    assert len(set(alone)) > 1, "seeds must matter"
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: complete(client, seed=seed).choices[0].text, range(16)))
    assert together == alone


def test_samples_four(client):
    answer = complete(client, n=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.choices[0].text == complete(client).choices[0].text
    texts = ["", "", "", ""]
    for chunk in complete(client, n=4, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]


def test_several_prompts(client):
    answer = complete(client, prompt=[PROMPT, "import os\n"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_log_probabilities(client):
    choice = complete(client, logprobs=3).choices[0]
    scores = choice.logprobs
    assert "".join(scores.tokens) == choice.text
    assert len(scores.token_logprobs) == len(scores.tokens) == len(scores.top_logprobs) == len(scores.text_offset)
    assert all(score <= 0 for score in scores.token_logprobs)
    assert all(1 <= len(top) <= 4 for top in scores.top_logprobs)
    # They are the base's, whatever the rule.
    alone = complete(client, logprobs=3, max_tokens=1, cosec={"rule": "base_only"}).choices[0].logprobs
    assert alone.top_logprobs[0].items() & scores.top_logprobs[0].items()
    # Asking for scores does not change the draw.
    assert choice.text == complete(client).choices[0].text


def test_echo_scores_the_prompt(client):
    choice = complete(client, echo=True, logprobs=1, max_tokens=4).choices[0]
    assert choice.text.startswith(PROMPT)
    assert choice.logprobs.token_logprobs[0] is None
    assert all(score <= 0 for score in choice.logprobs.token_logprobs[1:])


def test_stops_before_a_stop_string(client):
    text = complete(client, max_tokens=48).choices[0].text
    # A piece from the middle crosses token borders sooner or later.
    for start in range(1, min(len(text) - 3, 20)):
        stop = text[start : start + 3]
        answer = complete(client, max_tokens=48, stop=[stop]).choices[0]
        assert answer.text == text[: text.index(stop)]
        assert answer.finish_reason == "stop"
        assert streamed_text(client, max_tokens=48, stop=[stop]) == answer.text


def test_reports_what_hardening_did(client):
    answer = complete(client, cosec={"report": True})
    report = answer.choices[0].model_extra["cosec"]["report"]
    assert "".join(entry["token"] for entry in report) == answer.choices[0].text
    for entry in report:
        assert entry["hardening"] in ("agreed", "expert", "base")
        passed = entry["hardening"] != "base"
        # A token of the base stands in for a proposal that failed the test.
        proposal = entry if passed else entry["rejected"]
        assert (min(1, proposal["p"] / proposal["q"]) > 0.3) == passed
        assert 0 < entry["p"] <= 1
    counts = answer.usage.model_extra["hardening"]
    assert counts == {what: sum(entry["hardening"] == what for entry in report) for what in counts}
    assert sum(counts.values()) == answer.usage.completion_tokens


@pytest.mark.parametrize("rule", ["cosec", "linear", "product", "expert_only"])
def test_the_first_difference_from_the_base_is_the_expert_s(client, rule):
    """Up to it the base's own draws are those of base_only with the same seed."""
    for seed in range(4):
        hardened = complete(client, seed=seed, cosec={"rule": rule, "report": True})
        base = complete(client, seed=seed, cosec={"rule": "base_only", "report": True})
        reports = [answer.choices[0].model_extra["cosec"]["report"] for answer in (hardened, base)]
        for ours, own in zip(*reports):
            assert (ours["id"] != own["id"]) == (ours["hardening"] == "expert")
            if ours["id"] != own["id"]:
                break


def test_tau_goes_down_only(client):
    complete(client, cosec={"tau": 0.0})
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, cosec={"tau": 0.31})
    assert refused.value.param == "cosec.tau"
    assert "at most 0.3" in refused.value.message


def test_greedy_needs_no_seed(client):
    first = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0)
    second = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0)
    assert first.choices[0].text == second.choices[0].text


def test_logit_bias_forces_and_bans(client):
    forced = complete(client, max_tokens=3, logprobs=0, logit_bias={"65": 100}).choices[0].logprobs.tokens
    assert len(set(forced)) == 1
    banned = complete(client, logprobs=0, logit_bias={"65": -100}).choices[0].logprobs.tokens
    assert forced[0] not in banned


def test_penalties_change_the_text(client):
    plain = complete(client, max_tokens=64, temperature=0).choices[0].text
    penalised = complete(client, max_tokens=64, temperature=0, frequency_penalty=2.0).choices[0].text
    assert plain != penalised


@pytest.mark.parametrize(
    ("settings", "parameter"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": "x = 1\n" * 5000}, "prompt"),
        ({"stop": [""]}, "stop"),
        ({"logprobs": 1000}, "logprobs"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"suffix": "return x"}, "suffix"),
        ({"extra_body": {"top_k": -1}}, "top_k"),
        ({"extra_body": {"unknown": 1}}, "unknown"),
        ({"extra_body": {"cosec": {"tau": -0.1}}}, "cosec.tau"),
        ({"extra_body": {"cosec": {"rule": "magic"}}}, "cosec.rule"),
        ({"extra_body": {"cosec": {"colour": 1}}}, "cosec.colour"),
    ],
)
def test_bad_settings_are_named(client, settings, parameter):
    body = {"model": MODEL, "prompt": PROMPT} | settings
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**body)
    assert caught.value.param == parameter, caught.value.message
    assert caught.value.body["message"]
    complete(client, max_tokens=1)


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt=PROMPT)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"model": "demo", "prompt": "x", "temperature": NaN}',
        b'{"model": "demo", "prompt": "x", "temperature": "hot"}',
        b'{"model": "demo", "prompt": {"a": 1}}',
        b'{"model": "demo", "prompt": "x", "n": 1.5}',
        b'{"model": "demo"}',
        b"\xff\xfe",
    ],
)
def test_malformed_bodies(cluster, client, body):
    request = urllib.request.Request(
        f"{cluster.url}/v1/completions", data=body, headers={"content-type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]["message"]
    complete(client, max_tokens=1)


def test_a_disconnect_frees_the_blocks(cluster, client):
    baseline = cluster.free_blocks()
    held = {}
    for _ in range(20):
        # A long stream that is left after its first chunk.
        stream = complete(client, stream=True, max_tokens=400, n=4, logit_bias={"0": -100})
        next(iter(stream))
        held = cluster.free_blocks()
        stream.close()
        if all(held[role] < baseline[role] for role in baseline):
            break
    assert all(held[role] < baseline[role] for role in baseline), "the stream never held blocks"
    deadline = time.monotonic() + 30
    while cluster.free_blocks() != baseline:
        assert time.monotonic() < deadline, f"{cluster.free_blocks()} of {baseline} blocks are free"
        time.sleep(0.05)


def test_metrics_count(cluster, client):
    url = cluster.metrics
    before = cluster.metric(url, "cosec_tokens_total")
    tokens = complete(client).usage.completion_tokens
    assert cluster.metric(url, "cosec_tokens_total") - before == tokens
    for name in (
        "cosec_time_to_first_token_seconds_count",
        "cosec_inter_token_latency_seconds_count",
        "cosec_step_seconds_count",
        "cosec_wire_bytes_total",
        "cosec_spec_decode_draft_tokens_total",
    ):
        assert cluster.metric(url, name) > 0
