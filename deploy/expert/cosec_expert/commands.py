"""The command line: what goes wrong is said in one sentence, with exit status 2 for the caller's mistakes and 75
after a signal.
"""

import argparse
import sys
from pathlib import Path

from . import settings as flags

TEMPORARY_FAILURE = 75
NAMED = 20
"""Bad records that are named one by one."""


def train(settings, arguments):
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from . import adapter, card, checkpoints, distillation, precision
    from .scorer import Scorer
    from .selection import select
    from .trainer import Trainer, progress

    if settings.threads:
        torch.set_num_threads(settings.threads)
    accelerator = Accelerator()
    if settings.batch < accelerator.num_processes:
        raise SystemExit(f"--batch {settings.batch} is less than the {accelerator.num_processes} processes")
    say = accelerator.print
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    selection = select(settings, tokenizer)
    report(selection, say)
    checkpoint = checkpoints.newest(Path(settings.out) / "checkpoints", settings.fixed())
    dtype, why = precision.choose(accelerator.device, settings.dtype)
    say(f"{str(dtype).removeprefix('torch.')} on {accelerator.device}: {why}")
    autocast = None if dtype == torch.float32 else dtype

    source = settings.model
    if settings.distill:
        distillation.check_vocabularies(tokenizer, AutoTokenizer.from_pretrained(settings.distill))
        with accelerator.main_process_first():
            source = distillation.distil(
                settings,
                AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype).to(accelerator.device),
                distillation.load_base(settings, dtype).to(accelerator.device),
                tokenizer,
                selection.ordinary_train,
                dtype,
                say,
            )
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).to(accelerator.device)
    scorer = Scorer(
        adapter.attach(model, settings.rank, settings.alpha, settings.start_from), autocast, settings.cache_mib << 20
    )
    scorer.check(tokenizer("def main():\n    return 0\n", add_special_tokens=False)["input_ids"])

    trainer = Trainer(settings, accelerator, tokenizer, scorer, selection)
    if checkpoint:
        trainer.restore(checkpoint)
        say(f"goes on after step {trainer.first}")
    if accelerator.is_main_process:
        checkpoints.cut_log(trainer.log, trainer.first)
    trainer.train()
    if accelerator.is_main_process:
        weights, chosen = trainer.result()
        out = Path(settings.out)
        adapter.export(trainer.tuned, weights, out, settings.model_name or str(source))
        last = progress(checkpoints.lines(trainer.log)[-1:])
        (out / "README.md").write_text(
            card.text(settings, selection, trainer.stopping, chosen, arguments, str(dtype).removeprefix("torch."), last)
        )
        say(
            f"{out}: the adapter {f'after step {trainer.stopping.best_step}' if chosen else 'of the last step'}, and its card"
        )


def report(selection, say):
    """Prints what is trained on, and which records are not."""
    for place, why in selection.skipped[:NAMED]:
        say(f"skipped {place}: {why}")
    if len(selection.skipped) > NAMED:
        say(f"skipped {len(selection.skipped) - NAMED} more")
    for weakness, trained, held_out in selection.table():
        say(f"{weakness}: {trained} pairs, {held_out} held out")
    if not selection.held_out:
        say("no pair is held out: the run neither stops early nor chooses the best weights")
    say(
        f"{len(selection.train)} pairs, {len(selection.held_out)} held out, {len(selection.skipped)} skipped; "
        f"{len(selection.ordinary_train)} ordinary functions, {len(selection.ordinary_held_out)} held out"
    )


def parser():
    found = argparse.ArgumentParser(prog="cosec_expert", description="Trains a security expert for co-decoding.")
    commands = found.add_subparsers(dest="command", required=True)
    flags.add_flags(commands.add_parser("train", help="trains an adapter", formatter_class=argparse.HelpFormatter))
    return found


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = flags.from_flags(parser().parse_args(arguments))
    from .adapter import OtherShape
    from .checkpoints import OtherSettings
    from .distillation import OtherVocabulary
    from .scorer import UnsupportedModel
    from .selection import NothingLeft
    from .trainer import Interrupted

    try:
        train(settings, arguments[1:])
    except (NothingLeft, OtherSettings, OtherShape, OtherVocabulary, UnsupportedModel, OSError) as error:
        print(f"cosec_expert: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(f"cosec_expert: {error}", file=sys.stderr)
        sys.exit(TEMPORARY_FAILURE)
