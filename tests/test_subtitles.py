"""Subtitles found in practice: usable cues are cut, unusable ones become rejected rows with a
reason.
"""
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from higgs_vi.audio import SAMPLE_RATE, read_audio
from higgs_vi.data import DataSettings, prepare, read_source
from higgs_vi.subtitles import (
    Cue,
    is_labels,
    levels_of,
    parse_cues,
    speech_spans,
    subtitles,
    why_misfit,
)

SRT = "{n}\n00:00:{a:06.3f} --> 00:00:{b:06.3f}\n{text}\n\n"


def srt(*cues):
    return "".join(
        SRT.format(n=i, a=a, b=b, text=t) for i, (a, b, t) in enumerate(cues, 1)
    ).replace(".", ",", 0)


def said(text, name="a.srt"):
    return [(c.text, c.speaker) for c in parse_cues(text, name) if not c.problem]


def refused(text, name="a.srt"):
    return [(c.text, c.problem) for c in parse_cues(text, name) if c.problem]


@pytest.mark.parametrize(
    "cues, words",
    [
        (
            [
                (0.5, 2, "Xin chào các bạn"),
                (2, 4, "Xin chào các bạn\nhôm nay trời đẹp"),
                (4, 6, "hôm nay trời đẹp\nta đi chơi nhé"),
            ],
            ["Xin chào các bạn", "hôm nay trời đẹp", "ta đi chơi nhé"],
        ),
        (
            [
                (0, 2, "một hai"),
                (2, 2.01, "một hai"),
                (2.01, 4, "một hai\nba bốn"),
                (4, 4.01, "ba bốn"),
                (4.01, 6, "ba bốn\nnăm sáu"),
            ],
            ["một hai", "ba bốn", "năm sáu"],
        ),
        (
            [(0, 1, "Tôi tên"), (1, 2, "Tôi tên là Lan"), (2, 3, "Tôi tên là Lan ở Huế")],
            ["Tôi tên", "là Lan", "ở Huế"],
        ),
        (
            [(0, 1, "Vâng."), (1.2, 2, "Vâng."), (3, 4, "Đi nào."), (4.2, 5, "Tôi đi đây.")],
            ["Vâng.", "Vâng.", "Đi nào.", "Tôi đi đây."],
        ),
    ],
    ids=["rolls", "rolls with holds", "grows", "no roll"],
)
def test_captions_that_roll_say_each_line_once(cues, words):
    assert [t for t, _ in said(srt(*cues))] == words and not refused(srt(*cues))


@pytest.mark.parametrize("text", ["Quảng cáo ở đây", "Download at www.phim.com", "Phụ đề bởi An"])
def test_an_advertisement_over_a_sentence_goes_and_the_sentence_stays(text):
    cues = srt((1, 3, "Câu thật đây."), (4, 6, "Câu sau.")) + SRT.format(
        n=9999, a=0.5, b=3.5, text=text
    )
    assert [t for t, _ in said(cues)] == ["Câu thật đây.", "Câu sau."] and [
        t for t, _ in refused(cues)
    ] == [text]


@pytest.mark.parametrize(
    "a, b, kept", [((0.5, 4.2), (2.6, 6.3), 0), ((0, 9), (3, 5), 0), ((0.5, 2.7), (2.6, 5), 2)]
)
def test_cues_that_share_their_sound_are_set_aside(a, b, kept):
    cues = srt((*a, "Một hai ba."), (*b, "Bốn năm sáu."))
    assert (
        len(said(cues)) == kept
        and all("shares" in why for _, why in refused(cues))
        and len(said(cues)) + len(refused(cues)) == 2
    )


