"""Our own pairs: they parse, their weakness's judge tells the versions apart, and running shows it where that can
be.
"""

import ast
import json
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import stubs
from fix_pairs.judges import JUDGES, is_vulnerable
from fix_pairs.template import ALIKE, likeness
from trials import TRIALS

DATA = Path(__file__).resolve().parents[2] / "data"
PAIRS = [json.loads(line) for line in (DATA / "fix-pairs.jsonl").read_text().splitlines()]
FEWEST = 15


def ident(pair):
    return pair["id"]


def test_the_file_is_what_the_templates_give():
    subprocess.run([sys.executable, DATA / "make", "--check"], check=True)


def test_every_weakness_has_a_judge_and_enough_pairs_on_either_side():
    counts = Counter(pair["weakness"] for pair in PAIRS)
    assert counts.keys() == JUDGES.keys()
    assert {weakness: count for weakness, count in counts.items() if count < FEWEST} == {}
    assert {pair["weakness"] for pair in PAIRS if pair["split"] == "val"} == counts.keys()


def test_no_template_is_on_both_sides():
    sides = {}
    for pair in PAIRS:
        sides.setdefault(pair["group"], set()).add(pair["split"])
    assert [group for group, found in sides.items() if len(found) > 1] == []


@pytest.mark.parametrize("pair", PAIRS, ids=ident)
def test_versions_parse_and_the_judge_tells_them_apart(pair):
    for side in ("before", "after"):
        ast.parse(pair[side])
    assert is_vulnerable(pair["weakness"], pair["before"])
    assert not is_vulnerable(pair["weakness"], pair["after"])


def test_no_two_pairs_are_nearly_the_same():
    groups = {}
    for pair in PAIRS:
        groups.setdefault(pair["group"], []).append(pair)
    close = []
    for group in groups.values():
        for number, one in enumerate(group):
            for other in group[number + 1 :]:
                if likeness(one, other) > ALIKE:
                    close.append((one["id"], other["id"]))
    assert close == []


def load(pair, side):
    module = types.ModuleType(f"{side}_version")
    module.__dict__["__file__"] = str(Path.cwd() / "module.py")
    exec(compile(pair[side], pair["id"], "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair["group"] in TRIALS], ids=ident)
@pytest.mark.parametrize("side, expected", [("before", True), ("after", False)])
def test_both_versions_work_and_only_the_vulnerable_one_lets_an_attack_through(
    pair, side, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys, "argv", sys.argv)
    stubs.install(monkeypatch)
    assert TRIALS[pair["group"]](load(pair, side), pair[side]) is expected


def test_every_trial_has_a_pair():
    assert TRIALS.keys() <= {pair["group"] for pair in PAIRS}
