"""Logits at chosen places of both models: the tuned one, and the frozen one, which is the same without its adapter.

Only the places that the loss looks at go through the output layer: for a vocabulary of 150,000 tokens it costs a
quarter of the pass otherwise. The frozen model's last hidden states at its places are kept, a thousand numbers each
instead of a vocabulary of them, and its logits are computed from those: exactly, and without a second pass where an
example comes again. They are computed row by row, so that they do not depend on what else is in a batch.
"""

import contextlib

import torch
from torch import nn


class UnsupportedModel(Exception):
    """A model whose logits are not its output layer's of its last hidden states."""


class Scorer(nn.Module):
    def __init__(self, model, autocast_dtype=None, cache_bytes=2 << 30):
        super().__init__()
        self.model = model
        self.autocast_dtype = autocast_dtype
        self._cache, self._room = {}, cache_bytes

    @property
    def device(self):
        return next(self.model.parameters()).device

    def _causal(self):
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _autocast(self):
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def _hidden(self, rows):
        """Last hidden states, `[rows, tokens, width]`, padded at the end."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        with self._autocast():
            return self._causal().base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    def _logits(self, hidden):
        head = self._causal().get_output_embeddings()
        with self._autocast():
            return head(hidden.to(head.weight.dtype)).float()

    def forward(self, examples):
        """The tuned model's logits of each example, `[places, vocabulary]` in f32, as `Example.places`."""
        hidden = self._hidden([example.ids for example in examples])
        return [
            self._logits(hidden[row, [place - 1 for place in example.places]]) for row, example in enumerate(examples)
        ]

    @torch.no_grad()
    def frozen(self, example):
        """The frozen model's logits, as `Example.frozen_places`."""
        kept = self._cache.get(example)
        if kept is None:
            with self.model.disable_adapter():
                kept = self._hidden([example.ids])[0, [place - 1 for place in example.frozen_places]]
            size = kept.numel() * kept.element_size()
            if size <= self._room:
                self._room -= size
                self._cache[example] = kept
        return self._logits(kept)

    @torch.no_grad()
    def check(self, ids):
        """Raises UnsupportedModel unless this class computes what the model itself does."""
        whole = self._causal()(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0].float()
        ours = self._logits(self._hidden([ids])[0])
        distance = (torch.log_softmax(whole, -1) - torch.log_softmax(ours, -1)).abs().max().item()
        if distance > (0.5 if self.autocast_dtype else 1e-3):
            raise UnsupportedModel(f"logits of the output layer differ from the model's by up to {distance:.3g} nats")
