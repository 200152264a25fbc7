"""Brings a small model closer to the base that it is to advise, before the expert is trained (what CoSec+ adds).

The student learns the base's distributions on ordinary code, KL(base || student), by an adapter that is then merged
into its weights. The expert's adapter and the frozen model of its objective both stand on the result.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from . import adapter, objective, schedule
from .examples import Sizes
from .scorer import Scorer

RATE = 3e-4
PLACES = 64


class OtherVocabulary(Exception):
    """The base does not have the student's vocabulary."""


def check_vocabularies(student, base):
    if student.get_vocab() != base.get_vocab():
        raise OtherVocabulary(f"{base.name_or_path} has not the vocabulary of {student.name_or_path}")


def loss_of(student_logits, base_logits):
    """KL(base || student) in nats, the mean over rows; over the ids that both have, where one is padded."""
    both = min(student_logits.shape[-1], base_logits.shape[-1])
    return objective.divergence(base_logits[:, :both], student_logits[:, :both]).mean()


def distil(settings, model, base, tokenizer, snippets, dtype, say):
    """Writes the student to OUT/distilled and returns that folder; a finished one is taken as it is."""
    folder = Path(settings.out) / "distilled"
    made_by = {
        "model": settings.model,
        "base": settings.distill,
        "steps": settings.distill_steps,
        "seed": settings.seed,
    }
    record = folder / "distilled.json"
    if record.exists() and json.loads(record.read_text())["made_by"] == made_by:
        return folder
    autocast = dtype if dtype != torch.float32 else None
    student = Scorer(adapter.attach(model, settings.rank, settings.alpha), autocast)
    teacher = Scorer(base.requires_grad_(False), autocast)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    sizes = Sizes(ordinary_window=settings.sizes.window, ordinary_kept=PLACES)
    rounds = schedule.Turns(snippets, f"{settings.seed}-distil")
    history = []
    for step in range(settings.distill_steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / settings.distill_steps)
        total = 0.0
        for _ in range(settings.batch):
            draw = schedule.Draw(step, None, rounds.next(), "code")
            for example in schedule.examples_of(draw, tokenizer, sizes, settings.seed):
                with torch.no_grad():
                    wanted = teacher([example])[0]
                loss = loss_of(student([example])[0], wanted) / settings.batch
                loss.backward()
                total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        history.append(total)
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.distill_steps:
            recent = history[-settings.log_every :]
            say(f"distillation {step + 1} of {settings.distill_steps}: KL to the base {sum(recent) / len(recent):.4f}")
    merged = student.model.merge_and_unload()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record.write_text(json.dumps({"made_by": made_by, "kl": history}) + "\n")
    return folder


def load_base(settings, dtype):
    return AutoModelForCausalLM.from_pretrained(settings.distill, dtype=dtype)
