"""Several processes that train together (ranks): the same training as in one, on any number, and
an end that is told once; in full training, weights that are divided among them.

On CPUs, with gloo; `exps/speed.ipynb` measures several GPUs.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from higgs_vi.checkpoint import checkpoints, read_metrics, read_trainer
from higgs_vi.loop import Stopped, resume_if_stopped
from higgs_vi.model import load_checkpoint
from higgs_vi.ranks import free_port
from higgs_vi.recipe import TrainSettings
from higgs_vi.settings import as_options
from higgs_vi.train import execute
from tests.runs import back_to, options, settings, steps_of

ROOT = Path(__file__).parents[1]
ENV = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
EASY = dict(token_budget=512, eval_steps=3, save_steps=2, max_steps=6, lora_dropout=0.3)
EASY |= dict(save_total_limit=10)


def under_torchrun(code, *args, number=2):
    "Run Python `code` in `number` ranks; return what they printed."
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"ranks_{os.getpid()}.py"
    file.write_text(code)
    out = subprocess.run(
        [*TORCHRUN, str(number), file, *args], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stdout + out.stderr
    return out.stdout


def start(cfg):
    "Start the command for `cfg` on two ranks."
    cfg.given = cfg.given | {"gpus"}
    cfg.gpus = 2
    return subprocess.Popen(
        [sys.executable, "-m", "higgs_vi.train", *as_options(cfg)],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks_of(process):
    "The processes of the two ranks."
    return sorted(psutil.Process(process.pid).children(), key=lambda p: p.pid)


def read_until(process, start):
    "Read the output of `process` up to a line that begins with `start`."
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError("".join(lines))


def near(a, b, loss=1e-4):
    "Two runs have the same metrics up to rounding."
    a, b = steps_of(a), steps_of(b)
    assert [(r["step"], r["kind"], r["rate"]) for r in a] == [
        (r["step"], r["kind"], r["rate"]) for r in b
    ]
    for x, y in zip(a, b, strict=True):
        assert abs(x["loss"] - y["loss"]) < loss, (x, y)
        norms = x["grad_norm"] or 0, y["grad_norm"] or 0
        assert abs(norms[0] - norms[1]) < 20 * loss * max(1, *norms), (x, y)


def weights(run):
    "The weights that a run has written at its end: an adapter, or all."
    adapter = Path(run) / "adapter/adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else Path(run) / "model/model.safetensors")


def farthest(a, b):
    "The largest difference between the weights that two runs have written."
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return max((first[k].float() - second[k].float()).abs().max().item() for k in first)


def same_bits(a, b):
    "Two runs have the same metrics and weights, to the last bit."
    assert steps_of(a) == steps_of(b)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


TRAIN = """
import json, random, sys
import numpy as np
import torch
from higgs_vi import step
from higgs_vi.ranks import gather, leave_ranks
from tests.runs import executed

seen, real = [], step._sum_bucket
def counting(state, bucket):
    seen.append(bucket.buffer().numel())
    return real(state, bucket)
step._sum_bucket = counting
for run in executed(json.loads(sys.argv[1])):
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    drawn = gather([random.random(), np.random.rand(), torch.rand(1).item()])
    if run.metrics: print("summed", sum(seen), "of", trained, "drawn", drawn, flush=True)
    seen.clear()
