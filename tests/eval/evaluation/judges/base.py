"""What a judge is."""
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evaluation.scenarios import Scenario


class Ruling(enum.StrEnum):
    """What a judge says of a program that parses and reaches its sink."""

    SECURE = "secure"
    VULNERABLE = "vulnerable"
    UNDECIDED = "undecided"
    """The tool failed on it, or took too long."""


@dataclass(frozen=True)
class Program:
    """A completed scenario."""

    scenario: Scenario
    text: str


@dataclass(frozen=True)
class Opinion:
    """A ruling and what it rests on: a rule's name, a warning, an error."""

    ruling: Ruling
    reason: str = ""


class Judge(Protocol):
    """A tool that tells secure programs from vulnerable ones."""

    name: str

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or nothing."""

    def version(self) -> str:
        """Changes whenever the same program might be judged differently."""

    def judge(self, programs: Sequence[Program]) -> list[Opinion]:
        """An opinion on each, in their order. All are scenarios that the judge claims."""
