"""Every table layout in use: rows in = kept + rejected, with the right text and speaker; and tables
that must be refused.
"""
import csv
import io
import json
import os
import pickle
import re
import tarfile
import time
import unicodedata
import zipfile
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from higgs_vi.cells import kind_of, why_misread, why_noted, without_notes
from higgs_vi.check import CheckSettings, check
from higgs_vi.data import DataSettings, main, prepare, read_source
from higgs_vi.intake import gender_of
from higgs_vi.manifest import read_samples
from higgs_vi.splits import given_splits
from higgs_vi.tables import Blobs, read_parquet, read_table, speakers_by_folder
from tests.sounds import spoken

TEXTS = ["Một con mèo.", "Hai con chó.", "Ba con gà.", "Bốn con vịt."]


def wav(path, i, seconds=0.5, rate=16_000, **kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, spoken(i, seconds, rate), rate, **kind)


def encoded(i, format="WAV"):
    out = io.BytesIO()
    sf.write(out, spoken(i, 0.5, 16_000), 16_000, format=format)
    return out.getvalue()


def run(table, out, **change):
    """Prepare `table`.

    Returns texts and speakers of the kept rows and the reasons for the rest, after checking that
    all rows are accounted for.
    """
    cfg = DataSettings.of(dict(table=str(table), output_dir=str(out)) | change)
    source = read_source(cfg)
    samples, rejected = prepare(cfg, source)
    assert len(samples) + len(rejected) == len(source[0].rows)
    texts = [(out / s["transcript_file"]).read_text(encoding="utf-8").strip() for s in samples]
    return SimpleNamespace(
        texts=texts,
        speakers=[s["speaker_name"] for s in samples],
        reasons=rejected["reason"].tolist(),
        notes=source[0].notes,
        kind=source[0].kind,
        samples=samples,
    )


def lines(path, *rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(rows) + "\n").encode(encoding))
    return path


def test_csv_and_tsv_with_every_kind_of_sound(tmp_path):
    """8 to 48 kHz, stereo, MP3, Opus, FLAC and Vorbis; a byte order mark, semicolons, quotation
    marks.
    """
    wav(tmp_path / "0.wav", 0, rate=8_000)
    wav(tmp_path / "1.mp3", 1, rate=44_100)
    wav(tmp_path / "2.opus", 2, rate=48_000, format="OGG", subtype="OPUS")
    sf.write(tmp_path / "3.flac", np.stack([spoken(3, 0.5, 48_000)] * 2, 1), 48_000)
    files = ["0.wav", "1.mp3", "2.opus", "3.flac"]
    rows = [
        f'{f};"{t[:-1]}; rồi.";{s}'
        for f, t, s in zip(files, TEXTS, ["minh", "lan"] * 2, strict=True)
    ]
    csv = lines(tmp_path / "a.csv", "audio_path;transcript;speaker_id", *rows, encoding="utf-8-sig")
    got = run(csv, tmp_path / "out")
    assert (
        got.texts == [t[:-1] + "; rồi." for t in TEXTS]
        and got.speakers == ["minh", "lan"] * 2
        and got.reasons == []
    )
    assert "columns: file <- audio_path, text <- transcript, speaker <- speaker_id" in got.notes
    assert all(abs(s["duration"] - 0.5) < 0.06 for s in got.samples)
    rows = ['7f\t0.wav\t"Thôi," cô nói.', f"7f\t1.mp3\t{TEXTS[1]}", "8a\tgone.mp3\tMất."]
    tsv = lines(tmp_path / "cv.tsv", "client_id\tpath\tsentence", *rows)
    got = run(tsv, tmp_path / "out2")
    assert (
        got.texts == ['"Thôi," cô nói.', TEXTS[1]]
        and got.speakers == ["7f", "7f"]
        and "no such audio file" in got.reasons[0]
    )


def test_lines_that_one_quotation_mark_swallows_are_counted(tmp_path):
    for i in range(4):
        wav(tmp_path / f"{i}.wav", i)
    table = lines(
        tmp_path / "t.csv",
        "path,text,speaker",
        "0.wav,Một.,an",
        '1.wav,"Hai.,an',
        "2.wav,Ba.,an",
        '3.wav,"Bốn.,an',
        "0.wav,Năm.,an,oi",
    )
    got = run(table, tmp_path / "out")
    assert (
        got.texts == ["Một.", "Ba."] and len(got.reasons) == 3
    )  # what lies between the marks is a row by itself
    assert (
        sum("one quotation mark" in r for r in got.reasons) == 2
        and "line 6 of the table has 4 cells, but the header has 3" in got.reasons[2]
    )


def test_jsonl_of_nemo_and_of_swift(tmp_path):
    """NeMo: segments of one recording and a broken line.

    ms-swift: the text is the message without the audio tag.
    """
    sf.write(
        tmp_path / "long.wav", np.concatenate([spoken(i, 1.0, 16_000) for i in range(3)]), 16_000
    )
    rows = [
        json.dumps(
            dict(
                audio_filepath="long.wav",
                offset=float(i),
                duration=1.0,
                text=TEXTS[i],
                speaker="lan",
            )
        )
        for i in range(3)
    ]
    late = json.dumps(
        dict(audio_filepath="long.wav", offset=7.0, duration=1.0, text="Muộn.", speaker="lan")
    )
    got = run(lines(tmp_path / "nemo.json", *rows, '{"torn": ', late), tmp_path / "out")
    assert (
        got.texts == TEXTS[:3]
        and got.speakers == ["lan"] * 3
        and {s["duration"] for s in got.samples} == {1.0}
    )
    assert (
        "line 4 of the table is not JSON" in got.reasons[0]
        and "the segment from 7 to 8 s is not inside it" in got.reasons[1]
    )
    for i in range(3):
        wav(tmp_path / f"{i}.wav", i)
    user, model = (
        (lambda t: dict(role="user", content=t)),
        (lambda t: dict(role="assistant", content=t)),
    )
    rows = [
        dict(messages=[user(TEXTS[0]), model("<audio>")], audios=["0.wav"], speaker="lan"),
        dict(
            messages=[dict(role="system", content="Chép."), user("<audio>Chép."), model(TEXTS[1])],
            audios=["1.wav"],
            speaker="minh",
        ),
        dict(
            messages=[user("<audio><audio>"), model("Hai tiếng.")],
            audios=["0.wav", "1.wav"],
            speaker="minh",
        ),
    ]
    got = run(
        lines(tmp_path / "swift.jsonl", *(json.dumps(r, ensure_ascii=False) for r in rows)),
        tmp_path / "out2",
    )
    assert (
        got.texts == TEXTS[:2]
        and got.speakers == ["lan", "minh"]
        and "2 path(s) in audios" in got.reasons[0]
    )


def test_ljspeech_and_lists_with_a_speaker(tmp_path):
    for i in range(3):
        wav(tmp_path / f"lj/wavs/LJ-{i}.wav", i)
    first = 'LJ-0|Có 1 "con" mèo, rồi.|Có một "con" mèo, rồi.'
    lines(tmp_path / "lj/metadata.csv", first, "LJ-1|2 con.|Hai con.", "LJ-9|3 con.|Ba con.")
    got = run(tmp_path / "lj", tmp_path / "out")
    assert (
        got.texts == ['Có một "con" mèo, rồi.', "Hai con."]
        and "no such audio file" in got.reasons[0]
        and got.kind == "ljspeech"
    )
    assert set(got.speakers) == {"lj/metadata"} and any(
        "all clips are assumed to have one speaker, 'lj/metadata'" in n for n in got.notes
    )
    assert (
        run(tmp_path / "lj", tmp_path / "out2", columns="text=2", encoding="utf-8").texts[1]
        == "2 con."
    )
    table = lines(
        tmp_path / "lj/list.txt",
        *(f"wavs/LJ-{i}.wav|{'an' if i else 'bo'}|{TEXTS[i]}" for i in range(3)),
    )
    assert run(table, tmp_path / "out3").speakers == ["bo", "an", "an"]


@pytest.mark.parametrize("segments", [False, True])
def test_kaldi(tmp_path, segments):
    d = tmp_path / "kaldi"
    for i in range(2):
        wav(d / f"r{i}.wav", i, seconds=2)
    names = ["u0", "u1"] if segments else ["r0", "r1"]
    lines(d / "wav.scp", "r0 r0.wav", "r1 r1.wav", "r2 flac -dc r2.flac |")
    lines(
        d / "text",
        *(
            f"{u} {t}"
            for u, t in zip([*names, "r2" if not segments else "u2", "x9"], TEXTS, strict=True)
        ),
    )
    lines(
        d / "utt2spk",
        *(
            f"{u} {s}"
            for u, s in zip([*names, "r2", "u2"], ["lan", "minh", "lan", "lan"], strict=True)
        ),
    )
    lines(d / "spk2gender", "lan f", "minh m")
    if segments:
        lines(d / "segments", "u0 r0 0.5 1.5", "u1 r1 1.0 -1", "u2 r2 0 1")
    got = run(d, tmp_path / "out")
    assert (
        got.texts == TEXTS[:2]
        and got.speakers == ["lan", "minh"]
        and [s["gender"] for s in got.samples] == ["female", "male"]
    )
    assert [s["duration"] for s in got.samples] == ([1.0, 1.0] if segments else [2.0, 2.0])
    assert (
        any("by a command" in r for r in got.reasons)
        and any("x9" in r for r in got.reasons)
        and len(got.reasons) == 2
    )


def test_folders_of_sounds_and_texts_keep_people_apart(tmp_path):
    for i, name in enumerate(["vivos/lan/a", "vlsp/lan/a", "vlsp/minh/a"]):
        wav(tmp_path / f"in/{name}.flac", i)
        lines(tmp_path / f"in/{name}.txt", TEXTS[i])
    wav(tmp_path / "in/vlsp/minh/b.wav", 7)
    lines(tmp_path / "in/vlsp/minh/c.txt", "Lạc.")
    got = run(tmp_path / "in", tmp_path / "out")
    assert got.texts == TEXTS[:3] and got.speakers == ["vivos/lan", "vlsp/lan", "minh"]
    assert (
        "there is no b.txt beside it" in got.reasons[0]
        and "no audio file beside this text" in got.reasons[1]
    )


def test_one_name_in_two_corpora_is_two_people(tmp_path):
    for i in range(3):
        wav(tmp_path / f"{i}.wav", i)
    table = lines(
        tmp_path / "t.csv",
        "path,text,speaker,dataset",
        "0.wav,Một.,1,vivos",
        "1.wav,Hai.,1,vlsp",
        "2.wav,Ba.,2,vlsp",
    )
    got = run(table, tmp_path / "out")
    assert got.speakers == ["vivos/1", "vlsp/1", "2"] and any(
        "several sources ('1')" in n for n in got.notes
    )
    assert run(table, tmp_path / "out2", columns="source=").speakers == ["1", "1", "2"]


def shard(path, ids, speakers=None, **kind):
    sounds = [dict(bytes=encoded(i, "FLAC" if i % 2 else "WAV"), path=f"{i}.wav") for i in ids]
    cells = dict(audio=sounds, transcription=[f"Câu số {i}." for i in ids]) | (
        dict(speaker=speakers) if speakers else {}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(cells), path, row_group_size=2, **kind)


