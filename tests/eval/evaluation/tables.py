"""Shows a report: for the terminal, as Markdown, as JSON."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from evaluation.configurations import Configuration
from evaluation.metrics import Grid, Metric, difference, estimate
from evaluation.statistics import Estimate

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """All figures of one suite."""

    suite: str
    notes: Sequence[str]
    metrics: Sequence[Metric]
    configurations: Sequence[Configuration]
    values: Mapping[str, Mapping[str, Estimate]]
    """Configuration, metric's label."""
    differences: Mapping[str, Mapping[str, Estimate]]
    """The same, less the first configuration."""
    breakdown: Rows = ()
    """A table by weakness; its first row are the headings."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def make_report(
    suite: str,
    notes: Sequence[str],
    metrics: Sequence[Metric],
    configurations: Sequence[Configuration],
    grid: Grid,
    *,
    fixed_prompts: bool,
    breakdown: Rows = (),
    counts: Mapping[str, Mapping[str, int]] | None = None,
) -> Report:
    """Computes every metric; one that no configuration has a value of is left out."""
    values = {c.name: {m.label: estimate(m, grid, c.name, fixed_prompts=fixed_prompts) for m in metrics} for c in configurations}
    kept = [m for m in metrics if any(values[c.name][m.label].value is not None for c in configurations)]
    baseline = configurations[0].name
    differences = {
        c.name: {m.label: difference(m, grid, c.name, baseline, fixed_prompts=fixed_prompts) for m in kept if m.paired}
        for c in configurations[1:]
    }
    return Report(suite, notes, kept, configurations, values, differences, breakdown, counts or {})


def _shown(found: Estimate, percent: bool, signed: bool = False) -> str:
    if found.value is None:
        return "-"
    scale, digits = (100.0, 1) if percent else (1.0, 1)
    sign = "+" if signed else ""
    text = f"{found.value * scale:{sign}.{digits}f}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low * scale:{sign}.{digits}f}, {found.high * scale:{sign}.{digits}f}]"
    return text


def _tables(report: Report) -> list[tuple[str, Rows]]:
    """Each table with its title; its first row are the headings."""
    headings = ["configuration", *(m.label + (" %" if m.percent else "") for m in report.metrics)]
    rows = [[c.name, *(_shown(report.values[c.name][m.label], m.percent) for m in report.metrics)] for c in report.configurations]
    tables: list[tuple[str, Rows]] = [("", [headings, *rows])]
    paired = [m for m in report.metrics if m.paired]
    if report.differences:
        rows = [[name, *(_shown(found[m.label], m.percent, signed=True) for m in paired)] for name, found in report.differences.items()]
        title = f"less {report.configurations[0].name}, paired by prompt and seed, in points"
        tables.append((title, [["configuration", *(m.label for m in paired)], *rows]))
    if report.breakdown:
        tables.append(("by weakness", report.breakdown))
    return tables


def as_text(report: Report) -> str:
    """Aligned columns."""
    lines = [f"== {report.suite}", *report.notes]
    for title, rows in _tables(report):
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines += ["", *([title] if title else [])]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def as_markdown(report: Report) -> str:
    """Pipe tables."""
    lines = [f"### {report.suite}", "", *(f"- {note}" for note in report.notes)]
    for title, rows in _tables(report):
        lines += ["", *([f"**{title}**", ""] if title else [])]
        lines.append("| " + " | ".join(rows[0]) + " |")
        lines.append("|" + "---|" * len(rows[0]))
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> str:
    """Everything, with what each configuration asked for."""
    return json.dumps({
        "suite": report.suite,
        "notes": list(report.notes),
        "configurations": [asdict(c) for c in report.configurations],
        "values": {name: {label: asdict(found) for label, found in of.items()} for name, of in report.values.items()},
        "differences": {name: {label: asdict(found) for label, found in of.items()} for name, of in report.differences.items()},
        "breakdown": [list(row) for row in report.breakdown],
        "counts": {name: dict(of) for name, of in report.counts.items()},
    }, indent=2) + "\n"
