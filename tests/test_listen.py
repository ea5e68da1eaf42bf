"""06_listen: what a recogniser hears stands below each clip and compares before with after."""
import json
import subprocess
import sys

import numpy as np
import pytest

import higgs_vi.ears as ears
from higgs_vi import listen
from higgs_vi.audio import write_wav
from higgs_vi.listen import ListenSettings, hear_rows, read_rows
from higgs_vi.samples import sample_rows

TEXTS = ["Xin chào.", "Trời đẹp quá.", "Mẹ nấu cơm.", "Con mèo ngủ.", "Tàu đến chậm.",
         "Bạn ăn cơm chưa?", "Tôi tên là Lan.", "Hôm nay thứ hai.", "Em đi học.", "Nhà ở xa."]
TIMES = "real", "before", "after"


class Ear:
    """A recogniser that knows the text of each sound by its length, and mishears those before.

    `said` replaces what it hears at a place, (sentence, time); an exception is raised.
    """

    name = "fake"

    def __init__(self): self.said, self.asked = {}, 0

    def __call__(self, waves):
        self.asked += len(waves)
        found = []
        for wave in waves:
            i, time = divmod(len(wave) // 240 - 50, 3)
            heard = "xin chao" if TIMES[time] == "before" else TEXTS[i].lower()
            heard = self.said.get((i, TIMES[time]), heard)
            if isinstance(heard, Exception): raise heard
            found.append(heard)
        return found


@pytest.fixture
def ear(monkeypatch):
    "The fake recogniser in the place of every other; `names` are those that were asked for."
    fake = Ear()
    fake.names = []
    monkeypatch.setattr(ears, "load_recogniser", lambda name, _: fake.names.append(name) or fake)
    return fake


def write_run(folder, texts=TEXTS, times=TIMES):
    "Write the samples of a run; the length of a sound tells which one it is."
    (folder / "samples").mkdir(parents=True)
    records = []
    for i, text in enumerate(texts):
        records.append(dict(id=str(i), text=text))
        for time in times:
            length = 240 * (50 + 3 * i + TIMES.index(time))
            wave = 0.3 * np.sin(np.arange(length) / 20, dtype=np.float32)
            write_wav(folder / f"samples/{time}_{i}.wav", wave)
            records[-1][time] = f"{time}_{i}.wav"
    (folder / "samples/samples.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def change(folder, i, **values):
    "Change the record of sentence `i`."
    path = folder / "samples/samples.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    records[i] |= values
    path.write_text(json.dumps(records), encoding="utf-8")


def test_what_was_heard_stands_below_each_clip_and_above_is_the_verdict(tmp_path, ear, capsys):
    run = write_run(tmp_path / "run", TEXTS[:8])
    listen.main(["--run", str(run), "--recogniser", "some/ear"])
    said, page = capsys.readouterr().out, (run / "gallery/index.html").read_text(encoding="utf-8")
    assert ear.names == ["some/ear"] and ear.asked == 24
    line = said.splitlines()[0]
    assert "0.00 after: better by" in line and "n = 8" in line and "right tones" in line
    assert f"<p>{line}</p>" in page and page.index(line) < page.index("<audio")
    assert page.count("</audio><small>") == 24
    assert page.count("</audio><small>trời đẹp quá (CER 0.00)</small>") == 2
    assert "</audio><small>xin <mark>chao</mark> (CER 0.12)</small>" in page
    assert "Below each clip stands what some/ear heard: a wrong tone is marked" in page


def test_without_a_recogniser_nothing_is_heard_and_the_page_is_as_before(tmp_path, ear, capsys):
    run = write_run(tmp_path / "run", TEXTS[:1])
    listen.main(["--run", str(run)])
    page = (run / "gallery/index.html").read_text(encoding="utf-8")
    assert not ear.names and not ListenSettings().recogniser
    assert capsys.readouterr().out == f"written to {run / 'gallery/index.html'}\n"
    assert page.count("<p>") == 2 and "<small>" not in page and "CER" not in page
    assert "<p></p>" not in page and read_rows(ListenSettings(run=str(run)))[1] == ""


def test_the_page_without_a_recogniser_does_not_import_torch(tmp_path):
    run = write_run(tmp_path / "run", TEXTS[:1])
    code = (
        "import sys; from higgs_vi.listen import main; main(['--run', sys.argv[1]])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_clip_that_cannot_be_heard_says_why_and_the_others_are_heard(tmp_path, ear):
    run = write_run(tmp_path / "run")
    ear.said[3, "after"] = RuntimeError("no kernel <image>")
    rows, line = read_rows(ListenSettings(run=str(run), recogniser="fake"))
    notes = [row[time].note for row in rows for time in TIMES]
    failed = "<small>it could not be heard: no kernel &lt;image&gt;</small>"
    assert notes.count(failed) == 1 and rows[3]["after"].note == failed
    assert sum("CER" in note for note in notes) == 29 and line.count("n = 9, 1 not compared") == 2
    for i in range(len(TEXTS)): ear.said[i, "after"] = ValueError("broken")
    line = read_rows(ListenSettings(run=str(run), recogniser="fake"))[1]
    assert line.count("not scored (n = 0, 10 not compared)") == 2 and "nan" not in line


def test_equal_clips_show_no_difference_and_few_are_too_few(tmp_path, ear):
    run = write_run(tmp_path / "run")
    for i in range(len(TEXTS)): ear.said[i, "after"] = "xin chao"
    rows, line = read_rows(ListenSettings(run=str(run), recogniser="fake"))
    assert line.count("no difference seen") == line.count("n = 10") == 2
    ear.said.clear()
    line = hear_rows(rows[:3], ears.load_ears(["fake"]))[1]
    assert line.count("too few to tell") == line.count("n = 3") == 2 and "better" not in line


def test_text_and_words_with_html_in_them_are_shown_as_they_are(tmp_path, ear):
    run = write_run(tmp_path / "run", ["Xin <b>chào</b> & <i>hết."])
    ear.said = {(0, time): "<script>alert(1)</script> xin" for time in TIMES}
    change(run, 0, after=None, after_reason="<script>no end</script>")
    listen.main(["--run", str(run), "--recogniser", "<script>ear</script>"])
    page = (run / "gallery/index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;no end&lt;/script&gt;" in page
    assert "&lt;script&gt;ear&lt;/script&gt;" in page and "</audio><small>" in page


def test_what_the_model_could_not_say_is_all_wrong_and_what_was_not_asked_is_left_out(
    tmp_path, ear
):
    run = write_run(tmp_path / "run")
    change(run, 0, before=None, before_reason="the model said nothing")
    rows, line = read_rows(ListenSettings(run=str(run), recogniser="fake"))
    assert rows[0]["before"] == "the model said nothing" and line.count("n = 10)") == 2
    change(run, 0, before="before_0.wav", after=None)
    line = read_rows(ListenSettings(run=str(run), recogniser="fake"))[1]
    assert line.count("n = 9, 1 not compared") == 2
    run = write_run(tmp_path / "stopped", TEXTS[:2], TIMES[:2])
    rows, line = read_rows(ListenSettings(run=str(run), recogniser="fake"))
    assert "cannot be compared" in line and rows[1]["before"].note
    assert rows[1]["after"] == sample_rows(run)[1]["after"] == "not spoken"


def test_a_text_without_words_is_named_and_the_others_are_compared(tmp_path, ear):
    run = write_run(tmp_path / "run")
    change(run, 4, text="?!")
    rows, line = read_rows(ListenSettings(run=str(run), recogniser="fake"))
    assert rows[4]["after"].note.startswith("<small>no words to compare")
    assert line.count("n = 9, 1 not compared") == 2


def test_a_recogniser_that_cannot_be_loaded_ends_the_command(tmp_path):
    run = write_run(tmp_path / "run", TEXTS[:1])
    with pytest.raises(SystemExit, match="higgs-vi-listen: .*model.bin"):
        listen.main(["--run", str(run), "--recogniser", f"faster-whisper:{tmp_path}"])
