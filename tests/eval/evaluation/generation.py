"""Asks for every sample that is not there yet."""
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from evaluation.configurations import Configuration
from evaluation.results import Results, Sample, SampleKey
from evaluation.server import Question, Server

PROGRESS_SECONDS = 20.0


def generate(
    results: Results,
    suite: str,
    questions: Mapping[str, Question],
    servers: Mapping[Configuration, Server],
    seeds: Sequence[int],
    parallel: int,
) -> None:
    """Fills `results` with an answer for each item, seed and configuration, `parallel` requests at a time.

    Configurations take turns, each first in its turn: what changes on the machine while a run lasts falls on all alike.
    """
    configurations = list(servers)
    jobs: list[tuple[Configuration, SampleKey]] = []
    for turn, (item, seed) in enumerate((item, seed) for seed in seeds for item in questions):
        first = turn % len(configurations)
        for configuration in configurations[first:] + configurations[:first]:
            key = SampleKey(suite, item, configuration.settings_id, seed)
            if key not in results.samples:
                jobs.append((configuration, key))

    def ask(job: tuple[Configuration, SampleKey]) -> None:
        configuration, key = job
        answer = servers[configuration].complete(questions[key.item], key.seed)
        results.add_sample(Sample(key, answer.text, answer.finish_reason, answer.completion_tokens, answer.seconds, answer.hardening))

    with ThreadPoolExecutor(parallel) as pool:
        pending: set[Future[None]] = set()
        progress = Progress(f"{suite}: samples", len(jobs))
        try:
            for job in jobs:
                # No more than twice what runs is handed over: the first error ends the run soon.
                while len(pending) >= 2 * parallel:
                    pending = _take_finished(pending)
                pending.add(pool.submit(ask, job))
                progress.step()
            while pending:
                pending = _take_finished(pending)
        finally:
            for future in pending:
                future.cancel()


def _take_finished(pending: set[Future[None]]) -> set[Future[None]]:
    """Waits for at least one; raises what it raised."""
    done, rest = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return rest


class Progress:
    """Says on standard error how far a loop has come, now and then."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._said = time.monotonic()

    def step(self) -> None:
        self._done += 1
        if time.monotonic() - self._said > PROGRESS_SECONDS:
            self._said = time.monotonic()
            print(f"{self._what}: {self._done} of {self._total}", file=sys.stderr, flush=True)
