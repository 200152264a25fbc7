"""What a run is told: flags, their defaults and which of them may change when it goes on."""

import argparse
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .examples import Sizes
from .objective import Weights

PLACE_FLAGS = {"out", "rows", "cache_mib", "checkpoint_every", "log_every", "model_name", "threads"}
"""What does not change what is learnt, beyond the last bits: free when a run goes on."""


@dataclass(frozen=True)
class Settings:
    model: str
    data: tuple
    out: Path
    model_name: str | None
    anti_expert: bool
    distill: str | None
    distill_steps: int
    start_from: str | None
    include: tuple
    exclude: tuple
    language: tuple
    balance: float
    weight: tuple
    """(weakness, factor)"""
    ordinary: tuple
    chat_share: float
    body_share: float
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    rank: int
    alpha: int
    seed: int
    dtype: str
    rows: int
    threads: int
    cache_mib: int
    evaluate_every: int
    patience: int
    most_ordinary_kl: float
    held_out_share: float
    held_out_pairs: int
    held_out_ordinary: int
    checkpoint_every: int
    log_every: int
    sizes: Sizes
    weights: Weights

    def fixed(self):
        """What a run must have been begun with to go on."""
        plain = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
            if name not in PLACE_FLAGS
        }


def _weight(text):
    weakness, _, factor = text.partition("=")
    try:
        return weakness.upper(), float(factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a weakness and a factor such as CWE-079=2") from None


def _above_zero(text):
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number above 0")
    return number


def _share(text):
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number from 0 to 1")
    return number


def add_flags(parser):
    required = parser.add_argument_group("what is trained on what")
    required.add_argument(
        "--model", required=True, help="folder of a Hugging Face causal language model, or its id on the hub"
    )
    required.add_argument(
        "--data",
        action="append",
        required=True,
        help="JSONL file of fix pairs, or a folder with such files; may be repeated",
    )
    required.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the adapter, its card, checkpoints and the log; a run that was cut off goes on there",
    )
    required.add_argument("--model-name", help="what the adapter's configuration calls the model (default: --model)")
    required.add_argument("--anti-expert", action="store_true", help="learn the vulnerable side")
    required.add_argument(
        "--distill",
        metavar="BASE",
        help="first bring the model closer to this base model of the same vocabulary; the result is in OUT/distilled",
    )
    required.add_argument("--distill-steps", type=_above_zero, default=200)
    required.add_argument("--start-from", metavar="ADAPTER", help="begin with a copy of this adapter")

    choice = parser.add_argument_group("which pairs, how often")
    choice.add_argument(
        "--include", action="append", default=[], metavar="WEAKNESS", help="only these weaknesses; may be repeated"
    )
    choice.add_argument("--exclude", action="append", default=[], metavar="WEAKNESS")
    choice.add_argument(
        "--language", action="append", default=[], help="only these languages, such as python or c; may be repeated"
    )
    choice.add_argument(
        "--balance",
        type=_share,
        default=0.8,
        help="0: weaknesses as often as they have pairs; 1: all equally often (default 0.8)",
    )
    choice.add_argument(
        "--weight",
        action="append",
        type=_weight,
        default=[],
        metavar="WEAKNESS=FACTOR",
        help="this weakness so many times as often",
    )
    choice.add_argument(
        "--ordinary",
        action="append",
        default=[],
        help="Python files or folders of ordinary code (default: our own and this Python's standard library)",
    )
    choice.add_argument(
        "--chat-share",
        type=_share,
        default=0.4,
        help="share of draws as chat answers in the model's template (default 0.4)",
    )
    choice.add_argument(
        "--body-share", type=_share, default=0.3, help="share of draws without the imports (default 0.3)"
    )

    run = parser.add_argument_group("training")
    run.add_argument("--steps", type=_above_zero, default=320)
    run.add_argument(
        "--batch",
        type=_above_zero,
        default=4,
        help="pairs a step, each with an ordinary function, over all processes (default 4)",
    )
    run.add_argument("--learning-rate", type=float, default=3e-4, help="falls linearly to zero (default 3e-4)")
    run.add_argument("--warmup", type=int, default=10, help="steps over which the rate rises (default 10)")
    run.add_argument("--rank", type=_above_zero, default=8)
    run.add_argument("--alpha", type=_above_zero, default=16)
    run.add_argument("--seed", type=int, default=3407)
    run.add_argument(
        "--dtype", choices=["auto", "bf16", "f32"], default="auto", help="auto: the faster one, by a probe"
    )
    run.add_argument("--rows", type=_above_zero, default=1, help="windows in one pass; more suits a GPU (default 1)")
    run.add_argument("--threads", type=int, default=0, help="threads of PyTorch (default: its own choice)")
    run.add_argument("--cache-mib", type=int, default=2048, help="memory for the frozen model's states (default 2048)")
    run.add_argument("--checkpoint-every", type=_above_zero, default=20, help="steps (default 20)")
    run.add_argument("--log-every", type=_above_zero, default=10, help="steps (default 10)")
    for name, unit in (
        ("margin", "nats of evidence that are asked for"),
        ("margin_weight", ""),
        ("kept_weight", ""),
        ("ordinary_weight", ""),
    ):
        run.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Weights(), name), help=unit or None)
    for name in ("window", "chat_window", "ordinary_window", "kept", "ordinary_kept"):
        run.add_argument(
            f"--{name.replace('_', '-')}",
            type=_above_zero,
            default=getattr(Sizes(), name),
            help="tokens" if "window" in name else "positions",
        )

    stop = parser.add_argument_group("early stopping")
    stop.add_argument("--evaluate-every", type=_above_zero, default=40, help="steps (default 40)")
    stop.add_argument(
        "--patience",
        type=int,
        default=4,
        help="evaluations without a better one before the run ends; 0: never (default 4)",
    )
    stop.add_argument(
        "--most-ordinary-kl",
        type=float,
        default=0.02,
        help="an adapter that moves ordinary code by more nats is never the best (default 0.02)",
    )
    stop.add_argument(
        "--held-out-share", type=_share, default=0.1, help="of the groups that no split is stated for (default 0.1)"
    )
    stop.add_argument("--held-out-pairs", type=_above_zero, default=72)
    stop.add_argument("--held-out-ordinary", type=_above_zero, default=32)


def from_flags(args):
    given = vars(args)
    groups = {
        "sizes": Sizes(**{f.name: given[f.name] for f in fields(Sizes)}),
        "weights": Weights(**{f.name: given[f.name] for f in fields(Weights)}),
    }
    plain = {f.name: given[f.name] for f in fields(Settings) if f.name not in groups}
    return Settings(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}, **groups
    )