leave_ranks()
"""


@pytest.fixture(scope="module")
def two(place):
    """Runs on two ranks: `two` with one batch a step for each rank, `cut` resumed from step 2.

    `single` is the same in one process with two batches a step. Dropout, input noise and prompt
    dropout are on, which would differ between ranks if they did not depend on the clips alone.
    """
    noisy = EASY | dict(input_noise=0.1, prompt_dropout=0.3, gradient_accumulation_steps=1)
    asked = options(place, place / "two", **noisy)
    given = {k: getattr(asked, k) for k in asked.given}
    cut = given | dict(
        copy_of=given["output_dir"], output_dir=str(place / "cut"), resume_from_checkpoint=True
    )
    told = under_torchrun(TRAIN, json.dumps([given, cut]))
    lines = [line for line in told.splitlines() if line.startswith("summed")]
    one = settings(place, place / "single", **noisy | dict(gradient_accumulation_steps=2))
    single = execute(one).folder
    return SimpleNamespace(
        two=place / "two", cut=place / "cut", single=single, given=given, lines=lines
    )


def test_two_ranks_train_as_one_process_does(two):
    """Losses, gradient norms and weights agree up to rounding, whatever is random; the validation
    is shared out and agrees too.
    """
    near(two.single, two.two, 1e-5)
    assert farthest(two.single, two.two) < 1e-4


def test_two_ranks_resume_to_the_last_bit(two):
    same_bits(two.two, two.cut)


def test_only_trained_weights_are_sent(two):
    "In each step as many numbers are summed over the ranks as are trained."
    for line, steps in zip(two.lines, (6, 4), strict=True):
        _, summed, _, trained, *_ = line.split()
        assert int(summed) == int(trained) * steps


def test_a_resumed_rank_has_the_random_state_that_it_was_saved_with(two):
    "What each rank draws after an unbroken run equals what it draws after the resumed run."
    unbroken, resumed = (line.split("drawn")[1] for line in two.lines)
    first, second = json.loads(unbroken)
    assert unbroken == resumed and all(a != b for a, b in zip(first, second, strict=True))


def test_a_run_goes_on_with_another_number_of_ranks(two, place, capsys):
    "From two ranks to one after step 2, and back to two after step 4."
    one = back_to(two.two, 2, place / "elastic1")
    execute(settings(place, one, **two.given | dict(output_dir=str(one),
                                                       resume_from_checkpoint=True)))
    told = "continues on 1 process(es) and was on 2 before; each step keeps its 2 batches"
    assert told in capsys.readouterr().out
    near(two.two, one)
    again = back_to(one, 4, place / "elastic2")
    given = two.given | dict(output_dir=str(again), resume_from_checkpoint=True)
    assert "continues on 2 process(es) and was on 1 before" in under_torchrun(
        TRAIN, json.dumps([given])
    )
    near(two.two, again)
    with pytest.raises(ValueError, match="started with gradient_accumulation_steps = 1, not 3"):
        wrong = two.given | dict(output_dir=str(one), resume_from_checkpoint=True)
        execute(settings(place, one, **wrong | dict(gradient_accumulation_steps=3)))


def kill_and_resume(place, whole, times, seed=None, **change):
    "kill -9 of a random rank after a random step, then resume; each time equal to the last bit."
    change = EASY | dict(gradient_accumulation_steps=1) | change
    rng = random.Random(seed)
    for i in range(times):
        out, at, victim = place / f"killed{i}", rng.randint(3, 5), rng.randrange(2)
        process = start(options(place, out, **change))
        read_until(process, f"step {at}/")
        ranks_of(process)[victim].kill()
        began = time.monotonic()
        told = process.stdout.read()
        assert process.wait() == 1 and time.monotonic() - began < 40
        assert f"rank {victim} was ended by SIGKILL" in told and "Traceback" not in told
        assert not any((out / w).exists() for w in ("adapter", "model")) and checkpoints(out)
        process = start(options(place, out, **change | dict(resume_from_checkpoint=True)))
        process.stdout.read()
        assert process.wait() == 0
        same_bits(whole, out)
        shutil.rmtree(out)


@pytest.fixture(scope="module")
def whole(place):
    "An unbroken run on two ranks, started with the command's parameter gpus."
    process = start(options(place, place / "whole2", **EASY | dict(gradient_accumulation_steps=1)))
    told = process.stdout.read()
    assert process.wait() == 0 and told.count("step 6/6  validation loss") == 1, told
    return place / "whole2"


def test_a_rank_killed_at_random_ends_all_and_the_run_resumes_to_the_last_bit(place, whole):
    kill_and_resume(place, whole, 1)


@pytest.mark.slow
def test_twenty_ranks_killed_at_random(place, whole):
    kill_and_resume(place, whole, 20)


FULL = """
import json, sys
import torch
from torch.distributed.tensor import DTensor
from higgs_vi import loop
from higgs_vi.ranks import gather, leave_ranks
from tests.runs import executed

