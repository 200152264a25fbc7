"""Draws security over correctness: a point for each configuration, a line through those that one sweep gave."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import UsageError

SECURITY = ("secure of decided",)
CORRECTNESS = ("pass@1", "correct and secure", "correct")


@dataclass(frozen=True)
class Point:
    """One configuration."""

    name: str
    line: str
    """Its name without what the sweep set: points of one line share it."""
    order: tuple[float, ...]
    security: Mapping[str, float]
    correctness: Mapping[str, float]


def read_points(folder: Path) -> tuple[str, list[Point]]:
    """The configurations that a run's folder has both figures of, and which correctness that is."""
    security = _report(folder / "security.json")
    for suite in ("functional", "tasks"):
        path = folder / f"{suite}.json"
        if path.exists():
            break
    else:
        raise UsageError(f"{folder} has no functional.json and no tasks.json: run one of these with the same --out and configurations")
    correctness = _report(path)
    label = next(label for label in CORRECTNESS if label in next(iter(correctness["values"].values())))
    points = []
    for configuration in security["configurations"]:
        name = configuration["name"]
        if name in correctness["values"]:
            swept = [value for _, value in configuration["swept"]]
            line = name.rsplit(" ", len(swept))[0] if swept else ""
            points.append(Point(name, line, tuple(swept), security["values"][name][SECURITY[0]], correctness["values"][name][label]))
    if not points:
        raise UsageError(f"{folder}: no configuration is in both security.json and {path.name}")
    return label, points


def _report(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: run that suite with the same --out first") from error


def draw(folder: Path) -> Path:
    """Writes `plot.svg` into a run's folder."""
    try:
        import matplotlib  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise UsageError("plots need matplotlib, which tests/setup evaluation installs") from error
    matplotlib.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    label, points = read_points(folder)
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for line in sorted({point.line for point in points}):
        _draw_line(axes, line, sorted((p for p in points if p.line == line), key=lambda p: p.order))
    axes.set_xlabel(f"{label} [%]")
    axes.set_ylabel("secure of decided [%]")
    axes.grid(alpha=0.3)
    if any(point.line for point in points):
        axes.legend()
    path = folder / "plot.svg"
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _draw_line(axes: Any, line: str, points: Sequence[Point]) -> None:
    def errors(side: str) -> list[list[float]]:
        found = [getattr(point, side) for point in points]
        # A skewed interval may leave its value out.
        return [[100 * max(0.0, f["value"] - f["low"]) for f in found], [100 * max(0.0, f["high"] - f["value"]) for f in found]]

    across = [100 * point.correctness["value"] for point in points]
    up = [100 * point.security["value"] for point in points]
    axes.errorbar(
        across, up, xerr=errors("correctness"), yerr=errors("security"), fmt="o-" if line else "o", alpha=0.8, capsize=2,
        label=line or None,
    )
    for point, x, y in zip(points, across, up, strict=True):
        text = ", ".join(f"{value:g}" for value in point.order) if line else point.name
        axes.annotate(text, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
