"""The model card that a run writes beside its adapter."""

import platform
import shlex
from importlib.metadata import version

from .objective import __doc__ as OBJECTIVE

LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def _history(history):
    rows = [
        (
            e["step"],
            f"{e['evidence_median']:.2f}",
            f"{e['evidence_strong']:.0%}",
            f"{e['cross_entropy']:.3f}",
            f"{e['kept_kl']:.4f}",
            f"{e['ordinary_kl']:.4f}",
            f"{e['score']:.3f}",
        )
        for e in history
    ]
    return _table(
        (
            "step",
            "evidence D, median",
            "D above 2",
            "cross-entropy",
            "KL beside changes",
            "KL on ordinary code",
            "score",
        ),
        rows,
    )


def text(settings, selection, stopping, chosen, arguments, dtype, last_losses):
    """Markdown. `chosen`: whether an evaluation chose the weights; `arguments`: the command line."""
    kind = "Anti-expert" if settings.anti_expert else "Security expert"
    name = settings.model_name or settings.model
    best = (
        next((e for e in stopping.history if e["step"] == stopping.best_step), None)
        if chosen
        else (stopping.history or [None])[-1]
    )
    weights, sizes = settings.weights, settings.sizes
    parts = [
        f"# {kind} for {name}",
        f"LoRA adapter, rank {settings.rank}, alpha {settings.alpha}, all linear layers but the output, f16. Made by `deploy/expert` of CoSec; it is meant for "
        "co-decoding, not for use by itself. It has the licence of its model; its data's are below.",
        "## Made by",
        f"    train {shlex.join(arguments)}",
        f"Python {platform.python_version()}, "
        + ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
        + f"; {dtype}.",
        "## Objective",
        OBJECTIVE.strip(),
        f"margin {weights.margin} nats, margin weight {weights.margin_weight}, kept weight {weights.kept_weight} ({sizes.kept} places), "
        f"ordinary weight {weights.ordinary_weight} ({sizes.ordinary_kept} places). Windows of {sizes.window} tokens, {sizes.chat_window} in chat form "
        f"({settings.chat_share:.0%} of draws), {sizes.ordinary_window} of ordinary code; {settings.body_share:.0%} of draws without imports. "
        f"Batches of {settings.batch} pairs, learning rate {settings.learning_rate:g}, seed {settings.seed}."
        + (f" Begun with a copy of {settings.start_from}." if settings.start_from else "")
        + (
            f" The model was distilled from {settings.distill} before, {settings.distill_steps} steps."
            if settings.distill
            else ""
        ),
        "## Data",
        _table(("source", "licence", "pairs"), selection.origins()),
        f"Ordinary code: {len(selection.ordinary_train)} functions with docstrings from "
        + (
            ", ".join(settings.ordinary)
            if settings.ordinary
            else f"deploy/expert/data/ordinary (Apache-2.0) and the standard library of Python {platform.python_version()} (PSF-2.0), in turn"
        )
        + f", {len(selection.ordinary_held_out)} held out. {len(selection.skipped)} records were skipped.",
        _table(("weakness", "trained on", "held out"), selection.table()),
        "## Losses",
        f"Last step: {last_losses}." if last_losses else "No step was made.",
        "Held out (score: what early stopping wants small, margin weight * mean lack of evidence + ordinary weight * KL on ordinary code):",
        _history(stopping.history),
    ]
    if best is not None and chosen:
        parts += [
            f"The weights are those after step {best['step']}. Evidence by weakness, held out, mean in nats:",
            _table(("weakness", "D"), [(w, f"{d:.2f}") for w, d in best["evidence_by_weakness"].items()]),
        ]
    else:
        parts.append(
            f"**No evaluation kept KL on ordinary code within {settings.most_ordinary_kl} and was better than no adapter: these are the last weights.**"
        )
    return "\n\n".join(parts) + "\n"