idle, real = [], loop.equal_share
def counting(*args):
    share = real(*args)
    idle.extend(is_idle for _, is_idle in share)
    return share
loop.equal_share = counting
torch.compile = lambda f, **_: f  # torchao compiles its update; the same sums without
for run in executed(json.loads(sys.argv[1])):
    held = [p for g in run.optimizer.param_groups for p in g["params"]]
    assert all(isinstance(p, DTensor) for p in run.model.parameters())
    moments = sum(t.numel() for s in run.optimizer.state.values() for t in s.values() if t.ndim)
    ranks = gather([sum(p.numel() for p in held), moments, sum(idle)])
    if run.metrics: print("held", json.dumps(ranks), flush=True)
leave_ranks()
"""


@pytest.fixture(scope="module")
def full(place):
    """Full training, whose weights are divided among two ranks, beside one process with as many
    batches a step.

    `adamw` in fp32; `mean` with averaged weights; `rounded` in bf16 with recomputed layers and
    moments in 8 bits. Each also resumed from step 2 (`…_cut`), and `adamw` also on two ranks from
    a checkpoint of one process (`joined`). The clips give the last batch of an epoch to one rank.
    """
    common = EASY | dict(mode="full", learning_rate=1e-3, gradient_accumulation_steps=1)
    common |= dict(speaker="ngan", save_steps=2)
    kinds = dict(
        adamw=dict(sample_sentences=1, sample_steps=4),
        mean=dict(ema_decay=0.9),
        rounded=dict(optim="rounded8bit", precision="bf16", gradient_checkpointing=1),
    )
    resumed, chosen, given = dict(resume_from_checkpoint=True), {}, []
    for kind, change in kinds.items():
        asked = options(place, place / f"full_{kind}", **common | change)
        chosen[kind] = {k: getattr(asked, k) for k in asked.given}
        if kind != "rounded":
            one = place / f"full_{kind}_one"
            execute(settings(place, one, **common | change | dict(gradient_accumulation_steps=2)))
        cut = dict(copy_of=str(place / f"full_{kind}"), output_dir=str(place / f"full_{kind}_cut"))
        given += [chosen[kind], chosen[kind] | cut | resumed]
    joined = dict(copy_of=str(place / "full_adamw_one"), output_dir=str(place / "full_joined"))
    given.append(chosen["adamw"] | joined | resumed)
    told = under_torchrun(FULL, json.dumps(given))
    held = [json.loads(line[5:]) for line in told.splitlines() if line.startswith("held")]
    return SimpleNamespace(
        run=lambda kind: place / f"full_{kind}", held=held, given=chosen["adamw"], told=told
    )


@pytest.mark.parametrize("kind", ["adamw", "mean"])
def test_full_training_on_two_ranks_is_that_of_one_process(full, kind):
    near(full.run(f"{kind}_one"), full.run(kind), 1e-5)
    assert farthest(full.run(f"{kind}_one"), full.run(kind)) < 1e-4


def test_each_rank_holds_its_part_of_weights_and_moments(full):
    total = sum(w.numel() for w in weights(full.run("adamw")).values())
    assert [held[:2] for held in full.held[0]] == [[total // 2, total]] * 2
    assert sum(idle for _, _, idle in full.held[0]) > 1, "no rank lacked a batch"


@pytest.mark.parametrize("kind", ["adamw", "mean", "rounded"])
def test_full_training_resumes_on_two_ranks_to_the_last_bit(full, kind):
    same_bits(full.run(kind), full.run(f"{kind}_cut"))


def test_full_training_goes_on_with_another_number_of_ranks(full, place):
    "From one process to two ranks, and from two to one."
    near(full.run("adamw_one"), full.run("joined"), 1e-5)
    assert "continues on 2 process(es) and was on 1 before" in full.told
    alone = back_to(full.run("adamw"), 2, place / "full_alone")
    again = dict(output_dir=str(alone), resume_from_checkpoint=True)
    execute(settings(place, alone, **full.given | again))
    near(full.run("adamw"), alone, 1e-5)


def test_a_divided_model_is_written_and_speaks_as_a_whole(full):
    """Model and checkpoints have the layout of one process; before training, the same sample is
    spoken, to the last bit.
    """
    one, two = full.run("adamw_one"), full.run("adamw")
    for file in ("config.json", "generation_config.json", "processor_config.json"):
        assert (one / "model" / file).read_bytes() == (two / "model" / file).read_bytes()
    best = json.loads((two / "model/config.json").read_text())
    assert load_checkpoint(two / "model").model.config.hidden_size == best["hidden_size"]
    assert weights(two).keys() == load_file(checkpoints(two)[-1] / "model.safetensors").keys()
    for when in ("before", "during", "after"): assert (two / f"samples/{when}_0.wav").is_file()
    spoken = [(run / "samples/before_0.wav").read_bytes() for run in (one, two)]
    assert spoken[0] == spoken[1]


def test_moments_in_8_bits_stay_with_their_number_of_ranks(full, place):
    alone = back_to(full.run("rounded"), 2, place / "rounded_alone")
    with pytest.raises(ValueError, match="resume the run with gpus 2"):
        read_trainer(checkpoints(alone)[-1])
    assert read_trainer(checkpoints(alone)[-1], 1, 2)["step"] == 2


@pytest.mark.slow
def test_ranks_killed_in_full_training_end_all_and_it_resumes_to_the_last_bit(place):
    "Most kills hit while both ranks write their parts of a checkpoint, or just before."
    change = dict(mode="full", learning_rate=1e-3)
    common = EASY | dict(gradient_accumulation_steps=1) | change
    process = start(options(place, place / "whole_full", **common))
    told = process.stdout.read()
    assert process.wait() == 0, told
    kill_and_resume(place, place / "whole_full", 5, **change)


SHARDS = """
import copy
import torch
from torch import distributed as dist
from higgs_vi import step
from higgs_vi.batch import build_example, collate
from higgs_vi.model import random_model
from higgs_vi.prompt import INSTRUCTION, Prompt, tiny_tokenizer
from higgs_vi.shard import trained_parts, whole_model

