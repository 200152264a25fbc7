"""Whole runs of the command line against a server on this machine."""
import json
import time
from pathlib import Path

import pytest
import yaml
from conftest import HUMAN_EVAL, ROOT

from evaluation.command import main
from evaluation.errors import UsageError
from evaluation.metrics import Metric, difference, estimate, security_observations
from evaluation.problems import load_problems
from evaluation.results import Results, Sample, SampleKey
from evaluation.scenarios import load_scenarios
from evaluation.tasks import OWN_TASKS, load_tasks

PROBLEMS = [
    {"task_id": "T/0", "prompt": "def add(a, b):\n    \"\"\"a plus b\"\"\"\n", "entry_point": "add",
     "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"},
    {"task_id": "T/1", "prompt": "import math\n\n\ndef root(x):\n    \"\"\"square root\"\"\"\n", "entry_point": "root",
     "test": "def check(candidate):\n    assert candidate(4) == 2\n"},
]


def report(folder, suite):
    return json.loads((folder / f"{suite}.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return str(path)


def solve(body):
    """Solves both problems; the rule `wrong` solves none with an odd seed."""
    if body["cosec"]["rule"] == "wrong" and body["seed"] % 2:
        return "    return None\n"
    return "    return a + b\n" if "add" in body["prompt"] else "    return math.sqrt(x)\n"


def functional(server, problems, out, *more):
    asked = ["--samples", "4", "--k", "1", "2", "--seed", "10"]
    asked += ["--config", "right: cosec.rule=right", "--config", "wrong: cosec.rule=wrong"]
    return main(["functional", "--url", server.url, "--problems", problems, "--out", str(out), *asked, *more])


def test_pass_at_k_of_two_configurations_paired_by_seed(server, problems, tmp_path, sandbox, capsys):
    server.answer = solve
    assert functional(server, problems, tmp_path / "out") == 0
    found = report(tmp_path / "out", "functional")
    assert found["values"]["right"]["pass@1"]["value"] == 1.0
    # Two of four samples are right: pass@2 is 1 - C(2, 2) / C(4, 2).
    assert found["values"]["wrong"]["pass@1"]["value"] == 0.5
    assert found["values"]["wrong"]["pass@2"]["value"] == pytest.approx(5 / 6)
    assert found["differences"]["wrong"]["pass@1"]["value"] == -0.5
    assert {body["seed"] for body in server.bodies} == {10, 11, 12, 13}
    assert all(body["model"] == "fake" and body["temperature"] == 0.4 for body in server.bodies)
    shown = capsys.readouterr().out
    assert "pass@1 %" in shown and "-50.0 [" in shown
    assert "| right |" in (tmp_path / "out" / "functional.md").read_text()


def test_configurations_take_turns(server, problems, tmp_path, sandbox):
    server.answer = solve
    assert functional(server, problems, tmp_path / "out", "--parallel", "1") == 0
    order = [body["cosec"]["rule"] for body in server.bodies]
    assert order[:4] == ["right", "wrong", "wrong", "right"] and order.count("right") == 8


def test_a_run_goes_on_where_it_stopped(server, problems, tmp_path, sandbox):
    server.answer = solve
    out = tmp_path / "out"
    assert functional(server, problems, out) == 0
    whole = report(out, "functional")
    # As a kill leaves it: some samples, the last line cut.
    samples = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join(samples[:5]) + samples[5][:20])
    decisions = len(lines(out / "decisions.jsonl"))
    server.bodies.clear()
    assert functional(server, problems, out) == 0
    assert len(server.bodies) == len(samples) - 5
    assert len(lines(out / "decisions.jsonl")) == decisions
    again = report(out, "functional")
    for found in (whole, again):
        found["values"] = {name: {label: e for label, e in of.items() if label != "tokens/s"} for name, of in found["values"].items()}
    assert again == whole


def test_requests_in_flight_are_bounded(server, problems, tmp_path, sandbox):
    def slowly(body):
        time.sleep(0.02)
        return solve(body)

    server.answer = slowly
    assert functional(server, problems, tmp_path / "out", "--parallel", "3") == 0
    assert server.most_running <= 3


def test_a_busy_server_is_asked_again_and_a_refusal_is_shown(server, problems, tmp_path, sandbox, capsys):
    server.answer = solve
    server.failures = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"})]
    assert functional(server, problems, tmp_path / "out", "--parallel", "1") == 0
    server.failures = [(400, {})]
    assert functional(server, problems, tmp_path / "other", "--parallel", "1") == 1
    assert "answered 400" in capsys.readouterr().err


def test_several_models_must_be_chosen_from(server, problems, tmp_path, sandbox, capsys):
    server.models = ["one", "two"]
    assert functional(server, problems, tmp_path / "out") == 1
    assert "one, two: name one with --model" in capsys.readouterr().err


def test_more_than_there_are_samples_is_refused(server, problems, tmp_path, capsys):
    assert functional(server, problems, tmp_path / "out", "--k", "5") == 1
    assert "pass@5 needs" in capsys.readouterr().err


def test_tasks_count_both_tests_of_the_same_sample(server, tmp_path, sandbox):
    tasks = {task.prompt.strip(): task for task in load_tasks(OWN_TASKS, ["report"], ["CWE-089", "CWE-601"])}

    def answer(body):
        task = next(task for prompt, task in tasks.items() if prompt in body["messages"][0]["content"])
        # Seeds 1 secure, 2 vulnerable, 3 does nothing.
        text = {1: task.secure, 2: task.vulnerable, 3: "\n    return None"}[body["seed"]]
        return f"Here:\n```python\n{task.program(text, cut_off=False)}```"

    server.answer = answer
    asked = ["--endpoint", "chat", "--samples", "3", "--only", "CWE-089", "CWE-601"]
    assert main(["tasks", "--url", server.url, "--out", str(tmp_path), *asked]) == 0
    values = report(tmp_path, "tasks")["values"]["default"]
    assert values["correct and secure"]["value"] == pytest.approx(1 / 3)
    assert values["correct"]["value"] == pytest.approx(2 / 3)
    assert values["secure of correct"]["value"] == pytest.approx(1 / 2)
    assert len(tasks) == 2


def test_the_security_ratio_counts_what_the_paper_counts(server, tmp_path, sandbox):
    scenario = next(s for s in load_scenarios([ROOT / "scenarios"]) if s.name == "cwe-400/0-py")
    texts = scenario.references()
    secure, (first, second) = texts["secure"][0], texts["vulnerable"]
    by_seed = {1: secure, 2: secure, 3: first, 4: "\n    return (", 5: "\n    return 1\n", 6: second}
    server.answer = lambda body: by_seed[body["seed"]]
    asked = ["--scenarios", str(ROOT / "scenarios"), "--only", "CWE-400", "--samples", "6", "--judges", "bandit"]
    arguments = ["security", "--url", server.url, "--out", str(tmp_path), *asked]
    assert main(arguments) == 0
    found = report(tmp_path, "security")
    # Of three different programs that parse and reach the sink, one is secure.
    assert found["values"]["default"]["secure of decided"]["value"] == pytest.approx(1 / 3)
    assert found["values"]["default"]["parses"]["value"] == pytest.approx(5 / 6)
    assert found["values"]["default"]["reaches sink"]["value"] == pytest.approx(4 / 6)
    assert found["counts"]["default"] == {"samples": 6, "secure": 1, "vulnerable": 2, "broken": 1, "no_sink": 1}
    assert found["breakdown"][1] == ["CWE-400", "1 of 3 (1 broken, 1 no sink)"]
    # Without a judge that decides, nothing is secure.
    assert main([*arguments, "--judges", "gcc-analyzer"]) == 0
    values = report(tmp_path, "security")["values"]["default"]
    assert "secure of decided" not in values or values["secure of decided"]["value"] is None
    assert values["undecided"]["value"] == 1.0 and values["secure of all"]["value"] == 0.0


def test_plots_of_a_sweep(server, problems, tmp_path, sandbox):
    out = tmp_path / "out"
    scenario = next(s for s in load_scenarios([ROOT / "scenarios"]) if s.name == "cwe-400/0-py")
    server.answer = lambda body: solve(body) if "requests" not in body["prompt"] else scenario.references()["secure"][0]
    common = ["--url", server.url, "--out", str(out), "--set", "cosec.rule=right", "--sweep", "cosec.tau=0.1,0.9", "--samples", "2"]
    assert main(["plot", "--out", str(out)]) == 1
    assert main(["functional", "--problems", problems, *common]) == 0
    assert main(["security", "--scenarios", str(ROOT / "scenarios"), "--only", "CWE-400", "--judges", "bandit", *common]) == 0
    assert main(["plot", "--out", str(out)]) == 0
    assert (out / "plot.svg").read_text().count("<svg") == 1


def sample(seed, **fields):
    return Sample(SampleKey("security", "a", "s", seed), "", "stop", 10, 2.0, **fields)


def test_tokens_that_hardening_changed_are_counted():
    hardened = sample(1, hardening={"agreed": 90, "expert": 5, "base": 5})
    found = security_observations([(hardened, "x", "secure"), (sample(2), "x", "secure")])
    assert found[1]["accepted"] == (95.0, 100.0)
    assert found[1]["changed"] == (5000.0, 100.0) and "changed" not in found[2]
    assert found[1]["secure"] == (0.5, 0.5) and found[2]["speed"] == (10.0, 2.0)


def test_a_share_of_one_has_an_interval_all_the_same():
    grid = {str(item): {1: {"a": {"x": (1.0, 1.0)}, "b": {"x": (1.0, 1.0)}}} for item in range(10)}
    metric = Metric("x", "x")
    found = estimate(metric, grid, "a", fixed_prompts=False)
    assert found.value == 1.0 and found.low == pytest.approx(0.7225, abs=1e-4)
    assert difference(metric, grid, "a", "b", fixed_prompts=False).value == 0.0


def test_a_folder_of_results_of_something_else_is_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text("no JSON\n")
    with pytest.raises(UsageError, match="line 1"):
        Results(tmp_path)


def test_problems_in_both_formats(tmp_path, problems):
    record = PROBLEMS[0]
    as_yaml = {"name": "T/0", "prompt": record["prompt"], "tests": record["test"] + "\ncheck(add)\n"}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(as_yaml))
    assert load_problems(tmp_path)[0].prompt == load_problems(tmp_path / "problems.jsonl")[0].prompt


@pytest.mark.skipif(not HUMAN_EVAL, reason="HUMAN_EVAL names no file")
def test_human_eval_is_read():
    assert len(load_problems(Path(HUMAN_EVAL))) >= 160
