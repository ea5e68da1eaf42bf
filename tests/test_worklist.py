"""Many texts at once: what is spoken, kept and set aside, and what is spoken again."""
import csv
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from higgs_vi import say, worklist
from higgs_vi.audio import read_audio, write_wav
from higgs_vi.prompt import Reference
from higgs_vi.say import SaySettings, main, open_worklist
from higgs_vi.speech import Speech
from higgs_vi.worklist import COLUMNS, read_items

ENGINE = SimpleNamespace(parts=SimpleNamespace(codec="codec"))


@pytest.fixture
def spoken(monkeypatch, tmp_path):
    """Replace the model: a text is a tone of 0.1 s per letter, spoken last row first.

    Returns the list of (text, seed, voice codes) that are asked for. A text with "câm" says
    nothing, and after a text with "ngắt" the user interrupts.
    """
    asked = []

    def fake(engine, prompts, samplings, piece_words=0, check=None):
        for i in reversed(range(len(prompts))):
            text, codes = prompts[i].text, [r.codes.shape for r in prompts[i].references]
            asked.append((text, samplings[i].seed, codes))
            wave = np.sin(np.arange(2400 * len(text)) * 0.1).astype(np.float32) / 3
            silent = ValueError("the model said nothing")
            heard = check(text, wave)[1] if check else ""
            speech = Speech(wave, np.zeros((8, 1)), True, tries=2, word_problem=heard)
            yield i, silent if "câm" in text else speech
            if "ngắt" in text: raise KeyboardInterrupt

    def load_speaker(cfg):
        asked.append("load")
        return ENGINE

    def load_voice(codec, folder, name, cache):
        return Reference(say.read_transcript(folder, name), np.zeros((8, 5), int))

    monkeypatch.setattr(worklist, "say_all", fake)
    monkeypatch.setattr(say, "load_speaker", load_speaker)
    monkeypatch.setattr(say, "load_voice", load_voice)
    monkeypatch.setattr(say, "CodeCache", lambda folder, codec, **_: SimpleNamespace(codec=codec))
    monkeypatch.chdir(tmp_path)
    Path("data/voices").mkdir(parents=True)
    write_wav("data/voices/lan.wav", np.zeros(24_000, np.float32))
    Path("data/voices/lan.txt").write_text("Xin chào.", encoding="utf-8")
    return asked


