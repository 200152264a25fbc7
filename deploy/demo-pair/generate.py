"""The three rules in PyTorch, so that the pair can be measured without a server. Not bit-equal to the server's draws."""
import torch
from tokenizers import Tokenizer

from model import load

TAU = 0.3
EXPERT_TEMPERATURE = 0.4
TOP_P = 0.95
END = 0


def nucleus(logits, temperature):
    """Probabilities after temperature and top-p: ascending, what lies within 1 - TOP_P of the tail is dropped."""
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    ordered, order = probabilities.sort(dim=-1, stable=True)
    drop = ordered.cumsum(dim=-1) <= 1 - TOP_P
    drop[..., -1] = False
    kept = probabilities.masked_fill(drop.scatter(-1, order, drop), 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


class Pair:
    def __init__(self, folder, base_temperature, max_tokens):
        torch.set_num_threads(1)
        self.tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
        self.models = {"base": load(folder / "base"), "expert": load(folder / "expert")}
        self.base_temperature, self.max_tokens = base_temperature, max_tokens

    @torch.no_grad()
    def completions(self, rule, prompt, seeds):
        """[(text, cut off)] for all seeds at once, one row each."""
        roles = {"base_only": ["base"], "expert_only": ["expert"], "cosec": ["base", "expert"]}[rule]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        ids = torch.tensor([self.tokenizer.encode(prompt).ids] * len(seeds))
        caches = {role: [{} for _ in self.models[role].model.layers] for role in roles}
        rows, ended = [[] for _ in seeds], [False] * len(seeds)
        for _ in range(self.max_tokens):
            logits = {role: self.models[role](ids, caches[role])[:, -1] for role in roles}
            p = nucleus(logits["base"], self.base_temperature) if "base" in roles else None
            q = nucleus(logits["expert"], EXPERT_TEMPERATURE) if "expert" in roles else None
            drawn = []
            for row, generator in enumerate(generators):
                token = torch.multinomial((q if q is not None else p)[row], 1, generator=generator).item()
                if rule == "cosec" and not min(1.0, (p[row, token] / q[row, token]).item()) > TAU:
                    token = torch.multinomial(p[row], 1, generator=generator).item()
                drawn.append(token)
                if token == END:
                    ended[row] = True
                if not ended[row]:
                    rows[row].append(token)
            if all(ended):
                break
            ids = torch.tensor(drawn).unsqueeze(1)
        return [(self.tokenizer.decode(row), not end) for row, end in zip(rows, ended)]
