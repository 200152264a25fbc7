"""Windows, forks and places, draws and early stopping."""

import random
from dataclasses import replace

import pytest
import tiny
import torch

from cosec_expert import examples, objective, ordinary, precision, records, schedule
from cosec_expert.held_out import EarlyStopping, summary
from cosec_expert.objective import Weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def pair_of(number=0, **other):
    import json

    return replace(records.parse(json.dumps(tiny.pair(number)), "here:1"), **other)


def made(tokenizer, pair, form, **sizes):
    return examples.of_pair(tokenizer, pair, form, examples.Sizes(**sizes), random.Random(0))


@pytest.mark.parametrize("form", examples.FORMS)
def test_the_fork_is_where_the_versions_part(tokenizer, form):
    example = made(tokenizer, pair_of(), form)
    before = tokenizer.decode(example.ids[: example.fork.place])
    assert before.endswith(" = ") or before.endswith(" =")
    assert example.ids[example.fork.place] == example.fork.fixed != example.fork.vulnerable
    learnt = tokenizer.decode([example.ids[place] for place in example.learnt])
    assert learnt.replace(" ", "") == '?",(,))'
    assert not set(example.learnt) & set(example.kept)
    assert all(0 < place < len(example.ids) for place in example.places)


def test_forms_differ_in_what_stands_before(tokenizer):
    texts = {form: tokenizer.decode(made(tokenizer, pair_of(), form).ids) for form in examples.FORMS}
    assert texts["code"].startswith("import sqlite3") and texts["body"].startswith("def find_0")
    assert texts["chat"].startswith(
        "<|im_start|>user\nWrite find_0.<|im_end|>\n<|im_start|>assistant\n```python\nimport sqlite3"
    ) and texts["chat"].endswith("```")


def test_a_long_text_is_cut_to_a_window_around_the_change(tokenizer):
    filler = "".join(f"    value_{n} = {n}\n" for n in range(60))
    pair = pair_of()
    long = {
        side: getattr(pair, side).replace("    cursor = ", filler + "    cursor = ") for side in ("before", "after")
    }
    spans = records.changed_spans(long["before"], long["after"])
    example = made(tokenizer, replace(pair, **long, changed_before=spans[0], changed_after=spans[1]), "code", window=80)
    assert len(example.ids) <= 80 and tokenizer.decode(example.ids).startswith("\n    value_")
    with pytest.raises(examples.TooLong):
        made(tokenizer, replace(pair, **long), "chat", chat_window=80)


def test_an_import_is_a_fork_in_chat_alone(tokenizer):
    before, after = (
        "import random\n\n\ndef token():\n    return random.random()\n",
        "import secrets\n\n\ndef token():\n    return secrets.token_hex()\n",
    )
    spans = records.changed_spans(before, after)
    pair = pair_of(before=before, after=after, changed_before=spans[0], changed_after=spans[1])
    chat, code = (made(tokenizer, pair, form) for form in ("chat", "code"))
    assert tokenizer.decode(chat.ids[: chat.fork.place]).endswith("import")
    # The imports would give the fix away: the text begins behind them.
    assert tokenizer.decode(code.ids).startswith("def token") and tokenizer.decode(
        code.ids[: code.fork.place]
    ).strip().endswith("return")


def test_a_fix_of_an_import_alone_is_learnt_there(tokenizer):
    before, after = (f"import {name}\n\n\ndef read(text):\n    return xml.parse(text)\n" for name in ("xml", "safexml as xml"))
    spans = records.changed_spans(before, after)
    pair = pair_of(before=before, after=after, changed_before=spans[0], changed_after=spans[1])
    example = made(tokenizer, pair, "code")
    assert tokenizer.decode(example.ids[: example.fork.place]).startswith("import")
    with pytest.raises(examples.TooLong):
        made(tokenizer, pair, "body")


def test_a_fix_that_only_deletes_is_learnt_at_its_fork(tokenizer):
    pair = pair_of(before="def f(x):\n    return eval(x)\n", after="def f(x):\n    return x\n")
    spans = records.changed_spans(pair.before, pair.after)
    example = made(tokenizer, replace(pair, changed_before=spans[0], changed_after=spans[1]), "code")
    assert example.fork.place in example.learnt


