"""Texts that are not what is said in their sounds: found in data, voices and new speech."""
import csv
import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import higgs_vi.textcheck as textcheck
from higgs_vi.audio import DEMO, read_audio
from higgs_vi.check import ODD, CheckSettings, check
from higgs_vi.check import main as check_command
from higgs_vi.data import DataSettings, prepare
from higgs_vi.manifest import read_manifest
from higgs_vi.recognise import PHOWHISPER, Recogniser
from higgs_vi.say import SaySettings, describe_speech, load_check, speak, voice_faults
from higgs_vi.text import words
from higgs_vi.textcheck import ANOTHER_TEXT, TextCheck, mismatch
from higgs_vi.wer import score_words

REAL = Path(__file__).resolve().parents[2] / "shared/data/cv_vi"
needs_people = pytest.mark.skipif(not REAL.is_dir(), reason="needs real recordings")


class Ear(Recogniser):
    """A fake recogniser that knows what is said in the sounds of a folder, by their length.

    A value that is an exception is raised.
    """

    def __init__(self, said, name="fake"):
        self.name, self.said, self.asked = name, said, []

    def __call__(self, waves):
        self.asked.append(len(waves))
        found = [self.said[len(w)] for w in waves]
        for text in found:
            if isinstance(text, Exception): raise text
        return found


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    "A Higgs folder of six clips of different lengths."
    folder = tmp_path_factory.mktemp("six")
    rows = list(csv.DictReader((DEMO / "demo.csv").open(encoding="utf-8")))[:6]
    with (folder / "six.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, ["wav_filename", "text", "speaker"], extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)
    prepare(
        DataSettings(
            table=str(folder / "six.csv"), audio=str(DEMO), output_dir=str(folder / "six")
        )
    )
    return folder / "six"


@pytest.fixture
def folder(six, tmp_path):
    shutil.copytree(six, tmp_path / "six")
    return tmp_path / "six"


@pytest.fixture
def ear(folder, monkeypatch):
    "An ear that hears each clip's text, in the place of every recogniser."
    samples = read_manifest(folder).samples
    said = {len(read_audio(folder / s.audio_file)): text_of(folder, s.id) for s in samples}
    assert len(said) == 6
    fake = Ear(said)
    monkeypatch.setattr(textcheck, "load_recogniser", lambda name, device="auto": fake)
    return fake


def text_of(folder, name): return (folder / f"{name}.txt").read_text(encoding="utf-8").strip()


def look(folder, **options):
    clips, faults = check(CheckSettings(data=str(folder), recogniser="fake", **options))
    return clips, list(zip(faults["clip"], faults["fault"], strict=True)), faults


# the sentence

def test_what_was_heard_is_said_above_the_limit_and_not_at_it():
    score = score_words("một hai ba bốn", "một hai ba năm")
    assert mismatch(score, score.cer) == "" and mismatch(score, 1) == ""
    assert mismatch(score, score.cer - 0.01).startswith(
        f"the recogniser heard 'một hai ba năm': CER {score.cer:.2f} is above"
    )
    assert "heard nothing" in mismatch(score_words("một", " "), 0.5)
    assert mismatch(score_words("…", "một"), 0) == ""


def test_a_check_returns_how_far_it_is_off_and_names_what_it_could_not_check():
    tell = TextCheck(Ear({3: "chào anh", 4: ""}), 0.25)
    wave = np.ones(3, np.float32)
    assert tell("Chào anh!", wave) == (0.0, "")
    off, why = tell("Chào anh!", np.ones(4, np.float32))
    assert off == 0.75 and why == "the recogniser heard nothing: CER 1.00 is above 0.25"
    off, why = tell("x1" * 150, wave)
    assert off == 0 and why.startswith("the words were not checked: no words to compare")


# 08_check

def test_swapped_texts_are_found_and_sorted_worst_first(folder, ear):
    a, b = folder / "minh_000000.txt", folder / "son_000000.txt"
    texts = a.read_text(encoding="utf-8"), b.read_text(encoding="utf-8")
    a.write_text(texts[1], encoding="utf-8"), b.write_text(texts[0], encoding="utf-8")
    clips, found, faults = look(folder)
    assert sorted(found) == [(a.stem, "heard otherwise"), (b.stem, "heard otherwise")]
    assert list(clips["id"][:2]) == [clip for clip, _ in found] and len(clips) == 6
    assert clips["cer"].is_monotonic_decreasing and (clips["cer"][2:] == 0).sum() >= 3
    heard = dict(zip(clips["id"], clips["heard"], strict=True))
    assert heard[a.stem] == texts[0].strip() and heard[b.stem] == texts[1].strip()
    assert not faults["broken"].any() and "heard 'Xin chào các bạn.'" in " ".join(faults["what"])
    assert look(folder, strict=True)[2]["broken"].all() and {"heard otherwise"} < set(ODD)
    assert look(folder, max_cer=2)[1] == []


def test_without_a_recogniser_nothing_is_heard(folder, ear):
    (folder / "minh_000000.txt").write_text("Một câu hoàn toàn khác.", encoding="utf-8")
    clips, faults = check(CheckSettings(data=str(folder)))
    assert faults.empty and not {"cer", "heard"} & set(clips.columns) and not ear.asked


def test_a_clip_that_cannot_be_heard_is_reported_and_the_others_are_heard(folder, ear):
    samples = {s.id: len(read_audio(folder / s.audio_file)) for s in read_manifest(folder).samples}
    ear.said[samples["son_000000"]] = RuntimeError("no kernel image")
    ear.said[samples["thu_000000"]] = "trời hôm nay nhiều mây và gió"
    clips, found, faults = look(folder)
    assert sorted(found) == [("son_000000", "not compared"), ("thu_000000", "heard otherwise")]
    assert "could not be heard: no kernel image" in " ".join(faults["what"])
    assert clips["cer"].isna().sum() == 1 and clips["id"].iloc[-1] == "son_000000"


def test_what_cannot_be_compared_is_not_heard_or_named(folder, ear):
    "Silence, a missing file and an empty text are not heard; a text without words is named."
    import soundfile as sf

    (folder / "minh_000000.wav").unlink()
    sf.write(folder / "son_000000.wav", np.zeros(24_000), 24_000)
    (folder / "thu_000000.txt").write_text("", encoding="utf-8")
    (folder / "ngan_000000.txt").write_text("x1" * 150, encoding="utf-8")
    clips, found, _ = look(folder)
    assert sum(ear.asked) == 3, "ngan_000000 and the two without a fault"
    assert clips["cer"].notna().sum() == 2
    assert [clip for clip, fault in found if fault == "not compared"] == ["ngan_000000"]
    assert "heard otherwise" not in [fault for _, fault in found]


def test_a_sound_is_heard_once_and_other_languages_are_not(folder, ear):
    path = folder / "metadata.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info["samples"][0]["language"] = "en"
    info["samples"].append(dict(info["samples"][1], id="again"))
    path.write_text(json.dumps(info), encoding="utf-8")
    clips, _, _ = look(folder)
    assert sum(ear.asked) == 5 and clips["cer"].notna().sum() == 6


def test_a_missing_package_ends_the_command_before_the_work(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vietasr", None)
    with pytest.raises(SystemExit, match=r"higgs-vi-check: .*pip install .* or name another"):
        check_command([str(folder), "--recogniser", "viet-asr"])
    assert "check:" not in capsys.readouterr().out


def test_the_check_without_a_recogniser_does_not_import_torch(folder):
    code = (
        "import sys; from higgs_vi.check import main; main([sys.argv[1]]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=folder.parent)


def people(n, least_words=4):
    "Rows of `n` clips of the second half of the test split's speakers, evenly drawn."
    rows = [json.loads(line) for line in (REAL / "manifest.jsonl").open(encoding="utf-8")]
    rows = [r for r in rows if r["split"] == "test" and r["set"] == "validated"]
    known = sorted({r["speaker"] for r in rows})
    random.Random(0).shuffle(known)
    rows = [
        r for r in rows
        if r["speaker"] in known[len(known) // 2:] and len(words(r["text"])) >= least_words
    ]
    random.Random(0).shuffle(rows)
    seen = {}
    for r in rows: r["turn"] = seen[r["speaker"]] = seen.get(r["speaker"], -1) + 1
    return sorted(rows, key=lambda r: r["turn"])[:n]


@needs_people
@pytest.mark.parametrize("n", [16, pytest.param(240, marks=pytest.mark.slow)])
def test_planted_texts_are_found_in_clips_of_people(tmp_path, n):
    "A quarter of the rows have the text of another row."
    pytest.importorskip("vietasr")
    rows = people(n)
    planted = {r["audio"] for r in rows[: n // 4]}
    texts = [r["text"] for r in rows]
    texts[: n // 4] = texts[1 : n // 4] + texts[:1]
    with (tmp_path / "table.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["audio", "text", "speaker"])
        out.writerows((r["audio"], t, r["speaker"]) for r, t in zip(rows, texts, strict=True))
    prepare(
        DataSettings(
            table=str(tmp_path / "table.csv"), audio=str(REAL), output_dir=str(tmp_path / "out")
        )
    )
    clips, faults = check(CheckSettings(data=str(tmp_path / "out"), recogniser="viet-asr"))
    source = {s.id: s.original_audio_path for s in read_manifest(tmp_path / "out").samples}
    wrong = {c for c, path in source.items() if any(path.endswith(p) for p in planted)}
    found = set(faults["clip"][faults["fault"] == "heard otherwise"])
    print(f"{len(found & wrong)} of {len(wrong)} found, {len(found - wrong)} false alarms of "
          f"{len(clips) - len(wrong)}; CER of true texts above 0.387: "
          f"{(clips[~clips['id'].isin(wrong)]['cer'] > 0.387).sum()}")
    assert len(wrong) >= 0.9 * (n // 4) and len(clips) >= 0.9 * n
    assert len(found & wrong) >= 0.95 * len(wrong)
    assert len(found - wrong) <= 0.05 * (len(clips) - len(wrong))
    assert set(clips["id"][: len(wrong) // 2]) <= wrong, "the worst come first"


def test_the_default_is_the_limit_of_the_part():
    assert CheckSettings().max_cer == ANOTHER_TEXT and not CheckSettings().recogniser


# 07_say

def test_the_default_recogniser_and_limits_are_those_of_the_parts():
    assert SaySettings().recogniser == PHOWHISPER and not SaySettings().check


def test_speech_is_drawn_again_until_it_is_heard(parts, tmp_path, monkeypatch, capsys):
    "The nano speaks; a fake recogniser hears the text in the second take only."
    heard = ["một hai", "xin chào các bạn"]
    monkeypatch.setattr(
        textcheck, "load_recogniser", lambda name, device: lambda waves: [heard.pop(0)]
    )
    cfg = SaySettings(
        output_file=str(tmp_path / "a.wav"), max_seconds=1.0, check=True, max_cer=0.2
    )
    monkeypatch.setattr("higgs_vi.speech.length_problem", lambda *_: (1.0, ""))
    speech = speak(cfg, parts, load_check(cfg))
    assert speech.tries == 2 and not heard and not speech.word_problem
    plain = speak(replace(cfg, seed=1, check=False), parts)
    assert (plain.codes == speech.codes).all() and plain.tries == 1, "the take with the next seed"
    assert "takes: 2" in describe_speech(speech, "a.wav")
    heard[:] = ["một hai", "xin chào bạn"]
    assert speak(replace(cfg, max_cer=0.3), parts, load_check(replace(cfg, max_cer=0.3))).tries == 2
    heard[:] = ["một hai", "xin chào bạn", "ba", "bốn"]
    speech = speak(cfg, parts, load_check(cfg))
    assert speech.tries == 4 and "heard 'xin chào bạn': CER" in speech.word_problem
    assert (plain.codes == speech.codes).all(), "the best take"
    assert "other words after 4 take(s) of 'Xin chào các bạn.'" in capsys.readouterr().out
    assert "heard 'xin chào bạn': CER" in describe_speech(speech, "a.wav")


def test_without_check_no_recogniser_is_loaded(monkeypatch):
    monkeypatch.setattr(textcheck, "load_recogniser", None)
    assert load_check(SaySettings()) is None
    assert load_check(SaySettings(check=True), SimpleNamespace(pending=[])) is None


def test_voices_are_compared_with_their_transcripts(tmp_path):
    shutil.copy(DEMO / "clips/thu_026.ogg", tmp_path / "a.ogg")
    (tmp_path / "a.txt").write_text("Bức tranh treo ở phòng khách là của bà ngoại.", "utf-8")
    cfg = SaySettings(voices_dir=str(tmp_path), voice=["a"])
    wave = read_audio(tmp_path / "a.ogg")
    heard = Ear({len(wave): "bức tranh treo ở phòng khách"})
    assert voice_faults(cfg, check=TextCheck(heard, 0.1)) == voice_faults(cfg) == []
    heard.said[len(wave)] = "trời mưa"
    (fault,) = voice_faults(cfg, check=TextCheck(heard, 0.1))
    assert fault["fault"] == "heard otherwise" and "heard 'trời mưa'" in fault["what"]
