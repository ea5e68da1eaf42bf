"""Best by hearing: the panel that a run speaks and judges, the checkpoint that it chooses, its
stop, and that training does not notice.

Judges are fake: what they hear at each step is written down in `PLAN`. Two tests speak in earnest.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from higgs_vi import panel, recognise
from higgs_vi.audio import read_audio
from higgs_vi.checkpoint import checkpoints, read_metrics, read_trainer
from higgs_vi.ears import HEARING, Ears
from higgs_vi.loop import close_logs, load_best
from higgs_vi.manifest import Sample
from higgs_vi.monitor import curves, hearing_sentence
from higgs_vi.recipe import TrainSettings
from higgs_vi.recognise import PHOWHISPER, Recogniser
from higgs_vi.speech import Speech, say_many
from higgs_vi.train import execute, start
from higgs_vi.train import main as train_main
from higgs_vi.verdict import word_columns
from higgs_vi.wer import score_words
from tests.runs import back_to, settings, steps_of

ROOT = Path(__file__).parents[1]
ENV = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
RISES = {0: 0, 4: 4, 8: 3.5, 12: 3.7}  # step: how many words of a sentence are heard, on average
FALLS = {0: 1, 4: 4, 8: 1, 12: 4}


class FakeEars:
    "Hears the first words of each text, as many as the plan has for the step of the run."

    voiceprint = naturalness = None
    names = dict(recogniser=["fake"], voiceprint="", naturalness="")

    def __init__(self, plan): self.plan, self.step = plan, 0

    def judge(self, takes):
        lines = []
        for i, take in enumerate(takes):
            number = int(self.plan[self.step] + i % 10 / 10)
            heard = " ".join(take.text.split()[:number]) if take.wave is not None else ""
            line = word_columns(score_words(take.text, heard)) | dict(heard=heard)
            lines.append(line | dict(
                likeness=np.nan, naturalness=np.nan, odd_length=0.0, odd="", fault=take.why
            ))
        return lines


def say_quickly(engine, prompts, how, max_retries):
    "What `say_many` yields, without a model: noise, and for the fourth prompt nothing."
    assert max_retries == 0
    for i in range(len(prompts)):
        wave = np.random.default_rng(i).normal(0, 0.1, 12_000).astype(np.float32)
        silent = ValueError("the model said nothing")
        yield i, silent if i == 3 else Speech(wave, np.zeros((8, 12), int), True)


def judged(monkeypatch, plan, quickly=True):
    "Replace judging by the plan and, if `quickly`, speaking too."
    ears, real = FakeEars(plan), panel.with_whole_model

    def noted(run):
        ears.step = run.step
        return real(run)

    monkeypatch.setattr(panel, "with_whole_model", noted)
    monkeypatch.setattr(panel, "load_ears", lambda *_: ears)
    if quickly: monkeypatch.setattr(panel, "say_many", say_quickly)


def with_panel(place, out, **change):
    "Twelve steps with a panel of ten sentences at steps 0, 4, 8 and 12, and one checkpoint kept."
    given = dict(panel_sentences=10, validation_share=0.4, save_total_limit=1, save_steps=100)
    return settings(place, out, **given | change)


def heard(folder):
    "The hearing rows of a run, without their times."
    rows = [r for r in read_metrics(folder) if r["kind"] == "hearing"]
    return [{k: v for k, v in r.items() if k not in ("seconds", "share")} for r in rows]


def weights_of(folder): return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def chosen(place):
    "A run whose hearing is best at step 4, while its loss falls to the end."
    with pytest.MonkeyPatch.context() as patch:
        judged(patch, RISES)
        return execute(with_panel(place, place / "chosen"))


def test_the_best_by_hearing_survives_and_is_written(chosen):
    folder = chosen.folder
    assert (chosen.hearing_step, chosen.best_step) == (4, 12)
    assert [p.name for p in checkpoints(folder)] == ["step-000004", "step-000012"]
    assert weights_of(folder / "adapter") == weights_of(folder / "checkpoints/step-000004")
    assert weights_of(folder / "adapter") != weights_of(folder / "checkpoints/step-000012")
    assert load_best(chosen) == 4


def test_the_run_tells_the_best_with_its_intervals(chosen):
    told = json.loads((chosen.folder / "hearing.json").read_text())
    assert [told[n]["step"] for n in ("before_training", "by_hearing", "by_loss")] == [0, 4, 12]
    assert told["written"] == 4 and told["formula"] == "hearing = 1 x (1 - CER)"
    value, low, high = told["by_hearing"]["scores"]["hearing"]
    assert low < value < high and told["sentences"] == 10
    sentence = hearing_sentence(chosen.folder)
    assert sentence.startswith(f"Hearing: best at step 4 of 12 ({value:.3f}); compared with before")
    assert "before training better by 0." in sentence and "n = 10); compared with the" in sentence
    assert "the lowest loss, at step 12," in sentence


def test_metrics_and_curves_have_the_scores(chosen):
    rows = heard(chosen.folder)
    assert [r["step"] for r in rows] == [0, 4, 8, 12] and rows[0]["score"] == 0
    assert rows[1]["score"] > rows[3]["score"] > rows[2]["score"] > 0 and rows[0]["cer"] == 1
    every = [r for r in read_metrics(chosen.folder) if r["kind"] == "hearing"]
    assert every[0]["share"] is None and all(r["share"] > 0 and r["seconds"] > 0 for r in every[1:])
    assert curves(read_metrics(chosen.folder)).count("<img") == 5


def test_sounds_of_the_best_and_the_last_can_be_heard(chosen):
    names = sorted(p.name for p in (chosen.folder / "hearing").iterdir())
    steps = [f"step-{n:06d}" for n in (0, 4, 8, 12)]
    assert names == sorted([f"{s}.csv" for s in steps] + [steps[1], steps[3]])
    for step in (steps[1], steps[3]):
        sounds = sorted(p.name for p in (chosen.folder / "hearing" / step).iterdir())
        assert sounds == [f"{i:03d}.wav" for i in range(10) if i != 3]


def test_a_prompt_for_which_the_model_says_nothing_counts(chosen):
    table = panel.read_lines(panel.lines_path(chosen.folder, 4), chosen.listen.sentences)
    silent = table.iloc[3]
    assert silent.fault == "the model said nothing" and silent.hearing == 0
    assert silent.char_errors == silent.chars and (table.hearing > 0).sum() == 9
    assert heard(chosen.folder)[1]["score"] == pytest.approx(table.hearing.mean())


def test_falling_hearing_stops_the_run_and_a_resumed_one_again(place, monkeypatch, capsys):
    judged(monkeypatch, FALLS)
    cfg = with_panel(place, place / "falls")
    run = execute(cfg)
    losses = [r["loss"] for r in run.metrics.rows if r["kind"] == "valid"]
    assert run.stop == "hearing" and run.step == 8 and losses == sorted(losses, reverse=True)
    assert (run.hearing_step, run.best_step) == (4, 8)
    assert "falls beyond chance: stopping" in capsys.readouterr().out
    assert "training stopped because hearing fell" in hearing_sentence(run.folder)
    written = weights_of(run.folder / "adapter")
    assert written == weights_of(run.folder / "checkpoints/step-000004")
    again = execute(replace(cfg, resume_from_checkpoint=True))
    assert again.stop == "hearing" and again.step == 8
    assert weights_of(again.folder / "adapter") == written


def test_worse_than_before_training_does_not_stop(place, monkeypatch, capsys):
    judged(monkeypatch, {0: 4, 4: 1, 8: 1.2, 12: 1.1})
    run = execute(with_panel(place, place / "worse"))
    assert run.step == 12 and run.hearing_step == 8
    assert "before training worse by" in hearing_sentence(run.folder)
    assert "best so far, but worse than before training" in capsys.readouterr().out


def test_a_resumed_run_chooses_the_same(place, monkeypatch, chosen):
    """It is killed after its evaluation at step 8, the checkpoint of step 6 is the last: what was
    heard at step 8 is heard again, and the best of step 4 is remembered.
    """
    judged(monkeypatch, RISES)
    whole = execute(with_panel(place, place / "whole", save_steps=3, save_total_limit=9))
    assert heard(whole.folder) == heard(chosen.folder)
    out = back_to(whole.folder, 6, place / "cut")
    (out / "hearing.json").unlink()
    cfg = with_panel(place, out, save_steps=3, save_total_limit=9, resume_from_checkpoint=True)
    opened = start(cfg)
    panel_files = sorted(p.name for p in (out / "hearing").iterdir())
    assert panel_files == ["step-000000.csv", "step-000004", "step-000004.csv"]
    assert opened.hearing_step == 4 and opened.best_hearing == whole.best_hearing
    close_logs(opened)
    run = execute(cfg)
    assert heard(out) == heard(whole.folder) and steps_of(out) == steps_of(whole.folder)
    assert weights_of(out / "adapter") == weights_of(whole.folder / "adapter")
    names = "by_hearing", "by_loss", "before_training", "written", "sentence"
    a, b = (json.loads((f / "hearing.json").read_text()) for f in (out, whole.folder))
    assert [a[n] for n in names] == [b[n] for n in names] and run.hearing_step == 4


@pytest.mark.parametrize("change, message", [
    (dict(panel_sentences=9), "started with panel_sentences = 10, not 9"),
    (dict(recogniser="viet-asr"), "started with recogniser"),
    (dict(hearing_weights=[1, 0, 0]), "started with hearing_weights"),
])
def test_another_panel_is_refused_on_resuming(place, monkeypatch, chosen, change, message):
    judged(monkeypatch, RISES)
    cfg = with_panel(place, chosen.folder, resume_from_checkpoint=True, **change)
    with pytest.raises(ValueError, match=message) as error: start(cfg)
    assert "could not be compared" in str(error.value) and "output_dir" in str(error.value)


@pytest.mark.parametrize("fault", ["missing", "cut off", "of others"])
def test_damaged_lines_are_named_on_resuming(place, monkeypatch, chosen, tmp_path, fault):
    judged(monkeypatch, RISES)
    shutil.copytree(chosen.folder, out := tmp_path / "run")
    path = out / "hearing/step-000004.csv"
    text = path.read_text()
    if fault == "missing": path.unlink()
    elif fault == "cut off": path.write_text(text[: len(text) // 2])
    else: path.write_text(text.replace("minh", "lan"))
    cfg = with_panel(place, out, resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="step-000004.csv is damaged"): start(cfg)


class Distracting(Recogniser):
    "Hears a text that depends on the wave alone, and draws random numbers meanwhile."

    def __init__(self): self.name = "distracting"

    def __call__(self, waves):
        random.random(), np.random.rand(), torch.rand(1), torch.manual_seed(7)
        return ["xin chào" if len(x) % 2 else "các bạn" for x in waves]


@pytest.fixture(scope="module")
def spoken(place):
    "A run that speaks four sentences in earnest at each of two validations, with dropout."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panel, "load_ears", lambda *_: Ears([Distracting()]))
        change = dict(panel_sentences=4, validation_share=0.2, max_steps=6, eval_steps=3)
        change |= dict(lora_dropout=0.3, save_total_limit=9)
        run = execute(with_panel(place, place / "spoken", **change))
        plain = execute(with_panel(place, place / "plain", **change | dict(panel_sentences=0)))
    return run, plain


def test_training_does_not_notice_a_panel(spoken):
    run, plain = spoken
    rows = [r for r in steps_of(run.folder) if r["kind"] != "hearing"]
    assert rows == steps_of(plain.folder)
    last = "checkpoints/step-000006"
    assert weights_of(run.folder / last) == weights_of(plain.folder / last)
    drawn = [read_trainer(r.folder / last)["rng"][0]["cpu"] for r in spoken]
    assert torch.equal(*drawn)  # the random state that a resumed run begins with
    assert [r["step"] for r in heard(run.folder)] == [0, 3, 6]
    assert not (plain.folder / "hearing").exists() and not (plain.folder / "hearing.json").exists()


def test_the_panel_speaks_with_the_weights_of_its_step(spoken):
    "The sounds of the best step are those that the written weights speak, also after more steps."
    run, _ = spoken
    load_best(run)
    prompts = [row["prompt"] for row in run.listen.rows]
    folder = run.folder / f"hearing/step-{run.hearing_step:06d}"
    for i, speech in say_many(run.parts, prompts, run.listen.how, max_retries=0):
        file = folder / f"{i:03d}.wav"
        assert file.is_file() == isinstance(speech, Speech)
        if file.is_file():
            kept = read_audio(file)
            assert kept.shape == speech.wave.shape and np.abs(kept - speech.wave).max() < 1e-3


def test_the_average_is_spoken(place, monkeypatch):
    "With `ema_decay`, the panel is spoken with the averaged weights, and the model's own stay."
    judged(monkeypatch, RISES)
    seen = []

    def whole(run):
        seen.append(all(torch.equal(p, m) for p, m in zip(
            run.average.params, run.average.mean, strict=True
        )))
        return run

    monkeypatch.setattr(panel, "with_whole_model", whole)
    cfg = with_panel(place, place / "average", ema_decay=0.5, max_steps=3, eval_steps=3)
    run = execute(cfg)
    assert seen == [True, True] and run.step == 3
    plain = execute(replace(cfg, output_dir=str(place / "average_plain"), panel_sentences=0))
    assert weights_of(run.folder / "adapter") == weights_of(plain.folder / "adapter")


def test_memory_for_keys_and_values_is_limited(parts):
    config = parts.model.config
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert panel.rows_that_fit(parts, 1000) * size * 1000 <= 2**30
    assert panel.rows_that_fit(parts, 10**12) == 2


def test_likeness_is_to_other_clips_of_the_speaker(monkeypatch, tmp_path):
    """Not to the sentence's own clip, its reference, a row that repeats it, or a held-out clip; at
    most 20 are taken.
    """
    def row(name, speaker="lan", **more):
        more |= dict(audio_file=f"{name}.wav", speaker_id=speaker, folder=tmp_path)
        return Sample(id=name, **more)

    clips = [row("c0"), row("c1"), row("c2", pair_of=["s"]), row("c3"), row("x", "minh")]
    held_out = [row("s", ref_audio_file="c1.wav"), row("h")]
    heard = []

    def prints(waves):
        heard.extend(waves)
        return np.eye(len(waves), dtype=np.float32)

    monkeypatch.setattr(panel, "read_audio", lambda path: path.stem)
    trained = [SimpleNamespace(name=c.id) for c in clips]
    run = SimpleNamespace(cfg=None, data=SimpleNamespace(train=trained))
    own = panel.Panel(lambda cfg: [*held_out, *clips])
    own.rows, own.ears = [*held_out, row("y", "thu")], SimpleNamespace(voiceprint=prints)
    of_s, of_h, of_y = own._voices(run)
    assert heard == ["c0", "c1", "c2", "c3"] and of_y is None
    assert of_s.tolist() == [0.5, 0, 0, 0.5] and of_h.tolist() == [0.25] * 4
    many = [row(f"c{i}") for i in range(100)]
    found = panel.choose_clips(many, {c.id for c in many}, {"lan"})
    assert len({c.id for c in found}) == 20


@pytest.mark.parametrize("change, message", [
    (dict(validation_share=0), "no clip is held out: set validation_share above 0"),
    (dict(recogniser="viet-asr"), "pip install 'higgs-vi\\[ears\\]'"),
    (dict(recogniser="nobody/nothing"), "nobody/nothing"),
    (dict(hearing_weights=[0, 1, 1]), "which makes every score 0"),
])
def test_a_panel_that_cannot_be_ends_the_run_before_it_starts(
    place, monkeypatch, tmp_path, change, message
):
    if "validation_share" in change: judged(monkeypatch, RISES)
    monkeypatch.setitem(sys.modules, "vietasr", None)  # as if it were not installed
    cfg = with_panel(place, tmp_path / "run", **change)
    with pytest.raises((ValueError, ImportError), match=message): execute(cfg)
    assert not (tmp_path / "run/settings.json").exists()


def test_a_missing_package_is_one_line_of_the_command(place, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vietasr", None)
    options = [f"--model={place/'nano'}", f"--data={place/'data'}", "--panel_sentences=2"]
    options += [f"--output_dir={tmp_path/'run'}", "--recogniser=viet-asr", "--device=cpu"]
    with pytest.raises(SystemExit, match="higgs-vi-train: .*pip install"): train_main(options)


def test_more_sentences_than_are_held_out_are_told(place, monkeypatch, tmp_path, capsys):
    judged(monkeypatch, RISES)
    run = start(with_panel(place, tmp_path / "run", panel_sentences=500))
    close_logs(run)
    held_out = len(run.data.valid)
    assert len(run.listen.sentences) == held_out < 500
    assert f"panel_sentences is 500, and {held_out} held-out" in capsys.readouterr().out


RANKS = """
import json, sys
import pytest
from higgs_vi.ranks import gather, leave_ranks
from tests import test_hearing as fake
from tests.runs import executed