def test_a_blank_line_in_a_cue_keeps_its_words_and_bad_times_their_row():
    assert said(
        "1\n00:00:01,000 --> 00:00:03,000\nXin chào\n\ncác bạn.\n\n2\n00:00:04,000 --> "
        "00:00:05,000\nHai 3\n"
    ) == [("Xin chào các bạn.", ""), ("Hai 3", "")]
    bad = (
        "1\n-00:00:01,000 --> 00:00:01,500\nÂm.\n\n2\n00:00:02,000 --> 00:00:02,000\nKhông dài.\n\n"
        "3\n00:00:05,000 --> 00:00:04,000\nNgược.\n\n"
        "4\n00:00:0x,000 --> 00:00:09,000\nLạ.\n\n5\n00:00:10,000 --> 00:00:11,000\nĐược.\n"
    )
    assert said(bad) == [("Được.", "")] and sorted(t for t, _ in refused(bad)) == [
        "Không dài.",
        "Lạ.",
        "Ngược.",
        "Âm.",
    ]


@pytest.mark.parametrize(
    "text, words, who, why",
    [
        ("[Nhạc nền]", None, "", "describes a sound"),
        ("♪ la la ♪", None, "", "sung"),
        ("(cười)", None, "", "describes a sound"),
        ("LAN: Xin chào.", "Xin chào.", "Lan", ""),
        ("[Cười] Xin chào.", "Xin chào.", "", ""),
        ("Chú ý: đường trơn.", "Chú ý: đường trơn.", "", ""),
        ("- Chào anh.\n- Chào em.", None, "", "speak in one cue"),
        ("LAN: Đi.\nMINH: Ừ.", None, "", "speak in one cue"),
        ("(tiếng cười) Xin chào.", "Xin chào.", "", ""),
        ("Hay quá (vỗ tay) cảm ơn.", "Hay quá cảm ơn.", "", ""),
        ("*nhạc* Xin chào.", "Xin chào.", "", ""),
        ("*nhạc*", None, "", "describes a sound"),
        ("Họ (tiếng Anh) nói.", "Họ (tiếng Anh) nói.", "", ""),
        ("Rất *vui* ạ.", "Rất *vui* ạ.", "", ""),
        (">> Xin chào.", "Xin chào.", "", ""),
        ("&gt;&gt; LAN: Đi.", "Đi.", "Lan", ""),
        (">> Chào anh.\n>> Chào em.", None, "", "speak in one cue"),
        ("Chào anh. >> Ừ.", None, "", "speak in one cue"),
        ("Anh <unk> đi đâu?", None, "", "words were not understood"),
        ("Anh (không nghe rõ) đi đâu?", None, "", "not understood"),
        ("[inaudible]", None, "", "not understood"),
        ("Nói (tiếng Pháp) đi.", "Nói (tiếng Pháp) đi.", "", ""),
        ("Tỷ số 2 --> 1", "Tỷ số 2 --> 1", "", ""),
        ("Tỷ số\n2 --> 1", "Tỷ số 2 --> 1", "", ""),
        ("- Chào anh.", "Chào anh.", "", ""),
        ("Lúc 10:30 nhé.", "Lúc 10:30 nhé.", "", ""),
        ("<i>ĐỖ HÒA: Vâng.</i>", "Vâng.", "Đỗ Hòa", ""),
    ],
)
def test_what_is_not_spoken_is_no_text(text, words, who, why):
    cues = srt((1, 3, text))
    assert said(cues) == ([(words, who)] if words else []) and (
        [why in w for _, w in refused(cues)] == [True] if why else not refused(cues)
    )


ASS = """[Script Info]
Title: x
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:09.00,Default,,0,0,0,,không nói
Dialogue: 0,0:00:01.50,0:00:03.00,Default,Lan,0,0,0,,{\\i1}Xin chào,\\Ncác bạn.
Dialogue: 0,0:00:04.00,0:00:05.25,Default,,0,0,0,,Ừ.
"""


