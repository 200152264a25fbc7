"""The llama decoder in a hundred lines, with the tensor names and the rotary convention of Hugging Face's llama."""
import json
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 4096
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    def config(self):
        """config.json as transformers 4 writes it."""
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **asdict(self), "head_dim": self.head_dim,
                "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
                "rope_scaling": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 0,
                "eos_token_id": 0, "initializer_range": 0.02, "pretraining_tp": 1, "use_cache": True}


SHAPES = {
    "base": Shape(hidden_size=384, intermediate_size=1024, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=6),
    "expert": Shape(hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4),
}


def rotary(shape, length, start=0):
    """cos and sin, [length, head_dim], the two halves of a head turning alike."""
    frequency = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angle = torch.outer(torch.arange(start, start + length).float(), frequency)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotated(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        inner, shared = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(inner, shape.hidden_size, bias=False)

    def forward(self, x, cos, sin, cache):
        rows, length, _ = x.shape
        q, k, v = (p(x).view(rows, length, -1, self.shape.head_dim).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat([cache["k"], k], dim=2), torch.cat([cache["v"], v], dim=2)
            cache["k"], cache["v"] = k, v
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


class Mlp(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x, cos, sin, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)


class Llama(nn.Module):
    """Tied embeddings; `state_dict()` has exactly the names that model.safetensors needs."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                depth = (2 * shape.num_hidden_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=0.02 * depth)

    def forward(self, ids, caches=None):
        """Logits [rows, length, vocabulary]. With `caches` (one dict a layer) `ids` continue what was fed before;
        after the first call only one token at a time may follow."""
        start = caches[0]["k"].shape[2] if caches and "k" in caches[0] else 0
        assert start == 0 or ids.shape[1] == 1, "a filled cache takes one token at a time"
        cos, sin = rotary(self.shape, ids.shape[1], start)
        x = self.model.embed_tokens(ids)
        for number, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, caches[number] if caches is not None else None)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def parameters_count(self):
        return sum(p.numel() for p in self.parameters())


def load(folder):
    """A model from its Hugging Face folder, in f32."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    model = Llama(Shape(**{name: config[name] for name in Shape.__dataclass_fields__}))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model.eval()
