"""Records of either schema, bad ones among them, and ordinary code. Needs no PyTorch."""

import json

import pytest

from cosec_expert import ordinary, records
from cosec_expert.records import BadRecord

SVEN = {
    "func_src_before": "x = eval(y)\n",
    "func_src_after": "x = int(y)\n",
    "vul_type": "cwe-94",
    "file_name": "a.py",
    "commit_link": "site/commit/1",
    "char_changes": {
        "deleted": [{"char_start": 4, "char_end": 8, "chars": "eval"}],
        "added": [{"char_start": 4, "char_end": 7, "chars": "int"}],
    },
}
OWN = {"before": "x = eval(y)\n", "after": "x = int(y)\n"}


def parsed(record):
    return records.parse(json.dumps(record), "file:3")


def test_sven_and_own_records_mean_the_same():
    sven, own = parsed(SVEN), parsed(OWN | {"weakness": "CWE-94", "group": "site/commit/1"})
    for name in ("before", "after", "weakness", "language", "group", "changed_before", "changed_after"):
        assert getattr(sven, name) == getattr(own, name), name


def test_a_pair_can_be_reversed():
    pair = parsed(SVEN)
    assert pair.reversed().after == pair.before and pair.reversed().changed_after == pair.changed_before == ((4, 8),)
    assert pair.reversed().reversed() == pair


@pytest.mark.parametrize(
    "before, after, expected",
    [
        ("f(a, b)", "f(a, c)", (((5, 6),), ((5, 6),))),
        ("f(a)", "f(a, safe=True)", ((), ((3, 14),))),
        ("f(a, b)\n", "f(a)\n", (((3, 6),), ())),
    ],
)
def test_changed_spans_are_found(before, after, expected):
    assert records.changed_spans(before, after) == expected


@pytest.mark.parametrize(
    "record, why",
    [
        (OWN | {"after": ""}, "after is missing or empty"),
        (OWN | {"after": 3}, "after is int, expected text"),
        (OWN | {"after": OWN["before"]}, "both versions are the same"),
        (OWN | {"split": "test"}, "split is 'test', expected train or val"),
        (
            OWN | {"changed": {"after": [[3, 999]]}},
            r"changed.after has \[3, 999\], expected \[start, end\] within 11 characters",
        ),
        (OWN | {"changed": [1]}, "changed is no object"),
        (OWN | {"before": "x" * 200_000}, "before has 200000 characters"),
        (SVEN | {"char_changes": None}, "char_changes is no object"),
        (SVEN | {"char_changes": {"added": [{"char_start": 1}]}}, "char_changes.added is not as SVEN has it"),
        ([1], "a JSON list, expected an object"),
    ],
)
def test_a_bad_record_is_refused_by_name(record, why):
    with pytest.raises(BadRecord, match=why):
        parsed(record)


def test_files_are_read_with_places_and_splits(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "train" / "a.jsonl").write_bytes(json.dumps(OWN).encode() + b'\n\nnonsense\n"\xff"\n')
    (tmp_path / "val" / "a.jsonl").write_text(json.dumps(SVEN) + "\n")
    reading = records.read([tmp_path])
    assert [pair.split for pair in reading.pairs] == ["train", "val"]
    assert [(place.rpartition(":")[2], why[:7]) for place, why in reading.skipped] == [
        ("3", "no JSON"),
        ("4", "not UTF"),
    ]
    with pytest.raises(FileNotFoundError, match="has no .jsonl file"):
        (tmp_path / "empty").mkdir()
        records.read([tmp_path / "empty"])


@pytest.mark.parametrize(
    "text, expected",
    [("cwe-089", "CWE-089"), ("CWE-79", "CWE-079"), ("CWE_1333", "CWE-1333"), ("overflow", "overflow")],
)
def test_names_of_weaknesses(text, expected):
    assert records.weakness_name(text) == expected


def test_ordinary_functions_have_a_docstring_and_a_body(tmp_path):
    (tmp_path / "a.py").write_text(
        'def f(x):\n    """Adds one.\n\n    More.\n    """\n    y = x + 1\n    return y\n\n\ndef g():\n    return 1\n\n\ndef h():\n    """Only this."""\n'
    )
    (tmp_path / "broken.py").write_text("def (")
    (snippet,) = ordinary.read([tmp_path])
    assert (
        snippet.task == "Write a Python function `f`: Adds one."
        and snippet.code[snippet.body :] == "    y = x + 1\n    return y\n"
    )


def test_the_standard_library_has_enough_of_them():
    assert len(ordinary.read([ordinary.usual_sources()[1] / "email"])) > 50
