"""Each setting of training and speaking has the effect that its name promises.

tests/mutations.py breaks them one by one.
"""
import copy
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import higgs_vi.loop as module
from higgs_vi.batch import build_example, collate
from higgs_vi.checkpoint import Average, checkpoints, random_state, read_metrics, set_random_state
from higgs_vi.generate import GREEDY, Sampling, generate_delayed_codes
from higgs_vi.loop import build_model, load_step, save_best, train, validate
from higgs_vi.merge import MergeSettings, merge
from higgs_vi.model import Checkpoint, load_model, save_checkpoint, unwrap_peft
from higgs_vi.plan import learning_rate_at
from higgs_vi.prompt import Prompt, Reference, render
from higgs_vi.recipe import TrainSettings
from higgs_vi.step import audio_loss, target_logits, train_step
from higgs_vi.train import execute, start
from higgs_vi.voices import make_prompt
from tests.mutations import MUTATIONS
from tests.runs import short_run


@pytest.fixture(scope="module")
def place(tmp_path_factory, parts, four):
    "A nano and four of the demo clips."
    folder = tmp_path_factory.mktemp("reach")
    save_checkpoint(folder/"nano", parts)
    (folder/"four").symlink_to(four)
    return folder


def settings(place, out, **change):
    "Settings for a few steps on four clips."
    given = dict(
        model=str(place / "nano"),
        data=str(place / "four"),
        output_dir=str(out),
        code_cache=str(place / "codes"),
        max_steps=2,
        num_train_epochs=99,
        eval_steps=99,
        save_steps=99,
        validation_share=0.0,
        warmup_ratio=0.0,
        input_noise=0.0,
        lora_dropout=0.0,
    )
    return short_run(**given | change)


def trained(run): return [p.detach().clone() for p in run.model.parameters() if p.requires_grad]


# --- the optimiser --------------------------------------------------------------------------------

def test_clip_bounds_the_step(place, tmp_path, monkeypatch):
    """With SGD the step length equals learning_rate times max_grad_norm, and the logged norm is the
    one before clipping.
    """
    monkeypatch.setattr(
        module, "build_optimizer", lambda p, name, rate, decay: torch.optim.SGD(p, lr=rate)
    )
    run = start(
        settings(place, tmp_path / "run", max_steps=1, max_grad_norm=0.01, learning_rate=0.5)
    )
    before = trained(run)
    train(run)
    moved = math.sqrt(
        sum((a - b).square().sum().item() for a, b in zip(before, trained(run), strict=True))
    )
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3) and run.metrics.rows[-1]["grad_norm"] > 0.1


def test_a_small_gradient_is_not_clipped(parts):
    "A gradient whose norm is below the bound is applied unchanged."
    model = copy.deepcopy(parts.model)
    batch = collate(
        [build_example(parts.tokenizer, Prompt("Xin chào."), np.arange(80).reshape(8, 10))],
        parts.tokenizer,
    )
    audio_loss(model, batch).total.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), [batch], max_norm=1e6)
    assert all(
        torch.allclose(before[n] - p.detach(), grads[n], atol=1e-6)
        for n, p in model.named_parameters()
        if n in grads
    )


def test_the_rate_of_every_step_is_its_schedule_s(place, tmp_path, monkeypatch):
    "Linear warmup, then half a cosine that ends above zero, set before each optimiser step."
    used, real = [], module.train_step

    def seen(model, optimizer, *args):
        used.append(optimizer.param_groups[0]["lr"])
        return real(model, optimizer, *args)

    monkeypatch.setattr(module, "train_step", seen)
    cfg = settings(place, tmp_path / "run", max_steps=8, learning_rate=1e-3, warmup_ratio=0.25)
    run = train(start(cfg))
    wanted = [5e-4, 1e-3, *(1e-3 * (1 + math.cos(math.pi * i / 7)) / 2 for i in range(1, 7))]
    assert used == pytest.approx(wanted) and [
        learning_rate_at(s, 8, 1e-3, 0.25) for s in range(1, 9)
    ] == pytest.approx(wanted)
    assert [r["rate"] for r in read_metrics(run.folder)] == pytest.approx(wanted)


