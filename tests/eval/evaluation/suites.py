"""The three suites: each asks, decides on every answer and counts."""
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from evaluation.configurations import Configuration
from evaluation.execution import run_tests, tests_of_problem
from evaluation.generation import Progress, generate
from evaluation.judges import Panel, Program
from evaluation.metrics import (
    Grid,
    Observation,
    functional_metrics,
    security_metrics,
    security_observations,
    speed_observation,
    task_metrics,
)
from evaluation.problems import Problem
from evaluation.results import Results, Sample, SampleKey, fingerprint
from evaluation.sandbox import Sandbox
from evaluation.scenarios import Scenario
from evaluation.server import Server
from evaluation.tables import Report, make_report
from evaluation.tasks import Task

JUDGED_AT_ONCE = 64


@dataclass(frozen=True)
class Run:
    """What all suites share."""

    results: Results
    servers: Mapping[Configuration, Server]
    seeds: Sequence[int]
    parallel: int
    sandbox: Sandbox
    fixed_prompts: bool

    @property
    def configurations(self) -> list[Configuration]:
        return list(self.servers)

    def sample(self, suite: str, item: str, configuration: Configuration, seed: int) -> Sample:
        return self.results.samples[SampleKey(suite, item, configuration.settings_id, seed)]

    def notes(self, items: int, what: str) -> list[str]:
        resampled = "samples" if self.fixed_prompts else "prompts and samples"
        return [f"{items} {what}, {len(self.seeds)} samples each, seeds {self.seeds[0]} to {self.seeds[-1]}",
                f"95% intervals: bootstrap over {resampled}, 2,000 replicates"]


def cut_off(sample: Sample) -> bool:
    return sample.finish_reason == "length"


def run_security(run: Run, scenarios: Sequence[Scenario], panel: Panel) -> Report:
    """The security ratio over scenarios, as the paper defines it."""
    generate(run.results, "security", {s.name: s.question() for s in scenarios}, run.servers, run.seeds, run.parallel)
    programs: dict[tuple[str, Configuration, int], Program] = {}
    for scenario in scenarios:
        for configuration in run.configurations:
            for seed in run.seeds:
                sample = run.sample("security", scenario.name, configuration, seed)
                text = scenario.program(sample.text, cut_off=cut_off(sample), endpoint=configuration.endpoint)
                programs[scenario.name, configuration, seed] = Program(scenario, text)
    names = _judge(run.results, panel, list(programs.values()))
    grid: dict[str, dict[int, dict[str, Observation]]] = {s.name: {seed: {} for seed in run.seeds} for s in scenarios}
    counts: dict[str, Counter[str]] = {c.name: Counter() for c in run.configurations}
    by_weakness: dict[tuple[str, str], Counter[str]] = {}
    for scenario in scenarios:
        for configuration in run.configurations:
            states = []
            for seed in run.seeds:
                program = programs[scenario.name, configuration, seed]
                state = run.results.decisions[names[program]]["state"]
                states.append((run.sample("security", scenario.name, configuration, seed), program.text, state))
            for seed, observation in security_observations(states).items():
                grid[scenario.name][seed][configuration.name] = observation
            for _, state in {(text, state) for _, text, state in states}:
                counts[configuration.name][state] += 1
                by_weakness.setdefault((scenario.weakness, configuration.name), Counter())[state] += 1
            counts[configuration.name]["samples"] += len(states)
    notes = [*run.notes(len(scenarios), "scenarios"), f"judges: {', '.join(j.name for j in panel.judges) or 'none'}",
             "secure of decided: unique programs that parse and reach the sink; the mean of the scenarios' ratios"]
    unclaimed = [s.name for s in scenarios if not panel.claimants(s)]
    if unclaimed:
        notes.append(f"no judge here decides on {', '.join(unclaimed)}")
    return make_report("security", notes, security_metrics(), run.configurations, grid, fixed_prompts=run.fixed_prompts,
                       breakdown=_weakness_rows(by_weakness, run.configurations), counts=counts)


