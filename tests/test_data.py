"""Tables with faults, folders of other tools, and real recordings where available."""
import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from higgs_vi.adapters import add_lora, lora_config
from higgs_vi.audio import DEMO, read_audio, write_wav
from higgs_vi.batch import build_example, collate, epoch_batches, prompt_from_row
from higgs_vi.cache import CodeCache, encode_files
from higgs_vi.data import DataSettings, main, prepare
from higgs_vi.files import atomic, write_text
from higgs_vi.intake import spoken_text, write_clips
from higgs_vi.manifest import read_samples
from higgs_vi.model import nano
from higgs_vi.plan import split
from higgs_vi.step import train_step
from higgs_vi.tables import read_table
from tests.sounds import spoken

FIELDS = ("id audio_file transcript_file duration speaker_id speaker_name scene emotion language "
          "gender quality_score original_audio_path user_instruction task_type "
          "topic dialect sample_rate").split()
REAL = Path(__file__).resolve().parents[2]/"shared/data/cv_vi"


def run(table, out, **change):
    return prepare(DataSettings.of(dict(table=str(table), output_dir=str(out)) | change))


def tone(path, seconds=1.0, rate=24_000, hz=220):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, spoken(hz, seconds, rate), rate)


def write_table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows(rows)
    return path


def test_the_demo_table_gives_its_clips_and_names_its_faults(tmp_path):
    samples, rejected = run(DEMO / "demo.csv", tmp_path / "out")
    assert (len(samples), len(rejected)) == (80, 8) and list(rejected.columns) == [
        "row",
        "reason",
        "file",
        "text",
    ]
    words = [
        "no such audio file",
        "text is empty",
        "table says 11.90 s",
        "same sound as row 4",
        "silent",
        "cannot be decoded",
        "not valid",
        "leaves the folder",
    ]
    for row, word in zip(range(81, 89), words, strict=True):
        assert word in rejected.set_index("row")["reason"][row]
    meta = json.loads((tmp_path / "out/metadata.json").read_text())
    assert list(meta) == ["dataset_info", "samples"] and all(
        list(s) == FIELDS for s in meta["samples"]
    )
    info = meta["dataset_info"]
    assert (
        list(info)
        == (
            "total_samples speakers languages total_duration avg_duration created_from "
            "dataset_type "
            "sample_rate speaker_counts"
        ).split()
    )
    assert info["total_samples"] == 80 == sum(info["speaker_counts"].values())
    assert info["languages"] == ["vi"] and info["sample_rate"] == 24_000
    assert sorted(info["speaker_counts"]) == sorted(info["speakers"])
    assert abs(info["total_duration"] - sum(s["duration"] for s in samples)) < 0.01
    for s in meta["samples"]:
        wav = sf.info(tmp_path / "out" / s["audio_file"])
        assert (wav.samplerate, wav.channels, wav.subtype) == (24_000, 1, "PCM_16") and abs(
            wav.duration - s["duration"]
        ) < 1e-3
        assert (tmp_path / "out" / s["transcript_file"]).read_text(encoding="utf-8").strip()
    assert pd.read_csv(tmp_path / "out/rejected.csv").shape == (8, 4)
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {
        ".wav",
        ".txt",
        ".json",
        ".csv",
        ".jsonl",
    }  # no temporary file stays