def test_weight_decay_shrinks_what_has_no_gradient(place, tmp_path):
    """Codebook 7's head rows get no gradient under `codebook_weights`; AdamW multiplies them by 1 -
    learning_rate x weight_decay.
    """
    run = start(
        settings(
            place,
            tmp_path / "run",
            max_steps=1,
            learning_rate=0.1,
            weight_decay=0.5,
            codebook_weights=[1] + [0] * 7,
        )
    )
    head = run.model.get_base_model().audio_lm_head.modules_to_save["default"].weight
    before = head.detach().clone()
    train(run)
    assert torch.allclose(head[-1026:], before[-1026:] * (1 - 0.1 * 0.5), rtol=1e-5)


def test_codebook_weights_reach_loss_and_gradient(place, tmp_path):
    """With all weight on codebook 0 the other head rows stay unchanged, and logged losses,
    validation included, are codebook 0's.
    """
    run = start(
        settings(
            place,
            tmp_path / "run",
            max_steps=1,
            weight_decay=0.0,
            codebook_weights=[1] + [0] * 7,
            validation_share=0.25,
            eval_steps=1,
        )
    )
    head = run.model.get_base_model().audio_lm_head.modules_to_save["default"].weight
    before = head.detach().clone()
    train(run)
    assert torch.equal(head[1026:], before[1026:]) and not torch.equal(head[:1026], before[:1026])
    rows = read_metrics(run.folder)
    assert {r["kind"] for r in rows} == {"train", "valid"}
    assert all(r["loss"] == pytest.approx(r["by_codebook"][0], rel=1e-5) for r in rows)


# --- the adapter ----------------------------------------------------------------------------------

@pytest.mark.parametrize("adapter, scale", [("lora", 24 / 4), ("rslora", 24 / 2)])
def test_alpha_scales_the_adapter(parts, adapter, scale):
    "LoRA adds alpha/rank B A x to a layer, rsLoRA alpha/sqrt(rank) B A x (here rank 4, alpha 24)."
    own = Checkpoint(copy.deepcopy(parts.model), parts.tokenizer, parts.codec)
    model = build_model(
        TrainSettings(
            lora_rank=4, lora_alpha=24.0, lora_variant=adapter, lora_dropout=0.0, precision="fp32"
        ),
        own,
    ).eval()
    layer = unwrap_peft(model).model.layers[0].self_attn.q_proj
    A, B = (getattr(layer, f"lora_{x}")["default"].weight for x in "AB")
    torch.nn.init.normal_(B)
    x = torch.randn(5, A.shape[1])
    with torch.no_grad():
        assert torch.allclose(layer(x) - layer.base_layer(x), scale * (x @ A.T @ B.T), atol=1e-4)
    assert A.shape[0] == 4


def test_dropout_reaches_the_adapter(parts):
    own = Checkpoint(copy.deepcopy(parts.model), parts.tokenizer, parts.codec)
    model = build_model(TrainSettings(lora_rank=2, lora_dropout=0.37), own)
    assert {m.p for n, m in model.named_modules() if n.endswith("lora_dropout.default")} == {0.37}


# --- the batch ------------------------------------------------------------------------------------

