"""Speaker tags are read alike in every step: normalised or refused."""

import numpy as np
import pytest

from higgs_vi.audio import write_wav
from higgs_vi.batch import prompt_from_row
from higgs_vi.check import CheckSettings, text_faults
from higgs_vi.data import DataSettings, prepare
from higgs_vi.files import write_text
from higgs_vi.intake import spoken_text
from higgs_vi.pairs import is_plain
from higgs_vi.prompt import Prompt, Reference
from higgs_vi.speakers import original_rows
from higgs_vi.splits import texts_of
from higgs_vi.tags import tags_of
from higgs_vi.turns import is_dialogue, map_turns, speaker_turns, task_of, without_tags
from higgs_vi.voices import make_prompt

VARIANTS = [
    "[speaker0]",
    "[SPEAKER00]",
    "[SPEAKER٠]",
    "[SPEAKER०]",
    "[ SPEAKER0 ]",
    "[Speaker 0]",
    "[SPEAKER0]:",
    "［ＳＰＥＡＫＥＲ０］",
    "[SPEAKER\u200b0]",
    "\t[SPEAKER0]\n",
]
REFUSED = {
    "[SPEAKER0]": "has no words",
    "[SPEAKER1] [SPEAKER0] Vâng.": "SPEAKER1] has no words",
    "[SPEAKER0] …": "has no words",
    "Dạ. [SPEAKER0] Chào.": "before the first",
    "[SPEAKERx] Chào.": "not a speaker tag",
    "[SPEAKER] Chào.": "not a speaker tag",
    "[SPEAKER0 Chào.": "not a speaker tag",
    "[SPEAKER-1] Chào.": "not a speaker tag",
    "[SPEAKER1000] Chào.": "not a speaker tag",
    "[SPEAKER0] Chào. [SPEAKER 1 Vâng.": "not a speaker tag",
    f"[SPEAKER{'9' * 5000}] Chào.": "not a speaker tag",
}


@pytest.mark.parametrize("tag", VARIANTS)
@pytest.mark.parametrize("space", ["", " "])
def test_every_writing_of_a_tag_is_read_as_the_one_that_the_model_knows(tag, space):
    text, tidy = f"{tag}{space}Chào chị.[SPEAKER1]Vâng.", "[SPEAKER0] Chào chị. [SPEAKER1] Vâng."
    assert (
        map_turns(text) == spoken_text(text) == tidy
        and map_turns(tidy) == tidy
        and is_dialogue(text)
    )
    assert (
        speaker_turns(text) == [(0, "Chào chị."), (1, "Vâng.")]
        and without_tags(text) == "Chào chị. Vâng."
    )
    assert task_of(text, False) == "multi_speaker_smart_voice"
    for prompt in (make_prompt(text), prompt_from_row({}, text)):
        assert prompt == Prompt(tidy, task="multi_speaker_smart_voice") and prompt.speakers == [
            "SPEAKER0",
            "SPEAKER1",
        ]
    assert texts_of(dict(text=text)) == {"chào chị", "vâng"} and not is_plain(dict(text=text))
    assert tags_of(text, None, "", None) == tags_of("Chào chị. Vâng.", None, "", None)
    assert [f for f, _ in text_faults(text, None, CheckSettings())] == ["odd text"] and text_faults(
        tidy, None, CheckSettings()
    ) == []


@pytest.mark.parametrize("text", REFUSED, ids=lambda t: t[:30])
def test_what_is_no_dialogue_is_refused_with_its_reason(text):
    for read in (
        map_turns,
        spoken_text,
        make_prompt,
        lambda t: prompt_from_row({}, t),
        lambda t: texts_of(dict(text=t)),
    ):
        with pytest.raises(ValueError, match=REFUSED[text]):
            read(text)
    ((fault, why),) = text_faults(text, None, CheckSettings())
    assert fault == "no text" and REFUSED[text] in why


def test_other_brackets_are_words():
    for text in ("Chào [cười] chị.", "Xem mục [1].", "a]b[c.", "Loa speaker0 kêu."):
        assert (
            speaker_turns(text) == [(None, text)]
            and map_turns(text) == text
            and not is_dialogue(text)
        )


def test_voices_and_speakers_are_as_many():
    sound = Reference("Xin chào.", np.zeros((8, 3), np.int16))
    for text in ("[SPEAKER0] Chào.", "[SPEAKER1] Chào. [SPEAKER0] Vâng."):
        with pytest.raises(ValueError, match="voices are given for"):
            make_prompt(text, [sound] * 3)
        with pytest.raises(ValueError, match="voices are given for"):
            make_prompt(text, profiles=["feminine"] * 3)
    with pytest.raises(ValueError, match="one voice"):
        make_prompt("Chào.", [sound] * 2)
    with pytest.raises(ValueError, match="has a speaker tag"):
        make_prompt("Chào.", [Reference("[speaker0] Vâng.", sound.codes)])
    assert len(make_prompt("[SPEAKER1] Chào. [SPEAKER0] Vâng.", [sound] * 2).references) == 2


def test_a_row_with_a_bad_tag_is_left_out_and_the_others_stay(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["[speaker0]Chào chị. [SPEAKER01] Vâng.", *list(REFUSED)[:-1], "Xin chào các bạn."]
    for i in range(len(texts)):
        write_wav(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(36_000))
    write_text(
        tmp_path / "rows.csv",
        "audio,text,speaker\n" + "".join(f'{i}.wav,"{t}",an\n' for i, t in enumerate(texts)),
    )
    samples, rejected = prepare(
        DataSettings(
            table=str(tmp_path / "rows.csv"),
            audio=str(tmp_path),
            output_dir=str(tmp_path / "out"),
            require_voice=False,
        )
    )
    stored = [
        (tmp_path / "out" / s["transcript_file"]).read_text(encoding="utf-8").strip()
        for s in samples
    ]
    assert stored == ["[SPEAKER0] Chào chị. [SPEAKER1] Vâng.", "Xin chào các bạn."]
    assert [s["task_type"] for s in samples] == [
        "multi_speaker_smart_voice",
        "single_speaker_smart_voice",
    ]
    reasons = [
        why if text != "[SPEAKER0]" else "its text is empty"
        for text, why in list(REFUSED.items())[:-1]
    ]
    assert len(rejected) == len(texts) - 2 and all(
        any(w in r for w in reasons) for r in rejected["reason"]
    )
    assert all(any(w in r for r in rejected["reason"]) for w in reasons)
    write_text(tmp_path / "out" / samples[1]["transcript_file"], "[SPEAKERx] Chào.")
    with pytest.raises(ValueError, match=f"{samples[1]['id']}.*not a speaker tag"):
        original_rows(tmp_path / "out")