def test_ass_and_labels_are_read():
    assert [(c.start, c.end, c.text, c.speaker) for c in parse_cues(ASS, "a.ass")] == [
        (1.5, 3.0, "Xin chào, các bạn.", "Lan"), (4.0, 5.25, "Ừ.", "")]
    labels = "0.6\t2.1\tXin chào\n3,5\t4\tcác bạn\n5\t5\ttrống\nlạ\n"
    assert said(labels) == [("Xin chào", ""), ("các bạn", "")] and len(refused(labels)) == 2
    assert not is_labels("Xin chào.\nHôm nay 2.5 độ.") and not is_labels("")
    with pytest.raises(ValueError, match="has no cue"): parse_cues("Xin chào.", "a.srt")


@pytest.mark.parametrize(
    "name, known",
    [
        ("a.srt", True),
        ("a.SRT", True),
        ("a.vi-VN.srt", True),
        ("a.VI.vtt", True),
        ("a.ass", True),
        ("a.ssa", True),
        ("a.vi_vn.ass", True),
        ("a.vi.sdh.srt", True),
        ("a.en.srt", False),
        ("ab.srt", False),
    ],
)
def test_subtitles_are_found_by_the_names_people_give(tmp_path, name, known):
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / name).write_text("x")
    assert (tmp_path / "a" in subtitles(tmp_path)) is known


def talk(folder, late=0.0):
    "Five clips with pauses, and cues that are `late` by that many seconds."
    parts, cues, at = [np.zeros(SAMPLE_RATE, np.float32)], [], 1.0
    for i, path in enumerate(sorted((Path(__file__).parent / "voices/clips").glob("*.ogg"))[:5]):
        x, gap = read_audio(path), np.zeros(int((0.5 + 0.23 * i) * SAMPLE_RATE), np.float32)
        cues.append((at + late, at + len(x) / SAMPLE_RATE + late, f"Câu số {i}."))
        parts += [x, gap]
        at += (len(x) + len(gap)) / SAMPLE_RATE
    sf.write(
        folder / "a.wav",
        np.concatenate([*parts, np.zeros(4 * SAMPLE_RATE, np.float32)]),
        SAMPLE_RATE,
    )
    return cues


@pytest.mark.parametrize("late", [0.0, 0.2, -0.2, 3.0, -0.9, 1.5])
def test_subtitles_that_are_late_are_distrusted(tmp_path, late):
    """Times that fit, or nearly, are used.

    Times that are all seconds off are refused, and the message says by how much.
    """
    (tmp_path/"in").mkdir()
    cues = [c for c in talk(tmp_path/"in", late) if c[0] > 0]
    (tmp_path/"in/a.srt").write_text(srt(*cues), encoding="utf-8")
    cfg = DataSettings(table=str(tmp_path/"in"), output_dir=str(tmp_path/"out"))
    if abs(late) < 0.3: assert len(prepare(cfg)[0]) == len(cues)
    else:
        with pytest.raises(ValueError, match="do not fit the sound"): prepare(cfg)
        by = float(re.search(r"moved by (\S+) s", read_source(cfg)[0].rows["problem"][0])[1])
        assert abs(by + late) < 0.3


HABITS = {"as spoken": (0, 0), "ends linger": (0, 0.45), "ends linger long": (0, 0.6),
          "starts early": (-0.45, 0.2), "all a little late": (0.4, 0.4)}


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory):
    "The boundaries of five spoken clips, and the speech detected in their recording."
    folder = tmp_path_factory.mktemp("dialogue")
    return [(a, b) for a, b, _ in talk(folder)], speech_spans(*levels_of(folder/"a.wav"))


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize(
    "part", [slice(None), slice(2), slice(3), slice(2, 5)], ids=["all", "2", "3", "last 3"]
)
def test_habits_of_subtitlers_and_partial_subtitles_are_no_misfit(dialogue, habit, part):
    limits, spans = dialogue
    early, linger = HABITS[habit]
    assert not why_misfit([Cue(a + early, b + linger, "x") for a, b in limits[part]], spans)


def test_cues_that_touch_and_one_far_after_the_end_are_no_misfit(dialogue):
    limits, spans = dialogue
    touching = [
        Cue(a, b, "x")
        for (a, _), (b, _) in zip(limits, [*limits[1:], (limits[-1][1], 0)], strict=True)
    ]
    assert not why_misfit(touching, spans) and not why_misfit(
        [*touching, Cue(900, 903, "x")], spans
    )


