"""Evidence and divergence on pairs and ordinary code that training never sees, and when to stop because of them."""

import random
import statistics
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object

from . import examples, objective

STRONG = 2.0
"""Nats of evidence that a rule may ask for; the share of pairs above it is reported."""


@dataclass
class HeldOut:
    """What is scored: (weakness or None, example)"""

    items: list

    @classmethod
    def of(cls, pairs, snippets, tokenizer, sizes, pair_limit, snippet_limit, seed):
        """A fixed choice: pairs of each weakness in turn, every third as a chat answer, every third without imports."""
        items = []
        by_weakness = {}
        for pair in random.Random(f"{seed}-held-out").sample(pairs, len(pairs)):
            by_weakness.setdefault(pair.weakness, []).append(pair)
        queues = [by_weakness[weakness] for weakness in sorted(by_weakness)]
        chosen = [
            queue[row] for row in range(max(map(len, queues), default=0)) for queue in queues if row < len(queue)
        ][:pair_limit]
        for number, pair in enumerate(chosen):
            cls._add(
                items,
                pair.weakness,
                examples.of_pair,
                tokenizer,
                pair,
                examples.FORMS[number % 3],
                sizes,
                f"{seed}-{pair.id}",
            )
        for number, snippet in enumerate(snippets[:snippet_limit]):
            cls._add(
                items,
                None,
                examples.of_ordinary,
                tokenizer,
                snippet,
                ("code", "chat")[number % 2],
                sizes,
                f"{seed}-{snippet.id}",
            )
        return cls(items)

    @property
    def has_pairs(self):
        return any(weakness is not None for weakness, _ in self.items)

    @staticmethod
    def _add(items, weakness, make, tokenizer, item, form, sizes, seed):
        for tried in dict.fromkeys((form, "code")):
            try:
                items.append((weakness, make(tokenizer, item, tried, sizes, random.Random(seed))))
                return
            except examples.TooLong:
                continue

    @torch.no_grad()
    def score(self, accelerator, scorer, weights):
        """Figures over all items; every process scores a part."""
        scorer.eval()
        scored = []
        for weakness, example in self.items[accelerator.process_index :: accelerator.num_processes]:
            _, parts = objective.of_example(example, scorer([example])[0], scorer.frozen(example), weights)
            scored.append((weakness, parts))
        scorer.train()
        return summary(gather_object(scored), weights)


def summary(scored, weights):
    """The figures of (weakness, parts) of each item; `score` is what early stopping wants small."""
    ordinary = [parts["ordinary_kl"] for weakness, parts in scored if weakness is None]
    pairs = [(weakness, parts) for weakness, parts in scored if weakness is not None]
    found = [parts["evidence"] for _, parts in pairs]
    lacking = [max(0.0, weights.margin - value) for value in found]
    by_weakness = {}
    for weakness, parts in pairs:
        by_weakness.setdefault(weakness, []).append(parts["evidence"])

    def mean(values):
        return statistics.fmean(values) if values else 0.0

    return {
        "pairs": len(pairs),
        "ordinary": len(ordinary),
        "evidence_median": statistics.median(found) if found else 0.0,
        "evidence_strong": mean([value > STRONG for value in found]),
        "evidence_by_weakness": {weakness: mean(values) for weakness, values in sorted(by_weakness.items())},
        "cross_entropy": mean([parts["cross_entropy"] for _, parts in pairs]),
        "kept_kl": mean([parts["kept_kl"] for _, parts in pairs]),
        "ordinary_kl": mean(ordinary),
        "score": weights.margin_weight * mean(lacking) + weights.ordinary_weight * mean(ordinary),
    }


@dataclass
class EarlyStopping:
    """Remembers the best evaluation; a run ends after `patience` others. An evaluation above `most_ordinary_kl` is
    never best."""

    patience: int
    most_ordinary_kl: float
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    history: list = field(default_factory=list)

    def take(self, step, figures):
        """Whether this is the best so far."""
        self.history.append({"step": step} | figures)
        if figures["ordinary_kl"] <= self.most_ordinary_kl and (self.best is None or figures["score"] < self.best):
            self.best, self.best_step, self.waited = figures["score"], step, 0
            return True
        self.waited += 1
        return False

    @property
    def is_over(self):
        return 0 < self.patience <= self.waited

    def state(self):
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "history": self.history}

    def restore(self, state):
        self.best, self.best_step, self.waited, self.history = (
            state["best"],
            state["best_step"],
            state["waited"],
            list(state["history"]),
        )
