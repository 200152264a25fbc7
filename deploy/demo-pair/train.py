"""Pre-trains base or expert on the shards, until a given time of day; stops at SIGTERM and can be resumed.

Muon for the matrices, AdamW for embeddings and norms. The learning rate is constant, then falls to zero over the
last part of the time, from which on the focused shards are read. The schedule follows the clock, not a count
of steps, so a slower machine ends with fewer tokens, not with a learning rate that never fell.
"""
import argparse
import datetime
import json
import math
import signal
import sys
import time
from pathlib import Path

import numpy
import torch
from torch.nn import functional as F

from export import export
from model import SHAPES, Llama

HERE = Path(__file__).resolve().parent
CONTEXT = 256
WARMUP_TOKENS = 50_000


def orthogonalised(matrix):
    """Newton-Schulz: the nearest matrix whose singular values are all near one."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(4):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, matrices, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["velocity"] = torch.zeros_like(weight)
                velocity = state["velocity"].mul_(group["momentum"]).add_(weight.grad)
                update = orthogonalised(weight.grad + group["momentum"] * velocity)
                scale = 0.2 * max(weight.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


class Reader:
    """Windows of CONTEXT + 1 tokens, shard after shard; its position is three numbers."""

    def __init__(self, work, seed):
        self.work, self.seed = work, seed
        self.mix, self.shard, self.offset = "broad", 0, 0
        self._open()

    def _open(self):
        shards = sorted(self.work.glob(f"{self.mix}-*.npy"))
        if not shards:
            raise FileNotFoundError(f"no {self.mix} shards in {self.work}: run shards.py first")
        ids = numpy.load(shards[self.shard % len(shards)])
        count = (len(ids) - 1) // CONTEXT
        order = numpy.random.default_rng([self.seed, self.shard]).permutation(count)
        self.windows = numpy.stack([ids[n * CONTEXT:n * CONTEXT + CONTEXT + 1] for n in order]).astype(numpy.int64)

    def seek(self, mix, shard, offset):
        if (mix, shard) != (self.mix, self.shard):
            self.mix, self.shard = mix, shard
            self._open()
        self.offset = offset

    def batch(self, rows):
        if self.offset + rows > len(self.windows):
            self.seek(self.mix, self.shard + 1, 0)
        taken = self.windows[self.offset:self.offset + rows]
        self.offset += rows
        return torch.from_numpy(taken)


def optimizers_for(model, lr):
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() == 1 or "embed" in n]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=lr / 2, betas=(0.9, 0.95), weight_decay=0.0)]


def validation_loss(model, windows):
    with torch.no_grad():
        losses = [F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()) for part in windows.split(8)]
    return sum(losses).item() / len(losses)


def seconds_until(clock):
    now = datetime.datetime.now()
    hour, minute = map(int, clock.split(":"))
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (end - now).total_seconds()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=sorted(SHAPES))
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--until", metavar="HH:MM", help="time of day at which the learning rate reaches zero")
    when.add_argument("--minutes", type=float, help="in all, earlier runs counted")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--output", type=Path, help="folder for the export; default: the role's own")
    parser.add_argument("--rows", type=int, default=16, help="windows of 256 tokens in one step")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--decay-share", type=float, default=0.35, help="the part of the time in which the rate falls")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=3407)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = Llama(SHAPES[args.role])
    optimizers = optimizers_for(model, args.lr)
    reader = Reader(args.work, args.seed)
    held_back = torch.from_numpy(numpy.load(args.work / "validation.npy").astype(numpy.int64))
    checkpoint = args.work / f"{args.role}.pt"
    tokens, inherited, spent = 0, 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        reader.seek(*saved["reader"])
        tokens, inherited, spent = saved["tokens"], saved["inherited"], saved["spent"]
    started = time.monotonic()
    total = spent + seconds_until(args.until) if args.until else args.minutes * 60
    print(f"{args.role}: {model.parameters_count()} parameters, {inherited} + {tokens} tokens seen, {total - spent:.0f} s to go", flush=True)

    def save(last):
        state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                 "reader": [reader.mix, reader.shard, reader.offset], "tokens": tokens, "inherited": inherited,
                 "spent": now}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").rename(checkpoint)
        loss = validation_loss(model, held_back)
        facts = {"role": args.role, "parameters": model.parameters_count(), "tokens": tokens, "inherited_tokens": inherited, "seconds": round(now),
                 "validation_loss": round(loss, 4), "finished": last}
        (args.work / f"{args.role}.json").write_text(json.dumps(facts) + "\n")
        print(json.dumps(facts), flush=True)
        export(model, args.work / "tokenizer.json", args.output or HERE / args.role)

    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    step, recent, next_save = 0, [], time.monotonic() + 240
    now = spent
    while now < total and not stopping:
        share = now / total
        if share > 1 - args.decay_share and reader.mix == "broad":
            reader.seek("focused", 0, 0)
        falling = min(1.0, (1 - share) / args.decay_share)
        rate = args.lr * min(1.0, (tokens + 1) / WARMUP_TOKENS) * falling
        optimizers[0].param_groups[0]["lr"] = rate
        optimizers[1].param_groups[0]["lr"] = rate / 2
        batch = reader.batch(args.rows)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += args.rows * CONTEXT
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise FloatingPointError(f"loss is {recent[-1]} after {tokens} tokens: lower --lr")
        step += 1
        now = spent + time.monotonic() - started
        if step % 20 == 0:
            print(f"{tokens} tokens, {now:.0f} s, loss {sum(recent) / len(recent):.3f}, lr {rate:.4f}, {reader.mix} {reader.shard}", flush=True)
            recent = []
        if time.monotonic() > next_save:
            save(last=False)
            next_save = time.monotonic() + 240
    save(last=not stopping)
    if stopping:
        sys.exit("stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
