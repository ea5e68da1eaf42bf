"""Preparing many rows: the cap per speaker, threads, interrupted runs, impossible settings, and
checking a finished folder.
"""
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

import higgs_vi.intake as intake
from higgs_vi.audio import DEMO, read_audio
from higgs_vi.check import BROKEN, ODD, CheckSettings, check
from higgs_vi.check import main as check_command
from higgs_vi.data import DataSettings, main, prepare, read_source
from higgs_vi.intake import count_reasons, write_clips
from higgs_vi.show import load_librosa
from higgs_vi.subtitles import cut_at_pauses, levels_of, parse_cues, speech_spans
from tests.sounds import spoken

CLEAN = Path(__file__).parent/"voices"
REAL = Path(__file__).resolve().parents[2]/"shared/data/cv_vi"


def run(table, out, **change):
    return prepare(DataSettings.of(dict(table=str(table), output_dir=str(out)) | change))


def content(folder):
    return {
        p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.name != "journal.jsonl"
    }


def test_what_the_cap_keeps_is_the_first_good_clips_of_each(tmp_path):
    """A bad row does not count towards the cap, and rows beyond the cap are not read, whatever the
    number of threads.
    """
    for workers in (1, 3):
        samples, rejected = run(
            DEMO / "demo.csv",
            tmp_path / f"out{workers}",
            max_samples_per_speaker=7,
            num_workers=workers,
        )
        assert (
            set(Counter(s["speaker_id"] for s in samples).values()) == {7}
            and len(samples) + len(rejected) == 88
        )
    assert content(tmp_path / "out1") == content(tmp_path / "out3")
    whole, left = run(DEMO / "demo.csv", tmp_path / "whole")
    first = {}
    for s in whole:
        first.setdefault(s["speaker_id"], []).append(s["original_audio_path"])
    assert sorted(s["original_audio_path"] for s in samples) == sorted(
        f for fs in first.values() for f in fs[:7]
    )
    over = rejected["reason"].str.contains("has 7 clips .parameter max_samples_per_speaker.")
    assert over.sum() >= len(whole) - len(samples) and count_reasons(rejected)["rows"].sum() == len(
        rejected
    )


def write_table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows(rows)
    return path


def noise(path, i, seconds=0.04):
    sf.write(
        path,
        np.random.default_rng(i).integers(-9000, 9000, int(24_000 * seconds)).astype(np.int16),
        24_000,
    )


def uneven(folder, speakers, rows):
    """A table in the README's CSV format: `rows` rows by `speakers` people with different numbers
    of clips, one 40 ms file each.
    """
    (folder / "wavs").mkdir(parents=True)
    share = np.random.default_rng(0).dirichlet(np.full(speakers, 2.0))
    who = np.random.default_rng(1).choice(speakers, rows, p=share)
    for i in range(rows):
        noise(folder / f"wavs/{i}.wav", i)
    return write_table(
        folder / "table.csv",
        [
            dict(
                wav_filename=f"wavs/{i}.wav",
                text=f"Câu số {i}.",
                normalized_text=f"Câu số {i}.",
                speaker=f"Người {w}",
                duration=0.04,
            )
            for i, w in enumerate(who)
        ],
    ), Counter(who)


@pytest.mark.parametrize(
    "rows, speakers, cap", [(1000, 91, 8), pytest.param(38_625, 91, 500, marks=pytest.mark.slow)]
)
def test_at_most_so_many_of_each_speaker_exactly(tmp_path, rows, speakers, cap):
    """Of each of 91 speakers exactly the first `cap` clips (or all) are kept, and every other row
    has a reason.
    """
    table, had = uneven(tmp_path, speakers, rows)
    samples, rejected = run(table, tmp_path / "out", max_samples_per_speaker=cap, min_seconds=0.01)
    assert Counter(s["speaker_name"] for s in samples) == {
        f"Người {w}": min(n, cap) for w, n in had.items()
    }
    assert len(samples) + len(rejected) == rows and len(
        list((tmp_path / "out").glob("*.wav"))
    ) == len(samples)
    assert (
        rejected["reason"].str.contains("parameter max_samples_per_speaker").all()
        and len(rejected) > 0
    )