def test_noise_hides_its_share_of_the_codes_and_no_label(place, tmp_path):
    run = start(settings(place, tmp_path / "run", input_noise=0.3))
    run = replace(run, data=replace(run.data, train=run.data.train * 20))
    everyone = [list(range(len(run.data.train)))]

    def loaded(noise, epoch):
        (batch,), counts, _ = load_step(
            replace(run, cfg=replace(run.cfg, input_noise=noise)), epoch, everyone
        )
        return batch, counts

    (clean, counts), (noisy, again), (other, _), (same, _) = (
        loaded(0.0, 0),
        loaded(0.3, 0),
        loaded(0.3, 1),
        loaded(0.3, 0),
    )
    codes = clean["delayed_codes"] < 1024
    share = (clean["delayed_codes"] != noisy["delayed_codes"])[codes].float().mean().item()
    assert 0.25 < share < 0.35 and torch.equal(
        clean["delayed_codes"][~codes], noisy["delayed_codes"][~codes]
    )
    assert torch.equal(clean["targets"], noisy["targets"]) and counts.tolist() == again.tolist()
    assert torch.equal(noisy["delayed_codes"], same["delayed_codes"]) and not torch.equal(
        noisy["delayed_codes"], other["delayed_codes"]
    )


def test_text_weight_is_the_weight_of_the_step_s_mean_text_loss(place, tmp_path):
    """A batch's weight is that of one text target; over all batches of a step they add up to
    `text_loss_weight`.
    """
    run = start(settings(place, tmp_path / "run"))
    run = replace(run, cfg=replace(run.cfg, text_loss_weight=0.4))
    batches, _, _ = load_step(run, 0, [[0, 1], [2], [3]])
    targets = sum(len(b["text_targets"]) for b in batches)
    assert len(batches) == 3 and sum(
        b["text_weight"] * len(b["text_targets"]) for b in batches
    ) == pytest.approx(0.4)
    assert all(b["text_weight"] == pytest.approx(0.4 / targets) for b in batches)
    head = torch.nn.Linear(
        run.parts.model.config.hidden_size, run.parts.model.config.vocab_size, bias=False
    )
    unwrap_peft(run.model).text_lm_head = head
    alone = [b | dict(text_weight=0.0) for b in batches]
    with torch.no_grad():
        losses, without = ([audio_loss(run.model.eval(), b) for b in bs] for bs in (batches, alone))
    added = sum(a.total.item() - b.total.item() for a, b in zip(losses, without, strict=True))
    text = sum(x.tally[4, 0].item() for x in losses) / targets
    assert added == pytest.approx(0.4 * text, rel=1e-4)


# --- the average ----------------------------------------------------------------------------------

def test_the_average_s_decay_over_many_steps():
    """An impulse in the weights fades by `decay` per step once 9 decay/(1 - decay) steps have
    passed, and faster before.
    """
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average, kept = Average([model.weight], 0.9), []
    for step in range(1, 201):
        torch.nn.init.constant_(model.weight, float(step == 150))
        average.update(step)
        kept.append(average.mean[0].item())
    assert kept[149] == pytest.approx(0.1, rel=1e-4)
    assert all(kept[149 + n] == pytest.approx(0.1*0.9**n, rel=1e-3) for n in range(50))
    average, mean = Average([model.weight], 0.9), 0.0
    for step in range(1, 20):
        torch.nn.init.constant_(model.weight, float(step))
        average.update(step)
        mean = mean*step/(step + 9) + step*9/(step + 9)
    assert average.mean[0].item() == pytest.approx(mean, rel=1e-4)


def test_the_average_is_validated_and_written(place, tmp_path):
    """The model keeps the trained weights, the average's loss decides which is best, and the
    average is written as the adapter.
    """
    run = start(
        settings(
            place,
            tmp_path / "run",
            max_steps=4,
            learning_rate=0.02,
            ema_decay=0.9,
            validation_share=0.25,
            eval_steps=4,
        )
    )
    first = trained(run)
    train(run)
    for others in (first, trained(run)):
        assert any(not torch.equal(a, b) for a, b in zip(others, run.average.mean, strict=True))
    own, row = trained(run), read_metrics(run.folder)[-1]
    raw = validate(replace(run, average=None))["loss"]
    assert row["kind"] == "valid" and abs(raw - row["loss"]) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(own, trained(run), strict=True))
    save_best(run)
    assert validate(replace(run, average=None))["loss"] == pytest.approx(row["loss"], abs=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(trained(run), run.average.mean, strict=True))


