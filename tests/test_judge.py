"""09_judge: what is spoken and judged again, what is left out, and what the figures say."""
import json
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch

from higgs_vi import judge as step
from higgs_vi.audio import DEMO, read_audio, write_wav
from higgs_vi.data import DataSettings, prepare
from higgs_vi.ears import Ears, Take
from higgs_vi.judge import JudgeSettings, judge, list_systems, read_lines
from higgs_vi.model import NANO, load_checkpoint
from higgs_vi.recognise import Recogniser
from higgs_vi.scoreboard import Clip, Scoreboard, differences, figures
from higgs_vi.speech import Speech
from higgs_vi.voiceprint import Voiceprint, Voices


class Mouth:
    "Stands in for `say_all`: each text takes 0.2 s a word; counts what was spoken."

    def __init__(self, fails=()):
        self.said, self.fails = [], fails

    def __call__(self, engine, prompts, samplings, cut):
        assert not cut, "people's recordings have silence at their ends too"
        for i in reversed(range(len(prompts))):  # in any order
            self.said.append((prompts[i].text, samplings[i].seed))
            if any(word in prompts[i].text for word in self.fails):
                yield i, ValueError("the model said nothing")
                continue
            n = int(4800 * len(prompts[i].text.split()))
            wave = np.sin(np.arange(n) / 20, dtype=np.float32) / 4
            yield i, Speech(wave, np.zeros((8, 5), int), True)


@pytest.fixture
def mouth(monkeypatch):
    said = Mouth()
    monkeypatch.setattr(step, "say_all", said)
    monkeypatch.setattr(step, "Engine", lambda parts: parts)
    monkeypatch.setattr(step, "load_system", lambda cfg, system: load_checkpoint(NANO))
    return said


@pytest.fixture
def ears(monkeypatch):
    "Ears that hear 'xin chào', and the number of pieces they heard."
    heard = []

    def hear(pieces):
        heard.extend(pieces)
        return ["xin chào"] * len(pieces)

    monkeypatch.setattr(step, "load_ears", lambda *_: Ears([Recogniser("polite", hear)]))
    return heard


def table_of(tmp_path, text):
    (tmp_path / "sentences.csv").write_text(text, encoding="utf-8")
    return str(tmp_path / "sentences.csv")


def settings(tmp_path, **more):
    options = dict(output_dir=str(tmp_path / "out"), seeds=2, max_sentences=8) | more
    return JudgeSettings(**options)


def test_a_second_run_speaks_and_judges_nothing(tmp_path, mouth, ears):
    table, page = judge(settings(tmp_path))
    assert len(table) == len(mouth.said) == 16 and len({seed for _, seed in mouth.said}) == 16
    assert table["group"].nunique() == 8 and set(table["row"]) == {"base"}
    said, heard = len(mouth.said), len(ears)
    again, same = judge(settings(tmp_path))
    assert len(mouth.said) == said and len(ears) == heard and same == page
    pd.testing.assert_frame_equal(again, table, check_dtype=False, check_exact=True)
    html = (tmp_path / "out/index.html").read_text()
    assert html.count("<audio") == html.count("(CER ") == 8 and "<s>chào</s>" in html
    for src in re.findall('src="([^"]+)"', html): assert (tmp_path / "out" / unquote(src)).is_file()
    for name in ("clips.csv", "figures.csv", "groups.csv", "differences.csv", "index.html"):
        assert (tmp_path / "out" / name).is_file()


def test_what_is_new_is_spoken_and_the_rest_stays(tmp_path, mouth, ears):
    judge(settings(tmp_path, seeds=1))
    judge(settings(tmp_path, seeds=2))
    assert len(mouth.said) == 16
    judge(settings(tmp_path, seeds=2, temperature=0.7))
    assert len(mouth.said) == 32, "another temperature sounds otherwise"


def test_an_interrupted_run_goes_on(tmp_path, mouth, ears, monkeypatch):
    add, n = Scoreboard.add, []

    def stop(self, *args):
        n.append(1)
        if len(n) == 6: raise KeyboardInterrupt
        add(self, *args)

    monkeypatch.setattr(Scoreboard, "add", stop)
    with pytest.raises(KeyboardInterrupt): judge(settings(tmp_path))
    monkeypatch.setattr(Scoreboard, "add", add)
    table, _ = judge(settings(tmp_path))
    assert len(table) == 16 and len(mouth.said) == 6 + 16 - 5