def test_same_names_of_two_sources_are_two_people(tmp_path):
    for i in range(4):
        noise(tmp_path / f"{i}.wav", i)
    rows = [
        dict(path=f"{i}.wav", text=f"Câu {i}.", speaker="an", source="a" if i < 2 else "b")
        for i in range(4)
    ]
    samples, _ = run(
        write_table(tmp_path / "t.csv", rows),
        tmp_path / "out",
        min_seconds=0.01,
        max_samples_per_speaker=1,
    )
    assert [s["speaker_name"] for s in samples] == ["a/an", "b/an"] and len(
        {s["speaker_id"] for s in samples}
    ) == 2


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    """A run is interrupted after 30 rows with a torn last journal line.

    The next run reads only the remaining rows, and the result equals an uninterrupted run.
    """
    run(DEMO / "demo.csv", tmp_path / "whole")
    out, real, read = tmp_path / "out", intake.read_clip, []

    def stopped(row, *rest):
        if row["row"] == 30:
            raise KeyboardInterrupt
        return real(row, *rest)

    monkeypatch.setattr(intake, "read_clip", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(DEMO / "demo.csv", out)
    assert not list(out.glob(".row*")) and not (out / "metadata.json").exists()
    with (out / "journal.jsonl").open("ab") as f:
        f.write('{"stamp": "đ'.encode()[:-1])
    monkeypatch.setattr(
        intake, "read_clip", lambda row, *rest: (read.append(row["row"]), real(row, *rest))[1]
    )
    run(DEMO / "demo.csv", out)
    assert sorted(read) == list(range(30, 89)) and content(out) == content(tmp_path / "whole")
    read.clear()
    run(DEMO / "demo.csv", out)
    assert read == [] and content(out) == content(tmp_path / "whole")
    run(DEMO / "demo.csv", out, max_seconds=1.9)  # other settings: all again, nothing stays
    run(DEMO / "demo.csv", tmp_path / "short", max_seconds=1.9)
    assert len(read) == 176 and content(out) == content(tmp_path / "short") != content(
        tmp_path / "whole"
    )


def test_a_changed_file_or_text_is_done_again(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        noise(tmp_path / f"in/{i}.wav", i)
        (tmp_path / f"in/{i}.txt").write_text(f"Câu {i}.")
    run(tmp_path / "in", tmp_path / "out", min_seconds=0.01)
    noise(tmp_path / "in/1.wav", 7)
    (tmp_path / "in/2.txt").write_text("Khác.")
    (tmp_path / "out/in_000000.txt").write_text("Hỏng.")
    run(tmp_path / "in", tmp_path / "out", min_seconds=0.01)
    run(tmp_path / "in", tmp_path / "new", min_seconds=0.01)
    assert (
        content(tmp_path / "out") == content(tmp_path / "new")
        and (tmp_path / "out/in_000002.txt").read_text() == "Khác.\n"
    )


def slowly(out):
    "Prepare the demo table in a separate process, 20 ms slower per row."
    real = intake.read_clip
    intake.read_clip = lambda *a: (time.sleep(0.02), real(*a))[1]
    run(DEMO/"demo.csv", out, num_workers=2)


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    """`kill -9` at random moments, then one complete run: the folder equals that of an
    uninterrupted run and no row is done twice.
    """
    run(DEMO / "demo.csv", tmp_path / "whole")
    out, rng, held = tmp_path / "out", random.Random(0), []
    for _ in range(kills):
        p = get_context("fork").Process(target=slowly, args=(out,))
        p.start()
        journal, aim = out / "journal.jsonl", (held or [0])[-1] + rng.randint(2, 14)
        while p.is_alive() and (not journal.is_file() or journal.read_bytes().count(b"\n") < aim):
            time.sleep(0.003)
        time.sleep(rng.random() * 0.05)
        assert p.is_alive(), "it ended before it was killed"
        p.kill()
        p.join()
        held.append(journal.read_bytes().count(b"\n"))
    assert (
        held == sorted(held)
        and len(set(held)) == kills
        and held[-1] < 88
        and not (out / "metadata.json").exists()
    )
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.wav")}
    run(DEMO / "demo.csv", out)
    assert content(out) == content(tmp_path / "whole") and len(before) > 0
    kept = [e for e in map(json.loads, (out / "journal.jsonl").open(encoding="utf-8"))][: held[-1]]
    assert all(
        before[f] == m[1] for e in kept for f, m in e["files"].items() if f in before
    )  # not written again


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(min_seconds=5, max_seconds=2),
            "max_seconds is 2.0: it takes seconds above min_seconds .5.",
        ),
        (dict(min_seconds=-1), "min_seconds is -1.0: it must be from 0"),
        (dict(duration_tolerance=-0.1), "tolerance is -0.1"),
        (dict(silence_dbfs=3), "silence_dbfs is 3.0: it must be from -200 to below 0"),
        (dict(max_samples_per_speaker=-1), "max_samples_per_speaker is -1"),
        (dict(num_workers=-2), "workers is -2"),
        (dict(num_workers=1.5), "workers is 1.5: it takes a whole number"),
        (dict(language=" "), "a code such as vi"),
        (dict(max_seconds=float("nan")), "max_seconds is nan"),
    ],
)
def test_impossible_settings_stop(change, message):
    with pytest.raises(ValueError, match=message):
        DataSettings.of(change)


