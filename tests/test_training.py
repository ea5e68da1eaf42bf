"""Training through the exported step: bit-exact resume, the best checkpoint, early stopping,
merging and speaking.
"""
import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.hooks import attach_align_device_hook_on_blocks
from safetensors.torch import load_file

from higgs_vi.adapters import add_lora, fingerprint, load_adapter, lora_config
from higgs_vi.audio import DEMO, read_audio, write_wav
from higgs_vi.batch import build_example, collate, drop_prompt_text
from higgs_vi.checkpoint import checkpoints, lock_run, read_metrics, unlock_run
from higgs_vi.codec import decode, encode
from higgs_vi.files import write_text
from higgs_vi.forecast import apply_preset, fastest_plan, forecast
from higgs_vi.generate import Sampling, generate_delayed_codes
from higgs_vi.loop import Stopped, check_folder, load_step, save_best, train, validate
from higgs_vi.merge import MergeSettings, merge
from higgs_vi.merge import main as merge_main
from higgs_vi.model import (
    NANO,
    device_map_for,
    keep_text_on_host,
    load_checkpoint,
    load_model,
    save_checkpoint,
    unwrap_peft,
    write_nano,
)
from higgs_vi.monitor import summarize_run
from higgs_vi.plan import learning_rate_at, plan_after, plan_epoch, total_steps
from higgs_vi.recipe import MemorySettings, TrainSettings
from higgs_vi.say import SaySettings, load_speaker, speak
from higgs_vi.say import main as say_main
from higgs_vi.settings import as_options
from higgs_vi.speech import Speech, say
from higgs_vi.step import OutOfMemory, audio_loss, build_optimizer, train_step
from higgs_vi.train import execute, start
from higgs_vi.train import main as train_main
from higgs_vi.voices import make_prompt
from tests.conftest import FOUR
from tests.runs import settings, steps_of

ROOT = Path(__file__).parents[1]


def test_the_embedded_nano_is_small_and_ends_by_itself():
    """Its first codebook reads only the first half of the embedding and the others the rest, so
    that a text can predict it.
    """
    assert sum(p.stat().st_size for p in NANO.rglob("*") if p.is_file()) < 40 * 2**20
    nano = load_checkpoint(NANO)
    speech = say(
        nano, make_prompt("Hôm nay trời đẹp quá, chúng ta đi dạo nhé."), Sampling(max_seconds=10)
    )
    assert speech.ended and 1 < len(speech.wave) / 24_000 < 9 and np.abs(speech.wave).max() > 0.05
    first, *others = (q.project_in.weight.abs().sum(0) > 0 for q in nano.codec.quantizer.quantizers)
    assert (
        all(not (first & other).any() for other in others)
        and first.sum() == nano.codec.config.semantic_model_config.hidden_size
    )


@pytest.fixture(scope="module")
def unbroken(place):
    "A complete run, started and finished in this process."
    return execute(settings(place, place/"unbroken"))


def command(cfg):
    "The command line for `cfg`."
    return [sys.executable, "-m", "higgs_vi.train", *as_options(cfg)]


