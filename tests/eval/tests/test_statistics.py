"""pass@k and intervals against closed forms and known values."""
import itertools
import math
import random

import pytest

from evaluation.statistics import bootstrap, pass_at_k, wilson


@pytest.mark.parametrize("samples, correct", [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(samples, correct):
    flags = [True] * correct + [False] * (samples - correct)
    for k in range(1, samples + 1):
        choices = list(itertools.combinations(flags, k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(any(choice) for choice in choices) / len(choices))


def test_pass_at_k_at_known_values():
    assert pass_at_k(200, 10, 1) == pytest.approx(0.05)
    # 1 - prod_{i=n-c+1..n} (1 - k/i), as Chen et al. compute it.
    expected = 1 - math.prod(1 - 100 / i for i in range(191, 201))
    assert pass_at_k(200, 10, 100) == pytest.approx(expected)


@pytest.mark.parametrize("samples, correct, k", [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)])
def test_pass_at_k_refuses_what_has_no_meaning(samples, correct, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(samples, correct, k)


def mean(groups):
    values = [value for group in groups for value in group]
    return sum(values) / len(values)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    draw = random.Random(3)
    groups = [[draw.random()] for _ in range(400)]
    found = bootstrap(groups, mean)
    # The standard deviation of a uniform variable is 1/sqrt(12).
    half = 1.96 / math.sqrt(12 * 400)
    assert found.value == pytest.approx(mean(groups))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert found.low < found.value < found.high


def test_prompts_and_samples_both_vary_unless_prompts_are_fixed():
    # Within a prompt all samples are alike: with prompts fixed nothing varies.
    groups = [[float(prompt % 2)] * 10 for prompt in range(40)]
    both, fixed = bootstrap(groups, mean), bootstrap(groups, mean, fixed_prompts=True)
    assert fixed.low == fixed.value == fixed.high == 0.5
    assert both.high - both.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(40), rel=0.15)


def test_pairing_narrows_a_difference():
    draw = random.Random(5)
    # Two settings that agree on nearly all samples, on prompts of very different difficulty.
    pairs = []
    for _ in range(60):
        easy = draw.random()
        group = [float(draw.random() < easy) for _ in range(4)]
        pairs.append([(value, value if draw.random() > 0.02 else 1 - value) for value in group])

    def paired(groups):
        return mean([[a - b for a, b in group] for group in groups])

    alone = [bootstrap([[pair[side] for pair in group] for group in pairs], mean) for side in (0, 1)]
    unpaired_width = math.hypot(*(found.high - found.low for found in alone))
    found = bootstrap(pairs, paired)
    assert found.high - found.low < unpaired_width / 2


def test_an_interval_is_the_same_whenever_it_is_computed():
    groups = [[float(at % 3 == 0), float(at % 5 == 0)] for at in range(30)]
    assert bootstrap(groups, mean) == bootstrap(groups, mean)


def test_nothing_to_count_has_no_value():
    assert bootstrap([], mean).value is None
    assert bootstrap([[1.0]], lambda groups: None).value is None


def test_wilson_at_known_values():
    low, high = wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(1.0, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)