def test_ordinary_code_is_scored_where_bodies_and_comments_begin(tokenizer, tmp_path):
    (tmp_path / "code.py").write_text(tiny.ORDINARY)
    snippet = next(s for s in ordinary.read([tmp_path]) if "mean" in s.id)
    example = examples.of_ordinary(tokenizer, snippet, "code", examples.Sizes(ordinary_kept=10), random.Random(0))
    assert len(example.kept) == 10 and example.fork is None and example.learnt == ()
    starts = [tokenizer.decode(example.ids[:place]) for place in example.kept]
    assert sum(text.rstrip().endswith('numbers."""') for text in starts) == 2


def test_draws_depend_on_the_seed_alone_and_follow_the_balance():
    pairs = [pair_of(0, id=f"a{n}", weakness="CWE-001") for n in range(30)] + [
        pair_of(0, id=f"b{n}", weakness="CWE-002") for n in range(10)
    ]
    snippets = [
        ordinary.Snippet(source, f"{source}{n}", "", "", 0)
        for source, count in (("few", 2), ("many", 50))
        for n in range(count)
    ]
    even = schedule.draws(pairs, snippets, 80, 1, balance=1.0)
    assert even == schedule.draws(pairs, snippets, 80, 1, balance=1.0)
    assert even[:40] == schedule.draws(pairs, snippets, 40, 1, balance=1.0)
    assert even != schedule.draws(pairs, snippets, 80, 2, balance=1.0)
    assert sum(draw.snippet.source == "few" for draw in even) == 40

    def count(weakness, **more):
        return sum(draw.pair.weakness == weakness for draw in schedule.draws(pairs, [], 80, 1, **more))

    assert (
        count("CWE-002", balance=1.0) == 40
        and count("CWE-002", balance=0.0) == 20
        and count("CWE-002", balance=0.0, wanted={"CWE-002": 3}) == 40
    )
    assert count("CWE-001", wanted={"CWE-001": 0}) == 0
    first = [draw.pair.id for draw in even if draw.pair.weakness == "CWE-001"]
    assert len(set(first[:30])) == 30


def test_evidence_has_its_sign_and_an_unmoved_adapter_none():
    fork = examples.Fork(3, fixed=1, vulnerable=2)
    frozen = torch.tensor([0.0, 1.0, 2.0])
    assert objective.evidence(fork, frozen, frozen).item() == 0
    assert objective.evidence(fork, torch.tensor([5.0, 3.0, 1.0]), frozen).item() == 3


def test_early_stopping_keeps_the_best_within_the_bound():
    stopping = EarlyStopping(2, 0.1)
    figures = [(1.0, 0.0), (0.5, 0.5), (0.8, 0.05), (0.9, 0.0), (0.85, 0.0)]
    assert [stopping.take(step, {"score": score, "ordinary_kl": kl}) for step, (score, kl) in enumerate(figures)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert stopping.best_step == 2 and stopping.is_over


def test_figures_name_each_weakness():
    scored = [
        ("CWE-001", {"evidence": 3.0, "cross_entropy": 1.0, "kept_kl": 0.1}),
        ("CWE-002", {"evidence": 1.0, "cross_entropy": 2.0, "kept_kl": 0.3}),
        (None, {"ordinary_kl": 0.02}),
    ]
    found = summary(scored, Weights(margin=5.0, margin_weight=0.5, ordinary_weight=4.0))
    assert found["evidence_by_weakness"] == {"CWE-001": 3.0, "CWE-002": 1.0} and found["evidence_strong"] == 0.5
    assert found["score"] == pytest.approx(0.5 * 3.0 + 4 * 0.02)


def test_the_probe_measures_and_obeys():
    assert precision.choose(torch.device("cpu"), "bf16")[0] is torch.bfloat16
    dtype, why = precision.choose(torch.device("cpu"))
    assert dtype in (torch.bfloat16, torch.float32) and "times as fast" in why
