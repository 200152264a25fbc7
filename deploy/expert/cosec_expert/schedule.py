"""Which pair and which ordinary function each step takes, in which form: a function of the seed and the step alone."""

import random
from dataclasses import dataclass

from . import examples


@dataclass(frozen=True)
class Draw:
    number: int
    pair: object
    snippet: object | None
    form: str

    def rng(self, seed):
        return random.Random(f"{seed}-draw-{self.number}")


def shares(pairs, balance, wanted):
    """How often each weakness is drawn: by its pairs (balance 0) to equally often (1), times its factor in `wanted`."""
    counts = {}
    for pair in pairs:
        counts[pair.weakness] = counts.get(pair.weakness, 0) + 1
    weights = {weakness: count ** (1 - balance) * wanted.get(weakness, 1.0) for weakness, count in counts.items()}
    total = sum(weights.values())
    return {weakness: weights[weakness] / total for weakness in sorted(weights) if weights[weakness] > 0}


class Rounds:
    """Goes round a list again and again, each time in another order."""

    def __init__(self, items, name):
        self.items, self.name = items, name
        self.rounds, self.queue = 0, []

    def next(self):
        if not self.queue:
            self.queue = list(self.items)
            random.Random(f"{self.name}-{self.rounds}").shuffle(self.queue)
            self.rounds += 1
        return self.queue.pop()


class Turns:
    """Takes a snippet of each source in turn, so that a small source is not lost in a large one."""

    def __init__(self, snippets, name):
        sources = sorted({snippet.source for snippet in snippets})
        self.rounds = [
            Rounds([s for s in snippets if s.source == source], f"{name}-{number}")
            for number, source in enumerate(sources)
        ]
        self.taken = 0

    def next(self):
        """None where there are no snippets."""
        if not self.rounds:
            return None
        self.taken += 1
        return self.rounds[self.taken % len(self.rounds)].next()


def draws(pairs, snippets, count, seed, balance=1.0, wanted=None, chat_share=0.4, body_share=0.3):
    """The first `count` draws. Each weakness comes up evenly: the one that is furthest behind its share is next."""
    share = shares(pairs, balance, wanted or {})
    rounds = {
        weakness: Rounds([p for p in pairs if p.weakness == weakness], f"{seed}-{weakness}") for weakness in share
    }
    ordinary = Turns(snippets, f"{seed}-ordinary")
    taken = dict.fromkeys(share, 0)
    found = []
    for number in range(count):
        weakness = max(share, key=lambda w: share[w] * (number + 1) - taken[w])
        taken[weakness] += 1
        chance = random.Random(f"{seed}-form-{number}").random()
        form = "chat" if chance < chat_share else "body" if chance < chat_share + body_share else "code"
        found.append(Draw(number, rounds[weakness].next(), ordinary.next(), form))
    return found


def examples_of(draw, tokenizer, sizes, seed):
    """The examples of a draw: its pair and its ordinary function. A form without room gives way to `code`."""
    found = []
    for make, item in ((examples.of_pair, draw.pair), (examples.of_ordinary, draw.snippet)):
        for form in dict.fromkeys((draw.form, "code")) if item is not None else ():
            try:
                found.append(make(tokenizer, item, form, sizes, draw.rng(seed)))
                break
            except examples.TooLong:
                continue
    return found