def test_a_text_that_the_model_does_not_say_is_all_wrong(tmp_path, mouth, ears):
    mouth.fails = [""]
    table, page = judge(settings(tmp_path, seeds=1))
    found = figures(table).set_index("score")
    assert found.loc["cer", "value"] == 1 and found.loc["odd_length", "value"] == 1
    assert set(table["fault"]) == {"the model said nothing"} and "the model said nothing" in page
    assert not ears


def test_people_and_codec_come_first_with_recordings(tmp_path, mouth, ears):
    prepare(DataSettings(output_dir=str(tmp_path / "demo")))
    cfg = settings(tmp_path, data=str(tmp_path / "demo"), seeds=1, max_sentences=6)
    table, _ = judge(cfg)
    assert list(table["row"].unique()) == ["people", "codec", "base"] and len(table) == 18
    assert table["speaker"].all() and (table["row"] == "people").sum() == 6
    melody = table.groupby("row")["melody"].count()
    assert melody["people"] == 0 and melody["codec"] > 0
    assert (tmp_path / "out/speakers.csv").is_file()


def test_a_cloned_sentence_is_never_its_own_reference(tmp_path):
    prepare(DataSettings(output_dir=str(tmp_path / "demo")))
    lines = read_lines(settings(tmp_path, data=str(tmp_path / "demo"), clone=True, max_sentences=0))
    assert len(lines) == 80
    assert all(x.reference.id != x.id for x in lines)
    assert all(x.reference.speaker_id == x.sample.speaker_id for x in lines)


@pytest.fixture
def run(tmp_path):
    "A run folder with two checkpoints and a kept adapter; the weights are not read."
    folder = tmp_path / "run"
    for name in ("checkpoints/step-000010", "checkpoints/step-000020", "adapter"):
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text("{}")
        (folder / name / "complete").write_text("{}")
    (folder / "base.json").write_text(json.dumps(dict(base="", fingerprint={})))
    return folder


def test_every_checkpoint_of_a_run_is_a_row(tmp_path, run, mouth, ears):
    table, page = judge(settings(tmp_path, run=str(run), seeds=1))
    assert list(table["row"].unique()) == ["base", "step-000010", "step-000020", "kept"]
    assert len(differences(table, "base")["b"].unique()) == 3
    said = len(mouth.said)
    (run / "checkpoints/step-000010/adapter_config.json").write_text("{ }")
    judge(settings(tmp_path, run=str(run), seeds=1))
    assert len(mouth.said) == said + 8, "only the changed checkpoint is spoken again"


def test_a_damaged_checkpoint_is_left_out_and_named(tmp_path, run, mouth, ears, monkeypatch):
    def load(cfg, system):
        if system.name == "step-000010": raise step.Damaged("weights", "they are damaged", "copy")
        return load_checkpoint(NANO)

    monkeypatch.setattr(step, "load_system", load)
    lines = []
    table, _ = judge(settings(tmp_path, run=str(run), seeds=1), lines.append)
    assert "step-000010" not in set(table["row"]) and table["row"].nunique() == 3
    assert any("step-000010 is left out" in line and "damaged" in line for line in lines)


@pytest.mark.parametrize(
    "more, said",
    [
        (dict(run="nowhere"), "no run folder"),
        (dict(merged="nowhere"), "no folder"),
        (dict(sentences="nowhere.csv"), "nowhere.csv"),
        (dict(data="nowhere"), "nowhere"),
        (dict(clone=True), "clone needs recordings"),
    ],
)
def test_a_wrong_path_is_named_before_anything_is_loaded(tmp_path, mouth, ears, more, said):
    with pytest.raises(ValueError, match=said): judge(settings(tmp_path, **more))
    assert not mouth.said


@pytest.mark.parametrize("more", [dict(recogniser=[]), dict(seeds=0),
                                  dict(data="a", sentences="b")])
def test_settings_that_clash_are_refused(tmp_path, more):
    with pytest.raises(ValueError): settings(tmp_path, **more)


def test_another_table_in_the_folder_is_not_overwritten(tmp_path, mouth, ears):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/clips.csv").write_text("name,age\nLan,7\n")
    with pytest.raises(ValueError, match="is not a table of scores"): judge(settings(tmp_path))
    assert (tmp_path / "out/clips.csv").read_text() == "name,age\nLan,7\n"