def test_everything_dropped_says_how_many_for_what(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(
            [
                "--table",
                str(DEMO / "demo.csv"),
                "--output_dir",
                str(tmp_path / "out"),
                "--max_seconds",
                "0.4",
            ]
        )
    assert (
        "none of the 88 rows" in str(end.value)
        and "parameters min_seconds, max_seconds" in str(end.value)
        and "rejected.csv" in str(end.value)
    )
    assert any(int(w) > 70 for w in str(end.value).replace("(", " ").split() if w.isdigit())


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the Common Voice clips are not at hand")
def test_as_fast_as_a_plain_pool(tmp_path):
    """Compare the whole stage with a plain pool of soundfile and soxr on 400 real clips,
    alternating, three times each.

    The minimum single-thread processor time counts, because other programs affect wall time. The
    stage may take 1.5 times as long: it also reads containers, detects speech, computes
    fingerprints and processes texts.
    """
    lines = (REAL / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sounds, out, times = (
        [REAL / json.loads(line)["audio"] for line in lines],
        tmp_path / "out",
        dict(plain=[], ours=[]),
    )

    def one(job):
        x, rate = sf.read(job[1], dtype="float32", always_2d=True)
        x = x.mean(1)
        if rate != 24_000:
            x = soxr.resample(x, rate, 24_000)
        sf.write(out / f"{job[0]}.wav", x, 24_000, subtype="PCM_16")

    def plain():
        with ThreadPoolExecutor(cfg.threads) as pool:
            list(pool.map(one, enumerate(sounds)))

    cfg = DataSettings(
        table=str(tmp_path / "t.jsonl"), audio=str(REAL), output_dir=str(out), num_workers=1
    )
    source = read_source(cfg)[0]
    for _ in range(3):
        for name, way in (
            ("plain", plain),
            ("ours", lambda: write_clips(source.rows, source.root, out, cfg)),
        ):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            began, used = time.perf_counter(), time.process_time()
            way()
            times[name].append((time.process_time() - used, time.perf_counter() - began))
    best = {name: [round(min(t), 2) for t in zip(*ts, strict=True)] for name, ts in times.items()}
    print(
        f"400 clips, {cfg.threads} thread(s), least of three, seconds of processor and of wall: "
        f"{best}"
    )
    assert best["ours"][0] <= 1.5 * best["plain"][0], times


def spoil(out, name, key, value):
    "Change one entry of the metadata."
    meta = json.loads((out/"metadata.json").read_text(encoding="utf-8"))
    next(s for s in meta["samples"] if s["id"] == name)[key] = value
    (out/"metadata.json").write_text(json.dumps(meta), encoding="utf-8")


def sound(x, rate=24_000): return lambda out, name: sf.write(out/f"{name}.wav", x, rate)


def voice(seconds=1.3, rate=24_000): return spoken(0, seconds, rate)


FAULTS = {
    "missing": lambda out, name: (out / f"{name}.wav").unlink(),
    "missing text": lambda out, name: (out / f"{name}.txt").unlink(),
    "missing outside": lambda out, name: spoil(out, name, "audio_file", "../secret.wav"),
    "undecodable": lambda out, name: (out / f"{name}.wav").write_bytes(b"RIFF torn"),
    "undecodable text": lambda out, name: (out / f"{name}.txt").write_bytes(
        "Chào".encode("utf-16")
    ),
    "rate": sound(voice(rate=16_000), 16_000),
    "channels": sound(np.stack([voice()] * 2, 1)),
    "duration": lambda out, name: spoil(out, name, "duration", 9.5),
    "duration none": lambda out, name: spoil(out, name, "duration", "long"),
    "silent": sound(np.zeros(30_000)),
    "clipped": sound(np.sign(voice())),
    "no speech": sound(np.random.default_rng(0).normal(0, 0.1, 30_000)),
    "no speech but a click": sound(np.where(np.arange(30_000) == 9_000, 0.9, 0.0)),
    "silent but an offset": sound(np.full(30_000, 0.5)),
    "no text": lambda out, name: (out / f"{name}.txt").write_text(" \n"),
    "no text in it": lambda out, name: (out / f"{name}.txt").write_text("?!…"),
    "odd text": lambda out, name: (out / f"{name}.txt").write_text("Xin  chào hoà bình."),
    "foreign": lambda out, name: (out / f"{name}.txt").write_text(
        "This is not Vietnamese at all, is it."
    ),
    "pace": lambda out, name: (
        sound(voice())(out, name),
        spoil(out, name, "duration", 1.3),
        (out / f"{name}.txt").write_text("Chào cả nhà. " * 30),
    ),
    "same sound": lambda out, name: shutil.copy(out / "minh_000000.wav", out / f"{name}.wav"),
    "same text": lambda out, name: shutil.copy(out / "minh_000000.txt", out / f"{name}.txt"),
    "same id": lambda out, name: spoil(out, name, "id", "minh_000000"),
    "metadata": lambda out, name: spoil(out, name, "speaker_id", "ai_do"),
    "unlisted": lambda out, name: shutil.copy(out / f"{name}.wav", out / "stray.wav"),
}


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("good")/"demo"
    run(DEMO/"demo.csv", out, max_samples_per_speaker=2)
    return out


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_named(sound_folder, tmp_path, capsys, fault):
    """A good folder passes.

    Each planted fault is reported for its clip, and broken clips end the command with an error.
    """
    out, name = tmp_path / "demo", "minh_000001"
    shutil.copytree(sound_folder, out)
    assert check(CheckSettings(data=str(out)))[1].empty
    FAULTS[fault](out, name)
    faults = check(CheckSettings(data=str(out)))[1]
    kind = next(k for k in BROKEN + ODD if fault.startswith(k))
    hit = faults[faults["fault"] == kind]
    assert (
        len(hit) == 1
        and (hit["clip"].iloc[0] in (name, "minh_000000") or kind in ("metadata", "unlisted"))
        and hit["what"].iloc[0]
    )
    if (kind in ODD) and not faults["broken"].any():
        check_command([str(out)])
        assert "nothing broken" in capsys.readouterr().out
    if kind in BROKEN:
        assert hit["broken"].all()
    with pytest.raises(SystemExit, match="is broken in .*" + kind):
        check_command([str(out), "--strict", "true"])


def test_a_folder_that_cannot_be_checked(tmp_path, sound_folder):
    with pytest.raises(SystemExit, match="no metadata.json"):
        check_command([str(tmp_path)])
    with pytest.raises(SystemExit, match="name the folder"):
        check_command([])
    with pytest.raises(ValueError, match="max_chars_per_second is 2"):
        CheckSettings(max_chars_per_second=2)
    check_command([str(sound_folder), "--report_file", str(tmp_path / "report.csv")])
    assert (tmp_path / "report.csv").read_text().splitlines() == ["clip,fault,broken,what"]


@pytest.mark.slow
def test_a_broken_folder_stops_papermill(sound_folder, tmp_path):
    shutil.copytree(sound_folder, tmp_path / "demo")
    (tmp_path / "demo/minh_000001.wav").unlink()
    out = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "nbs/08_check.ipynb",
            str(tmp_path / "out.ipynb"),
            "-p",
            "data",
            str(tmp_path / "demo"),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert out.returncode != 0 and "is broken in 1 place" in out.stderr


def recording(folder, n=14, snr=30, seed=0, gap_from=0.4):
    """A long recording of clean clips, trimmed, 0.4 (`gap_from`) to 1.5 s apart, with noise at
    `snr` dB. Returns the texts and the true boundaries in seconds.
    """
    rows, rng = (
        list(csv.DictReader((CLEAN / "demo.csv").open(encoding="utf-8")))[:n],
        np.random.default_rng(seed),
    )
    parts, limits, at = [], [], 0
    for r in rows:
        x = load_librosa().effects.trim(
            read_audio(CLEAN / r["wav_filename"]), top_db=35, frame_length=480, hop_length=120
        )[0]
        gap = np.zeros(int(rng.uniform(gap_from, 1.5) * 24_000), np.float32)
        parts += [gap, x]
        limits.append(((at + len(gap)) / 24_000, (at + len(gap) + len(x)) / 24_000))
        at += len(gap) + len(x)
    x = np.concatenate([*parts, np.zeros(12_000, np.float32)])
    loud = np.sqrt(np.mean(np.concatenate(parts[1::2]) ** 2))
    sf.write(folder / "talk.wav", x + rng.normal(0, loud * 10 ** (-snr / 20), len(x)), 24_000)
    return [r["text"] for r in rows], limits


def borders(found, limits):
    "The distance in ms from each true boundary to the nearest detected one of its kind."
    return np.array([1000*min(abs(f[k] - t[k]) for f in found) for t in limits for k in (0, 1)])


@pytest.mark.parametrize("snr, median, most", [(40, 20, 100), (20, 40, 200)])
def test_the_borders_of_speech_are_found_in_noise(tmp_path, snr, median, most):
    _, limits = recording(tmp_path, snr=snr)
    error = borders(speech_spans(*levels_of(tmp_path/"talk.wav")), limits)
    print(f"SNR {snr} dB: borders off by {np.median(error):.0f} ms (median), "
          f"{np.percentile(error, 95):.0f} ms (95 %), {error.max():.0f} ms (most)")
    assert np.median(error) <= median and np.percentile(error, 95) <= most


def stamped(t, dot):
    return f"{int(t // 3600):02d}:{int(t // 60 % 60):02d}:{t % 60:06.3f}".replace(".", dot)


@pytest.mark.parametrize("kind", ["wav", "m4a"])
def test_a_recording_with_subtitles_becomes_its_sentences(tmp_path, kind):
    """Cue times are off by up to 0.25 s and a sentence spans two cues: each clip contains exactly
    its own words, with silence at both ends.
    """
    (tmp_path / "in").mkdir()
    texts, limits = recording(tmp_path / "in")
    if kind == "m4a":  # what libsndfile does not read
        if not shutil.which("ffmpeg"):
            pytest.skip("needs ffmpeg")
        subprocess.run(
            ["ffmpeg", "-v", "error", "-i", tmp_path / "in/talk.wav", tmp_path / "in/talk.m4a"],
            check=True,
        )
        (tmp_path / "in/talk.wav").unlink()
    rng, cues = np.random.default_rng(1), []
    for i, (text, (a, b)) in enumerate(zip(texts, limits, strict=True)):
        a, b, words = a + rng.uniform(-0.25, 0.25), b + rng.uniform(-0.25, 0.25), text.split()
        halves = (
            [(a, (a + b) / 2, " ".join(words[:1])), ((a + b) / 2, b, " ".join(words[1:]))]
            if i % 3 == 0
            else [(a, b, text)]
        )
        cues += [
            f"{len(cues) + 1}\n{stamped(p, ',')} --> {stamped(q, ',')}\n{t}\n"
            for p, q, t in halves
            if t
        ]
    (tmp_path / "in/talk.srt").write_text("\n".join(cues), encoding="utf-8-sig")
    sf.write(tmp_path / "in/short.wav", voice(0.5), 24_000)
    (tmp_path / "in/short.txt").write_text("Ngắn thôi.")
    noise(tmp_path / "in/bad.wav", 2, 0.5)
    (tmp_path / "in/bad.vtt").write_text("WEBVTT\n")
    source = read_source(DataSettings(table=str(tmp_path / "in"), output_dir=str(tmp_path / "out")))
    samples, rejected = prepare(
        DataSettings(table=str(tmp_path / "in"), output_dir=str(tmp_path / "out")), source
    )
    rows = source[0].rows[source[0].rows["start"] != ""]
    assert (
        list(rows["text"]) == texts
        and len(samples) == len(texts) + 1
        and "has no cue" in rejected["reason"].tolist()[0]
    )
    off = np.array(
        [
            (a - float(s), float(e) - b)
            for (a, b), s, e in zip(limits, rows["start"], rows["end"], strict=True)
        ]
    )
    print(f"air around the words: {1000 * off.min():.0f} to {1000 * off.max():.0f} ms")
    assert (off > 0).all() and (off < 0.25).all(), off
    assert [s["speaker_name"] for s in samples] == ["in"] * len(samples)


def test_a_long_recording_is_cut_at_its_longest_pauses_if_they_fit_its_sentences(tmp_path):
    """Each clip is one whole sentence.

    A transcript with a missing, repeated or foreign sentence is refused.
    """
    texts, limits = recording(tmp_path, gap_from=0.9)
    spans = speech_spans(*levels_of(tmp_path / "talk.wav"))
    ended = [x if x[-1] in ".!?" else x + "." for x in texts]
    cues = cut_at_pauses(" ".join(ended), spans)
    assert [c.text for c in cues] == ended
    assert all(
        abs(c.start - a) < 0.15 and abs(c.end - b) < 0.15
        for c, (a, b) in zip(cues, limits, strict=True)
    )
    for i in range(len(ended)):
        for wrong in (
            ended[:i] + ended[i + 1 :],
            ended[:i] + ended[i : i + 1] * 2 + ended[i + 1 :],
        ):
            with pytest.raises(ValueError):
                cut_at_pauses(" ".join(wrong), spans)
    (tmp_path / "talk.txt").write_text(" ".join(ended))
    samples, rejected = run(tmp_path, tmp_path / "out", max_seconds=10)[:2]
    assert len(samples) == len(texts) and not len(rejected)


def test_a_long_recording_without_times_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "in").mkdir()
    recording(tmp_path / "in")
    (tmp_path / "in/talk.txt").write_text("Một. Hai. Ba.")
    with pytest.raises(ValueError, match="put subtitles beside it .*then it is cut by them"):
        run(tmp_path / "in", tmp_path / "out", max_seconds=10)


@pytest.mark.parametrize(
    "text",
    [
        "1\n00:00:01,000 --> 00:00:02,500\n<i>Một</i>\n2\n00:00:03,000 --> 00:00:04,000\nHai 2\n",
        "WEBVTT\r\rx\r00:01.000 --> 00:02.500 line:0\r{\\an8}Một\r\rNOTE no\r\r00:03.000 --> "
        "00:04.000\rHai 2\r",
        "\ufeff2\r\n00:00:03,000 --> 00:00:04,000\r\nHai 2\r\n\r\n1\r\n00:00:01,000 --> "
        "00:00:02,5\r\nMột\r\n",
    ],
)
def test_cues_in_the_forms_people_have(text):
    """Cues without blank lines, with old Mac or Windows line ends, or out of order: each cue keeps
    its own words only.
    """
    assert [(c.start, c.end, c.text) for c in parse_cues(text.removeprefix("\ufeff"), "x")] == [
        (1.0, 2.5, "Một"),
        (3.0, 4.0, "Hai 2"),
    ]


def test_voices_of_recordings_and_cues_are_kept_apart(tmp_path):
    """'Speaker 1' of two recordings is two people, a named speaker is one.

    A cue with two voices and a cue that ends after the recording are rejected with a reason.
    """
    for i, name in enumerate("ab"):
        sf.write(tmp_path / f"{name}.wav", spoken(i, 9), 24_000)
        (tmp_path / f"{name}.vtt").write_text(
            f"WEBVTT\n\n00:01.000 --> 00:02.000\n<v Speaker 1>Xin chào {name}.\n\n00:03.000 --> "
            f"00:04.000\n<v Lan>Chào {name}."
            f"\n\n00:05.000 --> 00:06.000\n<v Lan>Đi {name}.</v> <v Minh>Ừ.</v>\n\n00:08.000 --> "
            f"00:14.000\n<v Lan>Dài {name}.\n"
        )
    samples, rejected = run(tmp_path, tmp_path.with_name("cut"))
    assert [s["speaker_name"] for s in samples] == ["a/Speaker 1", "Lan", "b/Speaker 1", "Lan"]
    assert ["Lan + Minh speak in one cue" in r for r in rejected["reason"]] == [
        True,
        False,
    ] * 2 and rejected["reason"].str.contains("is not inside it").sum() == 2