# --- resume, and the best -------------------------------------------------------------------------

def test_a_resumed_run_ends_as_the_unbroken_one(place, tmp_path):
    """With dropout, input noise and the average: a run resumed after step 2 of 4 is bit-equal to
    the uninterrupted one.
    """
    given = dict(
        max_steps=4,
        save_steps=2,
        lora_dropout=0.4,
        input_noise=0.2,
        ema_decay=0.5,
        warmup_ratio=0.25,
    )
    whole = train(start(settings(place, tmp_path / "whole", **given)))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-000004")
    begun = start(settings(place, tmp_path / "cut", resume_from_checkpoint=True, **given))
    assert begun.step == 2 and len(begun.metrics.rows) == 2
    cut = train(begun)
    assert all(torch.equal(a, b) for a, b in zip(trained(whole), trained(cut), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.average.mean, cut.average.mean, strict=True))
    losses = [[r["loss"] for r in read_metrics(r.folder)] for r in (whole, cut)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_the_state_of_every_generator_comes_back(tmp_path):
    import random

    cpu = torch.device("cpu")

    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            torch.rand(1).item(),
        )

    random.gauss(0, 1)
    np.random.randn()  # both keep a second value in hand
    torch.save(random_state(cpu), tmp_path / "state.pt")
    drawn = draw()
    assert draw() != drawn
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), cpu)
    assert draw() == drawn


def test_the_best_is_written_and_not_the_last(place, tmp_path, monkeypatch):
    """With validation losses 5, 3, 4 at steps 1 to 3 the adapter is that of step 2, also after a
    resume.
    """
    losses = {0: 6.0, 1: 5.0, 2: 3.0, 3: 4.0}
    monkeypatch.setattr(
        module,
        "validate",
        lambda run: dict(loss=losses[run.step], by_codebook=[losses[run.step]] * 8, eos_loss=1.0),
    )
    cfg = settings(
        place,
        tmp_path / "run",
        max_steps=3,
        eval_steps=1,
        save_steps=3,
        validation_share=0.25,
        save_total_limit=1,
    )
    run = execute(cfg)
    assert (run.best, run.best_step, run.evals_since_best, run.loss_before) == (3.0, 2, 1, 6.0)
    assert [p.name for p in checkpoints(run.folder)] == ["step-000002", "step-000003"]
    written, best, last = (
        load_file(run.folder / f / "adapter_model.safetensors")
        for f in ("adapter", "checkpoints/step-000002", "checkpoints/step-000003")
    )
    assert all(torch.equal(written[n], best[n]) for n in best) and any(
        not torch.equal(written[n], last[n]) for n in last
    )
    again = start(replace(cfg, resume_from_checkpoint=True))
    assert (again.best, again.best_step, again.evals_since_best) == (3.0, 2, 1)


# --- speaking -------------------------------------------------------------------------------------

def spoken_with(parts, monkeypatch, how):
    "Return what reaches HF's sampling: its logits warpers and its generation settings."
    own, seen = copy.deepcopy(parts), SimpleNamespace()
    cls = type(own.model)
    real = cls._sample

    def sample(self, input_ids, logits_processor, stopping_criteria, generation_config, **kw):
        seen.warpers = {type(p).__name__: p for p in logits_processor}
        seen.config = generation_config
        return real(self, input_ids, logits_processor, stopping_criteria, generation_config, **kw)
    with monkeypatch.context() as m:
        m.setattr(cls, "_sample", sample)
        seen.delayed_codes = generate_delayed_codes(own, make_prompt("Xin chào."), how)
    return seen