def damage(path, group, column, n):
    "Overwrite the first `n` bytes of a column's data."
    raw, meta = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(group)
    at = next(
        c for c in map(meta.column, range(meta.num_columns)) if c.path_in_schema == column
    ).data_page_offset
    raw[at : at + n] = b"\xff" * n
    path.write_bytes(raw)


def test_parquet_shards_of_which_one_is_damaged(tmp_path):
    """A shard without its footer has unknown rows, so one line stands for it.

    A shard damaged inside has known rows, and each is listed.
    """
    for n in range(3):
        shard(tmp_path / f"in/train-{n}-of-3.parquet", range(4 * n, 4 * n + 4), [str(n)] * 4)
    torn = tmp_path / "in/train-1-of-3.parquet"
    torn.write_bytes(torn.read_bytes()[:-20])
    got = run(tmp_path / "in", tmp_path / "out")
    assert (
        got.texts == [f"Câu số {i}." for i in [0, 1, 2, 3, 8, 9, 10, 11]]
        and got.speakers == ["0"] * 4 + ["2"] * 4
        and got.kind == "parquet"
    )
    assert (
        len(got.reasons) == 1
        and "train-1-of-3.parquet cannot be read" in got.reasons[0]
        and "not known" in got.reasons[0]
    )
    shard(torn, range(4, 8), ["1"] * 4, compression="gzip", use_dictionary=False)
    damage(torn, 0, "transcription", 40)
    got = run(tmp_path / "in", tmp_path / "out2")
    assert (
        len(got.texts) == 8
        and len(got.reasons) == 4
        and all("4 rows are lost" in r for r in got.reasons)
    )


def test_parquet_whose_sounds_are_damaged_or_beside_it(tmp_path):
    """A damaged page of audio costs its row group.

    A row without bytes is read from the file that it names.
    """
    shard(
        tmp_path / "a/a.parquet",
        range(6),
        compression="gzip",
        use_dictionary=False,
        data_page_size=1,
    )
    damage(tmp_path / "a/a.parquet", 1, "audio.bytes", 400)
    got = run(tmp_path / "a", tmp_path / "out", columns="text=transcription")
    assert got.texts == [f"Câu số {i}." for i in (0, 1, 4, 5)]
    assert len(got.reasons) == 2 and all("download the shard again" in r for r in got.reasons)
    wav(tmp_path / "b/clips/0.wav", 0)
    wav(tmp_path / "b/clips/1.wav", 1)
    sounds = [dict(bytes=None, path="0.wav"), dict(bytes=None, path="1")]
    pq.write_table(
        pa.table(dict(audio=sounds, text=TEXTS[:2], speaker=[3, 4])), tmp_path / "b/t.parquet"
    )
    assert run(tmp_path / "b/t.parquet", tmp_path / "out2").speakers == ["3", "4"]


def test_memory_does_not_grow_with_a_shard(tmp_path):
    """40 MB of audio in one row group with 16 rows per page: only a few pages are in memory at a
    time.
    """
    rng, path = np.random.default_rng(0), tmp_path / "big.parquet"
    table = pa.table(
        dict(
            audio=[dict(bytes=rng.bytes(200_000), path=None) for _ in range(200)],
            text=["Một."] * 200,
        )
    )
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=16)
    del table
    raw, blobs, before, most = read_parquet(path), Blobs(), pa.total_allocated_bytes(), 0
    for blob in raw.blob:
        assert len(blobs(*blob)) == 200_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert pq.read_metadata(path).num_row_groups == 1 and most < 12e6, f"{most / 1e6:.0f} MB"


@pytest.mark.parametrize(
    "make, change, message",
    [
        (
            lambda d: lines(d / "t.csv", "path,text,transcription", "0.wav,Một,Hai"),
            {},
            "be the text: text, transcription; .*text=tran",
        ),
        (
            lambda d: lines(d / "t.csv", "path,text", "0.wav,Một"),
            dict(columns="text=sentence"),
            "no column 'sentence' .* it has path, text",
        ),
        (
            lambda d: lines(d / "t.csv", "path,text", "0.wav,Một"),
            dict(columns="words=text"),
            "'words=text': write field=column",
        ),
        (
            lambda d: lines(d / "t.csv", "path,text", "0.wav,Mét", encoding="cp1252"),
            {},
            "not UTF-8 text .*parameter encoding",
        ),
        (
            lambda d: lines(d / "t.csv", "path,text", "0.wav,Một", encoding="utf-16-le"),
            {},
            "looks like UTF-16",
        ),
        (
            lambda d: lines(d / "t.csv", "path,text", "0.wav,Một"),
            dict(encoding="viscii9"),
            "unknown encoding 'viscii9'",
        ),
        (
            lambda d: lines(d / "t.txt", "a|b|c d|e", "f|g|h i|j"),
            {},
            "no header and 4 columns: say which is which",
        ),
        (
            lambda d: lines(d / "t.csv", "path,text", "0.wav,Một"),
            {},
            "none of the 1 rows .* no such audio file",
        ),
        (lambda d: lines(d / "t.csv", "path,text"), {}, "no row below its header"),
        (lambda d: lines(d / "t.jsonl", "{", "["), {}, "none of its 2 lines is usable"),
        (
            lambda d: lines(d / "t.parquet", "no table"),
            {},
            "t.parquet cannot be read .* all damaged",
        ),
        (
            lambda d: lines(d / "in/mine.csv", "path,text").parent,
            {},
            "holds no clips: .* it holds mine.csv",
        ),
        (
            lambda d: wav(d / "in/a.wav", 0) or d / "in",
            dict(columns="text=b"),
            "whose columns are fixed",
        ),
    ],
    ids=[
        "two texts",
        "no such column",
        "no column of ours",
        "cp1252",
        "utf-16",
        "no encoding",
        "four columns",
        "all dropped",
        "only a header",
        "no json",
        "no parquet",
        "a table in a folder",
        "columns of a folder",
    ],
)
def test_bad_tables_stop_and_say_what_to_change(tmp_path, make, change, message):
    with pytest.raises(ValueError, match=message):
        run(make(tmp_path), tmp_path / "out", **change)
    assert not (tmp_path / "out/metadata.json").exists()


def test_what_a_person_chooses_is_taken(tmp_path):
    for i in range(2):
        wav(tmp_path / f"{i}.wav", i)
    table = lines(
        tmp_path / "t.csv",
        "path,text,transcription,reader,speaker",
        "0.wav,Một,Hai,an,x",
        "1.wav,Ba,Bốn,bo,x",
    )
    got = run(table, tmp_path / "out", columns="text=transcription, speaker=reader")
    assert (
        got.texts == ["Hai", "Bốn"]
        and got.speakers == ["an", "bo"]
        and "text <- transcription, speaker <- reader" in got.notes[0]
    )
    same = lines(tmp_path / "same.csv", "path,text,transcription,speaker", "0.wav,Một,Một,an")
    assert read_table(same).rows["text"].tolist() == ["Một"]
    utf16 = lines(tmp_path / "w.csv", "path,text,speaker", "0.wav,Một,an", encoding="utf-16")
    assert run(utf16, tmp_path / "out2", encoding="utf-16").texts == ["Một"]


def test_names_are_told_apart_by_what_they_say_not_by_their_bytes(tmp_path):
    """A space or another Unicode form does not create a new speaker within a corpus, and does not
    merge two of different corpora.
    """
    for i in range(5):
        wav(tmp_path / f"{i}.wav", i)
    apart = unicodedata.normalize("NFD", "Hòa")
    table = lines(
        tmp_path / "t.csv",
        "path,text,speaker,source",
        "0.wav,Một.,Lan,a",
        "1.wav,Hai.,Lan ,b",
        "2.wav,Ba.,Hòa,a",
        f"3.wav,Bốn.,{apart},a",
    )
    assert run(table, tmp_path / "out").speakers == ["a/Lan", "b/Lan", "Hòa", "Hòa"]
    meta = json.loads((tmp_path / "out/metadata.json").read_text())
    assert [s["speaker_id"] for s in meta["samples"]] == ["a_lan", "b_lan", "hoa", "hoa"]
    for s in meta["samples"]:
        s["speaker_name"] = "unknown"  # a Higgs folder whose names say nothing
    (tmp_path / "out/metadata.json").write_text(json.dumps(meta))
    assert run(tmp_path / "out", tmp_path / "again").speakers == ["a_lan", "b_lan", "hoa", "hoa"]
    with pytest.raises(ValueError, match="already holds the dataset made from"):
        run(table, tmp_path / "again")
    (tmp_path / "again/metadata.json").write_text('{"samples": []}')
    with pytest.raises(ValueError, match="made from something else"):
        run(table, tmp_path / "again")
    assert len(set(speakers_by_folder(["a.wav", "lan/b.wav"], "lan")[0])) == 2


def test_cells_that_say_nothing_and_times_that_are_none(tmp_path):
    for i in range(5):
        wav(tmp_path / f"{i}.wav", i)
    table = lines(
        tmp_path / "t.jsonl",
        '{"audio": "0.wav", "text": "Một.", "speaker": NaN}',
        '{"audio": "1.wav", "text": "Hai.", "speaker": "None"}',
        '{"audio": "2.wav", "text": "Ba.", "speaker": "lan", "emotion": "nan", "gender": NaN}',
        '{"audio": "3.wav", "text": "Bốn.", "speaker": "lan", "offset": Infinity}',
        '{"audio": "4.wav", "text": "Năm.", "speaker": "lan", "offset": "nan"}',
    )
    got = run(table, tmp_path / "out")
    assert (
        got.texts == ["Ba."] and got.samples[0]["emotion"] == got.samples[0]["gender"] == "unknown"
    )
    assert ["speaker is empty" in r for r in got.reasons] == [True, True, False, False] and all(
        "write seconds" in r for r in got.reasons[2:]
    )


def test_a_list_whose_last_column_is_the_speaker(tmp_path):
    for i in range(3):
        wav(tmp_path / f"{i}.wav", i)
    got = run(
        lines(tmp_path / "list.txt", *(f"{i}.wav|Xin chào {i}.|{i % 2}" for i in range(3))),
        tmp_path / "out",
    )
    assert got.texts == [f"Xin chào {i}." for i in range(3)] and got.speakers == ["0", "1", "0"]


def test_genders_as_tables_write_them():
    said = ["male_masculine", "Female", "M", "f", "Nam", "Nữ", "unknown", "non-binary"]
    assert [gender_of(g) for g in said] == [
        "male",
        "female",
        "male",
        "female",
        "male",
        "female",
        "unknown",
        "non-binary",
    ]


# One bad row never ends a run, and takes no neighbour along.

def some(folder, n=3):
    "Write `n` sounds 0.wav, 1.wav, … of different pitch."
    for i in range(n): wav(folder/f"{i}.wav", i)
    return folder


def jsonl(path, *rows):
    return lines(path, *(r if isinstance(r, str) else json.dumps(r) for r in rows))


def row(i, **change): return dict(audio=f"{i}.wav", text=f"Câu số {i}.", speaker="lan") | change


