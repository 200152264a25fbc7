"""Counts samples: what each metric is, with its interval, and how configurations differ."""
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evaluation.results import Sample
from evaluation.statistics import Estimate, bootstrap, pass_at_k, wilson

Share = tuple[float, float]
Observation = Mapping[str, Share]
"""What one sample adds to the numerator and the denominator of each metric."""
Grid = Mapping[str, Mapping[int, Mapping[str, Observation]]]
"""Item, seed, configuration."""


@dataclass(frozen=True)
class Metric:
    """A share of samples. `by_prompt`: the mean of the prompts' own shares, as the paper has it; else of all samples."""

    name: str
    label: str
    by_prompt: bool = True
    percent: bool = True
    pass_k: int = 0
    """Not 0: pass@k, without bias, of the numerators."""
    paired: bool = True
    """Whether differences between configurations are shown."""

    def of(self, groups: Sequence[Sequence[Observation]]) -> float | None:
        """Its value over prompts; nothing where nothing counts."""
        if self.pass_k:
            shares = [self._pass(group) for group in groups if len(group) >= self.pass_k]
            return sum(shares) / len(shares) if shares else None
        sums = [self._sums(group) for group in groups]
        if self.by_prompt:
            shares = [above / below for above, below in sums if below > 0]
            return sum(shares) / len(shares) if shares else None
        below = sum(b for _, b in sums)
        return sum(a for a, _ in sums) / below if below > 0 else None

    def _sums(self, group: Sequence[Observation]) -> Share:
        shares = [observation[self.name] for observation in group if self.name in observation]
        return sum(a for a, _ in shares), sum(b for _, b in shares)

    def _pass(self, group: Sequence[Observation]) -> float:
        return pass_at_k(len(group), sum(observation[self.name][0] > 0 for observation in group), self.pass_k)


def speed_metrics() -> list[Metric]:
    """What every suite can say of how the text came about."""
    return [
        Metric("accepted", "accepted", by_prompt=False, paired=False),
        Metric("changed", "changed / 1,000 tokens", by_prompt=False, percent=False, paired=False),
        Metric("speed", "tokens/s", by_prompt=False, percent=False, paired=False),
    ]


def speed_observation(sample: Sample) -> dict[str, Share]:
    """Tokens a second of the request's time; the share of tokens that expert and base agreed on or the expert chose; and
    of a thousand tokens those that the expert chose and the base would not have."""
    found: dict[str, Share] = {}
    if sample.completion_tokens and sample.seconds > 0:
        found["speed"] = (float(sample.completion_tokens), sample.seconds)
    tokens = sum(sample.hardening.values())
    if tokens:
        expert = sample.hardening.get("expert", 0)
        found["accepted"] = (float(sample.hardening.get("agreed", 0) + expert), float(tokens))
        found["changed"] = (1000.0 * expert, float(tokens))
    return found


def security_metrics() -> list[Metric]:
    return [
        Metric("secure", "secure of decided"),
        Metric("secure_all", "secure of all", by_prompt=False),
        Metric("parses", "parses", by_prompt=False),
        Metric("reaches", "reaches sink", by_prompt=False),
        Metric("undecided", "undecided", by_prompt=False, paired=False),
        *speed_metrics(),
    ]


def security_observations(states: Sequence[tuple[Sample, str, str]]) -> dict[int, Observation]:
    """By seed, for the samples of one prompt and configuration: each with its program and its state.

    Programs that are the same count once in `secure`, as in the paper: each of m samples with a m-th. So a sample keeps
    its seed, by which it is paired.
    """
    copies = Counter(program for _, program, _ in states)
    found: dict[int, Observation] = {}
    for sample, program, state in states:
        part = 1 / copies[program]
        decided = state in ("secure", "vulnerable")
        found[sample.key.seed] = {
            "secure": (part * (state == "secure"), part * decided),
            "secure_all": (float(state == "secure"), 1.0),
            "parses": (float(state != "broken"), 1.0),
            "reaches": (float(state not in ("broken", "no_sink")), 1.0),
            "undecided": (part * (state == "undecided"), part * (decided or state == "undecided")),
            **speed_observation(sample),
        }
    return found


def functional_metrics(ks: Sequence[int]) -> list[Metric]:
    return [*(Metric("passed", f"pass@{k}", pass_k=k) for k in ks), *speed_metrics()]


def task_metrics() -> list[Metric]:
    return [
        Metric("both", "correct and secure"),
        Metric("correct", "correct"),
        Metric("secure_task", "secure of all"),
        Metric("secure_of_correct", "secure of correct", by_prompt=False),
        *speed_metrics(),
    ]


def estimate(metric: Metric, grid: Grid, configuration: str, *, fixed_prompts: bool) -> Estimate:
    """The metric of one configuration. Where all values are the same and the bootstrap has no width: Wilson's interval."""
    groups = [[c[configuration] for c in seeds.values() if configuration in c] for seeds in grid.values()]
    found = bootstrap([g for g in groups if g], metric.of, fixed_prompts=fixed_prompts)
    if metric.percent and found.value in (0.0, 1.0) and found.low == found.high:
        counted = sum(any(metric.name in o and (metric.pass_k or o[metric.name][1] > 0) for o in group) for group in groups)
        return Estimate(found.value, *wilson(found.value, counted))
    return found


def difference(metric: Metric, grid: Grid, configuration: str, baseline: str, *, fixed_prompts: bool) -> Estimate:
    """The metric of `configuration` less that of `baseline`, over the prompts and seeds that both have."""
    pairs = [[(c[configuration], c[baseline]) for c in seeds.values() if configuration in c and baseline in c] for seeds in grid.values()]
    return bootstrap([p for p in pairs if p], _paired(metric.of), fixed_prompts=fixed_prompts)


def _paired(of: Callable[[Sequence[Sequence[Observation]]], float | None]) -> Callable[..., float | None]:
    def statistic(groups: Sequence[Sequence[tuple[Observation, Observation]]]) -> float | None:
        first, second = (of([[pair[side] for pair in group] for group in groups]) for side in (0, 1))
        return None if first is None or second is None else first - second

    return statistic
