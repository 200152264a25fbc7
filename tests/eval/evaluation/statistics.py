"""pass@k and bootstrap intervals.

pass@k: Chen et al., "Evaluating Large Language Models Trained on Code" (2021), equation 1. The bootstrap has two levels:
prompts are drawn with replacement, and of each one its samples. A sample stays together with what other settings made
of the same prompt and seed, so that differences between settings are paired.
"""
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Sample = TypeVar("Sample")
Groups = Sequence[Sequence[Sample]]

REPLICATES = 2000
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; `value` is absent where nothing could be counted."""

    value: float | None
    low: float | None = None
    high: float | None = None


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that at least one of `k` samples is correct, without bias, of `samples` with `correct` right ones."""
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} correct in {samples} samples is not defined")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `trials`."""
    if trials <= 0:
        return 0.0, 1.0
    spread = Z_95 * Z_95 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    groups: Groups,
    statistic: Callable[[Groups], float | None],
    *,
    fixed_prompts: bool = False,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> Estimate:
    """`statistic` of `groups` (one of samples for each prompt) with the percentile interval of its replicates.

    `fixed_prompts` draws samples alone: what these prompts would give again, not what prompts like these would.
    A replicate of which nothing can be counted is left out.
    """
    value = statistic(groups) if groups else None
    if value is None:
        return Estimate(None)
    draw = random.Random(seed)
    found = []
    for _ in range(replicates):
        chosen = groups if fixed_prompts else draw.choices(groups, k=len(groups))
        again = statistic([group if len(group) < 2 else draw.choices(group, k=len(group)) for group in chosen])
        if again is not None:
            found.append(again)
    found.sort()
    return Estimate(value, _quantile(found, 0.025), _quantile(found, 0.975))


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Linear interpolation between order statistics."""
    if not ordered:
        return None
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])
