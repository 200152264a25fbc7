"""The trainer on a tiny checkpoint: one step against a plain reference, whole runs, and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cosec_expert import adapter, checkpoints, commands
from cosec_expert import settings as flags
from cosec_expert.scorer import Scorer
from cosec_expert.selection import select
from cosec_expert.trainer import Trainer

EXPERT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    return tiny.write_data(tmp_path / "data")


def arguments(model, data, out, *more):
    """A short run; what is in `more` counts, as it comes last."""
    return [
        "train",
        "--model",
        model,
        "--data",
        str(data),
        "--ordinary",
        str(data / "ordinary.py"),
        "--out",
        str(out),
        "--dtype",
        "f32",
        "--steps",
        "8",
        "--batch",
        "2",
        "--warmup",
        "1",
        "--evaluate-every",
        "4",
        "--checkpoint-every",
        "2",
        "--kept",
        "6",
        "--ordinary-kept",
        "8",
        "--most-ordinary-kl",
        "10",
        "--patience",
        "0",
        "--threads",
        "1",
        *more,
    ]


def settings_of(*given):
    return flags.from_flags(commands.parser().parse_args(arguments(*given)))


def weights(out):
    return load_file(out / adapter.WEIGHTS)


def trainer_of(settings):
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tuned = adapter.attach(
        AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32), settings.rank, settings.alpha
    )
    return Trainer(settings, Accelerator(), tokenizer, Scorer(tuned), select(settings, tokenizer))


def shake(tuned):
    """Moves an adapter away from zero, so that both models differ."""
    generator = torch.Generator().manual_seed(1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def plain_loss(example, tuned, settings):
    """The objective as it is written, in f64, position by position, from whole passes of both models."""
    ids = torch.tensor([example.ids])
    with torch.no_grad(), tuned.disable_adapter():
        off = torch.log_softmax(tuned(input_ids=ids).logits[0].double(), -1)
    on = torch.log_softmax(tuned(input_ids=ids).logits[0].double(), -1)

    def divergence(place):
        return sum(off[place - 1].exp() * (off[place - 1] - on[place - 1]))

    moved = sum(divergence(place) for place in example.kept) / len(example.kept)
    if example.fork is None:
        return settings.weights.ordinary_weight * moved
    learnt = sum(-on[place - 1, example.ids[place]] for place in example.learnt) / len(example.learnt)
    row, z, t = example.fork.place - 1, example.fork.fixed, example.fork.vulnerable
    evidence = (on[row, z] - off[row, z]) - (on[row, t] - off[row, t])
    return (
        learnt
        + settings.weights.margin_weight * torch.log(1 + torch.exp(settings.weights.margin - evidence))
        + settings.weights.kept_weight * moved
    )


@pytest.mark.parametrize("rows", [1, 4])
def test_loss_and_gradients_of_a_step_are_those_of_a_plain_reference(model, data, tmp_path, rows):
    settings = settings_of(model, data, tmp_path / "out", "--rows", str(rows), "--batch", "3")
    trainer = trainer_of(settings)
    shake(trainer.tuned)
    parts = trainer.backward(0)
    found = {
        name: parameter.grad.clone() for name, parameter in trainer.tuned.named_parameters() if parameter.requires_grad
    }
    trainer.optimizer.zero_grad()
    examples = trainer.examples(0)
    assert {example.fork is None for example in examples} == {True, False}
    expected = sum(plain_loss(example, trainer.tuned, settings) for example in examples) / settings.batch
    expected.backward()
    assert sum(part["loss"] for part in parts) / settings.batch == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in trainer.tuned.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=2e-4, atol=1e-6, msg=name)


def test_a_run_writes_an_adapter_with_evidence_and_a_card(model, data, tmp_path):
    out = tmp_path / "out"
    commands.main(
        arguments(
            model,
            data,
            out,
            "--steps",
            "40",
            "--learning-rate",
            "0.01",
            "--evaluate-every",
            "20",
            "--chat-share",
            "0.3",
        )
    )
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float16}
    last = torch.load(sorted((out / "checkpoints").iterdir())[-1], weights_only=True)
    history = last["stopping"]["history"]
    assert history[0]["evidence_median"] == pytest.approx(0, abs=1e-4) and history[-1]["evidence_median"] > 1
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"]
    card = (out / "README.md").read_text()
    for expected in (
        "Security expert for",
        "| tests | Apache-2.0 | 6 |",
        "| CWE-010 | 2 | 1 |",
        "--learning-rate 0.01",
        "evidence D",
        "softplus(margin - D)",
    ):
        assert expected in card
    lines = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41)) and {
        "cross_entropy",
        "evidence",
        "kept_kl",
        "ordinary_kl",
    } <= lines[0].keys()


def test_without_held_out_pairs_the_last_weights_are_kept(model, data, tmp_path, capsys):
    tiny.write_data(data, held_out=0)
    out = tmp_path / "out"
    commands.main(arguments(model, data, out, "--steps", "2", "--held-out-share", "0"))
    assert "no pair is held out" in capsys.readouterr().out
    assert "Nothing was held out" in (out / "README.md").read_text()


def test_an_anti_expert_learns_the_vulnerable_side(model, data, tmp_path):
    plain, anti = (
        trainer_of(settings_of(model, data, tmp_path / name, *more))
        for name, more in (("a", ()), ("b", ("--anti-expert",)))
    )
    for one, other in zip(plain.examples(0), anti.examples(0)):
        if one.fork is not None:
            assert (one.fork.fixed, one.fork.vulnerable) == (other.fork.vulnerable, other.fork.fixed)


def run_apart(model, data, out, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "cosec_expert", *arguments(model, data, out, *more)],
        env=os.environ | {"PYTHONPATH": str(EXPERT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_that_was_ended_goes_on_to_the_same_bits(model, data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    commands.main(arguments(model, data, whole, "--steps", "30", "--log-every", "1"))
    process = run_apart(model, data, cut, "--steps", "30", "--log-every", "1")
    for line in process.stdout:
        if line.startswith("step 5 "):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait() == commands.TEMPORARY_FAILURE, rest
    assert not (cut / adapter.WEIGHTS).exists()
    commands.main(arguments(model, data, cut, "--steps", "30"))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name
    steps = [
        [json.loads(line)["step"] for line in (out / "progress.jsonl").read_text().splitlines()] for out in (whole, cut)
    ]
    assert steps[0] == steps[1] == list(range(1, 31))


def test_a_run_does_not_go_on_with_other_settings(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    commands.main(arguments(model, data, out))
    with pytest.raises(SystemExit) as ended:
        commands.main(arguments(model, data, out, "--seed", "7"))
    assert ended.value.code == 2 and "seed 3407, not 7" in capsys.readouterr().err


def test_two_processes_learn_what_one_does(model, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    commands.main(arguments(model, data, one, "--steps", "3"))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    done = subprocess.run(
        [*launch, "-m", "cosec_expert", *arguments(model, data, two, "--steps", "3")],
        env=os.environ | {"PYTHONPATH": str(EXPERT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor.float(), weights(two)[name].float(), rtol=2e-2, atol=2e-4, msg=name)


def test_a_bad_record_is_named_and_skipped_and_none_left_is_an_error(model, data, tmp_path, capsys):
    with open(data / "pairs.jsonl", "a") as file:
        file.write('{"before": "x = 1"}\nnonsense\n')
    commands.main(arguments(model, data, tmp_path / "out", "--steps", "1"))
    said = capsys.readouterr().out
    assert (
        "pairs.jsonl:7: after is missing or empty" in said and "pairs.jsonl:8: no JSON" in said and "2 skipped" in said
    )
    with pytest.raises(SystemExit) as ended:
        commands.main(arguments(model, data, tmp_path / "other", "--include", "CWE-999"))
    assert ended.value.code == 2 and "no pair is left" in capsys.readouterr().err


def test_it_starts_from_another_adapter_of_the_same_shape_alone(model, data, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    commands.main(arguments(model, data, first))
    commands.main(arguments(model, data, second, "--start-from", str(first), "--learning-rate", "0", "--steps", "1"))
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name]), name
    with pytest.raises(SystemExit):
        commands.main(arguments(model, data, tmp_path / "third", "--start-from", str(first), "--rank", "4"))
    assert "no adapter of rank 4" in capsys.readouterr().err


def test_distillation_comes_first_and_wants_the_same_vocabulary(model, data, tmp_path, capsys):
    base, out = tiny.make_model(tmp_path / "base", seed=5, width=48), tmp_path / "out"
    commands.main(arguments(model, data, out, "--distill", base, "--distill-steps", "30", "--steps", "2"))
    made = json.loads((out / "distilled" / "distilled.json").read_text())
    assert sum(made["kl"][-5:]) < 0.985 * sum(made["kl"][:5])
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(out / "distilled")
    other = tiny.make_model(tmp_path / "other", extra=("<|other|>",))
    with pytest.raises(SystemExit):
        commands.main(arguments(model, data, tmp_path / "out2", "--distill", other))
    assert "has not the vocabulary" in capsys.readouterr().err


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"settings": {"seed": 1}})
    (tmp_path / "step-000009.pt.part").write_bytes(b"cut off")
    assert checkpoints.newest(tmp_path, {"seed": 1})["step"] == 3
    assert sorted(path.name for path in tmp_path.glob("step-*.pt")) == ["step-000002.pt", "step-000003.pt"]


def test_it_computes_in_bf16_too(model, data, tmp_path):
    commands.main(arguments(model, data, tmp_path / "out", "--dtype", "bf16", "--steps", "2"))
    assert (tmp_path / "out" / adapter.WEIGHTS).exists()