def test_a_killed_run_resumes_to_the_last_bit(place, unbroken):
    """kill -9 at a random step, then a fresh process: every step equals the uninterrupted run's and
    is logged once.
    """
    out, at = place / "killed", random.Random(os.getpid()).randint(4, 10)
    own = subprocess.Popen(
        command(settings(place, out)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in own.stdout:
        if line.startswith(f"step {at}/"):
            own.send_signal(signal.SIGKILL)
            break
    own.wait()
    assert own.returncode == -signal.SIGKILL and checkpoints(out) and not (out / "adapter").exists()
    before = read_metrics(out)[-1]["step"]
    subprocess.run(
        command(settings(place, out, resume_from_checkpoint=True)),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert steps_of(out) == steps_of(unbroken.folder) and before < 12
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == (
        unbroken.folder / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_a_share_of_the_prompts_loses_its_words_and_nothing_else(unbroken):
    everyone = [list(range(len(unbroken.data.train)))]
    sizes, asked = {}, []
    for share in (0.0, 0.5, 0.999999):
        run = copy.copy(unbroken)
        run.cfg = replace(run.cfg, prompt_dropout=share)
        (batch,), counts, size = load_step(run, 0, everyone)
        sizes[share] = size["tokens"]
        asked.append((counts.tolist(), batch["targets"].tolist(), batch["delayed_codes"].tolist()))
    silent = [drop_prompt_text(e, unbroken.parts.tokenizer) for e in unbroken.data.train]
    assert (
        sizes[0.999999]
        == sum(map(len, silent))
        < sizes[0.5]
        < sizes[0.0]
        == sum(map(len, unbroken.data.train))
    )
    assert asked[0] == asked[1] == asked[2]


def test_sigterm_saves_and_stops(place, unbroken):
    "The command prints one line without a traceback and exits with the code that shells expect."
    out = place / "term"
    own = subprocess.Popen(
        command(settings(place, out, save_steps=100)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in own.stdout:
        if line.startswith("step 5/"):
            own.send_signal(signal.SIGTERM)
            break
    rest = own.stdout.read()
    said = re.search(
        r"stopped by SIGTERM after step (\d+) of 12, and saved; to continue, add "
        r"--resume_from_checkpoint true\n$", rest
    )
    assert own.wait() == 143 and said and "Traceback" not in rest
    assert checkpoints(out)[-1].name == f"step-{int(said[1]):06d}"
    assert steps_of(out) == [r for r in steps_of(unbroken.folder) if r["step"] <= int(said[1])]


def test_one_seed_gives_the_same_losses_and_another_does_not(place, unbroken):
    again, other = (
        execute(settings(place, place / "again")),
        execute(settings(place, place / "other", seed=1, max_steps=3)),
    )
    assert steps_of(again.folder) == steps_of(unbroken.folder)
    assert steps_of(other.folder)[0]["loss"] != steps_of(unbroken.folder)[0]["loss"]


def test_validation_finds_the_best_checkpoint(place, unbroken):
    rows = [r for r in read_metrics(unbroken.folder) if r["kind"] == "valid"]
    assert [r["step"] for r in rows] == [0, 4, 8, 12] and all(
        len(r["by_codebook"]) == 8 and r["eos_loss"] > 0 for r in rows
    )
    best = min(rows[1:], key=lambda r: r["loss"])
    assert unbroken.loss_before == rows[0]["loss"] and (unbroken.best_step, unbroken.best) == (
        best["step"],
        best["loss"],
    )
    kept = unbroken.folder / "checkpoints" / f"step-{best['step']:06d}"
    assert (kept / "adapter_model.safetensors").read_bytes() == (
        unbroken.folder / "adapter/adapter_model.safetensors"
    ).read_bytes()
    names = {p.name for p in unbroken.folder.iterdir()}
    assert {
        "settings.json",
        "metrics.jsonl",
        "checkpoints",
        "adapter",
        "tensorboard",
    } <= names and len(checkpoints(unbroken.folder)) <= 4
    train = {e.name for e in unbroken.data.train}
    assert train.isdisjoint(e.name for e in unbroken.data.valid) and len(unbroken.data.valid) == 8


def test_early_stopping_stops_and_keeps_the_best(place, capsys):
    """A learning rate that spoils the model: validation gets worse, patience runs out, and the best
    adapter is written.
    """
    run = execute(
        settings(
            place,
            place / "worse",
            learning_rate=0.5,
            eval_steps=1,
            early_stopping_patience=2,
            max_steps=40,
            warmup_ratio=0.0,
        )
    )
    assert (
        run.step < run.total == 40
        and "no improvement for 2 validation(s): stopping" in capsys.readouterr().out
    )
    rows = [r for r in read_metrics(run.folder) if r["kind"] == "valid" and r["step"]]
    assert run.best_step == min(rows, key=lambda r: r["loss"])["step"] == run.step - 2
    adapter, best, last = (
        (d / "adapter_model.safetensors").read_bytes()
        for d in (
            run.folder / "adapter",
            *(run.folder / f"checkpoints/step-{n:06d}" for n in (run.best_step, run.step)),
        )
    )
    assert adapter == best != last
    assert summarize_run(run.metrics.rows, 40).endswith(
        "training did not help: no step had a lower loss than the untrained model."
    )


def test_the_rate_rises_and_falls():
    rates = [learning_rate_at(s, 100, 1.0, 0.1) for s in range(1, 101)]
    assert (
        rates[0] == 0.1
        and max(rates) == rates[9] == 1.0
        and 0 < rates[-1] < 1e-2
        and rates[9:] == sorted(rates[9:], reverse=True)
    )


def test_the_plan_resumes_at_the_very_batch(place):
    run = start(settings(place, place / "plan", num_train_epochs=3, max_steps=0))
    whole = list(plan_after(run.cfg, run.data, 0, 1))
    assert len(whole) == total_steps(run.cfg, run.data, 1) == run.total
    for done in (1, len(whole) // 3, len(whole) - 1):
        assert list(plan_after(run.cfg, run.data, done, 1)) == whole[done:]
    for world in (2, 3):
        assert sum(
            len(b) for _, s in plan_after(run.cfg, run.data, 0, world) for b in s
        ) == 3 * len(run.data.train)


def test_tags_stand_in_their_share_of_the_prompts(place):
    """With tag_share 0 no prompt names a gender, with 1 every prompt names its own, with 0.5 some
    do, the same ones each time.
    """
    told = {
        t: [
            e.voices
            for e in (
                r["prompt"]
                for r in start(
                    settings(place, place / f"tags{i}", validation_share=0.9, tag_share=t)
                ).data.rows
            )
        ]
        for i, t in enumerate((0.0, 0.5, 1.0))
    }
    assert (
        set(told[0.0]) == {()}
        and set(told[1.0]) == {("feminine",), ("masculine",)}
        and set(told[0.5]) == set(told[0.0]) | set(told[1.0])
    )
    again = start(settings(place, place / "tags_again", validation_share=0.9, tag_share=0.5))
    assert [r["prompt"].voices for r in again.data.rows] == told[0.5]


@pytest.mark.parametrize(
    "why",
    [
        "a wrong value",
        "no GPU",
        "a finished run",
        pytest.param("a run in use", marks=pytest.mark.slow),
    ],
)
def test_a_refused_start_is_told_once_and_ends_every_process(place, unbroken, tmp_path, why):
    """Two processes: the reason is printed once, no process adds a traceback, and the launcher
    reports a failure.

    The first two are refused before the process group is initialised, the others by the main
    process alone.
    """
    options, reason = {
        "a wrong value": (
            ["--learning_rate", "x"],
            "the parameter learning_rate is 'x': it takes a finite number",
        ),
        "no GPU": (["--device", "cuda"], "device is cuda but torch sees no GPU"),
        "a finished run": (
            ["--output_dir", str(unbroken.folder)],
            f"the run folder {unbroken.folder} already exists",
        ),
        "a run in use": (
            ["--output_dir", str(tmp_path / "held")],
            f"{tmp_path / 'held'} is in use by process {os.getpid()}",
        ),
    }[why]
    lock = lock_run(tmp_path / "held")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "higgs_vi.train",
        *options,
    ]
    if why != "no GPU":
        launch += ["--device", "cpu"]
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    out = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=100)
    unlock_run(lock)
    own = (out.stdout + out.stderr).split("torch/distributed/elastic")[
        0
    ]  # what comes before the launcher's own report
    assert out.returncode and (out.stdout + out.stderr).count(reason) == 1 and reason in own
    assert "Traceback" not in own and "[rank1]" not in out.stderr


def signalled(monkeypatch, run, at, number):
    "Train `run` and send this process a signal in step `at`. Returns the exception raised."
    import higgs_vi.loop as module
    real = module.one_step

    def telling(run, *args):
        if run.step + 1 == at: os.kill(os.getpid(), number)
        return real(run, *args)
    with monkeypatch.context() as m:
        m.setattr(module, "one_step", telling)
        with pytest.raises(Stopped) as told: train(run)
    return told.value


def test_signals_save_and_the_same_process_goes_on(place, unbroken, monkeypatch):
    """SIGINT, then SIGHUP: each finishes its step and saves.

    Calling `train` again, or `start` without resuming, continues to the same end.
    """
    for s in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # a shell's background job ignores some
        signal.signal(s, signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run = start(settings(place, place / "told", save_steps=100, eval_steps=4))
    said = signalled(monkeypatch, run, 2, signal.SIGINT)
    assert (
        str(said) == "stopped by SIGINT after step 2 of 12, and saved"
        and checkpoints(run.folder)[-1].name == "step-000002"
    )
    assert said._render_traceback_() == [
        f"{said}. To continue, run this cell again; in a new process, set "
        "resume_from_checkpoint true."
    ]
    torch.rand(3)  # whatever else runs in the notebook meanwhile
    assert signalled(monkeypatch, run, 6, signal.SIGHUP).number == signal.SIGHUP and run.step == 6
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    again = start(settings(place, place / "told", save_steps=100, eval_steps=4))
    assert again.step == 6 and train(again).step == 12
    save_best(again)
    assert steps_of(run.folder) == steps_of(unbroken.folder)
    assert (run.folder / "adapter/adapter_model.safetensors").read_bytes() == (
        unbroken.folder / "adapter/adapter_model.safetensors"
    ).read_bytes()
    with pytest.raises(ValueError, match="already exists"):
        start(settings(place, place / "told", save_steps=100, eval_steps=4))


def test_a_signal_that_is_ignored_stays_ignored(place, monkeypatch, capsys):
    "As under nohup. Resuming without a checkpoint says that the run starts at its first step."
    cfg = settings(place, place / "nohup", max_steps=2, validation_share=0.0)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = start(cfg)
        real = run.optimizer.step
        monkeypatch.setattr(
            run.optimizer,
            "step",
            lambda *a, **k: (os.kill(os.getpid(), signal.SIGHUP), real(*a, **k)),
        )
        assert train(run).step == 2
    finally:
        signal.signal(signal.SIGHUP, old)
    shutil.rmtree(run.folder / "checkpoints")
    assert (
        start(replace(cfg, resume_from_checkpoint=True)).step == 0
        and "holds no checkpoint yet" in capsys.readouterr().out
    )
    assert read_metrics(run.folder) == []


def test_a_notebook_shows_one_line_of_a_stop(place, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.user_ns.update(
        stop=Stopped(
            type("Run", (), dict(folder=place))(),
            signal.SIGINT,
            "stopped by SIGINT after step 2 of 12, and saved",
        )
    )
    shell.run_cell("def f(): raise stop\nf()")
    out = capsys.readouterr().out.strip().splitlines()
    assert (
        len(out) == 1
        and "stopped by SIGINT after step 2 of 12" in out[0]
        and "run this cell again" in out[0]
    )


def test_ctrl_c_while_samples_are_spoken_stops_the_run_in_one_line(place, tmp_path, monkeypatch):
    """`Stopped` names the samples; started again in this process, the run is resumed."""
    import higgs_vi.train as module

    def interrupted(*_): raise KeyboardInterrupt

    cfg = settings(place, tmp_path / "spoken", max_steps=2, sample_sentences=1)
    with monkeypatch.context() as m:
        m.setattr(module, "say_many", interrupted)
        with pytest.raises(Stopped, match="stopped while speaking the samples 'before'"):
            execute(cfg)
    speech = Speech(np.zeros(2400, np.float32), None, True)
    monkeypatch.setattr(module, "say_many", lambda _, asked, *__: [(0, speech)] * len(asked))
    assert execute(cfg).step == 2


def test_tensorboard_keeps_every_sample_and_what_a_failed_run_had(place, tmp_path, monkeypatch):
    """Real, before and after are logged and validation begins at step 0; a failed run keeps its
    curves.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import higgs_vi.train as module

    wave = np.zeros(2400, np.float32)
    speech = Speech(wave, np.zeros((8, 2), int), True)
    monkeypatch.setattr(module, "say_many", lambda _, asked, *__: [(0, speech)] * len(asked))
    cfg = settings(place, tmp_path / "heard", max_steps=2, eval_steps=1)
    train_main([*command(cfg)[3:], "--sample_sentences", "1"])

    def events(run):
        return EventAccumulator(str(run / "tensorboard"), size_guidance=dict(audio=0)).Reload()

    kept = events(tmp_path / "heard")
    assert set(kept.Tags()["audio"]) == {"real/0", "before/0", "after/0"}
    assert [e.step for e in kept.Scalars("valid/loss")] == [0, 1, 2] and [
        e.step for e in kept.Audio("after/0")
    ] == [2]

    def fails(run):
        raise OSError("no space left")

    monkeypatch.setattr(module, "save_best", fails)
    with pytest.raises(OSError, match="no space"):
        execute(replace(cfg, output_dir=str(tmp_path / "failed")))
    assert [e.step for e in events(tmp_path / "failed").Scalars("train/loss")] == [1, 2]


# --- merge, and plain transformers and peft -------------------------------------------------------

PLAIN = """
import sys, torch
from peft import PeftModel
from transformers import HiggsAudioV2ForConditionalGeneration as Model
from transformers.utils import logging; logging.disable_progress_bar()
merged, base, adapter = sys.argv[1:4]
x = dict(input_ids=torch.arange(100, 140)[None], use_cache=False)
x["input_ids"][0, 20:] = Model.from_pretrained(base).config.audio_token_id
x |= dict(audio_input_ids=torch.arange(20*8).view(1, 20, 8) % 1024)
x |= dict(audio_input_ids_mask=torch.ones(1, 20, dtype=torch.bool))
with torch.no_grad():
    a = Model.from_pretrained(merged).eval()(**x).logits
    b = PeftModel.from_pretrained(Model.from_pretrained(base), adapter).eval()(**x).logits
    c = Model.from_pretrained(base).eval()(**x).logits
print((a - b).abs().max().item(), (a - c).abs().max().item())
"""


def test_merged_is_the_adapter_and_plain_libraries_load_both(place, unbroken):
    """With trainable audio embedding and head.

    A fresh process with transformers and peft alone gives the same result.
    """
    assert unbroken.cfg.audio_embeddings
    d = merge(MergeSettings(adapter=str(unbroken.folder), output_dir=str(place / "merged")))
    assert (
        d["adapter_merged"]["largest"] < 1e-4
        and d["adapter_merged"]["likeliest_equal"] > 0.999
        and d["adapter_merged"]["greedy_equal"] > 0.99
    )
    assert d["merged_base"]["largest"] > 1e-2 and d["merged_base"]["likeliest_equal"] < 0.9
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            PLAIN,
            place / "merged",
            place / "nano",
            unbroken.folder / "adapter",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=place,
    )
    same, other = map(float, out.stdout.split()[-2:])
    assert same < 1e-4 and other > 1e-2
    with pytest.raises(ValueError, match="exists already"):
        merge(MergeSettings(adapter=str(unbroken.folder), output_dir=str(place / "merged")))


def test_bf16_base_trains_and_merges(place):
    run = execute(settings(place, place / "bf16", precision="bf16", max_steps=6))
    losses = [r["loss"] for r in steps_of(run.folder) if r["kind"] == "train"]
    assert losses[-1] < losses[0] and {
        p.dtype for p in run.model.parameters() if p.requires_grad
    } == {torch.float32}
    d = merge(
        MergeSettings(adapter=str(run.folder), output_dir=str(place / "merged16"), precision="bf16")
    )
    assert d["adapter_merged"]["mean"] < 0.02 < d["merged_base"]["mean"]


def test_a_run_from_before_a_parameter(unbroken, tmp_path):
    "A settings.json without a newer parameter means its default."
    old = json.loads((unbroken.folder / "settings.json").read_text())
    old.pop("lora_variant")
    (tmp_path / "settings.json").write_text(json.dumps(old))
    check_folder(replace(unbroken.cfg, output_dir=str(tmp_path), resume_from_checkpoint=True))
    (tmp_path / "settings.json").write_text(json.dumps(old | dict(lora_variant="dora")))
    with pytest.raises(ValueError, match="started with lora_variant = 'dora'"):
        check_folder(replace(unbroken.cfg, output_dir=str(tmp_path), resume_from_checkpoint=True))


def test_full_training_trains_everything_and_resumes(place):
    run = execute(
        settings(
            place,
            place / "full",
            mode="full",
            max_steps=4,
            learning_rate=1e-3,
            save_steps=2,
            target_modules=["attention"],
        )
    )
    model, base = load_checkpoint(run.folder / "model").model, load_checkpoint(place / "nano").model
    changed = [n for n, w in model.named_parameters() if not torch.equal(w, base.state_dict()[n])]
    assert (
        len(changed) > 0.9 * len(list(model.named_parameters()))
        and run.metrics.rows[-1]["loss"] < run.metrics.rows[0]["loss"]
    )
    again = start(replace(run.cfg, resume_from_checkpoint=True))
    assert again.step == 4 and all(
        torch.equal(a, b)
        for a, b in zip(again.model.parameters(), run.model.parameters(), strict=True)
    )


def test_full_training_in_bf16_follows_fp32_and_resumes(place, monkeypatch):
    """At a learning rate where bf16 loses most updates ('plain' rounds to nearest).

    A run resumed after step 2 equals the uninterrupted one.
    """
    monkeypatch.setattr(
        torch, "compile", lambda f, **kw: f
    )  # torchao compiles its update; the same sums without
    common = dict(
        mode="full",
        max_steps=4,
        learning_rate=4e-5,
        precision="bf16",
        logging_steps=1,
        warmup_ratio=0.0,
        save_steps=2,
        eval_steps=4,
    )
    runs = {
        o: execute(settings(place, place / f"full-{o}", optim=o, **common))
        for o in ("adamw", "rounded8bit")
    }
    with monkeypatch.context() as m:
        m.setattr(
            "higgs_vi.loop.build_optimizer",
            lambda p, _, rate, decay: torch.optim.AdamW(p, lr=rate, weight_decay=decay),
        )
        runs["plain"] = execute(
            settings(place, place / "full-plain", optim="rounded8bit", **common)
        )
    assert all(
        w.dtype == torch.bfloat16
        for o in ("rounded8bit", "plain")
        for w in runs[o].model.parameters()
    )
    fp32, rounded, plain = (
        np.array([r["loss"] for r in steps_of(r.folder) if r["kind"] == "train"])
        for r in runs.values()
    )
    assert np.abs(rounded - fp32).max() < 2e-4 and plain[-1] - fp32[-1] > 1e-3
    shutil.copytree(place / "full-rounded8bit", place / "full-cut")
    shutil.rmtree(place / "full-cut/checkpoints/step-000004")
    again = train(
        start(
            settings(
                place,
                place / "full-cut",
                optim="rounded8bit",
                resume_from_checkpoint=True,
                **common,
            )
        )
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            again.model.parameters(), runs["rounded8bit"].model.parameters(), strict=True
        )
    )
    assert steps_of(place / "full-cut") == steps_of(runs["rounded8bit"].folder)


def test_fp16_trains_with_a_scaler_that_skips_overflows(parts, clips):
    """The scale is too large at first: those steps change nothing and halve it, and the other
    losses are close to fp32's.
    """
    prompt, codes = clips[0]
    batch = collate(
        [build_example(parts.tokenizer, prompt, codes[:, :12], prompt.text)], parts.tokenizer
    )
    curves = {}
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        model = add_lora(
            copy.deepcopy(parts.model).to(dtype),
            lora_config(rank=8, targets=["attention", "audio_ffn"], dropout=0.0),
        ).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, "adamw", 3e-3, 0.0)
        scaler, curves[dtype] = (
            torch.amp.GradScaler("cpu", init_scale=2.0**22, enabled=dtype == torch.float16),
            [],
        )
        while len(curves[dtype]) < 5:
            before, scale = [p.detach().clone() for p in trained], scaler.get_scale()
            done = train_step(model, optimizer, [batch], scaler=scaler)
            same = all(torch.equal(a, b) for a, b in zip(before, trained, strict=True))
            assert same == (done["grad_norm"] is None) and (
                not same or scaler.get_scale() == scale / 2
            )
            if not same:
                curves[dtype].append(done["loss"])
    assert {p.dtype for p in trained} == {torch.float32} and 1 < scaler.get_scale() < 2**22
    a, b = map(np.array, curves.values())
    assert np.abs(a - b).max() < 1e-3 and a[-1] < a[0] - 0.2


def test_small_updates_survive_bf16(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **kw: f)
    torch.manual_seed(0)
    moved = {}
    for name, make in dict(
        rounded8bit=lambda p: build_optimizer([p], "rounded8bit", 1e-4, 0.0),
        plain=lambda p: torch.optim.AdamW([p], lr=1e-4, weight_decay=0.0),
    ).items():
        w = torch.nn.Parameter(
            torch.ones(4096, dtype=torch.bfloat16)
        )  # one step of bf16 at 1 is 0.004 downwards
        optimizer = make(w)
        for _ in range(100):
            w.grad = torch.ones_like(w)
            optimizer.step()
        moved[name] = 1 - w.float().mean().item()
    assert moved["plain"] == 0 and abs(moved["rounded8bit"] - 0.01) < 0.001


def test_the_average_of_the_weights_is_kept_and_resumes(place):
    given = dict(
        max_steps=6, learning_rate=2e-3, target_modules=["attention"], save_steps=3, eval_steps=3
    )
    plain, mean = (
        execute(settings(place, place / f"ema-{e}", ema_decay=e, **given)) for e in (0.0, 0.9)
    )
    losses = [
        [r["loss"] for r in steps_of(r.folder) if r["kind"] == k]
        for r in (plain, mean)
        for k in ("train", "valid")
    ]
    assert losses[0] == losses[2] and losses[1] != losses[3]  # trained alike, judged as averaged
    assert (
        validate(replace(mean, average=None))["loss"] == mean.best
    )  # `finish` has put the average into the model
    def adapter(r):
        return load_file(r.folder / "adapter/adapter_model.safetensors")
    assert any(
        not torch.equal(a, b)
        for a, b in zip(adapter(plain).values(), adapter(mean).values(), strict=True)
    )
    shutil.rmtree(mean.folder / "checkpoints/step-000006")
    before = adapter(mean)
    save_best(
        train(
            start(settings(place, mean.folder, ema_decay=0.9, resume_from_checkpoint=True, **given))
        )
    )
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), adapter(mean).values(), strict=True)
    )


def test_the_text_is_trained_where_its_head_is(place, tmp_path, parts):
    own = copy.deepcopy(parts)
    own.model.text_lm_head = torch.nn.Linear(
        own.model.config.hidden_size, own.model.config.vocab_size, bias=False
    )
    save_checkpoint(tmp_path / "headed", own)
    given = dict(
        max_steps=4, learning_rate=2e-3, logging_steps=1, text_loss_weight=1.0, tag_share=0.0
    )
    run = execute(
        settings(
            place,
            place / "texted",
            model=str(tmp_path / "headed"),
            mode="full",
            precision="fp32",
            **given,
        )
    )
    told = [r["text_loss"] for r in read_metrics(run.folder) if r["kind"] == "train"]
    assert len(told) == 4 and told[-1] < told[0] - 0.1
    assert not torch.equal(
        load_checkpoint(run.folder / "model", text_head=True).model.text_lm_head.weight,
        own.model.text_lm_head.weight,
    )
    assert load_checkpoint(run.folder / "model").model.text_lm_head is None
    with pytest.raises(ValueError, match="no text head"):
        execute(settings(place, place / "headless", **given))


def test_replayed_clips_are_their_share_of_each_epoch(place):
    cfg = settings(
        place, place / "replay", replay_data=str(place / "four"), replay_share=0.25, max_steps=1
    )
    run = start(cfg)
    own = len(run.data.train) - run.data.replayed
    for epoch in (0, 1):
        chosen = [
            i for step in plan_epoch(cfg, run.data, epoch, 1) for batch in step for i in batch
        ]
        assert sorted(i for i in chosen if i < own) == list(range(own)) and sum(
            i >= own for i in chosen
        ) == round(own / 3)
    assert train(run).step == 1 and (run.folder / "replay/left_out.csv").is_file()


def test_a_base_in_four_bits_trains_and_its_adapter_fits_the_whole_base(place):
    run = execute(
        settings(
            place, place / "qlora", mode="qlora", precision="fp32", max_steps=8, lora_dropout=0.0
        )
    )
    matrices = {n: w.dtype for n, w in run.model.named_parameters() if "base_layer" in n}
    assert len(matrices) >= 14 and set(matrices.values()) == {
        torch.uint8
    }  # attention and audio FFN of two layers
    assert {w.dtype for w in run.model.parameters() if w.requires_grad} == {torch.float32}
    assert "model.embed_tokens.weight" in unwrap_peft(
        run.model
    ).state_dict() and "embed_tokens" in str(fingerprint(run.model).keys())
    assert not any(
        "embed_tokens" in n for n, _ in run.model.named_parameters()
    )  # on the host: `model.device` is the layers'
    whole = execute(
        settings(place, place / "beside", precision="fp32", max_steps=8, lora_dropout=0.0)
    )
    a, b = ([r["loss"] for r in steps_of(r.folder) if r["kind"] == "train"] for r in (run, whole))
    assert a[-1] < a[0] and 0 < abs(a[0] - b[0]) < 0.1 and abs(a[-1] - b[-1]) < 0.2
    d = merge(
        MergeSettings(adapter=str(run.folder), output_dir=str(place / "merged4"))
    )  # onto the base as it was
    assert d["adapter_merged"]["mean"] < 1e-4 < d["merged_base"]["mean"]


def test_what_accelerate_hangs_on_a_model_in_two_places_comes_off_again(place):
    model, plain = (load_model(place / "nano") for _ in range(2))
    where, words = (
        device_map_for("cuda", False),
        {k: v for k, v in model.state_dict().items() if "embed_tokens" in k},
    )
    attach_align_device_hook_on_blocks(
        model,
        dict.fromkeys(["", *where], "cpu"),
        {k: v == "cpu" for k, v in where.items()},
        weights_map=words,
    )
    assert model.model.embed_tokens.weight.device.type == "meta"
    keep_text_on_host(model)
    assert not [
        m for m in model.modules() if "forward" in vars(m) or hasattr(m, "_hf_hook")
    ]  # each is its class's again
    ids = torch.arange(20, 40)[None]
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loading_four_bits_keeps_the_text_embedding_off_the_gpu_and_speaks_there(place):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    parts = load_checkpoint(place / "nano", dtype=torch.bfloat16, device="cuda", quantised=True)
    words = parts.model.model.embed_tokens.weight
    used = torch.cuda.memory_allocated() - before
    assert words.device.type == "cpu" and parts.model.device.type == "cuda"
    assert torch.cuda.max_memory_allocated() - before - used < words.nbytes
    assert len(
        generate_delayed_codes(parts, make_prompt("Xin chào các bạn."), Sampling(max_seconds=1.0))
    )


@pytest.mark.parametrize(
    "adapter, optimizer, more",
    [("dora", "adamw8bit", {}), ("rslora", "paged8bit", dict(mode="qlora"))],
)
def test_other_adapters_and_optimisers_train_resume_and_merge(place, adapter, optimizer, more):
    given = (
        dict(
            lora_variant=adapter,
            optim=optimizer,
            max_steps=6,
            target_modules=["attention"],
            audio_embeddings=True,
            lora_rank=8,
            precision="bf16",
        )
        | more
    )
    whole, cut = (
        execute(settings(place, place / f"{adapter}-{n}", **given | dict(max_steps=n)))
        for n in (6, 3)
    )
    losses = [r["loss"] for r in steps_of(whole.folder) if r["kind"] == "train"]
    assert losses[-1] < losses[0] and type(whole.optimizer).__name__ != "AdamW"
    parts = dict(lora=("lora_A",), dora=("lora_A", "lora_magnitude_vector"), rslora=("lora_A",))[
        adapter
    ]
    assert all(any(p in n for n in whole.model.state_dict()) for p in parts)
    states = [s for s in whole.optimizer.state.values() if s["state1"].dtype == torch.uint8]
    assert states, "no state is in 8 bits"
    begun = start(
        settings(place, cut.folder, **given | dict(max_steps=3), resume_from_checkpoint=True)
    )
    assert begun.step == 3 and all(
        torch.equal(a["state1"], b["state1"])
        for a, b in zip(begun.optimizer.state.values(), cut.optimizer.state.values(), strict=True)
    )
    d = merge(MergeSettings(adapter=str(whole.folder), output_dir=str(place / f"{adapter}-merged")))
    assert d["adapter_merged"]["mean"] < 1e-4 < d["merged_base"]["mean"]


def test_four_bits_without_the_package_or_from_boson_s_layout(place, monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "higgs_audio"}')
    with pytest.raises(ValueError, match="convert it once"):
        load_model(tmp_path, quantised=True)
    monkeypatch.setattr("higgs_vi.model.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'higgs-vi\[quant\]'"):
        load_model(place / "nano", quantised=True)
    with pytest.raises(ValueError, match="or take adamw"):
        build_optimizer([], "adamw8bit", 1e-3, 0.0)


# --- saying it again ------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def by_heart(place):
    "An adapter overfitted on four clips."
    return execute(
        settings(
            place,
            place / "heart",
            data=str(place / "four"),
            max_steps=340,
            num_train_epochs=400,
            learning_rate=4e-3,
            lora_dropout=0.0,
            validation_share=0.0,
            eval_steps=1000,
            save_steps=1000,
            target_modules=["attention", "text_ffn", "audio_ffn"],
            token_budget=2048,
            logging_steps=40,
        )
    )


def test_higgs_vi_say_gives_the_clips_back(place, by_heart, parts):
    assert read_metrics(by_heart.folder)[-1]["loss"] < 0.1
    for name, text in FOUR.items():
        say_main(
            [
                "--adapter",
                str(by_heart.folder),
                "--text",
                text,
                "--temperature",
                "0",
                "--ras_win_len",
                "0",
                "--output_file",
                str(place / "say.wav"),
                "--device",
                "cpu",
            ]
        )
        wanted = decode(
            parts.codec, encode(parts.codec, [read_audio(DEMO / f"clips/{name}.ogg")])[0]
        )
        spoken = read_audio(place / "say.wav")
        assert abs(len(spoken) - len(wanted)) <= 960
        n = min(len(spoken), len(wanted))
        assert np.mean(np.abs(spoken[:n] - np.clip(wanted[:n], -1, 1)) < 1e-3) > 0.9


def test_every_kind_of_voice_speaks(place, by_heart):
    """Described, cloned with the reference in both positions, and a dialogue: one wave file each,
    from the unmerged adapter.
    """
    (place / "voices").mkdir()
    for name in ("minh_000", "ngan_001"):
        write_wav(place / f"voices/{name}.wav", read_audio(DEMO / f"clips/{name}.ogg"))
        write_text(place / f"voices/{name}.txt", FOUR[name])
    base = SaySettings(
        adapter=str(by_heart.folder),
        voices_dir=str(place / "voices"),
        output_file=str(place / "v.wav"),
        max_seconds=1.0,
        device="cpu",
    )
    engine = load_speaker(base)
    for change in (
        dict(profile=["feminine"]),
        dict(scene="outdoor"),
        dict(scene="none"),
        dict(voice=["ngan_001"]),
        dict(voice=["ngan_001"], reference_position="scene"),
        dict(text="[SPEAKER0] Chào chị. [SPEAKER1] Chào em.", voice=["ngan_001", "minh_000"]),
        dict(text="[SPEAKER0] Chào. [SPEAKER1] Vâng."),
    ):
        (place / "v.wav").unlink(missing_ok=True)
        speech = speak(replace(base, **change), engine)
        assert len(read_audio(place / "v.wav")) == len(speech.wave) > 0
    for change, message in (
        (
            dict(voice=["ai"]),
            "unknown voice 'ai': .* are minh_000, ngan_001; .*parameters voice and voices_dir",
        ),
        (dict(voice=["ai"], voices_dir="/nowhere"), r"no folder .* \(parameter voices_dir\)"),
        (dict(text="[SPEAKER1] Chào.", voice=["ngan_001"]), "has no voice"),
        (
            dict(reference_position="head"),
            "reference_position is .head': choose one of turns, scene",
        ),
        (dict(top_p=2.0), "top_p is 2.0: it must be above 0 and at most 1"),
        (dict(text=" "), "text is ' ': it must hold at least one word"),
        (dict(text="[SPEAKER0]"), "text is '.SPEAKER0.': it must hold at least one word"),
    ):
        with pytest.raises(ValueError, match=message):
            speak(replace(base, **change), engine)


# --- what is refused ------------------------------------------------------------------------------

def test_a_plan_for_a_gpu_is_taken_and_too_small_a_one_refused(place):
    cfg = settings(place, place / "planned", gpu_memory="24", token_budget=256)
    assert (cfg.mode, cfg.gradient_checkpointing, cfg.token_budget, cfg.optim) == (
        "lora",
        0,
        256,
        "adamw",
    )  # what is given stays
    big = MemorySettings(target_modules=["attention", "audio_ffn"])
    plans = [fastest_plan(big, room) for room in (6, 14, 80)]
    assert (
        [p.mode for p in plans] == ["qlora", "lora", "lora"]
        and plans[1].gradient_checkpointing
        and not plans[2].gradient_checkpointing
    )
    needs = [forecast(p)["total"] for p in plans]
    assert needs == sorted(needs) and all(
        n < room for n, room in zip(needs, (6, 14, 80), strict=True)
    )
    with pytest.raises(ValueError, match="too few: the smallest plan"):
        settings(place, place / "planned", gpu_memory="0.01")
    with pytest.raises(ValueError, match="no GPU to ask"):
        settings(place, place / "planned", gpu_memory="auto")
    for change in (
        dict(lora_variant="dora"),
        dict(precision="fp32"),
    ):  # the forecast does not know them
        with pytest.raises(ValueError, match="leave it empty"):
            settings(place, place / "planned", gpu_memory="24", **change)


def test_running_out_of_memory_names_the_next_plan(place, monkeypatch):
    def full(*args):
        if not torch.is_grad_enabled(): return audio_loss(*args)  # the validation fits
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("higgs_vi.step.audio_loss", full)
    with pytest.raises(
        OutOfMemory,
        match=r"forecast [\d.]+ GiB, measured peak [\d.]+ GiB; the next smaller plan: mode \w+",
    ):
        execute(settings(place, place / "tight", max_steps=1))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(preset="quick"), "preset is 'quick': choose one of auto, demo"),
        (dict(mode="half"), "mode is 'half': choose one of lora, qlora, full"),
        (dict(target_modules=["ffn"]), "target_modules is 'ffn': choose one of attention"),
        (dict(model="/nowhere/model"), "cannot be loaded"),
        (dict(data="/nowhere/data"), "no metadata.json"),
        (dict(learning_rate=0.0), "learning_rate is 0.0: it must be above 0"),
        (dict(token_budget=0), "token_budget is 0: it must be from 1"),
        (dict(token_budget=20), "left_out.csv for the reasons"),
        (dict(codebook_weights=[1, 2]), "codebook weights"),
        (dict(codebook_weights="3, two"), "codebook_weights is .two.: it takes a finite number"),
        (dict(precision="fp16"), "fp16, which needs a GPU"),
    ],
)
def test_bad_settings_are_refused_and_leave_no_run(place, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        execute(settings(place, tmp_path / "run", **change))
    left = {p.name for p in (tmp_path / "run").glob("*") if not p.name.startswith(".")}
    assert left <= {"left_out.csv"}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(codebook_weights=[1, 2]), "codebook weights are .*: give 8 numbers"),
        (dict(replay_data="/nowhere/old"), "no metadata.json"),
    ],
)
def test_a_wrong_value_is_found_before_any_clip_is_encoded(place, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        execute(settings(place, tmp_path / "run", code_cache=str(tmp_path / "codes"), **change))
    assert not list((tmp_path / "codes").rglob("*"))


@pytest.mark.parametrize(
    "mode, change, trained",
    [
        ("lora", dict(max_steps=24), r"its merged adapter \(05_merge\)"),
        ("full", dict(num_train_epochs=20), "run/model"),
    ],
)
def test_a_run_is_not_prolonged_and_the_way_out_is_named(place, tmp_path, mode, change, trained):
    cfg = settings(place, tmp_path / "run", mode=mode)
    write_text(tmp_path / "run/settings.json", json.dumps(cfg.resolved()))
    message = f"cannot be prolonged; resume it with that value, or train .*{trained} in another run"
    with pytest.raises(ValueError, match=message):
        check_folder(replace(cfg, resume_from_checkpoint=True, **change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named(place, tmp_path):
    with pytest.raises(ValueError, match="device is cuda but torch sees no GPU"):
        execute(settings(place, tmp_path / "run", device="cuda"))
    with pytest.raises(ValueError, match="device is cuda but torch sees no GPU"):
        load_speaker(SaySettings(model=str(place / "nano"), device="cuda"))


def test_an_existing_run_is_not_overwritten(place, unbroken):
    before = {p: p.stat().st_mtime_ns for p in unbroken.folder.rglob("*")}
    with pytest.raises(SystemExit, match="folder .* already exists: set resume_from_checkpoint"):
        train_main(command(settings(place, unbroken.folder))[3:])
    with pytest.raises(ValueError, match="was started with seed = 0, not 5"):
        execute(settings(place, unbroken.folder, resume_from_checkpoint=True, seed=5))
    with pytest.raises(ValueError, match="no run to resume"):
        execute(settings(place, place / "none", resume_from_checkpoint=True))
    assert before == {p: p.stat().st_mtime_ns for p in unbroken.folder.rglob("*")}


def test_a_wrong_adapter_is_refused_by_the_parameter_of_the_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for main in (say_main, merge_main):
        with pytest.raises(SystemExit, match="holds no adapter .*parameter adapter.*07_say takes"):
            main(["--adapter", str(tmp_path)])
        with pytest.raises(SystemExit, match=r"no folder .*none.* \(parameter adapter\)"):
            main(["--adapter", str(tmp_path / "none")])
    (tmp_path / "adapter_config.json").write_text("{}")
    for main, parameter in ((say_main, "model"), (merge_main, "base")):
        with pytest.raises(SystemExit, match=rf"name the base \(parameter {parameter}\)"):
            main(["--adapter", str(tmp_path)])


def test_an_adapter_for_another_base_is_refused(place, unbroken):
    write_nano(place / "nano2", seed=2)
    with pytest.raises(ValueError, match="was trained on another base"):
        load_adapter(load_checkpoint(place / "nano2").model, unbroken.folder / "adapter")
    merged = load_adapter(
        load_checkpoint(place / "nano").model, unbroken.folder / "adapter"
    ).merge_and_unload()
    with pytest.raises(ValueError, match="a merged model already holds"):
        load_adapter(merged, unbroken.folder / "adapter")


def test_a_run_is_resumed_with_its_own_clips_only(place, unbroken, tmp_path):
    """With the same settings but other clips in the data folder the plan would differ, so it is
    refused.
    """
    shutil.copytree(unbroken.folder, tmp_path / "run")
    shutil.copytree(place / "data", tmp_path / "data")
    meta = json.loads((tmp_path / "data/metadata.json").read_text())
    meta["samples"] = meta["samples"][:-5]
    (tmp_path / "data/metadata.json").write_text(json.dumps(meta))
    saved = json.loads((tmp_path / "run/settings.json").read_text())
    (tmp_path / "run/settings.json").write_text(
        json.dumps(saved | dict(data=str(tmp_path / "data")))
    )
    with pytest.raises(ValueError, match="resume it with the same clips"):
        execute(
            settings(
                place, tmp_path / "run", data=str(tmp_path / "data"), resume_from_checkpoint=True
            )
        )


def test_a_clip_that_is_its_own_reference_is_set_aside(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    meta = json.loads((tmp_path / "data/metadata.json").read_text())
    for s in meta["samples"][:3]:
        s |= dict(ref_audio_file=s["audio_file"], ref_transcript="Xin chào.")
    (tmp_path / "data/metadata.json").write_text(json.dumps(meta))
    run = start(settings(place, tmp_path / "run", data=str(tmp_path / "data")))
    assert len(run.data.train) + len(run.data.valid) == 77
    left = (tmp_path / "run/left_out.csv").read_text()
    assert left.count("its reference is the clip itself") == 3


def test_an_overflow_is_a_line_and_a_lost_validation_stops(place, tmp_path, monkeypatch):
    """fp16 skips a step whose gradients overflow and logs a null norm.

    A validation loss that is not finite ends the run with a clear message.
    """
    import higgs_vi.loop as step

    real = step.train_step
    monkeypatch.setattr(step, "train_step", lambda *a: real(*a) | dict(grad_norm=None))
    run = execute(settings(place, tmp_path / "run", max_steps=2, eval_steps=2))
    assert [r["grad_norm"] for r in run.metrics.rows if r["kind"] == "train"] == [None, None]
    lost = dict(loss=float("nan"), by_codebook=[], eos_loss=0.0)
    monkeypatch.setattr(
        step, "validate", lambda run: lost | dict(loss=float("nan") if run.step else 5.0)
    )
    with pytest.raises(FloatingPointError, match="nan at step 2: start another run"):
        execute(settings(place, tmp_path / "nan", max_steps=2, eval_steps=2))
    monkeypatch.setattr(step, "validate", lambda run: lost)
    with pytest.raises(
        FloatingPointError, match="nan before the first step: the model's weights are damaged"
    ):
        execute(settings(place, tmp_path / "broken", max_steps=2))


def test_a_full_disk_in_a_checkpoint_leaves_the_one_before(place, tmp_path, monkeypatch):
    import errno

    import higgs_vi.checkpoint as runs

    real, calls = torch.save, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(runs.torch, "save", full)
    with pytest.raises(OSError, match="no space left .* finished files stay"):
        execute(settings(place, tmp_path / "run", validation_share=0.0))
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-000003"] and not list(
        (tmp_path / "run/checkpoints").glob(".*")
    )


def test_yaml_files_name_real_parameters():
    """Each file in exps/ starts with the command that runs it, and its parameters are valid for its
    notebook.
    """
    files = sorted((ROOT/"exps").glob("*.yaml"))
    assert files
    for path in files:
        head = path.read_text(encoding="utf-8").splitlines()[0]
        assert re.match(r"# papermill nbs/04_train\.ipynb \S+ -f exps/" + path.name, head), path
        apply_preset(TrainSettings.of(yaml.safe_load(path.read_text(encoding="utf-8"))))


def test_the_best_so_far_may_be_worse_than_before_training_and_says_so(monkeypatch, capsys):
    import higgs_vi.loop as module

    monkeypatch.setattr(module, "log_metrics", lambda run, row: None)
    run = SimpleNamespace(
        step=4,
        total=8,
        best=float("inf"),
        best_step=0,
        evals_since_best=0,
        stop="",
        loss_before=3.0,
        cfg=SimpleNamespace(early_stopping_patience=0),
        accelerator=SimpleNamespace(is_main_process=True),
    )
    for loss, said in (
        (3.5, "best so far, but worse than before training (3.000)"),
        (2.5, "best so far\n"),
    ):
        monkeypatch.setattr(module, "validation_row", lambda *_, x=loss: dict(loss=x, eos_loss=0.1))
        module.evaluate(run, 0)
        assert said in capsys.readouterr().out