plan = fake.RISES if sys.argv[2] == "rises" else fake.FALLS
fake.judged(pytest.MonkeyPatch(), plan, quickly=sys.argv[3] == "quickly")
for run in executed(json.loads(sys.argv[1])):
    seen = gather((run.hearing_step, run.best_hearing, run.stop, run.step))
    if run.metrics: print("seen", json.dumps(seen), flush=True)
leave_ranks()
"""


def on_two_ranks(tmp_path, cfg, *args):
    "Train on two ranks; return what each knows at the end."
    (file := tmp_path / "ranks.py").write_text(RANKS)
    given = json.dumps([asdict(cfg)])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    out = subprocess.run(
        [*launch, file, given, *args], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stdout + out.stderr
    (line,) = (x for x in out.stdout.splitlines() if x.startswith("seen "))
    return json.loads(line.removeprefix("seen "))


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step(place, tmp_path):
    cfg = with_panel(place, tmp_path / "run", max_steps=8, gradient_accumulation_steps=1)
    first, second = on_two_ranks(tmp_path, replace(cfg, eval_steps=4), "falls", "quickly")
    assert first == second and first[0] == 4 and first[2:] == ["hearing", 8]
    assert weights_of(tmp_path / "run/adapter") == weights_of(
        tmp_path / "run/checkpoints/step-000004"
    )


@pytest.mark.slow
def test_divided_weights_are_spoken_as_a_whole(place, tmp_path):
    "Full training on two ranks, whose panel is spoken in earnest."
    change = dict(mode="full", panel_sentences=3, max_steps=8, gradient_accumulation_steps=1)
    cfg = with_panel(place, tmp_path / "run", **change)
    first, second = on_two_ranks(tmp_path, cfg, "rises", "in earnest")
    assert first == second and first[0] == 4 and first[2:] == ["", 8]
    assert list((tmp_path / "run/hearing/step-000004").glob("*.wav"))
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == (
        tmp_path / "run/checkpoints/step-000004/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("change, message", [
    (dict(hearing_weights=[1, 1]), "takes three"),
    (dict(hearing_weights=[1, 1, -1]), "hearing_weights"),
    (dict(recogniser="", panel_sentences=4), "recogniser is empty"),
])
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message): TrainSettings(**change)


def test_defaults_are_those_of_the_ears():
    cfg = TrainSettings()
    assert cfg.panel_sentences == 0 and cfg.recogniser == PHOWHISPER == recognise.PHOWHISPER
    assert tuple(cfg.hearing_weights) == HEARING


def test_switched_off_it_imports_no_judge():
    code = (
        "import sys, higgs_vi.train; wrong = {'higgs_vi.panel', 'higgs_vi.recognise', 'jiwer', "
        "'higgs_vi.ears'} & set(sys.modules); assert not wrong, wrong"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