def run(rows, *options, header="text,voice,seed,out"):
    "Write the table a.csv, run the command on it, and return its results by row."
    Path("a.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    main(["--texts", "a.csv", *options])
    return results()


def results():
    lines = pd.read_csv("data/a/results.csv", keep_default_na=False, dtype=str).to_dict("records")
    return {line["row"]: line for line in lines}


BAD = {
    ",,,x.wav": "must hold at least one word",
    "?! 😀,,,": "must hold at least one word",
    "Chào.,nobody,,": "unknown voice 'nobody': the voices in .* are lan",
    "Chào.,../lan,,": "leaves the folder",
    "Chào <|audio_eos|>.,,,": "control token <|audio_eos|>",
    "[SPEAKER0] Chào. [SPEAKER1] Vâng.,lan,,": r"\[SPEAKER1\] has no voice",
    "[speaker] Chào.,,,": "is not a speaker tag",
    "Chào.,,x,": "the parameter seed is 'x'",
    "Chào.,,-1,": "the parameter seed is -1",
    "Chào.,,,../../b.wav": "inside the folder of the sounds",
    "Chào.,,,/tmp/b.wav": "inside the folder of the sounds",
    "Chào.,,,results.csv": "ends in .wav",
    f"Chào.,,,{'b' * 300}.wav": "File name too long",
    "Chào.,,,A_1.wav": "is that of row 1",
    "Chào, bạn.,,,a.wav": "has 5 cells, but the header has 4",
    "một câu câm,,,": "the model said nothing",
}


def test_bad_rows_are_set_aside_with_their_reason_and_the_others_are_spoken(spoken, capsys):
    found = run(["Xin chào.,lan,7,", *BAD, "Tạm biệt.,,,b/c.wav"])
    assert [a for a in spoken if a != "load"] == [
        ("Tạm biệt.", 0, []), ("một câu câm", 0, []), ("Xin chào.", 7, [(8, 5)])
    ]
    last = str(len(BAD) + 2)
    for row, (cells, why) in enumerate(BAD.items(), 2):
        line = found[str(row)]
        assert line["status"] == "set aside", cells
        assert pd.Series([line["reason"]]).str.contains(why)[0], line["reason"]
    assert found["1"]["status"] == found[last]["status"] == "spoken"
    assert (found["1"]["voice"], found["1"]["seed"], found["1"]["model"]) == ("lan", "7", "nano")
    for row, out in (("1", "a_1.wav"), (last, "b/c.wav")):
        assert found[row]["out"] == out and found[row]["tries"] == "2"
        assert len(read_audio(f"data/a/{out}")) == 2400 * 9 == 24_000 * float(found[row]["seconds"])
    assert f"{last} texts: 2 spoken, {len(BAD)} set aside" in capsys.readouterr().out
    assert not list(Path().rglob("b.wav"))


TABLE = ["Xin chào.,lan,7,", "Hai.,,,", "Ba.,,,c.wav"]


def test_a_second_run_loads_no_model_and_speaks_nothing(spoken, capsys):
    first = run(TABLE)
    del spoken[:]
    again = run(TABLE)
    assert spoken == [] and "3 texts: 3 kept" in capsys.readouterr().out
    for row in first: assert again[row] == first[row] | dict(status="kept")
    assert run(TABLE) == again and spoken == []


@pytest.mark.parametrize(
    "change, again",
    [
        (lambda: [TABLE[0], "Hai hai.,,,", TABLE[2]], ["Hai hai."]),
        (lambda: [TABLE[0], "Hai.,,1,", TABLE[2]], ["Hai."]),
        (lambda: [TABLE[0], "Hai.,lan,,", TABLE[2]], ["Hai."]),
        (lambda: Path("data/voices/lan.txt").write_text("Chào."), ["Xin chào."]),
        (lambda: write_wav("data/voices/lan.wav", np.ones(9600, np.float32)), ["Xin chào."]),
        (lambda: Path("data/a/c.wav").unlink(), ["Ba."]),
        (lambda: os.truncate("data/a/c.wav", 999), ["Ba."]),
        (lambda: Path("data/a/c.wav").write_text("no sound"), ["Ba."]),
    ],
)
def test_a_row_that_changed_is_spoken_again(spoken, change, again):
    run(TABLE)
    del spoken[:]
    rows = change()
    found = run(rows if isinstance(rows, list) else TABLE)
    assert [a[0] for a in spoken[1:]] == again
    assert sorted(line["status"] for line in found.values()) == ["kept", "kept", "spoken"]


def test_another_model_or_setting_speaks_all_again_and_another_device_none(spoken):
    run(TABLE)
    for options, n in ((["--device=cpu"], 0), (["--temperature=0.3"], 4), (["--codec=a/b"], 4)):
        del spoken[:]
        run(TABLE, *options)
        assert len(spoken) == n, options
    Path("model").mkdir()
    for content in ("{}", "{ }"):
        Path("model/config.json").write_text(content)
        del spoken[:]
        run(TABLE, "--model=model")
        assert len(spoken) == 4


@pytest.fixture
def ear(monkeypatch):
    "Replace the recogniser by one that hears 'xin chào' in everything; returns what is loaded."
    loaded = []

    def load(name, device):
        loaded.append((name, device))
        return lambda waves: ["xin chào"] * len(waves)

    monkeypatch.setattr("higgs_vi.textcheck.load_recogniser", load)
    return loaded


def test_rows_are_checked_and_the_reason_says_what_was_heard(spoken, ear, capsys):
    rows = ["Xin chào.,,,", "Tạm biệt anh.,,,"]
    first = run(rows)
    assert not ear and not any(line["reason"] for line in first.values()), "off by default"
    found = run(rows, "--check", "true", "--recogniser", "viet-asr", "--device", "cpu")
    assert ear == [("viet-asr", "cpu")] and [r["status"] for r in found.values()] == ["spoken"] * 2
    assert found["1"]["reason"] == "" and "heard 'xin chào': CER" in found["2"]["reason"]
    del spoken[:], ear[:]
    kept = run(rows, "--check", "true", "--recogniser", "viet-asr")
    assert not spoken and not ear, "nothing is pending: neither model nor recogniser is loaded"
    assert [r["status"] for r in kept.values()] == ["kept"] * 2
    run(rows, "--check", "true", "--recogniser", "viet-asr", "--max_cer", "5")
    assert len(spoken) == 3, "another limit speaks again"


def test_parameters_of_the_check_do_not_speak_again_while_it_is_off(spoken):
    run(["Xin chào.,,,"])
    del spoken[:]
    found = run(["Xin chào.,,,"], "--recogniser", "viet-asr", "--max_cer", "0.5")
    assert not spoken and found["1"]["status"] == "kept"


def test_a_missing_recogniser_ends_the_run_before_a_model_is_loaded(spoken, monkeypatch):
    monkeypatch.setitem(sys.modules, "vietasr", None)
    for texts in ([], ["--texts", "a.csv"]):
        Path("a.csv").write_text("text\nXin chào.\n", encoding="utf-8")
        with pytest.raises(SystemExit, match="higgs-vi-say: .*pip install .*or name another"):
            main([*texts, "--check", "true", "--recogniser", "viet-asr"])
    assert not spoken


def test_an_interrupted_run_goes_on_where_it_stopped(spoken, capsys):
    rows = ["Một.,,,", "Hai ngắt.,,,", "Ba.,,,"]  # the fake begins with the last
    with pytest.raises(SystemExit, match="interrupted .*2 spoken, 1 pending.*again to go on"):
        run(rows)
    assert [line["status"] for line in results().values()] == ["pending", "spoken", "spoken"]
    del spoken[:]
    assert [line["status"] for line in run(rows).values()] == ["spoken", "kept", "kept"]
    assert spoken == ["load", ("Một.", 0, [])]


def test_a_cell_that_was_interrupted_goes_on_when_it_is_run_again(spoken, tmp_path):
    Path("a.csv").write_text("text\nMột.\nHai ngắt.\nBa.\n", encoding="utf-8")
    cfg = SaySettings(texts=str(tmp_path / "a.csv"), output_file=str(tmp_path / "data/b.wav"))
    work = open_worklist(cfg)
    with pytest.raises(KeyboardInterrupt): say.speak_texts(cfg, ENGINE, work)
    del spoken[:]
    say.speak_texts(cfg, ENGINE, work)
    assert spoken == [("Một.", 0, [])] and work.pending == []


def test_a_row_that_repeats_a_name_does_not_make_the_first_one_be_spoken_again(spoken):
    rows = ["Một.,,,x.wav", "Hai.,,,x.wav"]
    for first in ("spoken", "kept", "kept"):
        assert [line["status"] for line in run(rows).values()] == [first, "set aside"]
    assert spoken == ["load", ("Một.", 0, [])]


def test_a_killed_run_keeps_the_lines_it_wrote(spoken):
    "The lines are appended as they come; the last one may be cut off."
    run(TABLE)
    path = Path("data/a/results.csv")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    pending = [line.replace("spoken", "pending") for line in lines]
    path.write_text("\n".join([header, *pending, *lines])[:-30], encoding="utf-8")
    del spoken[:]
    assert [line["status"] for line in run(TABLE).values()] == ["kept", "kept", "spoken"]
    assert spoken == ["load", ("Ba.", 0, [])]


def test_each_line_is_on_disk_as_soon_as_its_sound_is(spoken, monkeypatch):
    seen, finish = [], worklist.Worklist._finish

    def watched(self, item, speech):
        lines = list(csv.reader(self.path.open(encoding="utf-8")))
        seen.append([line[0] for line in lines if "spoken" in line])
        finish(self, item, speech)

    monkeypatch.setattr(worklist.Worklist, "_finish", watched)
    run(TABLE)
    assert seen == [[], ["3"], ["3", "2"]]


def test_what_cannot_be_read_or_written_is_refused_before_a_model_is_loaded(spoken):
    for rows, header, why in (
        (["Một"], "câu hỏi", "has no column text .parameter texts.: it has no header line"),
        ([], "text", "no row below its header"),
        ([",,,", "?,,,"], "text,voice,seed,out", "none of the 1 rows can be spoken .row 1: "),
    ):
        with pytest.raises(SystemExit, match=why): run(rows, header=header)
    with pytest.raises(SystemExit, match="there is no file .*nowhere.csv .parameter texts."):
        main(["--texts", "nowhere.csv"])
    Path("data/a/results.csv").write_text("my,own,table\n")
    with pytest.raises(SystemExit, match="results.csv is not a table of spoken texts"): run(TABLE)
    assert Path("data/a/results.csv").read_text() == "my,own,table\n" and spoken == []


def test_a_row_overrides_voice_profile_and_seed_and_an_empty_cell_does_not(spoken):
    Path("a.csv").write_text("text;profile;seed\nMột.;;\nHai.;'masculine';2\n", encoding="utf-8")
    options, = [i.options for i in read_items("a.csv", "x") if i.options]
    assert options == dict(voice=[], profile=["'masculine'"], seed="2")
    work = open_worklist(SaySettings(texts=str(Path("a.csv").resolve()), voice=["lan"], seed=5,
                                     voices_dir=str(Path("data/voices").resolve()),
                                     output_file=str(Path("data/b.wav").resolve())))
    shown = [(line["voice"], line["profile"], line["seed"]) for line in work.lines.values()]
    assert shown == [("lan", "", 5), ("", "'masculine'", 2)]


def test_json_lines_and_a_dialogue(spoken):
    Path("a.jsonl").write_text(
        '{"text": "[SPEAKER0] Chào. [SPEAKER1] Vâng.", "voice": "lan; lan"}\n{"text": 5}\n',
        encoding="utf-8",
    )
    main(["--texts", "a.jsonl"])
    assert spoken[1] == ("[SPEAKER0] Chào.\n[SPEAKER1] Vâng.", 0, [(8, 5)] * 2)
    assert "its text is an integer (5): it must be a string" in results()["2"]["reason"]
    assert list(results()["1"]) == COLUMNS