dist.init_process_group("gloo")
rank, ranks, cpu = dist.get_rank(), dist.get_world_size(), torch.device("cpu")
own = random_model(tiny_tokenizer(["Xin chao.", INSTRUCTION]), None, hidden=64, layers=9)
codes = [torch.arange(8 * n).view(8, n).numpy() % 1024 for n in (9, 14, 11)]
examples = [build_example(own.tokenizer, Prompt("Xin chao."), c) for c in codes]
batches = [collate([e], own.tokenizer) for e in examples]
counts = step.target_counts(batches[:2])
mine = batches[rank] | dict(idle=rank == 2)
step._compiled.cache_clear()
compile = torch.compile
torch.compile = lambda f, **how: compile(f, backend="aot_eager", **how)

def losses(forward, batches, dtype):
    for batch in batches:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            forward(batch, counts, None)[0].backward()

for dtype, every, compiled in (None, 0, False), (torch.bfloat16, 2, False), (None, 0, True):
    one, two = (copy.deepcopy(own.model).train() for _ in range(2))
    for model in (one, two):
        model.model.gradient_checkpointing, model.model.compiled = every, compiled
    losses(step.BatchLoss(one), batches[:2], dtype)
    forward = step.fully_sharded(two, cpu, dtype)
    losses(forward, [mine], dtype)
    worst = 0.0
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        difference = (p.grad - q.grad.full_tensor()).norm() / p.grad.norm().clamp_min(1e-9)
        worst = max(worst, difference.item())
    if not rank: print("gradients", worst < 1e-6, worst, flush=True)
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
if not rank: print("graphs", graphs <= 4, graphs, flush=True)