def test_sampling_reaches_hf_s_warpers_as_given(parts, monkeypatch):
    seen = spoken_with(
        parts,
        monkeypatch,
        Sampling(temperature=0.37, top_k=23, top_p=0.61, ras_win_len=5, max_seconds=0.4),
    )
    assert seen.warpers["TemperatureLogitsWarper"].temperature == 0.37
    assert (
        seen.warpers["TopKLogitsWarper"].top_k == 23
        and seen.warpers["TopPLogitsWarper"].top_p == 0.61
    )
    assert (seen.config.do_sample, seen.config.ras_win_len, seen.config.ras_win_max_num_repeat) == (
        True,
        5,
        2,
    )
    assert seen.config.max_new_tokens == 10 + 8 + 2
    seen = spoken_with(parts, monkeypatch, replace(GREEDY, max_seconds=0.4))
    assert (
        not seen.config.do_sample
        and seen.config.ras_win_len is None
        and "TemperatureLogitsWarper" not in seen.warpers
    )


def test_prompts_are_the_released_model_s(parts):
    """Full prompts with references in turns and in the scene, and without the text as guidance uses
    them.
    """
    system = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nGenerate audio following "
        "instruction.\n\n<|scene_desc_start|>\n"
        "Audio is recorded from a quiet room.{}\n<|scene_desc_end|><|eot_id|>"
    )
    sound, ask = (
        "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    )
    user = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    clone = dict(
        task="zero_shot_voice_cloning", references=(Reference("Dạ.", np.zeros((8, 3), int)),)
    )
    assert (
        render(Prompt("Xin chào."))
        == system.format("") + user.format("Xin chào.") + ask + "<|audio_out_bos|>"
    )
    assert (
        render(Prompt("Xin chào."), words=False)
        == system.format("") + user.format("") + ask + "<|audio_out_bos|>"
    )
    turns = system.format("") + user.format("Dạ.") + ask + sound + "<|eot_id|>"
    assert (
        render(Prompt("Xin chào.", **clone))
        == turns + user.format("Xin chào.") + ask + "<|audio_out_bos|>"
    )
    scene = (
        system.format("\n\nSPEAKER0: " + sound)
        + user.format("Xin chào.")
        + ask
        + "<|audio_out_bos|>"
    )
    assert render(Prompt("Xin chào.", place="scene", **clone)) == scene
    talk = Prompt("[SPEAKER0] Chào. [SPEAKER1] Vâng.", task="multi_speaker_smart_voice")
    assert "quiet room.\n\nSPEAKER0: feminine\nSPEAKER1: masculine\n<|scene_desc_end|>" in render(
        talk
    )


def test_a_merged_model_is_base_and_adapter(place, tmp_path):
    """Logits of the merged folder, read back, compared with adapter plus base and with the base
    alone.
    """
    run = execute(settings(place, tmp_path / "run", learning_rate=0.02))
    merge(MergeSettings(adapter=str(run.folder), output_dir=str(tmp_path / "merged")))
    batch = collate(
        [build_example(run.parts.tokenizer, Prompt("Xin chào."), np.arange(80).reshape(8, 10))],
        run.parts.tokenizer,
    )
    base, merged = (load_model(f) for f in (place / "nano", tmp_path / "merged"))
    with torch.no_grad():
        own, there, plain = (target_logits(m.eval(), batch) for m in (run.model, merged, base))
    assert (own - there).abs().max() < 1e-4 and (own - plain).abs().max() > 1e-2


def test_the_seed_decides_and_the_caller_s_random_state_stays(parts):
    state = torch.get_rng_state()
    said = [
        generate_delayed_codes(
            parts, make_prompt("Xin chào."), Sampling(seed=s, max_seconds=0.4)
        ).tolist()
        for s in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2] and torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_every_planted_fault_is_caught():
    "Runs in a separate process, which forks before the package is imported."
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutations"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_every_planted_fault_replaces_what_stands_once_in_the_code():
    "No fault of tests/mutations.py goes untested because its code has moved."
    package = Path(module.__file__).parent
    assert [
        m.name
        for m in MUTATIONS
        if len(m.places((package / m.file).read_text(encoding="utf-8"))) != 1
    ] == []
