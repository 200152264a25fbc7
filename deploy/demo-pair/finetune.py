"""Turns the small pre-trained model into the expert by CoSec's objective, on fixed functions only.

Cross-entropy on the tokens that the fix added or changed, Kullback-Leibler divergence from the frozen model on all
others. All weights are tuned. Before and after, the held-back pairs say how often the secure version is preferred.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

import augment
from export import export
from model import SHAPES, Llama

HERE = Path(__file__).resolve().parent
VARIANTS = {"cwe-089": 4, "cwe-078": 4, "cwe-022": 2, "cwe-079": 2}
LONGEST_TOKENS = 256


def encoded(tokenizer, passage):
    """(ids, changed): a leading and a closing <|endoftext|>, and which tokens hold a changed character."""
    result = tokenizer.encode(passage.text + "\n", add_special_tokens=False)
    marks = bytes(passage.mask) + b"\0"
    changed = [any(marks[start:end]) for start, end in result.offsets]
    return [0, *result.ids, 0], [False, *changed, False]


def batches(pairs, tokenizer, rng, rows):
    """One epoch: fresh variants of every fixed function, documents of like length together."""
    documents = []
    for weakness, before, after in pairs:
        for _ in range(VARIANTS[weakness]):
            varied = augment.variant(before, after, rng, 900)
            if varied:
                ids, changed = encoded(tokenizer, varied[1])
                if len(ids) <= LONGEST_TOKENS and any(changed):
                    documents.append((ids, changed))
    rng.shuffle(documents)
    groups = [sorted(documents[at:at + 4 * rows], key=lambda d: len(d[0])) for at in range(0, len(documents), 4 * rows)]
    cut = [group[at:at + rows] for group in groups for at in range(0, len(group), rows)]
    rng.shuffle(cut)
    for batch in cut:
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([i + [0] * (longest - len(i)) for i, _ in batch])
        changed = torch.tensor([c + [False] * (longest - len(c)) for _, c in batch])
        present = torch.tensor([[True] * len(i) + [False] * (longest - len(i)) for i, _ in batch])
        yield ids, changed, present


def losses(tuned, frozen, ids, changed, present):
    logits = tuned(ids[:, :-1])
    with torch.no_grad():
        reference = torch.log_softmax(frozen(ids[:, :-1]), dim=-1)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    target, is_changed = ids[:, 1:], changed[:, 1:]
    is_other = present[:, 1:] & ~is_changed
    chosen = log_probabilities.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    divergence = F.kl_div(log_probabilities, reference, log_target=True, reduction="none").sum(-1)
    return -chosen[is_changed].mean(), divergence[is_other].mean()


@torch.no_grad()
def preferences(model, tokenizer, pairs):
    """How often the secure version is preferred, per weakness, in two ways.

    `changed`: mean log-probability of the changed tokens, secure against vulnerable, where both have some.
    `fork`: the log-probability of the first token in which the two versions differ.
    """
    found = {}
    for weakness, before, after in pairs:
        sides = [encoded(tokenizer, after), encoded(tokenizer, before)]
        fork = next((n for n, (a, b) in enumerate(zip(sides[0][0], sides[1][0])) if a != b), None)
        if fork is None:
            continue
        start = max(0, fork - 180)
        at_fork, means = [], []
        for ids, changed in sides:
            window = [0, *ids[max(1, start):start + 400]]
            marks = [False, *changed[max(1, start):start + 400]]
            scores = torch.log_softmax(model(torch.tensor([window[:-1]]))[0], dim=-1)
            scores = scores.gather(-1, torch.tensor(window[1:]).unsqueeze(-1)).squeeze(-1)
            at_fork.append(scores[fork - max(1, start)].item())
            if any(marks):
                means.append(scores[torch.tensor(marks[1:])].mean().item())
        counts = found.setdefault(weakness, {"fork": [0, 0], "changed": [0, 0]})
        counts["fork"][0] += at_fork[0] > at_fork[1]
        counts["fork"][1] += 1
        if len(means) == 2:
            counts["changed"][0] += means[0] > means[1]
            counts["changed"][1] += 1
    return found


@torch.no_grad()
def held_back_losses(tuned, frozen, tokenizer, pairs):
    fixed = [encoded(tokenizer, after.sliced()) for _, _, after in pairs]
    fixed = [(ids, changed) for ids, changed in fixed if len(ids) <= LONGEST_TOKENS and any(changed)]
    each = [losses(tuned, frozen, torch.tensor([ids]), torch.tensor([changed]), torch.ones(1, len(ids), dtype=torch.bool))
            for ids, changed in fixed]
    return {name: round(sum(pair[side].item() for pair in each) / len(each), 4) for side, name in enumerate(["changed_loss", "kl"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sven", type=Path, required=True, help="folder that holds SVEN's train/ and val/")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl-weight", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--output", type=Path, default=HERE / "expert")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    weights = torch.load(args.work / "expert.pt", weights_only=True)["model"]
    tuned, frozen = Llama(SHAPES["expert"]), Llama(SHAPES["expert"])
    tuned.load_state_dict(weights)
    frozen.load_state_dict(weights)
    frozen.requires_grad_(False)
    pairs = augment.read_pairs(args.sven / "train")
    held_back = augment.read_pairs(args.sven / "val")
    facts = {"before": {**held_back_losses(tuned, frozen, tokenizer, held_back), "prefers_secure": preferences(tuned, tokenizer, held_back)}}
    print(json.dumps(facts), flush=True)

    optimizer = torch.optim.AdamW(tuned.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    started, epoch, steps, recent = time.monotonic(), 0, 0, []
    share = 0.0
    while share < 1.0:
        for batch in batches(pairs, tokenizer, random.Random(f"finetune-{args.seed}-{epoch}"), args.rows):
            share = (time.monotonic() - started) / (60 * args.minutes)
            if share >= 1.0:
                break
            optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (steps + 1) / 10) * 0.5 * (1 + math.cos(math.pi * share))
            changed_loss, divergence = losses(tuned, frozen, *batch)
            (changed_loss + args.kl_weight * divergence).backward()
            torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps += 1
            recent.append((changed_loss.item(), divergence.item()))
            if steps % 20 == 0:
                print(f"step {steps}, epoch {epoch}: changed {sum(c for c, _ in recent) / len(recent):.3f}, "
                      f"kl {sum(k for _, k in recent) / len(recent):.4f}", flush=True)
                recent = []
        epoch += 1
    facts["after"] = {**held_back_losses(tuned, frozen, tokenizer, held_back), "prefers_secure": preferences(tuned, tokenizer, held_back)}
    facts |= {"steps": steps, "epochs": epoch, "rows": args.rows, "lr": args.lr, "kl_weight": args.kl_weight, "seed": args.seed}
    (args.work / "finetune.json").write_text(json.dumps(facts) + "\n")
    print(json.dumps(facts["after"]), flush=True)
    torch.save(tuned.state_dict(), args.work / "expert-tuned.pt")
    export(tuned, args.work / "tokenizer.json", args.output)


if __name__ == "__main__":
    main()
