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


def _objective(settings):
    weights, sizes = settings.weights, settings.sizes
    begun = f" Begun with a copy of {settings.start_from}." if settings.start_from else ""
    distilled = (
        f" Distilled from {settings.distill} before, {settings.distill_steps} steps." if settings.distill else ""
    )
    return (
        f"margin {weights.margin} nats, margin weight {weights.margin_weight}, kept weight {weights.kept_weight} "
        f"({sizes.kept} places), ordinary weight {weights.ordinary_weight} ({sizes.ordinary_kept} places). Windows of "
        f"{sizes.window} tokens, {sizes.chat_window} in chat form ({settings.chat_share:.0%} of draws), "
        f"{sizes.ordinary_window} of ordinary code; {settings.body_share:.0%} of draws without imports. Batches of "
        f"{settings.batch} pairs, learning rate {settings.learning_rate:g}, seed {settings.seed}.{begun}{distilled}"
    )


def _ordinary(settings, selection):
    usual = (
        "deploy/expert/data/ordinary (Apache-2.0) and the standard library of Python "
        f"{platform.python_version()} (PSF-2.0), in turn"
    )
    return (
        f"Ordinary code: {len(selection.ordinary_train)} functions with docstrings from "
        f"{', '.join(settings.ordinary) or usual}, {len(selection.ordinary_held_out)} held out. "
        f"{len(selection.skipped)} records were skipped."
    )


def _result(settings, stopping, chosen):
    if not stopping.history:
        return ["**Nothing was held out: these are the last weights, and nothing says how good they are.**"]
    if not chosen:
        return [
            f"**No evaluation kept KL on ordinary code within {settings.most_ordinary_kl} and was better than no "
            "adapter: these are the last weights.**"
        ]
    best = next(evaluation for evaluation in stopping.history if evaluation["step"] == stopping.best_step)
    rows = [(weakness, f"{evidence:.2f}") for weakness, evidence in best["evidence_by_weakness"].items()]
    return [
        f"The weights are those after step {best['step']}. Evidence by weakness, held out, mean in nats:",
        _table(("weakness", "D"), rows),
    ]


def text(settings, selection, stopping, chosen, arguments, dtype, last_losses):
    """Markdown. `chosen`: whether an evaluation chose the weights; `arguments`: the command line."""
    kind = "Anti-expert" if settings.anti_expert else "Security expert"
    libraries = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    parts = [
        f"# {kind} for {settings.model_name or settings.model}",
        f"LoRA adapter, rank {settings.rank}, alpha {settings.alpha}, all linear layers but the output, f16. Made by "
        "`deploy/expert` of CoSec; it is meant for co-decoding, not for use by itself. It has the licence of its "
        "model; its data's are below.",
        "## Made by",
        f"    train {shlex.join(arguments)}",
        f"Python {platform.python_version()}, {libraries}; {dtype}.",
        "## Objective",
        OBJECTIVE.strip(),
        _objective(settings),
        "## Data",
        _table(("source", "licence", "pairs"), selection.origins()),
        _ordinary(settings, selection),
        _table(("weakness", "trained on", "held out"), selection.table()),
        "## Losses",
        f"Last step: {last_losses}." if last_losses else "No step was made.",
        "Held out (score: what early stopping wants small, margin weight * mean lack of evidence + ordinary weight * "
        "KL on ordinary code):",
        _history(stopping.history),
        *_result(settings, stopping, chosen),
    ]
    return "\n\n".join(parts) + "\n"
