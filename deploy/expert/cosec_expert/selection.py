"""What a run trains on and what it holds back, out of all that was read."""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

from . import examples, ordinary, records

ORDINARY_HELD_OUT = 0.1


class NothingLeft(Exception):
    """No pair to train on is left."""


@dataclass
class Selection:
    train: list
    held_out: list
    ordinary_train: list
    ordinary_held_out: list
    skipped: list = field(default_factory=list)
    """(place, why)"""

    def table(self):
        """(weakness, pairs to train on, pairs held out), by weakness"""
        counts = [Counter(pair.weakness for pair in pairs) for pairs in (self.train, self.held_out)]
        return [(weakness, counts[0][weakness], counts[1][weakness]) for weakness in sorted({*counts[0], *counts[1]})]

    def origins(self):
        """(source, licence, pairs)"""
        return sorted(
            (*origin, count)
            for origin, count in Counter((p.source, p.licence) for p in (*self.train, *self.held_out)).items()
        )


def part_of(name, seed):
    """A number from 0 to 1 that stands for `name`, evenly spread."""
    return int.from_bytes(hashlib.sha256(f"{seed}-{name}".encode()).digest()[:6], "big") / 2**48


def wanted(pair, settings):
    included = {records.weakness_name(name) for name in settings.include}
    excluded = {records.weakness_name(name) for name in settings.exclude}
    languages = {language.lower() for language in settings.language}
    return (
        (not included or pair.weakness in included)
        and pair.weakness not in excluded
        and (not languages or pair.language in languages)
    )


def usable(pair, tokenizer, sizes):
    """Why the pair gives no example, or None."""
    try:
        examples.of_pair(tokenizer, pair, "code", sizes, random.Random(0))
    except examples.TooLong as error:
        return str(error)
    return None


def select(settings, tokenizer):
    """Reads, filters and splits. Raises NothingLeft, FileNotFoundError."""
    reading = records.read(settings.data)
    skipped = list(reading.skipped)
    train, held_out = [], []
    for pair in reading.pairs:
        if not wanted(pair, settings):
            continue
        pair = pair.reversed() if settings.anti_expert else pair
        why = usable(pair, tokenizer, settings.sizes)
        if why is not None:
            skipped.append((pair.id, why))
            continue
        is_held_out = (
            pair.split == "val" if pair.split else part_of(pair.group, settings.seed) < settings.held_out_share
        )
        (held_out if is_held_out else train).append(pair)
    if not train:
        raise NothingLeft(
            f"no pair is left to train on: {len(reading.pairs)} read, {len(skipped)} of them or of the bad records skipped, "
            f"{len(held_out)} held out"
        )
    snippets = ordinary.read(settings.ordinary or ordinary.usual_sources())
    ordinary_parts = ([], [])
    for snippet in snippets:
        ordinary_parts[part_of(snippet.id, settings.seed) < ORDINARY_HELD_OUT].append(snippet)
    return Selection(train, held_out, *ordinary_parts, skipped)
