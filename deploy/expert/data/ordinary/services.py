"""Ordinary code of services, beside which no weakness stands: methods, views and jobs as they are written every day."""
import csv
import logging
import statistics
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from flask import Blueprint, current_app, jsonify, request

logger = logging.getLogger(__name__)
api = Blueprint("reports", __name__)


@api.get("/reports/summary")
def summary():
    """Counts of the last seven days as JSON."""
    since = datetime.now(timezone.utc) - timedelta(days=7)
    # Only finished reports are counted.
    reports = [report for report in current_app.reports if report.finished and report.finished >= since]
    return jsonify(count=len(reports), pages=sum(report.pages for report in reports))


@api.post("/reports")
def create_report():
    """Queue a report and return its number."""
    wanted = request.get_json()
    months = int(wanted.get("months", 1))
    if not 1 <= months <= 12:
        return jsonify(error="months is 1 to 12"), 400
    number = current_app.queue.add("report", months=months)
    return jsonify(number=number), 202


@dataclass
class Basket:
    """What a customer is about to buy."""

    lines: dict = field(default_factory=dict)

    def add(self, article: str, quantity: int = 1) -> None:
        """Put some of an article into the basket."""
        if quantity < 1:
            raise ValueError("a quantity is at least 1")
        self.lines[article] = self.lines.get(article, 0) + quantity

    def remove(self, article: str) -> bool:
        """Take an article out; False when it was not there."""
        if article not in self.lines:
            return False
        del self.lines[article]
        return True

    def total(self, prices: dict) -> int:
        """Sum of all lines in cents.

        Articles without a price raise KeyError.
        """
        return sum(prices[article] * quantity for article, quantity in self.lines.items())


def load_rates(path: Path) -> dict:
    """Read exchange rates from a CSV file with the columns currency and rate."""
    rates = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            rates[row["currency"].upper()] = float(row["rate"])
    logger.info("%d rates loaded", len(rates))
    return rates


def retry_delays(attempts: int, first: float = 0.5, factor: float = 2.0, longest: float = 30.0) -> list:
    """Seconds to wait before each further attempt."""
    delays = []
    delay = first
    for _ in range(attempts - 1):
        delays.append(min(delay, longest))
        delay *= factor
    return delays


def summarise(durations: list) -> dict:
    """Median, mean and slowest of some durations in milliseconds."""
    if not durations:
        return {"count": 0}
    ordered = sorted(durations)
    # The 95th percentile by nearest rank.
    rank = max(0, -(-len(ordered) * 95 // 100) - 1)
    return {
        "count": len(ordered),
        "median": statistics.median(ordered),
        "mean": round(statistics.fmean(ordered), 2),
        "p95": ordered[rank],
        "slowest": ordered[-1],
    }


class RateWindow:
    """Counts events of the last minute."""

    def __init__(self, seconds: float = 60.0):
        self.seconds = seconds
        self.times = []

    def add(self, now: float) -> int:
        """Note one event and return how many there were lately."""
        self.times.append(now)
        # Events leave in the order in which they came.
        while self.times[0] <= now - self.seconds:
            self.times.pop(0)
        return len(self.times)

    def is_busy(self, now: float, limit: int) -> bool:
        """Whether there were more events lately than the limit."""
        recent = [moment for moment in self.times if moment > now - self.seconds]
        return len(recent) > limit


def group_by_day(events: list) -> dict:
    """Events by their day in ISO form, each day's in order of time."""
    days = {}
    for event in sorted(events, key=lambda event: event["time"]):
        day = event["time"].date().isoformat()
        days.setdefault(day, []).append(event)
    return days


def page_of(items: list, page: int, size: int = 20) -> dict:
    """One page of a list with what a client needs to ask for the next."""
    start = (page - 1) * size
    chosen = items[start:start + size]
    more = start + size < len(items)
    return {"items": chosen, "page": page, "next": page + 1 if more else None}


async def gather_statuses(checks: dict) -> dict:
    """Run named checks one after the other; a check that raises is down."""
    statuses = {}
    for name, check in checks.items():
        try:
            await check()
        except Exception:
            logger.exception("check %s failed", name)
            statuses[name] = "down"
        else:
            statuses[name] = "up"
    return statuses
