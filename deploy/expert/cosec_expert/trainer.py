"""The training loop: steps, evaluations, checkpoints."""

import contextlib
import signal
import statistics
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object

from . import adapter, checkpoints, objective, schedule
from .held_out import EarlyStopping, HeldOut

CLIP = 1.0


class Interrupted(Exception):
    """A signal asked the run to end; a checkpoint is written."""


class Trainer:
    def __init__(self, settings, accelerator, tokenizer, scorer, selection):
        self.settings, self.accelerator, self.tokenizer = settings, accelerator, tokenizer
        self.scorer, self.tuned = accelerator.prepare(scorer), scorer.model
        self.plain_scorer = scorer
        self.parameters = [parameter for parameter in self.tuned.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.0)
        self.draws = schedule.draws(
            selection.train,
            selection.ordinary_train,
            settings.steps * settings.batch,
            settings.seed,
            settings.balance,
            dict(settings.weight),
            settings.chat_share,
            settings.body_share,
        )
        self.held_out = HeldOut.of(
            selection.held_out,
            selection.ordinary_held_out,
            tokenizer,
            settings.sizes,
            settings.held_out_pairs,
            settings.held_out_ordinary,
            settings.seed,
        )
        self.stopping = EarlyStopping(settings.patience, settings.most_ordinary_kl)
        self.best, self.first, self.interrupted = None, 0, False
        self.log = Path(settings.out) / "progress.jsonl"

    def rate(self, step):
        """Rises over the warm-up, then falls linearly to zero."""
        settings = self.settings
        rising = min(1.0, (step + 1) / max(1, settings.warmup))
        return settings.learning_rate * rising * (1 - step / settings.steps)

    def examples(self, step):
        settings = self.settings
        drawn = self.draws[step * settings.batch : (step + 1) * settings.batch]
        return [
            example
            for draw in drawn
            for example in schedule.examples_of(draw, self.tokenizer, settings.sizes, settings.seed)
        ]

    def backward(self, step):
        """Adds the step's gradients; every process does a part. Returns the parts of all losses.

        The loss is a sum over examples divided by the pairs of a step, so it does not depend on how they are put
        together.
        """
        accelerator, settings = self.accelerator, self.settings
        own = self.examples(step)[accelerator.process_index :: accelerator.num_processes]
        groups = [own[at : at + settings.rows] for at in range(0, len(own), settings.rows)]
        seen = []
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.scorer):
                losses = [
                    objective.of_example(example, tuned, self.plain_scorer.frozen(example), settings.weights)
                    for example, tuned in zip(group, self.scorer(group))
                ]
                seen += [parts | {"loss": loss.item()} for loss, parts in losses]
                # DistributedDataParallel takes the mean over processes.
                accelerator.backward(sum(loss for loss, _ in losses) * accelerator.num_processes / settings.batch)
        return gather_object(seen)

    def step(self, step):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        started = time.monotonic()
        parts = self.backward(step)
        self.accelerator.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        means = {
            name: statistics.fmean(part[name] for part in parts if name in part)
            for name in sorted({n for part in parts for n in part})
        }
        return {
            "step": step + 1,
            **means,
            "loss": sum(part["loss"] for part in parts) / self.settings.batch,
            "rate": self.rate(step),
            "seconds": round(time.monotonic() - started, 2),
        }

    def evaluate(self, step):
        """Nothing where no pair is held out: the last weights are then the result."""
        if not self.held_out.has_pairs:
            return
        figures = self.held_out.score(self.accelerator, self.plain_scorer, self.settings.weights)
        if self.stopping.take(step, figures):
            self.best = adapter.state(self.tuned)
        self.say(
            f"held out after {step}: evidence median {figures['evidence_median']:.2f} nats, above 2 in {figures['evidence_strong']:.0%}, "
            f"cross-entropy {figures['cross_entropy']:.3f}, KL {figures['kept_kl']:.4f} beside changes, "
            f"{figures['ordinary_kl']:.4f} on ordinary code; best after {self.stopping.best_step}"
        )

    def say(self, text):
        self.accelerator.print(text, flush=True)

    def restore(self, state):
        adapter.restore(self.tuned, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stopping.restore(state["stopping"])
        self.best, self.first = state["best"], state["step"]

    def save(self, step):
        if self.accelerator.is_main_process:
            checkpoints.save(
                Path(self.settings.out) / "checkpoints",
                step,
                {
                    "settings": self.settings.fixed(),
                    "adapter": adapter.state(self.tuned),
                    "optimizer": self.optimizer.state_dict(),
                    "stopping": self.stopping.state(),
                    "best": self.best,
                },
            )
        self.accelerator.wait_for_everyone()

    def _asked_to_end(self):
        asked = torch.tensor(float(self.interrupted), device=self.accelerator.device)
        return self.accelerator.reduce(asked, "sum").item() > 0

    def _on_signal(self, *_):
        self.interrupted = True

    def train(self):
        """Runs to the last step or until early stopping. Raises Interrupted after SIGTERM or SIGINT, at a
        checkpoint."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._train()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _train(self):
        settings = self.settings
        self.scorer.train()
        if self.first == 0:
            self.evaluate(0)
            self.save(0)
        recent = []
        for step in range(self.first, settings.steps):
            if self.stopping.is_over:
                self.say(f"no better evaluation in {settings.patience}: the run ends")
                break
            line = self.step(step)
            recent.append(line)
            if self.accelerator.is_main_process:
                checkpoints.append_line(self.log, line)
            done = step + 1
            if done % settings.log_every == 0 or done == settings.steps:
                self.say(f"step {done} of {settings.steps}: " + progress(recent))
                recent = []
            if done % settings.evaluate_every == 0 or done == settings.steps:
                self.evaluate(done)
            ends = self._asked_to_end()
            if ends or done % settings.checkpoint_every == 0 or done == settings.steps:
                self.save(done)
            if ends:
                raise Interrupted(f"a checkpoint of step {done} is written; the same command goes on there")

    def result(self):
        """(weights, whether an evaluation chose them)"""
        chosen = self.best is not None and (self.stopping.best_step > 0 or self.settings.start_from is not None)
        return (self.best if chosen else adapter.state(self.tuned)), chosen


def progress(lines):
    names = ("loss", "cross_entropy", "evidence", "kept_kl", "ordinary_kl", "seconds")
    return ", ".join(
        f"{name.replace('_', ' ')} {statistics.fmean(line[name] for line in lines if name in line):.4g}"
        for name in names
        if any(name in line for line in lines)
    )
