"""Chooses between bf16 and f32 by timing both."""

import time

import torch

SHAPES = {"cpu": (64, 512, 1024), "cuda": (2048, 4096, 4096)}
"""Rows, inputs and outputs of a product that takes milliseconds."""
WORTH = 1.2
"""bf16 costs accuracy: it is taken where it is this many times as fast."""


def _seconds(device, dtype, rounds=4):
    rows, inner, outer = SHAPES.get(device.type, SHAPES["cpu"])
    left, right = (
        torch.randn(rows, inner, device=device, dtype=dtype),
        torch.randn(inner, outer, device=device, dtype=dtype),
    )

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    best = float("inf")
    for _ in range(rounds):
        wait()
        started = time.perf_counter()
        left @ right
        wait()
        best = min(best, time.perf_counter() - started)
    return best


def choose(device, wanted="auto"):
    """(dtype, why); `wanted` is auto, bf16 or f32."""
    if wanted != "auto":
        return {"bf16": torch.bfloat16, "f32": torch.float32}[wanted], "as told"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float32, "the GPU has no bf16"
    gain = _seconds(device, torch.float32) / _seconds(device, torch.bfloat16)
    return (torch.bfloat16 if gain >= WORTH else torch.float32), f"bf16 is {gain:.1f} times as fast as f32 here"
