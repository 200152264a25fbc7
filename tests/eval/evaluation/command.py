"""The command line."""
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation import plots, tables
from evaluation.configurations import ENDPOINTS, read_configurations
from evaluation.errors import UsageError
from evaluation.judges import Panel
from evaluation.problems import load_problems
from evaluation.results import Results
from evaluation.sandbox import Sandbox
from evaluation.scenarios import load_scenarios
from evaluation.server import Server, ServerError
from evaluation.suites import Run, run_functional, run_security, run_tasks
from evaluation.tables import Report
from evaluation.tasks import OWN_TASKS, PARTS, load_tasks

EXAMPLES = """\
examples:
  # Base alone and hardened, on scenarios in SVEN's format:
  tests/eval/run security --url http://127.0.0.1:8000 --model demo --scenarios tests/eval/scenarios --out /tmp/eval \\
      --config 'base: cosec.rule=base_only' --config 'hardened: cosec.rule=cosec'
  # The same configurations on HumanEval, and then security over pass@1:
  tests/eval/run functional --problems HumanEval.jsonl.gz ... --out /tmp/eval
  tests/eval/run plot --out /tmp/eval
  # tau at four values, on the tasks for choosing settings, by chat:
  tests/eval/run tasks --part validation --endpoint chat --set cosec.rule=cosec --sweep cosec.tau=0.1,0.3,0.5,0.9 ...
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 1 is an error that was explained."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (UsageError, ServerError, FileNotFoundError) as error:
        print(f"eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/eval/run", description="Measures how secure and how correct the code is that a server writes.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asking, sandboxed = _asking_options(), _sandbox_options()

    security = commands.add_parser("security", parents=[asking, sandboxed], help="security ratio over scenario folders")
    security.add_argument("--scenarios", type=Path, action="append", required=True, metavar="DIR", help="in SVEN's format; repeatable")
    security.add_argument("--only", nargs="+", default=[], metavar="CWE", help="these weaknesses or scenarios alone")
    security.add_argument("--judges", nargs="+", metavar="JUDGE", help="these alone (default: all that are installed)")
    security.set_defaults(run=_security, samples=25, max_tokens=256)

    functional = commands.add_parser("functional", parents=[asking, sandboxed], help="pass@k on HumanEval")
    functional.add_argument("--problems", type=Path, required=True, metavar="PATH", help="HumanEval.jsonl, .jsonl.gz, or YAML files")
    functional.add_argument("--k", type=int, nargs="+", default=[1], help="default: 1")
    functional.set_defaults(run=_functional, samples=1, max_tokens=300)

    tasks = commands.add_parser("tasks", parents=[asking, sandboxed], help="secure and correct, by tests of both on the same sample")
    tasks.add_argument("--tasks", type=Path, default=OWN_TASKS, metavar="DIR", help="default: the tasks that come with the tool")
    tasks.add_argument("--part", choices=[*PARTS, "all"], default="report", help="validation is for choosing settings (default: report)")
    tasks.add_argument("--only", nargs="+", default=[], metavar="CWE", help="these weaknesses or tasks alone")
    tasks.set_defaults(run=_tasks, samples=5, max_tokens=512)

    plot = commands.add_parser("plot", help="security over correctness, of a folder that has both")
    plot.add_argument("--out", type=Path, required=True, metavar="DIR")
    plot.set_defaults(run=lambda options: print(plots.draw(options.out)))

    doctor = commands.add_parser("doctor", parents=[sandboxed], help="which judges and protections this machine has")
    doctor.set_defaults(run=_doctor)
    return parser


def _sandbox_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--unsandboxed", action="store_true", help="run programs even where the sandbox lacks a protection")
    return parser


def _asking_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    where = parser.add_argument_group("whom to ask")
    where.add_argument("--url", help="the server, as in http://127.0.0.1:8000; a key is taken from --key-variable")
    where.add_argument("--model", help="default: the server's only one")
    where.add_argument("--endpoint", choices=ENDPOINTS, default="completions")
    where.add_argument("--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable of the key")
    how = parser.add_argument_group("how to ask")
    how.add_argument("--config", action="append", default=[], metavar="'NAME: KEY=VALUE ...'",
                     help="a configuration; the first is the baseline. Keys are the request's (dots go inwards: cosec.tau=0.3), and url, "
                     "model, endpoint")
    how.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all configurations")
    how.add_argument("--sweep", action="append", default=[], metavar="KEY=V,V", help="every configuration once with each value")
    how.add_argument("--temperature", type=float, default=0.4)
    how.add_argument("--top-p", type=float, default=0.95)
    how.add_argument("--max-tokens", type=int)
    how.add_argument("--samples", type=int, help="for each prompt and configuration")
    how.add_argument("--seed", type=int, default=1, help="of the first sample; the others follow")
    how.add_argument("--parallel", type=int, default=4, help="requests, and then programs, at a time")
    what = parser.add_argument_group("what becomes of it")
    what.add_argument("--out", type=Path, required=True, metavar="DIR", help="answers, decisions, reports; a run goes on from these")
    what.add_argument("--fixed-prompts", action="store_true", help="intervals for these very prompts: only samples are drawn again")
    return parser


def _start(options: argparse.Namespace, results: Results) -> Run:
    for name in ("samples", "parallel", "max_tokens"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    sandbox = Sandbox(unsandboxed=options.unsandboxed)
    sandbox.check()
    defaults = {"url": options.url, "model": options.model, "endpoint": options.endpoint, "temperature": options.temperature,
                "top_p": options.top_p, "max_tokens": options.max_tokens}
    configurations = read_configurations(options.config, options.set, options.sweep, defaults)
    servers = {c: Server(c, key_variable=options.key_variable) for c in configurations}
    seeds = range(options.seed, options.seed + options.samples)
    return Run(results, servers, seeds, options.parallel, sandbox, options.fixed_prompts)


def _write(report: Report, folder: Path) -> None:
    (folder / f"{report.suite}.json").write_text(tables.as_json(report), encoding="utf-8")
    (folder / f"{report.suite}.md").write_text(tables.as_markdown(report), encoding="utf-8")
    print(tables.as_text(report))
    print(f"written: {folder / report.suite}.json, {report.suite}.md")


def _security(options: argparse.Namespace) -> None:
    scenarios = load_scenarios(options.scenarios, options.only)
    if not scenarios:
        raise UsageError(f"no scenario is left by --only {' '.join(options.only)}")
    with Results(options.out) as results:
        run = _start(options, results)
        panel = Panel(run.sandbox, options.judges)
        unknown = set(options.judges or []) - set(panel.every_name)
        if unknown:
            raise UsageError(f"--judges: {', '.join(sorted(unknown))} is unknown; there are {', '.join(panel.every_name)}")
        _write(run_security(run, scenarios, panel), options.out)


def _functional(options: argparse.Namespace) -> None:
    if max(options.k) > options.samples:
        raise UsageError(f"pass@{max(options.k)} needs at least as many --samples; there are {options.samples}")
    with Results(options.out) as results:
        _write(run_functional(_start(options, results), load_problems(options.problems), options.k), options.out)


def _tasks(options: argparse.Namespace) -> None:
    tasks = load_tasks(options.tasks, PARTS if options.part == "all" else (options.part,), options.only)
    if not tasks:
        raise UsageError("no task is left by --part and --only")
    with Results(options.out) as results:
        _write(run_tasks(_start(options, results), tasks), options.out)


def _doctor(options: argparse.Namespace) -> None:
    sandbox = Sandbox(unsandboxed=options.unsandboxed)
    missing = sandbox.protections.missing()
    print(f"sandbox: {'complete' if not missing else 'lacks ' + ', '.join(missing)}"
          + (f" ({sandbox.protections.reason})" if sandbox.protections.reason else ""))
    print(f"processors: {os.cpu_count()}")
    panel = Panel(sandbox)
    for name in panel.every_name:
        print(f"{name}: {panel.absent.get(name, 'installed')}")
