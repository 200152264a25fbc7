"""The loss of one example, from the tuned and the frozen model's logits at its places.

Of a fix pair, with q_on the tuned and q_off the frozen model:

    mean over learnt places  -log q_on(token)                                            cross-entropy
  + margin_weight * softplus(margin - D)                                                 evidence
  + kept_weight * mean over kept places  KL(q_off || q_on)                               divergence

    D = [log q_on(z) - log q_off(z)] - [log q_on(t) - log q_off(t)]

at the fork, z the fixed version's token and t the vulnerable one's. Of ordinary code, ordinary_weight * mean KL(q_off
|| q_on). First and third term: He and Vechev (SVEN, 2023) and Li et al. (CoSec, 2024).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Weights:
    margin: float = 5.0
    """Nats of evidence that are asked for."""
    margin_weight: float = 0.5
    kept_weight: float = 2.0
    ordinary_weight: float = 4.0


def divergence(frozen, tuned):
    """KL(q_off || q_on) of each row of logits, in nats."""
    reference, scores = torch.log_softmax(frozen, -1), torch.log_softmax(tuned, -1)
    return F.kl_div(scores, reference, log_target=True, reduction="none").sum(-1)


def evidence(fork, tuned, frozen):
    """D in nats, from the logits of both models at the fork; their normalisers cancel out."""
    return (tuned[fork.fixed] - frozen[fork.fixed]) - (tuned[fork.vulnerable] - frozen[fork.vulnerable])


def of_example(example, tuned, frozen, weights):
    """(loss, its parts by name as plain numbers)

    `tuned`: logits [places, vocabulary], f32, as `Example.places`; `frozen` as `Example.frozen_places`.
    """
    learnt, kept = len(example.learnt), len(example.kept)
    moved = divergence(frozen[:kept], tuned[learnt : learnt + kept]).mean() if kept else tuned.new_zeros(())
    if example.fork is None:
        return weights.ordinary_weight * moved, {"ordinary_kl": moved.item()}
    targets = torch.tensor([example.ids[place] for place in example.learnt], device=tuned.device)
    cross_entropy = F.cross_entropy(tuned[:learnt], targets)
    found = evidence(example.fork, tuned[-1], frozen[-1])
    loss = cross_entropy + weights.margin_weight * F.softplus(weights.margin - found) + weights.kept_weight * moved
    return loss, {"cross_entropy": cross_entropy.item(), "evidence": found.item(), "kept_kl": moved.item()}