def test_clips_are_not_written_into_a_training_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text("{}")
    with pytest.raises(ValueError, match="run holds a training run .*parameter output_dir"):
        run(DEMO / "demo.csv", tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["settings.json"]


def test_again_gives_the_same_and_another_table_is_refused(tmp_path):
    run(DEMO / "demo.csv", tmp_path / "out")
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    run(DEMO / "demo.csv", tmp_path / "out")
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    tone(tmp_path / "a.wav")
    other = write_table(
        tmp_path / "other.csv", [dict(wav_filename="a.wav", text="Một.", speaker="a")]
    )
    with pytest.raises(ValueError, match="already holds the dataset made from"):
        run(other, tmp_path / "out")
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_a_folder_written_anew_names_the_later_steps_to_run_again(tmp_path, capsys):
    tone(tmp_path / "a.wav")
    table = write_table(tmp_path / "t.csv", [dict(file="a.wav", text="Xin chào.")])
    run(table, tmp_path / "out")
    assert "again" not in capsys.readouterr().out
    for name in ("tag_bins.json", "unbalanced.json"):
        (tmp_path / "out" / name).write_text("{}")
    run(table, tmp_path / "out")
    assert "run 01_tags and 02_speakers again" in capsys.readouterr().out


def test_a_table_with_little_in_it(tmp_path):
    """Stereo at 48 kHz, two speakers whose names differ by one diacritic, no optional columns, an
    absolute path inside the folder, and the word "nan" as text.
    """
    tone(tmp_path / "x/a.wav", rate=48_000)
    sf.write(tmp_path / "b.flac", np.stack([spoken(7, 1.8, 22_050)] * 2, 1), 22_050)
    tone(tmp_path / "c.wav", hz=330)
    rows = [
        dict(wav_filename="x/a.wav", text="Hoà ơi.", speaker="Hoà"),
        dict(wav_filename="b.flac", text="Hòa ơi.", speaker="Hỏa"),
        dict(wav_filename=str(tmp_path / "c.wav"), text="Bà.", speaker="Hoà"),
        dict(wav_filename="c.wav", text="nan", speaker="Hoà"),
        dict(wav_filename="c.wav", text="Ba.", speaker=""),
    ]
    samples, rejected = run(write_table(tmp_path / "t.csv", rows), tmp_path / "out")
    assert [s["id"] for s in samples] == ["hoa_000000", "hoa-2_000000", "hoa_000001"] and rejected[
        "row"
    ].tolist() == [4, 5]
    assert (tmp_path / "out/hoa_000000.txt").read_text(encoding="utf-8") == "Hòa ơi.\n"
    assert samples[0]["quality_score"] is None and samples[0]["gender"] == "unknown"


def test_a_folder_of_pairs_and_a_higgs_folder_with_references(tmp_path):
    for i, name in enumerate(["lan/1", "lan/2", "minh/1"]):
        tone(tmp_path / f"pairs/{name}.wav", hz=200 + 50 * i)
        (tmp_path / f"pairs/{name}.txt").write_text(f"Câu số {i}.")
    samples, rejected = run(tmp_path / "pairs", tmp_path / "first")
    assert (
        len(samples) == 3
        and not len(rejected)
        and [s["speaker_id"] for s in samples] == ["lan", "lan", "minh"]
    )
    meta = json.loads((tmp_path / "first/metadata.json").read_text())
    meta["samples"][0] |= dict(
        ref_audio_file="lan_000001.wav",
        ref_transcript="Câu số 1.",
        ref_speakers=["lan"],
        task_type="audio_generation",
        user_instruction="<audio> /translate",
    )
    meta["samples"][2] |= dict(ref_audio_file=["lan_000000.wav"], ref_transcript=["Câu số 0."])
    (tmp_path / "first/metadata.json").write_text(json.dumps(meta))
    theirs = read_samples(tmp_path / "first")
    assert [len(s.ref_paths) for s in theirs] == [1, 0, 1] and theirs[0].text == "Câu số 0."
    samples, rejected = run(tmp_path / "first", tmp_path / "second")
    assert len(samples) == 3
    assert (
        samples[0]["task_type"] == "zero_shot_voice_cloning"
        and samples[1]["task_type"] == "single_speaker_smart_voice"
    )
    again = read_samples(tmp_path / "second")
    assert (
        read_audio(again[0].ref_paths[0]) == read_audio(tmp_path / "first/lan_000001.wav")
    ).all()
    assert again[0].ref_transcript == ["Câu số 1."]


def test_sources_are_never_overwritten(tmp_path):
    """Preparing a folder into itself is refused.

    A second run whose source clips are gone keeps the first run's clips.
    """
    for i in range(3):
        tone(tmp_path / f"lan/lan_{i:06d}.wav", hz=200 + 50 * i)
        (tmp_path / f"lan/lan_{i:06d}.txt").write_text(f"Câu số {i}.")
    before = {p: p.read_bytes() for p in (tmp_path / "lan").iterdir()}
    with pytest.raises(ValueError, match="which holds clips of the table"):
        run(tmp_path / "lan", tmp_path / "lan")
    assert before == {p: p.read_bytes() for p in (tmp_path / "lan").iterdir()}
    run(tmp_path / "lan", tmp_path / "out")
    done = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.wav")}
    with pytest.raises(ValueError, match="none of the 3 rows"):
        run(tmp_path / "lan", tmp_path / "out", max_seconds=0.5)
    assert (
        done == {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.wav")}
        and (tmp_path / "out/metadata.json").is_file()
    )


def test_ragged_samples_of_others(tmp_path):
    """Samples without a scene, speaker name or transcript, one that names itself as its reference,
    and one with a very long file name.
    """
    for i in range(5):
        tone(tmp_path / f"in/{i}.wav", hz=200 + 50 * i)
        (tmp_path / f"in/{i}.txt").write_text(f"Câu số {i}.")
    (tmp_path / "in/3.txt").unlink()
    samples = [
        dict(id=str(i), audio_file=f"{i}.wav", transcript_file=f"{i}.txt", speaker_id="lan")
        for i in range(5)
    ]
    samples[0] |= dict(scene="studio", speaker_name="Lan")
    samples[1] |= dict(ref_audio_file="1.wav", ref_transcript="Câu số 1.")
    samples.append(
        dict(id="5", audio_file="x" * 300 + ".wav", transcript_file="0.txt", speaker_id="lan")
    )
    (tmp_path / "in/metadata.json").write_text(json.dumps(dict(dataset_info={}, samples=samples)))
    kept, rejected = run(tmp_path / "in", tmp_path / "out")
    assert [s["scene"] for s in kept] == ["studio", "unknown", "unknown"] and {
        s["speaker_name"] for s in kept
    } == {"lan"}
    reasons = dict(zip(rejected["row"], rejected["reason"], strict=True))
    assert (
        len(kept) + len(rejected) == 6
        and "reference is the clip itself" in reasons[2]
        and "text is empty" in reasons[4]
        and "no such audio file" in reasons[6]
    )
    for s in read_samples(tmp_path / "out"):
        prompt_from_row(s, s.text)


def test_a_higgs_folder_may_not_name_files_outside(tmp_path):
    tone(tmp_path / "secret.wav")
    tone(tmp_path / "d/a.wav")
    (tmp_path / "d/a.txt").write_text("Một.")
    sample = dict(id="a", audio_file="a.wav", transcript_file="a.txt", speaker_id="a")
    for bad in (
        dict(audio_file="../secret.wav"),
        dict(transcript_file="../../etc/passwd"),
        dict(ref_audio_file="/etc/passwd"),
    ):
        (tmp_path / "d/metadata.json").write_text(
            json.dumps(dict(dataset_info={}, samples=[sample | bad]))
        )
        with pytest.raises(ValueError, match="leaves the folder"):
            read_samples(tmp_path / "d")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: d / "none.csv", "there is no table"),
        (
            lambda d: write_table(d / "t.csv", [dict(tiếng="a.wav", text="Một.", speaker="a")]),
            "no column for file: .*file=tiếng",
        ),
        (
            lambda d: write_table(d / "t.csv", [dict(wav_filename="a.wav", speaker="a")]),
            "no column for text",
        ),
        (
            lambda d: write_table(
                d / "t.csv", [dict(wav_filename="a.wav", text="Một.", speaker="a")]
            ),
            "none of the 1 rows .* no such audio file",
        ),
        (
            lambda d: (d / "t.csv").write_bytes("tên,câu\n".encode("utf-16-le")) and d / "t.csv",
            "not UTF-8",
        ),
        (lambda d: (d / "t.csv").write_bytes(b"") or d / "t.csv", "cannot be read as CSV"),
        (lambda d: (d / "e").mkdir() or d / "e", "holds no clip"),
    ],
    ids=[
        "missing",
        "no file column",
        "no text column",
        "nothing usable",
        "utf-16",
        "empty",
        "empty folder",
    ],
)
def test_bad_tables_stop_with_a_way_out(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        run(make(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out/metadata.json").exists()


def test_bad_settings_stop(tmp_path):
    with pytest.raises(ValueError, match="unknown parameter 'tabel': did you mean 'table'"):
        DataSettings.of(dict(tabel="a.csv"))
    with pytest.raises(SystemExit, match="there is no table"):
        main(["--table", str(tmp_path / "none.csv"), "--output_dir", str(tmp_path / "out")])


def test_a_mistyped_parameter_stops_papermill(tmp_path):
    out = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "nbs/00_data.ipynb",
            str(tmp_path / "out.ipynb"),
            "-p",
            "tabel",
            "a.csv",
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert out.returncode != 0 and "unknown parameter 'tabel'" in out.stderr


def test_a_full_disk_keeps_what_is_done(tmp_path, monkeypatch):
    """The disk is full at the third clip: the error says so, two clips are complete and no partial
    file is left.
    """
    import errno

    import higgs_vi.audio as audio

    written = []

    def full(*args, **kwargs):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(args[0])
        return real(*args, **kwargs)

    real = audio.wave.open
    monkeypatch.setattr(audio.wave, "open", full)
    with pytest.raises(OSError, match="no space left .* finished files stay"):
        run(DEMO / "demo.csv", tmp_path / "out", num_workers=1)
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [
        ".jsonl",
        ".txt",
        ".txt",
        ".wav",
        ".wav",
    ]


def test_atomic_leaves_the_old_file(tmp_path):
    write_wav(tmp_path/"a.wav", np.zeros(100, np.float32))
    before = (tmp_path/"a.wav").read_bytes()
    with pytest.raises(RuntimeError):
        with atomic(tmp_path/"a.wav") as t:
            t.write_bytes(b"half")
            raise RuntimeError
    assert (tmp_path/"a.wav").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def train_one_step(folder, cache, own):
    """Run a Higgs folder through codes, prompts, batches and one optimiser step.

    Returns the usable clips and the step's report.
    """
    samples = read_samples(folder)
    codes, bad = encode_files([s.audio_path for s in samples], CodeCache(cache, own.codec))
    rows = [s for s in samples if str(s.audio_path) in codes]
    examples = [
        build_example(own.tokenizer, prompt_from_row(s, s.text), codes[str(s.audio_path)], s.id)
        for s in rows
    ]
    model = add_lora(
        own.model, lora_config(targets=["attention", "audio_ffn"], audio_embeddings=True)
    ).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    plan = epoch_batches([len(e) for e in examples], budget=2048)
    assert Counter(i for b in plan for i in b) == Counter(range(len(examples)))
    return (
        rows,
        bad,
        train_step(
            model, optimizer, [collate([examples[i] for i in b], own.tokenizer) for b in plan[:4]]
        ),
    )


def test_a_clip_that_breaks_later_is_named_and_the_rest_trains(tmp_path):
    samples, _ = run(DEMO / "demo.csv", tmp_path / "out")
    (tmp_path / "out" / samples[3]["audio_file"]).write_bytes(b"torn")
    rows, bad, report = train_one_step(tmp_path / "out", tmp_path / "cache", nano())
    assert (
        len(rows) == 79
        and list(bad) == [str(tmp_path / "out" / samples[3]["audio_file"])]
        and "cannot be decoded" in list(bad.values())[0]
    )
    assert 6 < report["loss"] < 8


@pytest.mark.skipif(not REAL.is_dir(), reason="the Common Voice clips are not at hand")
def test_two_hundred_clips_of_real_people(tmp_path):
    "From a table to one optimiser step, with every clip accounted for."
    lines = [json.loads(line) for line in (REAL / "manifest.jsonl").open(encoding="utf-8")][::50][
        :200
    ]
    table = write_table(
        tmp_path / "cv.csv",
        [
            dict(
                wav_filename=r["audio"],
                text=r["text"],
                speaker=r["speaker"],
                duration=r["duration"],
                gender=r["gender"],
            )
            for r in lines
        ],
    )
    rows = read_table(table).rows
    cfg = DataSettings(table=str(table), output_dir=str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    samples, rejected = write_clips(rows, REAL, tmp_path / "out", cfg)
    assert len(samples) + len(rejected) == len(rows) == 200 and len(samples) > 180, rejected[
        "reason"
    ].tolist()
    samples, rejected = run(table, tmp_path / "out", audio=str(REAL))
    kept, bad, report = train_one_step(tmp_path / "out", tmp_path / "cache", nano())
    assert len(kept) == len(samples) and not bad and 6 < report["loss"] < 8


def test_what_the_table_says_of_validation_reaches_training(tmp_path):
    rows = [
        "wav_filename,text,speaker,split",
        f"{DEMO}/clips/minh_000.ogg,Xin chào.,an,train",
        f"{DEMO}/clips/ngan_001.ogg,Mời anh.,an,dev",
        f"{DEMO}/clips/thu_002.ogg,Chào em.,an,",
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    samples, _ = prepare(
        DataSettings(table=str(tmp_path / "table.csv"), audio="/", output_dir=str(tmp_path / "out"))
    )
    assert [s.get("split") for s in samples] == ["train", "valid", None]
    found = read_samples(tmp_path / "out")
    data = split([0, 1, 2], found, 0.5)
    assert (list(data.train), list(data.valid)) == ([0, 2], [1])
    found[0] |= dict(split="odd")
    with pytest.raises(ValueError, match="'odd'"):
        split([0, 1, 2], found, 0.5)


def test_texts_are_written_as_they_are_read_aloud_where_asked(tmp_path):
    """The original text stays in the metadata.

    Text that is not Vietnamese is reported and left unchanged.
    """
    folder = tmp_path / "in"
    for i, text in enumerate(
        ["Giá 50.000 đồng.", "Trời đẹp quá.", "This is not Vietnamese at all."]
    ):
        tone(folder / f"a/{i}.wav", hz=200 + 50 * i)
        write_text(folder / f"a/{i}.txt", text)
    samples, rejected = prepare(
        DataSettings(table=str(folder), output_dir=str(tmp_path / "out"), aloud=True)
    )
    assert len(samples) == 3 and not len(rejected)
    assert (tmp_path / "out" / samples[0]["transcript_file"]).read_text(
        encoding="utf-8"
    ).strip() == "Giá năm mươi nghìn đồng."
    assert [s.get("raw_text") for s in samples] == ["Giá 50.000 đồng.", None, None]
    assert ["foreign" in s for s in samples] == [False, False, True]
    assert (
        spoken_text("[SPEAKER0] Ngày 2/9. [SPEAKER1] Có 3 con mèo.")
        == "[SPEAKER0] Ngày hai tháng chín. [SPEAKER1] Có ba con mèo."
    )
    plain, _ = prepare(DataSettings(table=str(folder), output_dir=str(tmp_path / "plain")))
    assert (tmp_path / "plain" / plain[0]["transcript_file"]).read_text(
        encoding="utf-8"
    ).strip() == "Giá 50.000 đồng."
