"""What `--config`, `--set` and `--sweep` come to."""
import pytest

from evaluation.configurations import read_configurations
from evaluation.errors import UsageError

DEFAULTS = {"url": "http://127.0.0.1:1/", "model": None, "endpoint": "completions", "temperature": 0.4}


def test_dots_go_inwards_and_values_have_types():
    (found,) = read_configurations(["a: cosec.rule=gated cosec.threshold=2.5 cosec.report=true"], ["top_p=0.9"], [], DEFAULTS)
    assert found.request == {"temperature": 0.4, "top_p": 0.9, "cosec": {"rule": "gated", "threshold": 2.5, "report": True}}
    assert (found.name, found.url, found.endpoint) == ("a", "http://127.0.0.1:1", "completions")


def test_a_sweep_multiplies_configurations():
    found = read_configurations(["a: x=1", "b: x=2"], [], ["cosec.tau=0.1,0.3"], DEFAULTS)
    assert [c.name for c in found] == ["a tau=0.1", "a tau=0.3", "b tau=0.1", "b tau=0.3"]
    assert found[1].swept == (("cosec.tau", 0.3),) and found[1].request["cosec"] == {"tau": 0.3}


def test_settings_are_named_by_what_is_asked_not_by_where():
    def settings(url, text):
        return read_configurations([text], [], [], {**DEFAULTS, "url": url})[0].settings_id

    assert settings("http://a", "one: x=1") == settings("http://b", "two: x=1")
    assert settings("http://a", "one: x=1") != settings("http://a", "one: x=2")


@pytest.mark.parametrize("named, sets, message", [
    (["a"], [], "NAME: KEY=VALUE"),
    (["a: x"], [], "KEY=VALUE"),
    (["a: seed=3"], [], "seed is set by the tool"),
    (["a: endpoint=grpc"], [], "allowed are completions, chat"),
    (["a: cosec=1 cosec.rule=x"], [], "has a value of its own"),
    (["a: x=1", "b: x=1"], [], "one and the same"),
    (["a: url=http://c", "b: url=http://d"], [], "differ by their server alone"),
])
def test_what_cannot_be_meant_is_refused(named, sets, message):
    with pytest.raises(UsageError, match=message):
        read_configurations(named, sets, [], DEFAULTS)
