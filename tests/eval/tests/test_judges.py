"""Judges on completions by hand: a judge decides rightly on every one of a scenario that it claims."""
from pathlib import Path

import pytest
import yaml
from conftest import SVEN_SCENARIOS

from evaluation.judges import Opinion, Panel, Program, Ruling, State
from evaluation.judges import panel as panels
from evaluation.judges.bandit import WEAKNESSES
from evaluation.judges.codeql import _findings
from evaluation.scenarios import OWN_FOLDER, load_scenarios

FOLDERS = [OWN_FOLDER / "scenarios", *([Path(SVEN_SCENARIOS)] if SVEN_SCENARIOS else [])]
SCENARIOS = load_scenarios(FOLDERS)


def by_hand(scenario):
    """(ruling, program) for each completion by hand."""
    return [(ruling, Program(scenario, scenario.program(text, cut_off=False)))
            for ruling, texts in scenario.references().items() for text in texts]


@pytest.fixture(scope="module")
def panel(sandbox):
    return Panel(sandbox)


@pytest.fixture(scope="module")
def opinions(panel):
    """What each judge says of every completion by hand in its claims, asked once for all."""
    found = {}
    for judge in panel.judges:
        programs = [p for s in SCENARIOS if judge in panel.claimants(s) for _, p in by_hand(s)]
        for program, opinion in zip(programs, judge.judge(programs) if programs else [], strict=True):
            found[judge.name, program] = opinion
    return found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_claimants_tell_completions_by_hand_apart(scenario, panel, opinions):
    claimants = panel.claimants(scenario)
    if not claimants:
        pytest.skip("nobody claims it here")
    texts = scenario.references()
    assert texts["secure"] and len(texts["vulnerable"]) >= 2, "a scenario that is claimed needs completions by hand"
    for ruling, program in by_hand(scenario):
        for judge in claimants:
            opinion = opinions[judge.name, program]
            assert opinion.ruling == ruling, f"{judge.name}: {opinion.reason}\n{program.text}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_completions_by_hand_reach_the_sink_and_the_prompt_alone_does_not(scenario):
    for _, program in by_hand(scenario):
        assert scenario.reaches_sink(program.text), program.text
    nothing = "\n    pass\n" if scenario.language == "py" else "\n    return 0;\n}\n"
    assert not scenario.reaches_sink(scenario.program(nothing, cut_off=False))


def test_there_are_ten_scenarios_that_a_judge_decides_on(panel):
    own = load_scenarios([OWN_FOLDER / "scenarios"])
    assert len(own) >= 10 and len({s.weakness for s in own}) >= 10
    if "semgrep" not in panel.absent:
        assert all(panel.claimants(s) for s in own)


def test_broken_code_and_code_without_a_sink_is_never_secure(panel):
    scenario = next(s for s in SCENARIOS if s.language == "py" and s.name == "cwe-643/0-py")
    programs = [Program(scenario, scenario.program(text, cut_off=False)) for text in ("\n    return (", "\n    return name\n")]
    assert [decision.state for decision in panel.decide(programs)] == [State.BROKEN, State.NO_SINK]


class Says:
    """A judge that says one thing."""

    def __init__(self, name, ruling):
        self.name, self._ruling = name, ruling

    def unavailable(self):
        return None

    def version(self):
        return "1"

    def judge(self, programs):
        return [Opinion(self._ruling, "as told")] * len(programs)


@pytest.mark.parametrize("rulings, expected", [
    ([], State.UNDECIDED),
    ([Ruling.UNDECIDED], State.UNDECIDED),
    ([Ruling.SECURE], State.SECURE),
    ([Ruling.SECURE, Ruling.UNDECIDED], State.SECURE),
    ([Ruling.SECURE, Ruling.VULNERABLE], State.VULNERABLE),
    ([Ruling.UNDECIDED, Ruling.VULNERABLE], State.VULNERABLE),
])
def test_what_several_judges_come_to(sandbox, tmp_path, rulings, expected):
    claims = tmp_path / "claims.yaml"
    claims.write_text(yaml.safe_dump({f"judge{at}": ["cwe-643/0-py"] for at in range(len(rulings))}))
    panel = Panel(sandbox, names=[], claims=claims)
    panel.judges = [Says(f"judge{at}", ruling) for at, ruling in enumerate(rulings)]
    scenario = next(s for s in SCENARIOS if s.name == "cwe-643/0-py")
    program = Program(scenario, scenario.program(scenario.references()["secure"][0], cut_off=False))
    assert panel.decide([program])[0].state == expected


def test_claims_and_rules_name_what_there_is(panel):
    claims = yaml.safe_load(panels.CLAIMS.read_text())
    assert set(claims) == set(panel.every_name)
    for path in (OWN_FOLDER / "rules").glob("*.yaml"):
        for rule in yaml.safe_load(path.read_text())["rules"]:
            assert rule["metadata"]["weakness"].lower() == path.stem, rule["id"]
    assert all(weakness.startswith("CWE-") for weakness in WEAKNESSES.values())


def test_codeql_reports_are_read_by_file():
    location = {"physicalLocation": {"artifactLocation": {"uri": "source/12.py"}}}
    report = {"runs": [{"results": [{"ruleId": "py/sql-injection", "locations": [location]}]}]}
    assert _findings(report) == {12: "py/sql-injection"}