@pytest.mark.parametrize("by", [b for b in np.arange(-6, 6.25, 0.25) if abs(b) >= 1])
def test_any_large_shift_of_all_cues_is_seen(dialogue, by):
    """Cues before time zero are dropped, as in a file.

    Three or fewer cues may fit elsewhere by chance.
    """
    limits, spans = dialogue
    cues = [Cue(a + by, b + by, "x") for a, b in limits if a + by >= 0]
    if len(cues) <= 3: pytest.skip("too few cues are left")
    assert abs(float(re.search(r"moved by (\S+) s", why_misfit(cues, spans))[1]) + by) < 0.3


@pytest.fixture(scope="module")
def long_talk():
    "The boundaries of 40 sentences in 140 s, in the form of detected speech."
    rng, at, out = np.random.default_rng(3), 2.0, []
    for _ in range(40):
        out.append((at, at + rng.uniform(1, 4)))
        at = out[-1][1] + rng.uniform(0.3, 1.5)
    return out


@pytest.mark.parametrize("by", [25 / 23.976, 23.976 / 25, 25 / 24, 24 / 25])
@pytest.mark.parametrize("n", [12, 40])
def test_times_for_another_rate_of_frames_are_refused(long_talk, by, n):
    "Also with a subtitler's usual offsets; the message names the conversion that fits."
    rng = np.random.default_rng(0)
    cues = [
        Cue(a * by + rng.uniform(-0.15, 0.05), b * by + rng.uniform(0, 0.3), "x")
        for a, b in long_talk[:n]
    ]
    why = why_misfit(cues, long_talk)
    assert "the times drift" in why and "frames per second" in why
    a, b = map(float, re.search(r"from (\S+) to (\S+) frames", why).groups())
    assert abs(by * a / b - 1) < 0.002
    assert not why_misfit([Cue(c.start / by, c.end / by, "x") for c in cues], long_talk)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_cues_are_kept_with_a_warning(tmp_path, capsys, n):
    "So few cues may fit by chance anywhere."
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.srt").write_text(srt(*talk(tmp_path / "in")[:n]), encoding="utf-8")
    assert (
        len(prepare(DataSettings(table=str(tmp_path / "in"), output_dir=str(tmp_path / "out")))[0])
        == n
    )
    assert ("3 cues or fewer, first a.wav: alignment not checked" in capsys.readouterr().out) == (
        n < 4
    )


def test_labels_beside_a_sound_are_times_and_rows_are_all_accounted_for(tmp_path):
    (tmp_path / "in").mkdir()
    cues = talk(tmp_path / "in")
    lines = [f"{a:.3f}\t{b:.3f}\t{t}" for a, b, t in cues] + ["2\t2\tkhông"]
    (tmp_path / "in/a.txt").write_text("\n".join(lines), encoding="utf-8")
    samples, rejected = prepare(
        DataSettings(table=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    )
    assert (
        len(samples) == 5
        and len(rejected) == 1
        and "ends before it starts" in rejected["reason"][0]
    )
    assert (tmp_path / "out" / samples[0]["transcript_file"]).read_text(
        encoding="utf-8"
    ) == "Câu số 0.\n"
    assert not why_misfit(
        [Cue(a, b, "x") for a, b, _ in cues], speech_spans(*levels_of(tmp_path / "in/a.wav"))
    )


def test_one_cue_without_length_costs_one_row(tmp_path):
    (tmp_path / "in").mkdir()
    cues = talk(tmp_path / "in")
    (tmp_path / "in/a.vi-VN.srt").write_text(srt(*cues, (30, 30, "Không dài.")), encoding="utf-8")
    samples, rejected = prepare(
        DataSettings(table=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    )
    assert len(samples) == 5 and len(rejected) == 1