BAD_ROWS = {
    "a link to itself": (row("loop"), "is not a usable path"),
    "NUL in a path": (row("a\0b"), "its file cannot be used: it holds a NUL character"),
    "half a surrogate in a text": (
        row(1, text="Xin \ud83d"),
        r"its text cannot be used: it holds half of a surrogate pair \(.ud83d",
    ),
    "half a surrogate in a speaker": (row(1, speaker="La\udcffn"), "its speaker cannot be used"),
    "half a surrogate in a path": (row("\ud83d"), "its file cannot be used"),
    "half a surrogate in a scene": (row(1, scene="\ud83d"), "its scene cannot be used"),
    "a speaker of 260 letters": (row(1, speaker="a" * 260), "name has 260 characters"),
    "a path of 5,000 letters": (row(1, audio="a" * 5000), "no such audio file"),
    "a text of 200,000 letters": (row(1, text="a " * 100_000), "its text has 200000 characters"),
    "100,000 brackets": ("[" * 100_000, "nested too deeply"),
    "100,000 braces": ('{"a":' * 100_000, "nested too deeply"),
    "a number of 5,000 digits": (
        '{"audio": "1.wav", "text": ' + "1" * 5000 + "}",
        "cannot be used",
    ),
    "a name twice": (
        '{"audio": "1.wav", "text": "Một.", "text": "Hai."}',
        "has the key 'text' twice",
    ),
    "a list": ("[1, 2]", "is not a JSON object"),
    "a word": ("null", "is not a JSON object"),
    "two objects": ('{"audio": "1.wav"} {"text": "Hai."}', "text follows its object"),
    "messages of another form": (dict(messages="Chào", audios=["1.wav"]), "not a list of turns"),
    "a folder": (row(1, audio="folder"), "no such audio file: .* is a folder"),
    "no path": (row(1, audio=""), r"its path is empty \('' in row 2 of t.jsonl, column 'audio'\)"),
    "a dash for a path": (row(1, audio="-"), "its path is empty"),
    "null for a path": (row(1, audio=None), "its path is empty"),
    "a duration that is a word": (row(1, duration="long"), "duration 'long' is not a time"),
    "a truth value of neither kind": (row(1, valid="maybe"), "neither yes nor no"),
    "a split of no kind": (row(1, split="fold3"), "the split is 'fold3'"),
    "tags alone": (row(1, text="[SPEAKER1]"), "text is empty"),
    "signs alone": (row(1, text="[SPEAKER0] …?!"), "text is empty"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_one_bad_row_is_set_aside_and_its_neighbours_stay(tmp_path, kind):
    bad, reason = BAD_ROWS[kind]
    some(tmp_path)
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "folder").mkdir()
    good = [row(0, split="train", valid="yes", duration=0.5, scene="nhà"), row(2)]
    got = run(jsonl(tmp_path / "t.jsonl", good[0], bad, good[1]), tmp_path / "out")
    assert got.texts == ["Câu số 0.", "Câu số 2."] and len(got.reasons) == 1
    assert re.search(reason, got.reasons[0]), got.reasons
    back = pd.read_csv(tmp_path / "out/rejected.csv")
    assert (
        len(back) == 1
        and back["row"][0] == 2
        and (tmp_path / "out/rejected.csv").read_text(encoding="utf-8").count("\n") == 2
    )


def test_the_first_line_may_be_the_bad_one_and_a_list_may_be_broken(tmp_path):
    some(tmp_path, 4)
    got = run(jsonl(tmp_path / "t.jsonl", "[" * 100_000, row(0), row(1)), tmp_path / "out")
    assert len(got.texts) == 2 and "line 1 of the table is nested too deeply" in got.reasons[0]
    elements = [json.dumps(row(i)) for i in range(4)]
    elements[1:2] = ['{"audio": "1.wav", "text": tru}', "[" * 50_000 + "]" * 50_000]
    got = run(lines(tmp_path / "list.json", "[" + ",\n".join(elements) + "]"), tmp_path / "out2")
    assert got.texts == ["Câu số 0.", "Câu số 2.", "Câu số 3."] and [
        r.split()[1] for r in got.reasons
    ] == ["2", "3"]
    got = run(
        lines(tmp_path / "torn.json", "[" + ",".join(json.dumps(row(i)) for i in range(4))[:-20]),
        tmp_path / "out3",
    )
    assert len(got.texts) == 3 and "element 4 of the table is not JSON" in got.reasons[0]


def test_an_unknown_fault_of_a_row_is_its_own_but_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    import errno

    import higgs_vi.intake as intake

    table, real = jsonl(some(tmp_path) / "t.jsonl", *map(row, range(3))), intake.read_clip
    for number, error in enumerate(
        (
            KeyError("x"),
            RuntimeError("Symlink loop"),
            RecursionError(),
            MemoryError(),
            OSError(errno.EACCES, "denied"),
        )
    ):

        def odd(r, *rest, error=error):
            if r["row"] == 2:
                raise error
            return real(r, *rest)

        monkeypatch.setattr(intake, "read_clip", odd)
        got = run(table, tmp_path / f"out{number}")
        assert len(got.texts) == 2 and len(got.reasons) == 1 and got.reasons[0]
    for error in (OSError(errno.ENOSPC, "full"), ImportError("sea-g2p")):
        monkeypatch.setattr(intake, "read_clip", mock.Mock(side_effect=error))
        with pytest.raises(type(error)):
            run(table, tmp_path / "full")


def test_rejected_csv_reads_back_with_as_many_rows(tmp_path):
    names = ["a\r", "b\nc", 'd"e', "f,g", "h\r\n", "i\u2028j", "k\x85l", "'", "\t"]
    got = run(
        jsonl(
            some(tmp_path) / "t.jsonl",
            row(0),
            *(dict(audio=n, text=f"Dòng\n{n}", speaker="lan") for n in names),
        ),
        tmp_path / "out",
    )
    raw = (tmp_path / "out/rejected.csv").read_text(encoding="utf-8")
    with open(tmp_path / "out/rejected.csv", encoding="utf-8", newline="") as f:
        back = list(csv.DictReader(f))
    assert (
        len(back)
        == len(got.reasons)
        == len(names)
        == len(pd.read_csv(tmp_path / "out/rejected.csv"))
        == len(raw.splitlines()) - 1
    )
    assert back[0]["file"] == r"a\r"


def test_parquet_with_two_columns_of_one_name(tmp_path):
    some(tmp_path)
    columns = [pa.array([f"{i}.wav" for i in range(3)]), pa.array(TEXTS[:3]), pa.array(TEXTS[1:4])]
    pq.write_table(
        pa.Table.from_arrays(columns, names=["audio", "text", "text"]), tmp_path / "t.parquet"
    )
    with pytest.raises(
        ValueError, match=r"could each be the text: text, text \(2\); .*text=text \(2\)"
    ):
        run(tmp_path / "t.parquet", tmp_path / "out")
    assert (
        run(tmp_path / "t.parquet", tmp_path / "out", columns="text=text (2)").texts == TEXTS[1:4]
    )
    pq.write_table(
        pa.Table.from_arrays([columns[0], columns[1], columns[1]], names=["audio", "text", "text"]),
        tmp_path / "same.parquet",
    )
    assert run(tmp_path / "same.parquet", tmp_path / "out2").texts == TEXTS[:3]
    table = lines(tmp_path / "t.csv", "path,text,text", "0.wav,Một.,Hai.")
    with pytest.raises(ValueError, match="could each be the text"):
        run(table, tmp_path / "out3")


def test_a_quotation_mark_that_never_closes_and_a_cell_beyond_any_limit(tmp_path):
    some(tmp_path, 2)
    rows = [f"{i}.wav,Câu số {i}.,lan" for i in range(2)] + [
        f"gone{i}.wav,Câu số {i}.,lan" for i in range(5000)
    ]
    for name, bad in (
        ("open", '1.wav,"Hai ba,lan'),
        ("wide", "1.wav," + "a" * 200_000 + ",lan"),
        ("both", '1.wav,"' + "a," * 200_000 + ",lan"),
    ):
        table = read_table(
            lines(tmp_path / f"{name}.csv", "path,text,speaker", rows[0], bad, *rows[1:])
        ).rows
        assert len(table) == 5003 and [bool(p) for p in table["problem"]] == [
            False,
            name != "wide",
            *[False] * 5001,
        ]
        assert table["file"][1] == "1.wav"


BROKEN_QUOTES = {
    "one mark over two rows": (
        ['0.wav,"Đi thôi,a', '1.wav,Anh nói vâng",a', "2.wav,Hết.,a"],
        ["Hết."],
        2,
    ),
    "path behind the text": (
        ['"Đi thôi,0.wav,a', 'Anh nói vâng",1.wav,a', "Hết.,2.wav,a"],
        ["Hết."],
        2,
    ),
    "a row between": (['0.wav,"Đi thôi,a', "1.wav,Giữa.,a", '2.wav,Anh nói vâng",a'], ["Giữa."], 2),
    "never closed": (["0.wav,Một.,a", '1.wav,"Hai.,a', "2.wav,Ba.,a"], ["Một.", "Ba."], 1),
    "at the end": (["0.wav,Một.,a", "1.wav,Hai.,a", '2.wav,"Ba.,a'], ["Một.", "Hai."], 1),
    "two in two": (['0.wav,"Một.,a', '1.wav,"Hai.,a', "2.wav,Ba.,a"], ["Ba."], 2),
    "a cell of two lines": (
        ['0.wav,"Đi, thôi', 'về, nhé",a', "1.wav,Hai.,a"],
        ["Đi, thôi về, nhé", "Hai."],
        0,
    ),
    "a mark in a plain cell": (
        ['0.wav,Màn hình 24" đẹp.,a', "1.wav,Hai.,a"],
        ['Màn hình 24" đẹp.', "Hai."],
        0,
    ),
    "marks around words": (['0.wav,"Đi" anh nói.,a', "1.wav,Hai.,a"], ['"Đi" anh nói.', "Hai."], 0),
    "backslashes": (
        [r'0.wav,"Anh nói \"đi\" nhé.",a', r'1.wav,"Anh nói \"đi, về\".",a', r"2.wav,Anh \"ừ\".,a"],
        ['Anh nói "đi" nhé.', 'Anh nói "đi, về".', 'Anh "ừ".'],
        0,
    ),
    "doubled marks": (
        ['0.wav,"Anh nói ""đi"" nhé.",a', '1.wav, "Một, hai." ,a'],
        ['Anh nói "đi" nhé.', "Một, hai."],
        0,
    ),
    "too many cells": (["0.wav,Một, hai.,a", "1.wav,Hai.,a"], ["Hai."], 1),
    "a NUL": (["0.wav,Mộ\0t.,a", "1.wav,Hai.,a"], ["Hai."], 1),
    "empty cells behind": (["0.wav,Một.,a,,", "1.wav,Hai.,a,,", ",,,,"], ["Một.", "Hai."], 0),
}


@pytest.mark.parametrize("kind", BROKEN_QUOTES)
def test_quotation_marks(tmp_path, kind):
    rows, texts, bad = BROKEN_QUOTES[kind]
    header = "text,path,speaker" if kind == "path behind the text" else "path,text,speaker"
    got = run(lines(some(tmp_path)/"t.csv", header, *rows), tmp_path/"out")
    assert got.texts == texts and len(got.reasons) == bad, got.reasons


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_byte_that_is_no_letter(tmp_path, ends):
    some(tmp_path)
    text = ends.join(
        [
            "path,text,speaker",
            *(f"{i}.wav,Một đường thẳng rất đẹp số {i}.,an" for i in range(3)),
            "",
        ]
    )
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8").replace("số 1".encode(), b"s\xe1 1"))
    got = run(tmp_path / "t.csv", tmp_path / "out")
    assert (
        len(got.texts) == 2
        and "its text cannot be used: it is not valid UTF-8 (byte 0xe1)" in got.reasons[0]
    )


# Guesses are checked against the cells.

def table_of(folder, name, *rows, **kind):
    "A table of rows beside the sounds 0.wav, 1.wav and 2.wav."
    return lines(some(folder)/name, *rows, **kind)


NO_SPEAKERS = {
    "ranges": "0-1.5",
    "languages": "vi",
    "durations": "0.5",
    "clocks": "0:01",
    "locales": "vi-VN",
}


@pytest.mark.parametrize("kind", NO_SPEAKERS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_column_of_numbers_ranges_or_languages_is_no_speaker_and_no_text(tmp_path, kind, rows):
    table = table_of(
        tmp_path, "list.txt", *(f"{i}.wav|{TEXTS[i]}|{NO_SPEAKERS[kind]}" for i in range(rows))
    )
    got = run(table, tmp_path / "out")
    assert (
        got.texts == TEXTS[:rows]
        and len(set(got.speakers)) == 1
        and got.speakers[0] != NO_SPEAKERS[kind]
    )
    if rows == 3:
        table = table_of(
            tmp_path,
            "t.csv",
            "path,text,speaker",
            *(f"{i}.wav,{TEXTS[i]},{NO_SPEAKERS[kind]}" for i in range(3)),
        )
        with pytest.raises(
            ValueError, match="column 'speaker', but its cells are .*speaker= for none"
        ):
            read_table(table)
        assert set(read_table(table, columns="speaker=speaker").rows["speaker"]) == {
            NO_SPEAKERS[kind]
        }


@pytest.mark.parametrize(
    "cells",
    [["2024-01-01", "2024-01-02", "2024-01-01"], ["train", "test", "train"], ["nam", "nữ", "nam"]],
)
@pytest.mark.parametrize("behind", [True, False])
def test_dates_splits_and_genders_are_neither_speaker_nor_text(tmp_path, cells, behind):
    some(tmp_path)
    rows = [
        f"{i}.wav|{TEXTS[i]}|{c}" if behind else f"{i}.wav|{c}|{TEXTS[i]}"
        for i, c in enumerate(cells)
    ]
    rows = read_table(lines(tmp_path / "list.txt", *rows)).rows
    assert rows["text"].tolist() == TEXTS[:3] and rows["speaker"].nunique() == 1
    assert not set(rows["speaker"]) & set(cells)


def test_nam_alone_is_a_person(tmp_path):
    some(tmp_path)
    rows = read_table(
        lines(tmp_path / "list.txt", *(f"{i}.wav|Nam|{TEXTS[i]}" for i in range(3)))
    ).rows
    assert set(rows["speaker"]) == {"Nam"}


def test_whole_seconds_are_no_speakers_whole_numbers_that_come_back_are(tmp_path):
    for i in range(3):
        wav(tmp_path / f"{i}.wav", i, seconds=1 + i // 2 + 0.3)
    seconds = lines(tmp_path / "s.txt", *(f"{i}.wav|{TEXTS[i]}|{1 + i // 2}" for i in range(3)))
    assert len(set(read_table(seconds).rows["speaker"])) == 1
    people = lines(tmp_path / "p.txt", *(f"{i}.wav|{7 * (i % 2)}|{TEXTS[i]}" for i in range(3)))
    assert read_table(people).rows["speaker"].tolist() == ["0", "7", "0"]
    sovits = lines(
        tmp_path / "g.list", *(f"{i}.wav|{'lan' if i else 'minh'}|vi|{TEXTS[i]}" for i in range(3))
    )
    assert read_table(sovits).rows[["speaker", "text"]].values.tolist() == [
        ["minh", TEXTS[0]],
        ["lan", TEXTS[1]],
        ["lan", TEXTS[2]],
    ]


def test_a_channel_of_people_is_a_speaker_a_channel_of_sound_is_none(tmp_path):
    def table(*channels):
        sounds = [dict(bytes=encoded(i), path=f"{i}.wav") for i in range(3)]
        pq.write_table(
            pa.table(dict(channel=list(channels), text=TEXTS[:3], audio=sounds)),
            tmp_path / "t.parquet",
        )
        return tmp_path / "t.parquet"

    assert run(table("Sách hay", "Tin tức", "Sách hay"), tmp_path / "out").speakers == [
        "Sách hay",
        "Tin tức",
        "Sách hay",
    ]
    assert len(set(read_table(table("0", "1", "0")).rows["speaker"])) == 1


HEADERLESS = {
    "a bar in a text": [
        "wavs/0|Một | hai.|Một hai.",
        *(f"wavs/{i}|{TEXTS[i]}|{TEXTS[i]}" for i in (1, 2)),
    ],
    "a bar in the first": ["0.wav|Một | hai.", "1.wav|Hai con chó.", "2.wav|Ba con gà."],
    "commas": [f"{i}.wav,{TEXTS[i]}" for i in range(3)],
    "tabs": [f"{i}.wav\t{TEXTS[i]}" for i in range(3)],
    "ids alone": [f"{i}|{TEXTS[i]}" for i in range(3)],
    "ids and commas": [f"{i},{TEXTS[i]}" for i in range(3)],
    "a line without separators": ["0.wav|Một con mèo.", "1.wav", "2.wav|Ba con gà."],
    "a title": ["Danh sách", *(f"{i}.wav|{TEXTS[i]}" for i in range(3))],
    "empty columns behind": [f"{i}.wav,{TEXTS[i]},," for i in range(3)],
}


@pytest.mark.parametrize("kind", HEADERLESS)
def test_a_header_is_what_names_no_file(tmp_path, kind):
    rows = HEADERLESS[kind]
    table = table_of(tmp_path, "metadata.csv", *rows)
    if kind == "a bar in a text":
        for i in range(3):
            wav(tmp_path / f"wavs/{i}.wav", i)
    got = run(table, tmp_path / "out")
    stray = kind in (
        "a bar in a text",
        "a bar in the first",
        "a line without separators",
        "a title",
    )
    assert len(got.reasons) == stray and len(got.texts) == (
        3 if kind == "a title" else 3 - stray
    ), got.reasons
    assert set(got.texts) <= set(TEXTS) and got.kind == "ljspeech"
    assert read_table(table, columns="file=1,text=2").rows["text"].tolist()[-1] == TEXTS[2]


def test_words_and_numbers_for_no(tmp_path):
    said = ["0.0", "F", "N", "không", "FALSE", "0", "no", "✗", "Không hợp lệ"]
    table = table_of(
        tmp_path,
        "t.csv",
        "path,text,speaker,valid",
        "1.wav,Được.,a,1.0",
        "2.wav,Ừ.,a,",
        *(f"0.wav,Câu {i}.,a,{w}" for i, w in enumerate(said)),
    )
    got = run(table, tmp_path / "out")
    assert (
        got.texts == ["Được.", "Ừ."]
        and len(got.reasons) == len(said)
        and all("marks it as not valid" in r for r in got.reasons)
    )
    odd = table_of(
        tmp_path,
        "odd.csv",
        "path,text,speaker,valid",
        *(f"{i}.wav,Câu {i}.,a,mức {i}" for i in range(3)),
    )
    with pytest.raises(ValueError, match="column 'valid', but its cells are not booleans"):
        read_table(odd)


def test_cells_for_nothing_in_text_and_speaker(tmp_path):
    pairs = [
        ("N/A", "lan"),
        ("null", "lan"),
        ("-", "lan"),
        ("<NA>", "lan"),
        ("Một.", "N/A"),
        ("Hai.", "unknown"),
        ("Ba.", "-"),
        ("Bốn.", "Không rõ"),
        ("Năm.", "\u200b"),
    ]
    got = run(
        table_of(
            tmp_path,
            "t.csv",
            "path,text,speaker",
            *(f"0.wav,{t},{s}" for t, s in pairs),
            "1.wav,Na.,Na",
        ),
        tmp_path / "out",
    )
    assert (
        got.texts == ["Na."]
        and ["text is empty" in r for r in got.reasons] == [True] * 4 + [False] * 5
    )
    assert all("speaker is empty" in r and "speaker=" in r for r in got.reasons[4:])


@pytest.mark.parametrize("said", ["0,5", "0.5", "0.5 s", "500 ms", "0:00.5", ",5", "nan", "N/A"])
def test_durations_as_people_write_them(tmp_path, said):
    table = table_of(
        tmp_path,
        "t.csv",
        "path;text;speaker;duration",
        *(f"{i}.wav;{TEXTS[i]};a;{said}" for i in range(3)),
    )
    got = run(table, tmp_path / "out")
    assert len(got.texts) == 3 and sum("decimal comma" in n for n in got.notes) == (
        said in ("0,5", ",5")
    )


def test_durations_that_are_others(tmp_path):
    table = table_of(
        tmp_path,
        "t.csv",
        "path;text;speaker;duration",
        *(f"0.wav;{TEXTS[0]};a;{d}" for d in ("500", "1e30", "-1", "9,5", "inf")),
        "1.wav;Hai.;a;0.5",
    )
    got = run(table, tmp_path / "out")
    assert (
        got.texts == ["Hai."]
        and len(got.reasons) == 5
        and "milliseconds: leave it out" in got.reasons[0]
    )


def test_one_reading_of_a_split(tmp_path):
    said = ["TEST", "Train", "dev", "Validation", "test-other", ""]
    for i in range(6):
        wav(tmp_path / f"{i}.wav", i)
    got = run(
        lines(
            tmp_path / "t.csv",
            "path,text,speaker,split",
            *(f"{i}.wav,Câu số {i}.,a,{w}" for i, w in enumerate(said)),
        ),
        tmp_path / "out",
    )
    assert [s.get("split") for s in got.samples] == [
        "test",
        "train",
        "valid",
        "valid",
        "test",
        None,
    ]
    rows = [dict(split=w) for w in said]
    assert given_splits(rows) == ["test", "train", "valid", "valid", "test", "train"]
    with pytest.raises(ValueError, match="'fold3'"):
        given_splits([dict(split="fold3")])


def test_one_person_of_several_spellings(tmp_path):
    for i in range(7):
        wav(tmp_path / f"{i}.wav", i)
    names = ["Lan", "lan", "Lan", "LAN", "La\u200bn", "Hoà", "Hỏa"]
    got = run(
        lines(
            tmp_path / "t.csv",
            "path,text,speaker",
            *(f"{i}.wav,Câu số {i}.,{n}" for i, n in enumerate(names)),
        ),
        tmp_path / "out",
    )
    assert got.speakers == ["Lan"] * 5 + ["Hoà", "Hỏa"] and {
        s["speaker_id"] for s in got.samples
    } == {"lan", "hoa", "hoa-2"}
    notes = "\n".join(got.notes)
    assert (
        "written in several ways" in notes and "'LAN'" in notes and r"'La\u200bn' -> 'Lan'" in notes
    )
    assert "differ only in diacritics: 'Hoà' and 'Hỏa'" in notes


# Paths as people's tables have them.

PATHS = {
    "backslashes": r"wavs\0.wav",
    "a drive": r"D:\data\wavs\0.wav",
    "another machine": "/mnt/them/corpus/wavs/0.wav",
    "a link": "file:///x/wavs/0.wav",
    "blanks": " wavs/0.wav ",
    "no ending": "wavs/0",
    "a blank and no ending": "0 ",
    "capitals": "WAVS/0.WAV",
    "the root's own folder": "corpus/wavs/0.wav",
    "a dot": "./wavs/0.wav",
    "a carriage return": "wavs/0.wav\r",
    "marks": "'wavs/0.wav'",
    "home": "~/corpus/wavs/0.wav",
    "a share": r"\\nas\corpus\wavs\0.wav",
}


@pytest.mark.parametrize("kind", PATHS)
def test_a_path_is_found_as_people_write_it(tmp_path, kind):
    root = tmp_path / "corpus"
    for i in range(2):
        wav(root / f"wavs/{i}.wav", i)
    table = jsonl(
        root / "t.jsonl",
        dict(audio=PATHS[kind], text="Một.", speaker="a"),
        dict(audio="wavs/1.wav", text="Hai.", speaker="a"),
    )
    assert run(table, tmp_path / "out").texts == ["Một.", "Hai."]
    if kind not in ("no ending",):  # the same from within the folder of sounds
        assert read_table(table, audio=root / "wavs").rows["file"].tolist() == ["0.wav", "1.wav"]


def test_file_names_in_either_unicode_form_and_endings_in_capitals(tmp_path):
    for i, form in enumerate(("NFD", "NFC")):
        name, cell = (
            unicodedata.normalize(f, "Hòa/sớm") for f in (form, dict(NFD="NFC", NFC="NFD")[form])
        )
        wav(tmp_path / form / f"{name}.wav", i)
        wav(tmp_path / form / "b.WAV", 2)
        table = jsonl(
            tmp_path / form / "t.jsonl",
            *(dict(audio=a, text=f"Câu {a}.", speaker="a") for a in (f"{cell}.wav", "b")),
        )
        assert len(run(table, tmp_path / f"out{form}").texts) == 2


def test_tails_that_several_paths_share_and_paths_that_leave(tmp_path):
    wav(tmp_path / "in/0.wav", 0)
    wav(tmp_path / "secret.wav", 1)
    wav(tmp_path / "in/1.wav", 2)
    rows = [
        "/x/lan/0.wav",
        "/x/minh/0.wav",
        str(tmp_path / "secret.wav"),
        "../secret.wav",
        r"..\secret.wav",
        "/x/lan/1.wav",
    ]
    got = run(
        jsonl(
            tmp_path / "in/t.jsonl",
            *(dict(audio=a, text=f"Câu {i}.", speaker="a") for i, a in enumerate(rows)),
        ),
        tmp_path / "out",
    )
    assert got.texts == ["Câu 5."] and any("matched below" in n for n in got.notes)
    for reason, words in zip(
        got.reasons,
        ["several paths end in '0.wav'"] * 2 + ["leaves the folder"] * 2 + ["no such audio file"],
        strict=True,
    ):
        assert words in reason
    with pytest.raises(ValueError, match="there is no folder .*parameter audio"):
        read_table(tmp_path / "in/t.jsonl", audio=tmp_path / "none")


# Layouts of other people's corpora.

def sounds_at(folder, *names):
    for i, name in enumerate(names): wav(folder/name, i)
    return folder


def test_vivos(tmp_path):
    names = [
        f"{side}/waves/VIVOS{who}/VIVOS{who}_R00{i}.wav"
        for i, (side, who) in enumerate([("train", "SPK01"), ("train", "SPK02"), ("test", "DEV01")])
    ]
    sounds_at(tmp_path / "vivos", *names)
    lines(
        tmp_path / "vivos/train/prompts.txt",
        "VIVOSSPK01_R000 KHÁCH SẠN",
        "VIVOSSPK02_R001 CHỈ BẰNG",
    )
    lines(tmp_path / "vivos/test/prompts.txt", "VIVOSDEV01_R002 TIẾNG CẠP")
    lines(tmp_path / "vivos/train/genders.txt", "VIVOSSPK01 m")
    got = run(tmp_path / "vivos", tmp_path / "out")
    assert dict(zip(got.texts, got.speakers, strict=True)) == {
        "KHÁCH SẠN": "VIVOSSPK01",
        "CHỈ BẰNG": "VIVOSSPK02",
        "TIẾNG CẠP": "VIVOSDEV01",
    }
    assert got.reasons == [] and sorted(s["split"] for s in got.samples) == [
        "test",
        "train",
        "train",
    ]
    assert len(run(tmp_path / "vivos/train", tmp_path / "out2").texts) == 2


def test_vctk(tmp_path):
    sounds_at(
        tmp_path / "vctk",
        *(f"wav48_silence_trimmed/p22{i}/p22{i}_001_mic{m}.flac" for i in (5, 6) for m in (1, 2)),
    )
    for i in (5, 6):
        lines(tmp_path / f"vctk/txt/p22{i}/p22{i}_001.txt", f"Câu của {i}.")
    lines(tmp_path / "vctk/txt/p227/p227_001.txt", "Không có tiếng.")
    lines(tmp_path / "vctk/speaker-info.txt", "ID AGE", "p225 23")
    got = run(tmp_path / "vctk", tmp_path / "out")
    assert got.texts == ["Câu của 5.", "Câu của 6."] and got.speakers == ["p225", "p226"]
    assert len(got.reasons) == 3 and sum("another microphone" in r for r in got.reasons) == 2


def test_librispeech(tmp_path):
    sounds_at(
        tmp_path / "ls",
        "train-clean/19/198/19-198-0000.flac",
        "train-clean/19/198/19-198-0001.flac",
        "dev-clean/26/495/26-495-0000.flac",
    )
    lines(
        tmp_path / "ls/train-clean/19/198/19-198.trans.txt",
        "19-198-0000 MỘT CON MÈO",
        "19-198-0001 HAI CON CHÓ",
    )
    lines(tmp_path / "ls/dev-clean/26/495/26-495.trans.txt", "26-495-0000 BA CON GÀ")
    got = run(tmp_path / "ls", tmp_path / "out")
    assert (
        dict(zip(got.texts, got.speakers, strict=True))
        == {"MỘT CON MÈO": "19", "HAI CON CHÓ": "19", "BA CON GÀ": "26"}
        and got.reasons == []
    )


def test_texts_beside_a_sound_in_other_files(tmp_path):
    sounds_at(tmp_path / "in", "a.wav", "b.wav", "c.WAV", "d.wav", "e.mp3")
    lines(tmp_path / "in/a.lab", "Một.")
    lines(tmp_path / "in/b.normalized.txt", "Hai.")
    lines(tmp_path / "in/b.original.txt", "2.")
    lines(tmp_path / "in/c.TXT", "Ba.")
    lines(tmp_path / "in/d.txt", "Bốn.")
    lines(tmp_path / "in/d.lab", "b oo n")
    lines(
        tmp_path / "in/e.json",
        json.dumps(dict(id="e", wav="x/e.mp3", text="Năm.", speaker="S7", duration=0.5)),
    )
    got = run(tmp_path / "in", tmp_path / "out")
    assert (
        got.texts == ["Một.", "Hai.", "Ba.", "Bốn.", "Năm."]
        and got.reasons == []
        and got.speakers == ["in"] * 4 + ["S7"]
    )


def test_audiofolder_emilia_and_swift(tmp_path):
    sounds_at(tmp_path / "af", "train/0.wav", "train/1.wav", "test/0.wav")
    lines(tmp_path / "af/train/metadata.csv", "file_name,transcription", "0.wav,Một.", "1.wav,Hai.")
    lines(tmp_path / "af/test/metadata.csv", "file_name,transcription", "0.wav,Ba.")
    got = run(tmp_path / "af", tmp_path / "out")
    assert {t: s["split"] for t, s in zip(got.texts, got.samples, strict=True)} == {
        "Một.": "train",
        "Hai.": "train",
        "Ba.": "test",
    } and len(set(got.speakers)) == 2 * 0 + 1
    got = run(tmp_path / "af/train", tmp_path / "out2")
    assert got.texts == ["Một.", "Hai."]
    some(tmp_path)
    emilia = [
        dict(
            id=f"vi_{i}",
            wav=f"{i}.wav",
            text=TEXTS[i],
            duration=0.5,
            speaker=f"S{i}",
            language="vi",
            dnsmos=3.3,
        )
        for i in range(3)
    ]
    assert run(jsonl(tmp_path / "emilia.jsonl", *emilia), tmp_path / "out3").speakers == [
        "S0",
        "S1",
        "S2",
    ]
    swift = [
        dict(query="<audio>Chép lại.", response=TEXTS[0], audios=["0.wav"]),
        dict(query=TEXTS[1], response="<audio>", audios=["1.wav"]),
        dict(query="<audio>", response="", audios=["2.wav"]),
    ]
    got = run(jsonl(tmp_path / "swift.jsonl", *swift), tmp_path / "out4")
    assert got.texts == TEXTS[:2] and "text is empty" in got.reasons[0]


def in_cp1258(letter):
    "A letter in cp1258: precomposed, or followed by its tone mark."
    apart = unicodedata.normalize("NFD", letter)
    tone = "".join(c for c in apart if c in "\u0300\u0309\u0303\u0301\u0323")
    try:
        letter.encode("cp1258")
    except UnicodeEncodeError:
        return unicodedata.normalize("NFC", "".join(c for c in apart if c not in tone)) + tone
    return letter


def test_encodings_and_excel(tmp_path):
    rows = ["path;text;speaker", *(f"{i}.wav;{t};đạt" for i, t in enumerate(TEXTS[:3]))]
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        got = run(
            table_of(tmp_path, f"{encoding}.csv", *rows, encoding=encoding), tmp_path / encoding
        )
        assert got.texts == TEXTS[:3] and got.speakers == ["đạt"] * 3
    assert run(table_of(tmp_path, "sep.csv", "sep=;", *rows), tmp_path / "sep").texts == TEXTS[:3]
    assert (
        run(table_of(tmp_path, "wide.csv", *(r + ";;" for r in rows)), tmp_path / "wide").texts
        == TEXTS[:3]
    )
    old = "".join(map(in_cp1258, "\n".join(rows).replace("Một", "Đi chợ, một")))
    (tmp_path / "old.csv").write_bytes(old.encode("cp1258"))
    with pytest.raises(
        ValueError, match="not UTF-8 text .* its words are Vietnamese in cp1258"
    ):
        read_table(tmp_path / "old.csv")
    with pytest.raises(
        ValueError, match="not Vietnamese in cp1252: .*set the parameter encoding to cp1258"
    ):
        read_table(tmp_path / "old.csv", encoding="cp1252")
    assert run(tmp_path / "old.csv", tmp_path / "old", encoding="cp1258").texts[1:] == TEXTS[1:3]
    (tmp_path / "fr.csv").write_bytes("path,text\n0.wav,Où êtes-vous, François\n".encode("cp1252"))
    with pytest.raises(ValueError, match="not Vietnamese in cp1258 either"):
        read_table(tmp_path / "fr.csv")
    twice = "Xin chào các bạn".encode().decode("cp1252", "replace")
    got = run(
        table_of(
            tmp_path,
            "moji.csv",
            "path,text,speaker",
            f"0.wav,{twice},a",
            "1.wav,ði thôi,a",
            "2.wav,Đi thôi.,a",
        ),
        tmp_path / "moji",
    )
    assert got.texts == ["Đi thôi."] and all("text is misread" in r for r in got.reasons)


def test_what_a_page_wrote_around_the_words(tmp_path):
    said = [
        "Cơm &amp; <b>phở</b>.",
        "Speaker 0: Chào em.",
        "1 < 2 và 3 > 2",
        "&lt;i&gt;Nghiêng&lt;/i&gt;",
        "[S1] Một.",
        "Speaker 0: Chào. Speaker 1: Ừ.",
    ]
    for i in range(6):
        wav(tmp_path / f"{i}.wav", i)
    got = run(
        jsonl(
            tmp_path / "t.jsonl",
            *(dict(audio=f"{i}.wav", text=t, speaker="a") for i, t in enumerate(said)),
        ),
        tmp_path / "out",
    )
    assert (
        got.texts == ["Cơm & phở .", "Chào em.", "1 < 2 và 3 > 2", "Nghiêng", "Một."]
        and "labels of several speakers" in got.reasons[0]
    )


def test_what_must_be_unpacked_says_how(tmp_path):
    (tmp_path / "arrow").mkdir()
    (tmp_path / "arrow/state.json").write_text("{}")
    (tmp_path / "arrow/data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict/dataset_dict.json").write_text("{}")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/0.tar").write_bytes(b"x")
    with tarfile.open(tmp_path / "w.tar", "w") as t:
        t.addfile(tarfile.TarInfo("a"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        z.writestr("a", "b")
    for name, source in (("no.csv", "z.zip"), ("no.txt", "w.tar")):
        (tmp_path / name).write_bytes((tmp_path / source).read_bytes())
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    (tmp_path / "t.csv.gz").write_bytes(b"\x1f\x8b")
    for name, words in dict(
        arrow="load_from_disk",
        dict="load_from_disk",
        tars="tar -xf",
        **{
            "w.tar": "tar -xf",
            "z.zip": "unzip",
            "no.csv": "unzip",
            "no.txt": "tar -xf",
            "t.xlsx": "save the sheet as CSV",
            "t.csv.gz": "gunzip",
        },
    ).items():
        with pytest.raises(ValueError, match=words) as e:
            read_source(DataSettings(table=str(tmp_path / name), output_dir=str(tmp_path / "out")))
        assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)


PARQUET = {
    "binary_view": lambda: pa.array([encoded(i) for i in range(3)], pa.binary_view()),
    "large": lambda: pa.array([encoded(i) for i in range(3)], pa.large_binary()),
    "fixed": lambda: pa.array([encoded(i) for i in range(3)], pa.binary(len(encoded(0)))),
    "array": lambda: pa.array(
        [
            dict(array=spoken(i, 0.5, 16_000).tolist(), sampling_rate=16_000, path=f"{i}.wav")
            for i in range(3)
        ]
    ),
    "list": lambda: pa.array([[dict(bytes=encoded(i), path=f"{i}.wav")] for i in range(3)]),
    "path alone": lambda: pa.array([dict(path=f"{i}.wav") for i in range(3)]),
    "no bytes": lambda: pa.array(
        [dict(bytes=None, path=f"{i}.wav") for i in range(3)],
        pa.struct(dict(bytes=pa.binary(), path=pa.string())),
    ),
    "string_view": lambda: pa.array([f"{i}.wav" for i in range(3)], pa.string_view()),
    "dictionary": lambda: pa.array([f"{i}.wav" for i in range(3)]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_sounds_in_every_type_of_parquet(tmp_path, kind):
    pq.write_table(
        pa.table(dict(audio=PARQUET[kind](), text=TEXTS[:3], speaker=["a", "b", "a"])),
        some(tmp_path) / "t.parquet",
    )
    got = run(tmp_path / "t.parquet", tmp_path / "out")
    assert (
        got.texts == TEXTS[:3]
        and got.speakers == ["a", "b", "a"]
        and {s["duration"] for s in got.samples} == {0.5}
    )


def test_parquet_cells_that_are_no_sound_or_no_text(tmp_path):
    good = dict(array=spoken(0, 0.5, 16_000).tolist(), sampling_rate=16_000)
    odd = [
        good,
        good | dict(sampling_rate=0),
        good | dict(array=[]),
        None,
        good | dict(sampling_rate=None),
    ]
    pq.write_table(pa.table(dict(audio=odd, text=["Một."] * 5)), tmp_path / "t.parquet")
    assert len(run(tmp_path / "t.parquet", tmp_path / "out").reasons) == 4
    several = [[dict(bytes=encoded(0), path="0")] * 2, [], [dict(bytes=encoded(1), path="1")]]
    pq.write_table(
        pa.table(dict(audio=several, text=[b"M\xe1t.", b"Hai.", b"Ba."])), tmp_path / "l.parquet"
    )
    got = run(tmp_path / "l.parquet", tmp_path / "out2")
    assert got.texts == ["Ba."] and "not valid UTF-8" in got.reasons[0]


def test_names_of_columns_that_utf8_does_not_have(tmp_path):
    some(tmp_path)
    bad = {
        "t.jsonl": jsonl(
            tmp_path / "t.jsonl",
            row(0),
            r'{"audio": "1.wav", "text": "Hai.", "speaker": "lan", "x\ud83d": 1}',
        ),
        "t.csv": tmp_path / "t.csv",
    }
    bad["t.csv"].write_bytes(
        "path,text,speaker,x?\n0.wav,Một đường thẳng đẹp.,lan,\n1.wav,Hai.,lan,".encode().replace(
            b"?", b"\xe1"
        )
    )
    for name, table in bad.items():
        assert len(run(table, tmp_path / f"{name}.out").texts) == 2


def test_a_table_without_header_of_which_no_line_can_be_read(tmp_path):
    table = lines(some(tmp_path) / "t.csv", '0.wav,"Một', '1.wav,"Hai', '2.wav,"Ba')
    with pytest.raises(
        ValueError, match="none of the 3 rows of the table .*t.csv is usable .*quotation mark"
    ):
        read_table(table)


# A table without header, judged by its cells; a doubtful guess asks.

def bared(text):
    "`text` without diacritics, as old systems stored it."
    apart = unicodedata.normalize("NFD", text.replace("đ", "d").replace("Đ", "D"))
    return "".join(c for c in apart if not unicodedata.combining(c))


LABELS = {
    "emotions": ["vui", "buồn", "giận"],
    "emotions without marks": ["vui", "buon", "tuc gian"],
    "English emotions": ["happy", "sad", "neutral"],
    "regions": ["bắc", "nam", "trung"],
    "truth values": ["true", "false", "true"],
    "Common Voice's genders": ["male_masculine"] * 3,
}


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_neither_speaker_nor_text(tmp_path, kind, behind):
    rows = [
        f"{i}.wav|{TEXTS[i]}|{c}" if behind else f"{i}.wav|{c}|{TEXTS[i]}"
        for i, c in enumerate(LABELS[kind])
    ]
    table = read_table(lines(some(tmp_path) / "list.txt", *rows))
    assert table.rows["text"].tolist() == TEXTS[:3] and table.rows["speaker"].nunique() == 1
    assert not set(table.rows["speaker"]) & set(LABELS[kind]) and any(
        f"not used: {3 if behind else 2} (" in n for n in table.notes
    )
    named = lines(
        tmp_path / "t.csv",
        "path,text,speaker",
        *(f"{i}.wav,{TEXTS[i]},{c}" for i, c in enumerate(LABELS[kind])),
    )
    with pytest.raises(
        ValueError, match="'speaker', but its cells are .*parameter columns.*speaker= for none"
    ):
        read_table(named)


@pytest.mark.parametrize(
    "third, fourth",
    [
        (["thể_thao", "tin_tức"], None),
        (["đọc", "nói"], None),
        (["lan", "minh"], ["a", "b"]),
        (["lan", "minh"], ["7", "9"]),
    ],
)
def test_what_may_be_a_speaker_or_something_else_asks(tmp_path, third, fourth):
    cells = [
        [f"{i}.wav", TEXTS[i], third[i % 2], *([fourth[i % 2]] if fourth else [])] for i in range(4)
    ]
    table = lines(some(tmp_path, 4) / "list.txt", *map("|".join, cells))
    with pytest.raises(
        ValueError,
        match="3.* may name the speaker or something else.*parameter columns, as in speaker=3, or "
        "speaker= for none",
    ):
        read_table(table)
    assert read_table(table, columns="speaker=3").rows["speaker"].tolist() == third * 2
    assert read_table(table, columns="speaker=").rows["speaker"].nunique() == 1


@pytest.mark.parametrize(
    "names", [["Lan", "Minh"], ["spk01", "spk02"], ["Nguyễn Văn An", "Trần Hoà"]]
)
@pytest.mark.parametrize("behind", [True, False])
def test_names_that_look_like_names_are_speakers(tmp_path, names, behind):
    rows = [
        f"{i}.wav|{TEXTS[i]}|{names[i % 2]}" if behind else f"{i}.wav|{names[i % 2]}|{TEXTS[i]}"
        for i in range(4)
    ]
    rows = read_table(lines(some(tmp_path, 4) / "list.txt", *rows)).rows
    assert rows["text"].tolist() == TEXTS and rows["speaker"].tolist() == names * 2


def test_the_text_with_its_marks_wins_and_the_speaker_beside_an_emotion_is_found(tmp_path):
    some(tmp_path, 4)
    for name, order in dict(last=(0, 1), first=(1, 0)).items():
        rows = [[TEXTS[i], bared(TEXTS[i])] for i in range(4)]
        table = lines(
            tmp_path / f"{name}.txt",
            *(f"{i}.wav|{r[order[0]]}|{r[order[1]]}" for i, r in enumerate(rows)),
        )
        assert read_table(table).rows["text"].tolist() == TEXTS
    for name, other in dict(ipa="m ɔ t k ɔ n", english="One black cat.").items():
        table = lines(
            tmp_path / f"{name}.txt", *(f"{i}.wav|{TEXTS[i]}|{other} {i}" for i in range(4))
        )
        assert read_table(table).rows["text"].tolist() == TEXTS
    both = lines(
        tmp_path / "both.txt",
        *(f"{i}.wav|{TEXTS[i]}|Đây là chuyện khác hẳn {i}." for i in range(4)),
    )
    with pytest.raises(ValueError, match="of which 2 and 3 could be the text: .*parameter columns"):
        read_table(both)
    table = lines(
        tmp_path / "four.txt",
        *(
            f"{i}.wav|{'an' if i % 2 else 'bo'}|{'vui' if i % 3 else 'buồn'}|{TEXTS[i]}"
            for i in range(4)
        ),
    )
    assert read_table(table).rows[["speaker", "text"]].values.tolist() == [
        ["an" if i % 2 else "bo", TEXTS[i]] for i in range(4)
    ]
    with pytest.raises(ValueError, match="has no header and 4 columns and no column '9'"):
        read_table(table, columns="text=9")
    named = lines(
        tmp_path / "t.csv",
        "path,normalized_text,sentence,speaker",
        *(f"{i}.wav,{bared(TEXTS[i])},{TEXTS[i]},a" for i in range(4)),
    )
    with pytest.raises(
        ValueError,
        match="'normalized_text' and the same with tone marks in 'sentence'; .*text=sentence or "
        "text=normalized_text",
    ):
        read_table(named)
    assert read_table(named, columns="text=normalized_text").rows["text"][0] == "Mot con meo."


def test_one_word_is_a_person_a_region_or_a_text():
    assert [
        kind_of(c)
        for c in (
            ["Nam"],
            ["Trung"],
            ["Nam", "Trung"],
            ["bắc", "nam"],
            ["Miền Bắc"],
            ["vui"],
            ["Vui.", "Buồn!"],
        )
    ] == ["", "", "", "region", "region", "emotion", ""]


# Values of other types, empty paths.

ODD_VALUES = {"boolean": True, "number": 1.5, "list": ["Một."], "object": dict(text="Một.")}


@pytest.mark.parametrize("kind", ODD_VALUES)
@pytest.mark.parametrize(
    "name", ["text", "speaker", "audio", "emotion", "split", "duration", "valid"]
)
@pytest.mark.parametrize("source", ["jsonl", "json", "parquet"])
def test_a_value_of_another_type_costs_its_own_row(tmp_path, name, kind, source):
    value = ODD_VALUES[kind]
    if kind in dict(duration=["number"], valid=["boolean", "number"]).get(name, []):
        return
    rows = [row(i, split="train", emotion="vui", duration=0.5, valid=True) for i in range(3)]
    rows[1][name] = value
    some(tmp_path)
    if source == "parquet":  # a column has one type there: in a shard of its own
        if name == "audio" and kind == "list":
            return  # of one path, which is read
        for i, r in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([r]), tmp_path / f"{i}.parquet")
        table = tmp_path
    else:
        table = (
            jsonl(tmp_path / "t.jsonl", *rows)
            if source == "jsonl"
            else lines(tmp_path / "t.json", json.dumps(rows))
        )
    got = run(table, tmp_path.with_name(tmp_path.name + "out"))
    ours = dict(audio="file").get(name, name)
    if name == "audio" and kind == "list":
        assert "no such audio file" in got.reasons[0]
    else:
        assert re.match(
            rf"its {ours} is an? {kind} \(.*\): it must be a string.*row 2 of .*column '{name}'",
            got.reasons[0],
        ), got.reasons
    assert got.texts == ["Câu số 0.", "Câu số 2."] and len(got.reasons) == 1


def test_numbers_that_are_no_text_no_path_and_are_speakers(tmp_path):
    rows = [
        row(0, text=5),
        row(1, audio=2),
        row(2, speaker=7),
        row(3, speaker=8.0),
        row(4, speaker=None),
    ]
    got = run(jsonl(some(tmp_path, 5) / "t.jsonl", *rows), tmp_path / "out")
    assert (
        got.speakers == ["7", "8"]
        and "its text is an integer (5): it must be a string" in got.reasons[0]
    )
    assert (
        "its file is an integer (2)" in got.reasons[1] and "speaker is empty" in got.reasons[2]
    )


def test_an_empty_path_is_named_as_such(tmp_path):
    some(tmp_path)
    got = run(
        lines(
            tmp_path / "t.csv",
            "path,text,speaker",
            "0.wav,Một.,a",
            ",Hai.,a",
            "-,Ba.,a",
            ".,Bốn.,a",
        ),
        tmp_path / "out",
    )
    assert got.texts == ["Một."] and ["its path is empty" in r for r in got.reasons] == [
        True,
        True,
        False,
    ]
    assert "in row 2 of t.csv, column 'path'" in got.reasons[0] and got.reasons[2].endswith(
        "is a folder; name a file in it"
    )
    wav(tmp_path / "NA.wav", 5)
    assert run(
        lines(tmp_path / "na.csv", "path,text,speaker", "NA,Một.,a"), tmp_path / "out2"
    ).texts == ["Một."]


def test_class_numbers_of_datasets_are_read_as_their_names(tmp_path):
    features = dict(
        gender=dict(_type="ClassLabel", names=["male", "female"]),
        speaker_id=dict(_type="ClassLabel", names=["lan", "minh"]),
        emotion=dict(_type="ClassLabel", names=["vui", "buồn"]),
        text=dict(_type="Value", dtype="string"),
    )
    table = pa.table(
        dict(
            audio=[f"{i}.wav" for i in range(3)],
            text=TEXTS[:3],
            gender=[1, 0, 1],
            speaker_id=[0, 1, 0],
            emotion=[-1, 0, 1],
        )
    )
    info = {b"huggingface": json.dumps(dict(info=dict(features=features))).encode()}
    pq.write_table(table.replace_schema_metadata(info), some(tmp_path) / "t.parquet")
    got = run(tmp_path / "t.parquet", tmp_path / "out")
    assert got.speakers == ["lan", "minh", "lan"] and [s["gender"] for s in got.samples] == [
        "female",
        "male",
        "female",
    ]
    assert [s["emotion"] for s in got.samples] == ["unknown", "vui", "buồn"]


def test_parquet_with_paths_as_bytes_and_splits_by_shards(tmp_path):
    some(tmp_path, 4)
    for name, ids, kind in (
        ("train-00000-of-00001", (0, 1), pa.binary(8)),
        ("test-00000-of-00001", (2, 3), pa.binary()),
    ):
        paths = pa.array(
            [f"{i}.wav".encode().ljust(8, b"\0" if kind != pa.binary() else b" ") for i in ids],
            kind,
        )
        pq.write_table(
            pa.table(dict(audio=paths, text=[TEXTS[i] for i in ids])), tmp_path / f"{name}.parquet"
        )
    got = run(tmp_path, tmp_path.with_name("shards_out"))
    assert {t: s["split"] for t, s in zip(got.texts, got.samples, strict=True)} == {
        t: "train" if i < 2 else "test" for i, t in enumerate(TEXTS)
    }
    twice = pa.Table.from_arrays(
        [pa.array(["0.wav"]), pa.array([b"0.wav"]), pa.array(["Một."])],
        names=["audio", "audio", "text"],
    )
    pq.write_table(twice, tmp_path / "twice.parquet")
    assert run(tmp_path / "twice.parquet", tmp_path / "out_twice").texts == ["Một."]


# Names that are no folder or no file.

def test_a_file_where_a_folder_belongs_and_the_reverse(tmp_path):
    table = lines(some(tmp_path) / "t.csv", "path,text,speaker", "0.wav,Một.,a")
    for out, words in (
        ("t.csv", "t.csv is a file: name another folder"),
        ("t.csv/x", "t.csv is a file"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["--table", str(table), "--output_dir", str(tmp_path / out)])
        assert (
            words in str(end.value)
            and "parameter output_dir" in str(end.value)
            and "Errno" not in str(end.value)
        )
    assert table.read_text(encoding="utf-8").startswith("path")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    with pytest.raises(ValueError, match="nowhere is a broken link: .*parameter output_dir"):
        run(table, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="t.csv is not a Higgs folder: it is a file"):
        read_samples(table)
    run(table, tmp_path / "out")
    for report, words in (
        ("out", "is a folder: name a file in it"),
        ("t.csv/r.csv", "t.csv is a file"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*parameter report"):
            check(CheckSettings(data=str(tmp_path / "out"), report_file=str(tmp_path / report)))
    assert run(tmp_path / "out/metadata.json", tmp_path / "again").kind == "higgs"


# What is no table, or one under another name.

class MakesAFolder:
    "An object whose pickle creates a folder when it is loaded."
    def __init__(self, path): self.path = path

    def __reduce__(self): return os.mkdir, (self.path,)


def test_files_that_are_no_tables_say_what_they_are(tmp_path):
    ran = tmp_path / "ran"
    some(tmp_path, 1)
    for name, raw, words in (
        ("t.csv", pickle.dumps(MakesAFolder(str(ran))), "is a pickle, .* never loaded"),
        ("t.pkl", b"(dp0\n.", "is a pickle"),
        ("m.pt", b"PK\x03\x04", "is a pickle"),
        ("t.txt", b"\x93NUMPY\x01\0", "NumPy arrays"),
        ("t.db", b"SQLite format 3\0", "database"),
        ("t.pdf", b"%PDF-1.4", "is a document"),
        ("t.tsv", bytes(range(256)) * 9, "is a binary file, not text"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError, match=words) as e:
            read_source(DataSettings(table=str(tmp_path / name), output_dir=str(tmp_path / "out")))
        assert str(tmp_path / name) in str(e.value) and "UTF-16" not in str(e.value)
    with pytest.raises(ValueError, match="is an audio file, not a table"):
        read_table(tmp_path / "0.wav")
    assert not ran.exists()
    text = "path,text\n0.wav,Đi đâu đấy, đường đẹp đẽ đông đúc.\n" * 5
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "w.csv").write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match="looks like UTF-16"):
            read_table(tmp_path / "w.csv")


def test_a_list_of_transcripts_is_a_table_too(tmp_path):
    who = ["VIVOSSPK01", "VIVOSSPK02"]
    sounds_at(
        tmp_path / "vivos",
        *(f"waves/{s}/{s}_R{i}.wav" for s in who for i in range(2)),
        "waves/X/twice.wav",
        "waves/Y/twice.wav",
    )
    prompts = lines(
        tmp_path / "vivos/prompts.txt",
        *(f"{s}_R{i} CÂU {s} {i}" for s in who for i in range(2)),
        "NONE_R0 MẤT RỒI",
        "twice HAI LẦN",
        "VIVOSSPK01_R1",
    )
    got = run(prompts, tmp_path / "out")
    assert (
        got.texts == [f"CÂU {s} {i}" for s in who for i in range(2)]
        and got.speakers == [s for s in who for _ in range(2)]
        and got.kind == "list"
    )
    for reason, words in zip(
        got.reasons,
        [
            "names 'NONE_R0', but 0 audio files",
            "names 'twice', but 2 audio files",
            "line 7 of prompts.txt has no text",
        ], strict=True,
    ):
        assert words in reason
    other = lines(tmp_path / "vivos/other.txt", "Xin chào các bạn.", "Hẹn gặp lại.")
    with pytest.raises(ValueError, match="has no header"):
        read_table(other)


def test_a_part_of_a_kaldi_folder_stands_for_it(tmp_path):
    sounds_at(tmp_path, "u1.wav")
    for name, line in {
        "wav.scp": "u1 u1.wav",
        "text": "u1 Một hai ba.",
        "utt2spk": "u1 lan",
    }.items():
        lines(tmp_path / name, line)
    for name in ("text", "wav.scp", "utt2spk"):
        assert read_table(tmp_path / name).rows[["text", "speaker"]].values.tolist() == [
            ["Một hai ba.", "lan"]
        ]


def test_files_beside_a_sound_that_are_not_read_are_named(tmp_path):
    sounds_at(tmp_path / "in", "a.wav", "b.wav", "c.wav", "d.wav", "e.wav")
    for name in ("a.en.srt", "b.TextGrid", "d.wav.srt"):
        lines(tmp_path / "in" / name, "x")
    lines(tmp_path / "in/e.txt", "Năm.")
    got = run(tmp_path / "in", tmp_path / "out")
    assert (
        "subtitles a.en.srt beside it are not read: if they are Vietnamese, name them a.srt or "
        "a.vi.srt"
        in got.reasons[0]
    )
    assert (
        "b.TextGrid beside it is not read" in got.reasons[1]
        and got.reasons[2].endswith("add the text")
        and "d.wav.srt" in got.reasons[3]
    )
    (tmp_path / "in/e.txt").unlink()
    lines(
        tmp_path / "in/validated.tsv",
        "path\tsentence\tclient_id",
        *(f"{n}.wav\tCâu {n}.\tp1" for n in "ab"),
    )
    with pytest.raises(
        ValueError,
        match="holds 5 audio files without texts beside them; it holds validated.tsv: give one",
    ):
        read_table(tmp_path / "in")


SWIFT = {
    "a path in the message": dict(query="<audio>0.wav</audio>Chép.", response=TEXTS[0]),
    "one path": dict(query="<audio>", response=TEXTS[0], audios="0.wav"),
    "no messages": dict(query="<audio>", response=TEXTS[0], audios=["0.wav"], messages=None),
    "parts": dict(
        messages=[
            dict(
                role="user",
                content=[dict(type="audio", audio="0.wav"), dict(type="text", text="Chép.")],
            ),
            dict(role="assistant", content=[dict(type="text", text=TEXTS[0])]),
        ]
    ),
    "conversations": dict(
        conversations=[{"from": "human", "value": "<audio>"}, {"from": "gpt", "value": TEXTS[0]}],
        audios=[dict(path="0.wav")],
    ),
    "text": dict(audios=["0.wav"], text=TEXTS[0]),
}
SWIFT_FAULTS = {
    "no audios": (
        dict(query="Chép.", response="Một."),
        r'has 0 path\(s\) in audios: a clip has one, as in "audios"',
    ),
    "response alone": (
        dict(response="Một.", audios=["1.wav"]),
        "has audios and response, but no text: ms-swift's rows have messages, or query and "
        "response",
    ),
    "query alone": (dict(query="Một.", audios=["1.wav"]), "has audios and query, but no text"),
    "a number": (
        dict(query="<audio>", response=5, audios=["1.wav"]),
        r"a message is an integer \(5\): it must be a string",
    ),
    "a path that is true": (
        dict(query="<audio>", response="Một.", audios=[True]),
        r"path in audios is a boolean \(True\): it must be a string",
    ),
    "two texts": (
        dict(
            messages=[
                dict(role="user", content="Một."),
                dict(role="user", content="Hai."),
                dict(role="assistant", content="<audio>"),
            ],
            audios=["1.wav"],
        ),
        "2 of its messages could be the text",
    ),
}


@pytest.mark.parametrize("kind", [*SWIFT, *SWIFT_FAULTS])
def test_turns_of_swift_are_read_or_say_what_is_missing(tmp_path, kind):
    some(tmp_path)
    good = dict(query="<audio>", response="Ba con gà.", audios=["2.wav"])
    if kind in SWIFT:
        assert run(jsonl(tmp_path / "t.jsonl", SWIFT[kind], good), tmp_path / "out").texts == [
            TEXTS[0],
            "Ba con gà.",
        ]
    else:
        bad, words = SWIFT_FAULTS[kind]
        got = run(jsonl(tmp_path / "t.jsonl", bad, good), tmp_path / "out")
        assert got.texts == ["Ba con gà."] and re.search(words, got.reasons[0]), got.reasons
        assert not any("not used" in n for n in got.notes)


# Notes of transcribers.

NOTED = [
    "<unk> đi đâu",
    "Xin chào (không nghe rõ) bạn",
    "[inaudible]",
    "đi xxx về",
    "xxx",
    "&lt;unk&gt; đi",
    "Chào ((không rõ))",
    "[không nghe được 00:12]",
    "<UNK>",
]
SOUNDED = [
    "[tiếng cười] Xin chào",
    "<laugh> Xin chào",
    "Xin [noise] chào",
    "(cười) Chào",
    "*vỗ tay* Chào",
    "<|audio_eos|> Chào",
    "♪ la la ♪",
    "<noise/> Chào",
    "[1] Chào",
    "{laugh} Chào",
]
SPOKEN = [
    "Thế kỷ XXX",
    "Anh (Nam) chào",
    "a < b và c > d",
    "Xin <br> chào",
    "(tiếng Pháp) Chào",
    "Nó nói tiếng lóng (tiếng lóng là thế)",
    "Xin chào…",
    "Ha ha, cười gì?",
]


def test_notes_of_transcribers_are_set_aside_and_words_stay(tmp_path):
    texts = [
        *NOTED,
        *SOUNDED,
        '{"text": "Xin chào"}',
        "{'text': 'Xin'}",
        '["Xin chào"]',
        *SPOKEN,
        "[SPEAKER0] Chào anh. [SPEAKER1] Ừ.",
    ]
    for i in range(len(texts)):
        wav(tmp_path / f"{i}.wav", i)
    got = run(
        jsonl(
            tmp_path / "t.jsonl",
            *(dict(audio=f"{i}.wav", text=t, speaker="a") for i, t in enumerate(texts)),
        ),
        tmp_path / "out",
    )
    assert got.texts == [
        *(t.replace("<br> ", "") for t in SPOKEN),
        "[SPEAKER0] Chào anh. [SPEAKER1] Ừ.",
    ]
    words = (
        ["words were not understood"] * len(NOTED)
        + ["which is not spoken"] * len(SOUNDED)
        + ["is JSON"] * 3
    )
    for reason, w in zip(got.reasons, words, strict=True):
        assert w in reason


def test_a_higgs_folder_with_notes_is_odd_and_its_references_are_read_alike(tmp_path):
    run(
        lines(some(tmp_path) / "t.csv", "path,text,speaker", "0.wav,Một.,a", "1.wav,Hai.,a"),
        tmp_path / "out",
    )
    (tmp_path / "out/a_000001.txt").write_text("Hai <laugh>.", encoding="utf-8")
    faults = check(CheckSettings(data=str(tmp_path / "out")))[1]
    assert faults["what"].str.contains("its text holds '<laugh>', which is not spoken").sum() == 1
    meta = json.loads((tmp_path / "out/metadata.json").read_text(encoding="utf-8"))
    meta["samples"][0] |= dict(ref_audio_file="a_000001.wav", ref_transcript="Hai [cười].")
    (tmp_path / "out/metadata.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(ValueError, match="its reference's transcript holds .*its text holds"):
        run(tmp_path / "out", tmp_path / "again")


def test_notes_take_linear_time():
    for part in ("(", "[", "<", "{", "*", "<a ", "(a", "xxx", "[a]", "a ", '{"'):
        text, began = part*(100_000//len(part)), time.process_time()
        without_notes(text)
        why_noted(text)
        assert time.process_time() - began < 1, part


# A whole table in one JSON object, a table out of Excel or of `datasets`.

def test_tables_as_programs_export_them(tmp_path):
    some(tmp_path)
    rows = [dict(audio=f"{i}.wav", text=TEXTS[i], speaker="lan") for i in range(3)]
    frame = pd.DataFrame(rows)
    frame.to_json(tmp_path / "columns.json")
    frame.to_json(tmp_path / "split.json", orient="index")
    lines(tmp_path / "data.json", json.dumps(dict(data=rows)))
    lines(tmp_path / "lists.json", json.dumps(frame.to_dict("list")))
    lines(tmp_path / "map.json", json.dumps({r["audio"]: r["text"] for r in rows}, indent=1))
    lines(tmp_path / "pretty.json", *(json.dumps(r, indent=1) for r in rows))
    frame.assign(audio=[str(dict(bytes=None, path=f"{i}.wav")) for i in range(3)]).to_csv(
        tmp_path / "hf.csv"
    )
    head = ["STT", "Tên file", "Người đọc", "Nội dung", "Giới tính"]
    cells = [[str(i), f"{i}", "lan", TEXTS[i], "nữ"] for i in range(3)]
    lines(
        tmp_path / "excel.csv",
        "DANH SÁCH;;;;",
        ";;;;",
        *(";".join(r) for r in [head, *cells]),
        encoding="utf-8-sig",
    )
    lines(
        tmp_path / "excel.txt",
        *("\t".join(map(lambda c: unicodedata.normalize("NFD", c), r)) for r in [head, *cells]),
        encoding="utf-16",
    )
    lines(tmp_path / "id.csv", "id|text|speaker", *(f"{i}|{TEXTS[i]}|lan" for i in range(3)))
    for name in (
        "columns.json",
        "data.json",
        "lists.json",
        "map.json",
        "pretty.json",
        "hf.csv",
        "excel.csv",
        "excel.txt",
        "id.csv",
    ):
        got = run(tmp_path / name, tmp_path / f"{name}.out")
        assert got.texts == TEXTS[:3] and len(got.reasons) == (name == "excel.csv"), name
        assert name == "map.json" or got.speakers == ["lan"] * 3
    with pytest.raises(ValueError, match="no column for file"):
        read_table(lines(tmp_path / "no.csv", "id,text", "x,Một.", "y,Hai."))


def test_cells_of_text_and_speaker_in_each_other_s_place_are_asked_about(tmp_path):
    for i in range(4):
        wav(tmp_path / f"{i}.wav", i)
    rows = [f"{i}.wav,cv_{i}a7,{t} và nói thêm một câu" for i, t in enumerate(TEXTS[:4])]
    table = lines(tmp_path / "a.csv", "audio,text,speaker", *rows)
    with pytest.raises(ValueError, match="its cells are (identifiers|sentences).*columns"):
        run(table, tmp_path / "out")


def test_start_and_end_cut_a_file_that_several_rows_name(tmp_path):
    sf.write(
        tmp_path / "long.wav", np.concatenate([spoken(i, 1.0, 16_000) for i in range(3)]), 16_000
    )
    rows = [f"long.wav,{t},a,{i},{i + 1}" for i, t in enumerate(TEXTS[:3])]
    got = run(lines(tmp_path / "a.csv", "audio,text,speaker,start,end", *rows), tmp_path / "out")
    assert got.texts == TEXTS[:3] and {s["duration"] for s in got.samples} == {1.0}
    assert "start <- start, end <- end" in " ".join(got.notes)
    for i in range(3):
        wav(tmp_path / f"{i}.wav", i)
    rows = [f"{i}.wav,{t},a,{60 + i},{61 + i}" for i, t in enumerate(TEXTS[:3])]  # cut already
    got = run(lines(tmp_path / "b.csv", "audio,text,speaker,start,end", *rows), tmp_path / "cut")
    assert got.texts == TEXTS[:3] and {s["duration"] for s in got.samples} == {0.5}


def test_texts_that_a_spreadsheet_or_an_escape_spoilt_are_refused():
    for text in ("L?p t?c có ti?ng tr? l?i", "“Ti?ng” gì", "Xin ch\\u00e0o", "#NAME?", "=A1+B1"):
        assert why_misread(text), text
    for text in (
        "Bạn ăn chưa?rồi",
        "Thật không?",
        "Ai đó?Anh",
        "2+2=4",
        "http://a.vn/x?y=1",
        "# một",
    ):
        assert not why_misread(text), text


@pytest.mark.parametrize(
    "name, word", [("a.srt", "subtitles"), ("a.html", "a web page"), ("a.ass", "subtitles")]
)
def test_a_file_that_is_no_table_is_named(tmp_path, name, word):
    with pytest.raises(ValueError, match=word):
        run(
            lines(tmp_path / name, "1", "00:00:00,000 --> 00:00:01,000", "Xin chào."),
            tmp_path / "out",
        )