@pytest.mark.parametrize("column", ["char_errors", "ended", "odd_length"])
def test_a_cell_without_a_number_is_named(tmp_path, mouth, ears, column):
    judge(settings(tmp_path))
    table = pd.read_csv(tmp_path / "out/clips.csv", dtype=str)
    table.loc[0, column] = "x"
    table.to_csv(tmp_path / "out/clips.csv", index=False)
    with pytest.raises(ValueError, match=f"clips.csv has a cell in the column {column}"):
        judge(settings(tmp_path))


def test_another_file_of_the_computer_is_no_sound_of_the_board(tmp_path, mouth, ears):
    judge(settings(tmp_path))
    table, said = pd.read_csv(tmp_path / "out/clips.csv", dtype=str), len(mouth.said)
    table.loc[0, "file"] = str(DEMO / "clips/minh_000.ogg")
    table.to_csv(tmp_path / "out/clips.csv", index=False)
    judge(settings(tmp_path))
    assert len(mouth.said) == said + 1


def test_sentences_called_na_are_not_spoken_again(tmp_path, mouth, ears):
    rows = "id,group,text\nNA,None,null\nnan,NA,Xin chào các bạn.\n"
    cfg = settings(tmp_path, seeds=1, sentences=table_of(tmp_path, rows))
    judge(cfg)
    table, _ = judge(cfg)
    assert len(mouth.said) == 2 and list(table["sentence"]) == ["NA", "nan"]


def test_a_sound_that_was_replaced_is_judged_again(tmp_path, mouth, ears):
    table, _ = judge(settings(tmp_path, seeds=1))
    assert (table["heard"] == "xin chào").all()
    (name, other), heard = table["file"][:2], len(ears)
    write_wav(tmp_path / "out" / name, np.zeros(48_000, np.float32))
    table, _ = judge(settings(tmp_path, seeds=1))
    first = table.iloc[0]
    assert first["char_errors"] == first["chars"] and "nothing was heard" in first["fault"]
    assert len(ears) == heard, "the others are not judged again"
    (tmp_path / "out" / other).write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="once it is deleted, it is made again"):
        judge(settings(tmp_path, seeds=1))


def test_a_recording_that_cannot_be_read_leaves_only_its_sentence_out(tmp_path, mouth, ears):
    prepare(DataSettings(output_dir=str(tmp_path / "demo")))
    cfg = settings(tmp_path, data=str(tmp_path / "demo"), seeds=1, max_sentences=4)
    first, second, *_ = (line.sample for line in read_lines(cfg))
    first.audio_path.unlink()
    second.audio_path.write_bytes(b"no sound")
    lines = []
    table, _ = judge(cfg, lines.append)
    assert set(table["sentence"]).isdisjoint({first.id, second.id}) and len(table) == 6
    said = [line for line in lines if "is left out" in line]
    assert len(said) == 2 and first.id in said[0] and str(second.audio_path) in said[1]
    for line in read_lines(cfg): line.sample.audio_path.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no recording"): judge(cfg, lines.append)


def test_people_are_compared_with_the_mean_of_all_takes(tmp_path, mouth, ears):
    prepare(DataSettings(output_dir=str(tmp_path / "demo")))
    table, _ = judge(settings(tmp_path, data=str(tmp_path / "demo"), seeds=3, max_sentences=6))
    table.loc[table["row"] == "base", "char_errors"] = table["seed"].astype(float) * table["chars"]
    found = differences(table, "base").set_index(["b", "score"]).loc[("people", "cer")]
    assert found["value_a"] == 1 and found["n"] == 6 and found["n_missing"] == 0


def test_a_page_shows_signs_of_a_text_as_they_are(tmp_path, mouth, ears):
    mouth.fails = [""]
    rows = "text\nChữ <b>đậm</b> & nghiêng\n"
    cfg = settings(tmp_path, seeds=1, sentences=table_of(tmp_path, rows))
    table, page = judge(cfg)
    table["fault"] = "nothing for '<b>'"
    again = step.report(table, step.Results.of(table), (np.nan, np.nan))
    assert "<b>đậm" not in page and "'<b>'" not in again
    assert "<b>đậm" not in (tmp_path / "out/index.html").read_text()


def test_each_sentence_gets_as_many_descriptions_as_it_has_speakers(tmp_path, mouth, ears):
    rows = "text\nXin chào.\n[SPEAKER0] Chào chị. [SPEAKER1] Chào em.\n"
    options = dict(seeds=1, sentences=table_of(tmp_path, rows))
    judge(settings(tmp_path, profile=["feminine", "masculine"], **options))
    assert len(mouth.said) == 2
    with pytest.raises(ValueError, match="2 has 2 speakers, but the parameter profile"):
        judge(settings(tmp_path, profile=["feminine"], **options))


