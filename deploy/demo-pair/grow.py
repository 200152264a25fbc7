"""Grows the base out of the small model's pre-training, without changing what it computes.

The small shape sees three times as many tokens a second; what it has learnt by then is a better start for the base
than random weights. New heads, MLP units and layers write zeros at first; new residual dimensions hold small noise.
From here on the base reads focused shards that the small model has not seen.
"""
import argparse
from pathlib import Path

import torch

from model import SHAPES, Llama
from train import optimizers_for

NOISE = 0.002
WRITERS = ("o_proj.weight", "down_proj.weight")


def writer(small, like):
    """A matrix that writes to the residual stream: nothing from new units, noise into new dimensions."""
    large = torch.zeros_like(like)
    large[small.shape[0]:, :small.shape[1]].normal_(std=NOISE)
    large[:small.shape[0], :small.shape[1]] = small
    return large


def reader(small, like):
    """A matrix that reads the residual stream: new units look anywhere, old ones a little at new dimensions."""
    large = torch.randn_like(like) * 0.02
    large[:small.shape[0], :small.shape[1]] = small
    return large


def grown(small):
    """A Llama of the base's shape that computes (almost) what `small` does."""
    large = Llama(SHAPES["base"])
    # A norm over more dimensions, most of the new ones near zero, divides by less: its weight makes up for that.
    shrink = (SHAPES["expert"].hidden_size / SHAPES["base"].hidden_size) ** 0.5
    source = small.state_dict()
    with torch.no_grad():
        for name, weight in large.named_parameters():
            old = source.get(name)
            if old is None:
                if name.endswith(WRITERS):
                    weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(shrink * old.mean())
                weight[:len(old)] = shrink * old
            elif "embed" in name:
                weight[:, old.shape[1]:].normal_(std=NOISE)
                weight[:, :old.shape[1]] = old
            else:
                weight.copy_((writer if name.endswith(WRITERS) else reader)(old, weight))
    return large


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / "work")
    parser.add_argument("--seed", type=int, default=3407)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    saved = torch.load(args.work / "expert.pt", weights_only=True)
    small = Llama(SHAPES["expert"])
    small.load_state_dict(saved["model"])
    large = grown(small)
    probe = torch.randint(0, SHAPES["base"].vocab_size, (2, 64))
    with torch.no_grad():
        drift = (torch.log_softmax(large(probe), -1) - torch.log_softmax(small(probe), -1)).abs().mean().item()
    print(f"grown from {saved['tokens']} tokens; mean change of a log-probability {drift:.4f}")
    _, shard, _ = saved["reader"]
    state = {"model": large.state_dict(), "optimizers": [o.state_dict() for o in optimizers_for(large, 0.01)],
             "reader": ["focused", shard + 1, 0], "tokens": 0, "inherited": saved["inherited"] + saved["tokens"], "spent": 0.0}
    torch.save(state, args.work / "base.pt")


if __name__ == "__main__":
    main()
