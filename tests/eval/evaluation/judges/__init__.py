"""Judges of programs: each decides on the scenarios that it claims, and its tests hold it to those.

`claims.yaml` has who claims what. A judge claims a scenario only if it tells the completions by hand apart that are
kept for it (`references`), all of them; tests/eval/tests/test_judges.py says so.
"""
from evaluation.judges.base import Judge, Opinion, Program, Ruling
from evaluation.judges.panel import Decision, Panel, State

__all__ = ["Decision", "Judge", "Opinion", "Panel", "Program", "Ruling", "State"]