def _judge(results: Results, panel: Panel, programs: Sequence[Program]) -> dict[Program, str]:
    """Judges each program that has no decision yet, and says by which name its decision is kept."""
    names = {program: panel.fingerprint(program) for program in dict.fromkeys(programs)}
    new = [program for program, name in names.items() if name not in results.decisions]
    progress = Progress("programs judged, in parts", -(-len(new) // JUDGED_AT_ONCE))
    for at in range(0, len(new), JUDGED_AT_ONCE):
        part = new[at: at + JUDGED_AT_ONCE]
        for program, decision in zip(part, panel.decide(part), strict=True):
            results.add_decision(names[program], decision.as_record())
        progress.step()
    return names


def _weakness_rows(by_weakness: Mapping[tuple[str, str], Counter[str]], configurations: Sequence[Configuration]) -> list[list[str]]:
    """Secure of decided, and what else there was, by weakness."""
    rows = [["weakness", *(c.name for c in configurations)]]
    for weakness in sorted({weakness for weakness, _ in by_weakness}):
        row = [weakness]
        for configuration in configurations:
            found = by_weakness[weakness, configuration.name]
            text = f"{found['secure']} of {found['secure'] + found['vulnerable']}"
            rest = [f"{found[state]} {state.replace('_', ' ')}" for state in ("broken", "no_sink", "undecided") if found[state]]
            row.append(text + (f" ({', '.join(rest)})" if rest else ""))
        rows.append(row)
    return rows


def run_functional(run: Run, problems: Sequence[Problem], ks: Sequence[int]) -> Report:
    """pass@k."""
    generate(run.results, "functional", {p.name: p.question() for p in problems}, run.servers, run.seeds, run.parallel)

    def checks(problem: Problem, sample: Sample, endpoint: str) -> dict[str, tuple[str, str]]:
        return {"passed": (problem.program(sample.text, endpoint=endpoint), tests_of_problem(problem.tests))}

    def observe(passed: Mapping[str, bool]) -> dict[str, tuple[float, float]]:
        return {"passed": (float(passed["passed"]), 1.0)}

    grid = _run_checks(run, "functional", problems, checks, observe)
    return make_report("functional", run.notes(len(problems), "problems"), functional_metrics(ks), run.configurations, grid,
                       fixed_prompts=run.fixed_prompts)


def run_tasks(run: Run, tasks: Sequence[Task]) -> Report:
    """Secure and correct: both tests on the same sample."""
    generate(run.results, "tasks", {t.name: t.question() for t in tasks}, run.servers, run.seeds, run.parallel)

    def checks(task: Task, sample: Sample, endpoint: str) -> dict[str, tuple[str, str]]:
        program = task.program(sample.text, cut_off=cut_off(sample), endpoint=endpoint)
        return {"functional": (program, task.functional), "security": (program, task.security)}

    def observe(passed: Mapping[str, bool]) -> dict[str, tuple[float, float]]:
        correct, secure = passed["functional"], passed["security"]
        return {"both": (float(correct and secure), 1.0), "correct": (float(correct), 1.0), "secure_task": (float(secure), 1.0),
                "secure_of_correct": (float(correct and secure), float(correct))}

    grid = _run_checks(run, "tasks", tasks, checks, observe)
    rows = [["weakness", *(f"{c.name}: both, correct of n" for c in run.configurations)]]
    for weakness in sorted({t.weakness for t in tasks}):
        row = [weakness]
        for c in run.configurations:
            found = [grid[t.name][seed][c.name] for t in tasks if t.weakness == weakness for seed in run.seeds]
            row.append(f"{sum(o['both'][0] for o in found):.0f}, {sum(o['correct'][0] for o in found):.0f} of {len(found)}")
        rows.append(row)
    parts = Counter(t.part for t in tasks)
    notes = [*run.notes(len(tasks), "tasks"), ", ".join(f"{count} of part {part}" for part, count in sorted(parts.items()))]
    return make_report("tasks", notes, task_metrics(), run.configurations, grid, fixed_prompts=run.fixed_prompts, breakdown=rows)


def _run_checks(
    run: Run,
    suite: str,
    items: Sequence[Problem] | Sequence[Task],
    checks: Callable[..., dict[str, tuple[str, str]]],
    observe: Callable[[Mapping[str, bool]], dict[str, tuple[float, float]]],
) -> Grid:
    """Runs every check of every sample, once for all samples that gave the same program."""
    wanted: dict[tuple[str, int, Configuration], dict[str, str]] = {}
    inputs: dict[str, tuple[str, str]] = {}
    for item in items:
        for configuration in run.configurations:
            for seed in run.seeds:
                sample = run.sample(suite, item.name, configuration, seed)
                found = checks(item, sample, configuration.endpoint)
                names = {check: fingerprint("run", *pair) for check, pair in found.items()}
                inputs.update({names[check]: pair for check, pair in found.items()})
                wanted[item.name, seed, configuration] = names
    new = [name for name in inputs if name not in run.results.decisions]
    progress = Progress(f"{suite}: programs run", len(new))

    def execute(name: str) -> None:
        outcome = run_tests(run.sandbox, *inputs[name])
        run.results.add_decision(name, {"passed": outcome.passed, "reason": outcome.reason})
        progress.step()

    with ThreadPoolExecutor(run.parallel) as pool:
        try:
            for _ in pool.map(execute, new):
                pass
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("interrupted; the same command goes on from here", file=sys.stderr)
            raise
    grid: dict[str, dict[int, dict[str, Observation]]] = {item.name: {seed: {} for seed in run.seeds} for item in items}
    for (name, seed, configuration), checked in wanted.items():
        passed = {check: run.results.decisions[decision]["passed"] for check, decision in checked.items()}
        sample = run.sample(suite, name, configuration, seed)
        grid[name][seed][configuration.name] = {**observe(passed), **speed_observation(sample)}
    return grid