parts = trained_parts(two)
optimizer = step.build_optimizer(parts, "adamw", 1e-2, 0.0)
real, before = step.take_gradients, [p.detach().clone() for p in parts]
scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
def overflow(model, parts):
    real(model, parts)
    if rank == 1: parts[0].grad[0, 0] = float("inf")
def go():
    report = step.train_step(two, optimizer, [mine], counts=counts, scaler=scaler, parallel=forward)
    same = all(torch.equal(a, b) for a, b in zip(before, parts, strict=True))
    told = [None] * ranks
    dist.all_gather_object(told, (report["grad_norm"] is None, same, scaler.get_scale()))
    if not rank: print("step", told, flush=True)
step.take_gradients = overflow
go()
step.take_gradients = real
go()
for p, q in zip(parts, two.parameters(), strict=True):
    assert p.grad is None and q.grad is None and p.data_ptr() == q.to_local().data_ptr()
whole, head = whole_model(two), own.model.audio_lm_head
if not rank: print("moved", not torch.equal(whole.audio_lm_head.weight, head.weight))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_shards_of_three_ranks(place):
    """Sizes that three ranks cannot share evenly, and an idle rank: the gradients are those of one
    process, whether autocast, recomputed or compiled (one graph serves all nine layers). A step
    that overflows on one rank is skipped by all.
    """
    told = under_torchrun(SHARDS, number=3).splitlines()
    assert [t.split()[1] for t in told if t.startswith("gradients")] == ["True"] * 3, told
    assert [t for t in told if t.startswith("graphs")][0].split()[1] == "True", told
    assert f"step {[(True, True, 4.0)] * 3}" in told and f"step {[(False, False, 4.0)] * 3}" in told
    assert told[-1] == "moved True"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_any_rank_saves(place, number):
    "One rank alone receives the signal; both finish the step, rank 0 saves, and all end."
    out = place / f"signalled{number}"
    process = start(options(place, out, **EASY | dict(max_steps=200, eval_steps=200,
                                                       save_steps=200)))
    read_until(process, "step 2/")
    ranks_of(process)[1].send_signal(number)
    told = process.stdout.read()
    process.wait()
    assert "and saved; to continue, add --resume_from_checkpoint true" in told, told
    assert told.count("stopped by") == 1 and len(checkpoints(out)) == 1
    assert checkpoints(out)[0].name == f"step-{read_metrics(out)[-1]['step']:06d}"


FAIL = """
import os, sys, time
from datetime import timedelta
import torch
from torch import distributed as dist
from higgs_vi import loop, step
from higgs_vi.ranks import all_or_none, from_main, gather, leave_ranks, main_first

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", timeout=timedelta(seconds=3))
with main_first():  # longer than the group's limit
    if rank == 0: time.sleep(5)
assert from_main(rank) == 0 and gather(rank) == [0, 1]
began = time.monotonic()
try:
    with all_or_none():
        if rank: raise ValueError("of rank 1")
except ValueError as e: print(rank, "raised", e, flush=True)
except SystemExit: print(rank, "ended quietly", round(time.monotonic() - began), flush=True)
try:
    with main_first():
        if rank == 0: raise OSError("of rank 0")
        print("never")
except OSError as e: print(rank, "raised", e, flush=True)
except SystemExit: print(rank, "ended quietly", flush=True)
leave_ranks()
"""