def test_a_page_without_marks_is_refused_before_anything_is_spoken(tmp_path, mouth, ears):
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(ValueError, match="table_in"):
        judge(settings(tmp_path, table_in=str(tmp_path / "page.md")))
    assert not mouth.said


def test_a_folder_that_another_process_uses_is_refused(tmp_path, mouth, ears):
    hold = "from pathlib import Path; from higgs_vi.checkpoint import lock_run; import sys\n"
    hold += "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "out")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="is in use by process"): judge(settings(tmp_path))
        other.stdin.close()
    judge(settings(tmp_path))
    assert mouth.said


def test_a_run_interrupted_before_its_first_clip_goes_on(tmp_path):
    Scoreboard(tmp_path / "out").write()
    assert Scoreboard(tmp_path / "out").lines == {}


def test_names_cannot_leave_the_folder(tmp_path):
    board = Scoreboard(tmp_path / "out")
    clip = Clip("../../x", "../../../etc/y", "Xin chào.", stamp="a")
    board.add(clip, np.zeros(2400, np.float32))
    files = [p for p in tmp_path.rglob("*.wav")]
    assert len(files) == 1 and files[0].is_relative_to(tmp_path / "out")


def test_the_table_is_written_into_a_page(tmp_path, mouth, ears):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- judge:out -->\n<!-- /judge:out -->\nb\n")
    judge(settings(tmp_path, seeds=1, table_in=str(page)))
    text = page.read_text()
    assert text.startswith("a\n<!-- judge:out -->\n|  | cer") and "| base | " in text
    shutil.rmtree(tmp_path / "out")


def test_a_clip_without_a_third_clip_says_so(tmp_path):
    x = read_audio(DEMO / "clips/minh_000.ogg")
    north = np.array([1.0, 0.0], np.float32)
    ears = Ears([Recogniser("polite", lambda pieces: ["xin chào"] * len(pieces))],
                Voiceprint("north", lambda x: torch.from_numpy(north)))
    board, voices = Scoreboard(tmp_path), Voices(dict(a="Lan", b="Lan"), dict(a=north, b=north))
    clips = [
        Clip("base", str(n), "Xin chào.", speaker="Lan", without=without, stamp="s")
        for n, without in enumerate([["a"], ["a", "b"]])
    ]
    for clip in clips: board.add(clip, x)
    board.judge(clips, ears, voices)
    silent = Clip("base", "2", "Xin chào.", speaker="Lan", stamp="s")
    board.add(silent, 0 * x)
    board.judge([silent], ears, voices)  # nothing in the batch has a voiceprint
    assert np.isnan(board.table([silent]).likeness[0])
    (has, lacks) = board.table(clips).to_dict("records")
    assert np.isclose(has["likeness"], 1) and not has["fault"]
    assert np.isnan(lacks["likeness"]) and "'Lan' has no third clip" in lacks["fault"]


def test_the_judges_do_not_change_what_each_hears():
    x = read_audio(DEMO / "clips/minh_000.ogg")
    loud = Recogniser("length", lambda pieces: [str(len(p)) for p in pieces])
    takes = [Take("Xin chào.", x[: 24_000 + 2400 * i]) for i in range(7)]
    every = Ears([loud]).judge(takes)
    for take, line in zip(takes, every, strict=True):
        (alone,) = Ears([loud]).judge([take])
        assert str(alone) == str(line)


@pytest.mark.parametrize("text", ["<laugh>", "1" * 500, "😀", "[SPEAKER0] ...", ""])
def test_a_text_that_cannot_be_read_has_no_score_and_ends_nothing(text):
    x = read_audio(DEMO / "clips/minh_000.ogg")
    ears = Ears([Recogniser("polite", lambda pieces: ["xin chào"] * len(pieces))])
    for wave in (x, np.zeros(24_000, np.float32), None):
        bad, good = ears.judge([Take(text, wave), Take("Xin chào.", x)])
        scores = [bad.get(n) for n in ("chars", "char_errors", "syllables", "odd_length", "rate")]
        assert np.isnan(scores).all() and bad["fault"].startswith("no words"), bad
        assert good["chars"] == 8


def test_systems_name_their_base(tmp_path, run):
    assert [s.name for s in list_systems(settings(tmp_path))] == ["base"]
    systems = list_systems(settings(tmp_path, run=str(run)))
    assert all(s.source == NANO for s in systems) and systems[1].trained.name == "step-000010"