def test_an_unexpected_error_of_a_rank_is_shown(place):
    "4 bits with layer sizes that the CPU does not support; and an error that nothing foresees."
    process = start(options(place, place / "odd", **EASY | dict(mode="qlora", model="")))
    told = process.stdout.read()
    assert process.wait() == 1 and told.count("4 bits on a CPU need layer sizes") == 1, told
    (place / "unforeseen.py").write_text("def main(): raise KeyError('unforeseen')")
    code = "from higgs_vi.ranks import start_ranks; start_ranks(2, 'unforeseen')"
    env = ENV | dict(PYTHONPATH=f"{ROOT}{os.pathsep}{place}")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1 and "KeyError: 'unforeseen'" in done.stderr


def test_ranks_wait_without_a_limit_and_one_tells_the_reason():
    told = under_torchrun(FAIL)
    assert sorted(told.splitlines()) == [
        "0 ended quietly 10", "0 raised of rank 0", "1 ended quietly", "1 raised of rank 1"
    ]


BAD_LOSS = """
import os, sys
from higgs_vi import step, train
real = step.audio_loss
def planted(model, batch, *args):
    loss = real(model, batch, *args)
    if os.environ["RANK"] == "1": loss.total = loss.total * float("nan")
    return loss
step.audio_loss = planted
train.main(sys.argv[1:])
"""


def test_a_loss_that_is_not_finite_on_one_rank_is_told_once_with_its_clips(place):
    cfg = options(place, place / "bad", **EASY)
    file = place / "bad.py"
    file.write_text(BAD_LOSS)
    out = subprocess.run(
        [*TORCHRUN, "2", file, *as_options(cfg)], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    told = out.stdout + out.stderr
    assert out.returncode and told.count("higgs-vi-train: the loss is nan on the clips ") == 1, told
    assert "Traceback" not in out.stderr.split("torch/distributed/elastic")[0]


NOTEBOOK = """
import sys
from accelerate import notebook_launcher

def work(options):
    from higgs_vi.train import main
    main(options)

port = sys.argv.pop(1)
notebook_launcher(work, (sys.argv[1:],), num_processes=2, use_port=port)
"""


@pytest.mark.parametrize(
    "launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "notebook_launcher"]
)
def test_every_launcher_trains_the_same(place, whole, launcher):
    """Two processes by `torchrun` and by `notebook_launcher` equal those of `--gpus 2` to the last
    bit. (`accelerate launch` starts processes as torchrun does, but on GPUs only.)
    """
    out = place / launcher
    cfg = options(place, out, **EASY | dict(gradient_accumulation_steps=1))
    script = place / "launched.py"
    script.write_text(NOTEBOOK)
    command = [sys.executable, script, str(free_port())]
    if launcher == "torchrun":
        command = [*TORCHRUN, "2", "-m", "higgs_vi.train"]
    done = subprocess.run(
        [*command, *as_options(cfg)], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    same_bits(whole, out)


def test_the_console_script_starts_ranks_too_and_says_nothing_of_its_own(place):
    script = Path(sys.executable).with_name("higgs-vi-train")
    asked = options(place, place / "script", **EASY | dict(gpus=2, max_steps=1))
    done = subprocess.run(
        [script, *as_options(asked)], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0 and "step 1/1" in done.stdout, done.stdout + done.stderr
    assert "CUDAs" not in done.stdout


def test_a_run_stopped_before_it_has_settings_starts_anew(place):
    "Stopped while clips were encoded: the folder holds no run, so there is nothing to resume."
    cfg = settings(place, place / "early", **EASY)
    Stopped(Path(cfg.output_dir), signal.SIGINT, "stopped by SIGINT")
    assert not resume_if_stopped(cfg).resume_from_checkpoint
    execute(replace(cfg, max_steps=1))
    assert resume_if_stopped(cfg).resume_from_checkpoint is False  # it ended by itself
    Stopped(Path(cfg.output_dir), signal.SIGINT, "stopped by SIGINT")
    assert resume_if_stopped(cfg).resume_from_checkpoint


def test_changed_settings_reach_the_command_without_being_given():
    assert as_options(TrainSettings(gpus=2, target_modules=["attention"])) == ["--gpus=2"]
