"""Tags: hand-labelled sentences, planted sound properties, a folder that is tagged repeatedly."""
import csv
import json
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from higgs_vi.audio import read_audio, write_wav
from higgs_vi.batch import prompt_from_row
from higgs_vi.data import DataSettings, prepare
from higgs_vi.emotion import EMOTIONS, emotion_of, keyword_emotion, vote
from higgs_vi.prompt import render
from higgs_vi.show import load_librosa
from higgs_vi.sound import add_noise, add_room, f0, measure, scene_of, telephone
from higgs_vi.tags import TAGS, TagSettings, main, tag
from higgs_vi.text import words

HERE = Path(__file__).parent
OWN = list(csv.DictReader((HERE/"emotions.csv").open(encoding="utf-8")))
OUTSIDE = list(csv.DictReader((HERE/"emotions_outside.tsv").open(encoding="utf-8"), delimiter="\t"))
REAL = Path(__file__).resolve().parents[2]/"shared/data/cv_vi"
VOICES = [
    str(Path(__file__).parent / f"voices/clips/{n}.ogg")
    for n in ("minh_016", "ngan_017", "thu_018", "son_019", "ngan_025", "thu_026")
]


@pytest.fixture(scope="module")
def voices(): return [read_audio(f) for f in VOICES]


def right(rows, judge): return sum(judge(r["sentence"]) == r["label"] for r in rows)


def ours(text): return emotion_of(text).emotion


def test_own_sentences():
    "320 sentences of our own, seen while the rules were written. Praise and joy are neutral."
    assert len({r["sentence"] for r in OWN}) == len(OWN) == 320
    assert (right(OWN, ours), right(OWN, keyword_emotion)) == (320, 134)


@pytest.mark.parametrize("name, rows, found", (
    ("handed", 32, 32), ("dev", 200, 200), ("test", 200, 200), ("third", 157, 156),
    ("fourth", 197, 197), ("fifth", 158, 135)))
def test_outside_sentences(name, rows, found):
    """Sentences by people who had not seen the rules, from six registers.

    Only the last set is unseen. "handed" came with a report of faults and "dev" was read while the
    rules were written. "test" (the writer of "dev") was first scored blind: 169 of 200, 84.5 %;
    "third" (another writer) was scored blind with the rules after that: 143 of 160, 89.4 %, and
    then its mistakes were mended by kind; "fourth" (a third writer) was scored blind after that:
    164 of 200, 82 %, and its mistakes were mended by kind too. Three sentences of each of the last
    two stood in earlier sets and were dropped. On new sentences expect what the blind scores say,
    82 to 90 %.
    """
    own = [r for r in OUTSIDE if r["set"] == name]
    assert len(own) == rows and {r["label"] for r in own} == set(EMOTIONS)
    assert right(own, ours) >= found and (found >= 0.88 * rows or name == "fifth")


def test_no_sentence_stands_in_two_sets():
    heard = [" ".join(words(r["sentence"])) for r in OUTSIDE]
    assert len(set(heard)) == len(heard)


NEUTRAL = (
    "Tôi không biết.",
    "Không khí trong lành.",
    "Ngôi sao sáng.",
    "Ai cũng vui.",
    "Anh ấy chưa về.",
    # a question word that is a part of another word, or a name
    "Họ sao chép tài liệu.",
    "Bộ Y tế họp sáng nay.",
    "Bộ trưởng đến thăm trường.",
    "Bộ phim rất hay.",
    "Ai Cập có kim tự tháp.",
    "Sao Hỏa màu đỏ.",
    "Khách sạn năm sao.",
    "Nó mới nhổ răng.",
    "Nhà máy mở rộng quy mô.",
    "Anh nộp hai bản sao.",
    "Lão bắt cá bằng tay không.",
    "Con dao giắt bên hông.",
    "Liệu pháp này mới.",
    "Chị Chi đi chợ.",
    "Trời đầy sao",
    # any, none, reported, rhetorical
    "Ai đến trước thì được ngồi.",
    "Đi đâu cũng nhớ nhà.",
    "Nó hỏi tôi có đói không.",
    "Họ bàn liệu có nên bán hay không.",
    "Hắn đi đâu, con chó theo đó.",
    "Ai mà ngờ được.",
    "Dù trời có mưa hay không",
    "Tôi không biết có nên đi hay không.",
    # joy, sorrow, anger, comfort, thanks, praise, what is forbidden without danger
    "Trời đẹp quá!",
    "Sao tôi khổ thế này!",
    "Cút đi!",
    "Đừng lo, có mẹ đây.",
    "Dạ em cảm ơn anh.",
    "Con giỏi lắm!",
    "Cấm hái hoa.",
    "Đừng khóc nữa.",
    "Lan ơi!",
    "Hoà ơi, đẹp quá!",
    "...",
    "",
    # who tells of danger does not warn
    "Tôi không được trèo cây.",
    "Thằng bé cẩn thận gói quà.",
    "Phải chi đừng có bão.",
    "Nghề lặn nặng nhọc, nguy hiểm.",
    "Nguyên nhân vụ cháy đang được điều tra.",
)


def test_neutral_by_kind():
    assert {t: e for t in NEUTRAL if (e := ours(t)) != "neutral"} == {}


# a word that opens a warning, assents or asks, as the subject of a statement or told about
STATED = (
    "Cẩn thận là đức tính tốt.", "Cẩn thận chưa bao giờ là thừa.", "Cẩn thận thì tốt thôi.",
    "Cẩn thận quá hóa ra lại hỏng việc.", "Cảnh giác không có nghĩa là nghi ngờ mọi người.",
    "Cảnh giác luôn là vũ khí tốt nhất.", "Cảnh báo sớm giúp giảm đáng kể thiệt hại về người.",
    "Chú ý nghe giảng giúp em nhớ bài lâu hơn.", "Chú ý là yếu tố đầu tiên của trí nhớ.",
    "Đề phòng cháy nổ là trách nhiệm của mỗi người.", "Gọi cấp cứu là việc cần làm đầu tiên.",
    "Tránh xa rượu bia là cách giữ gìn sức khỏe.", "Dừng lại đúng lúc cũng là một nghệ thuật.",
    "Giữ khoảng cách là quy định của bệnh viện.", "Báo cháy tự động được lắp ở mỗi tầng.",
    "Sơ tán khẩn cấp hàng nghìn hộ dân đã được hoàn tất trong đêm.",
    "Không cung cấp mật khẩu cho ai là nguyên tắc của ngân hàng.",
    "Vâng lời cha mẹ là điều nên làm.", "Vâng lời mẹ, em đi ngủ sớm.", "Ok là từ tôi hay dùng.",
    "Vâng dạ cho qua chuyện không phải là cách anh sống.", "Đúng và đủ là nguyên tắc dùng thuốc.",
    "Đồng ý hay từ chối đều là quyền của người bệnh.", "Hứa thì phải giữ lời.",
    "Hứa mà không làm thì còn tệ hơn là không hứa.", "Ừ với nó có nghĩa là chưa chắc.",
    "Đồng ý là một chuyện, làm được lại là chuyện khác.", "Nói đúng sự thật là nghĩa vụ.",
    "Sẵn sàng đi xa là yêu cầu của công việc.", "Thống nhất đất nước là khát vọng của dân tộc.",
    "Chú ý chuyện nhỏ nhặt là sở thích của tôi.", "Ok thì mình đi không ok thì thôi.",
    "Tại sao giá xăng tăng là điều nhiều người quan tâm.",
    "Làm thế nào để giữ chân khách là bài toán khó.", "Ai đúng ai sai chưa quan trọng lúc này.",
    "Liệu giá nhà có giảm là mối quan tâm của người trẻ.", "Vì sao nó bỏ đi, tôi không biết.",
    "Nhiều người quan tâm vàng tăng vì sao.", "Báo cáo chỉ ra tiền đi đâu.",
    "Tôi hiểu thế nào là cô đơn.", "Bài học giải thích vì sao lá cây có màu xanh.")
STILL = dict(
    alerting="Cẩn thận kẻo đó là việc cuối cùng anh làm.|Cẩn thận không thì ngã.|Cẩn thận, đó là "
    "bẫy!"
    "|Mọi người cẩn thận, lừa đảo là việc hằng ngày ở đây.|Cẩn thận là tốt, coi chừng rắn đấy."
    "|Chú ý, khu vực này là nơi thường có sạt lở.|Trời mưa thì cấm lại gần cột điện."
    "|Hút thuốc là thói quen xấu, cấm hút gần bình gas.|Cẩn thận bị điện giật.",
    affirming="Vâng an toàn là điều quan trọng nhất.|Chắc chắn sức khỏe là điều quan trọng nhất."
    "|Dạ đúng là việc của em ạ.|Vâng, đó là việc tôi nên làm.|Ừ thì mai đi.|Hứa là em sẽ về sớm."
    "|Tôi cam đoan những lời khai trên là đúng sự thật.",
    questioning="Tại sao đây là câu hỏi khó|Vì sao cậu quan tâm đến chuyện của tôi.|Thế nào là yêu"
    "|Tại sao anh hỏi tôi chuyện đó|Ai đang điều tra vụ này|Sao anh biết tôi không được mời."
    "|Ai là người gọi cho anh|Liệu đây có phải là điều con muốn.")
DOUBTFUL = (
    "Cẩn thận đoạn đường phía trước đang được sửa.", "Đồng ý vội vàng như thế khiến anh hối hận.",
    "Chạy ngay về nhà, nó thấy cửa vẫn đóng.", "Rõ ràng, mạch lạc là ưu điểm của bài viết.",
    "Không được vào khu vực này là quy định từ lâu.", "Ai sai mày tới đây.")


def test_an_opening_word_may_be_the_subject_of_a_statement():
    "Ambiguous cases are not marked as certain."
    assert {t: e for t in STATED if (e := ours(t)) != "neutral"} == {}
    wrong = {t: ours(t) for e, texts in STILL.items() for t in texts.split("|") if ours(t) != e}
    assert wrong == {}
    assert [t for t in DOUBTFUL if emotion_of(t).sure] == []
    assert emotion_of("Cẩn thận, đường trơn.").sure and emotion_of("Vâng ạ.").sure


def test_other_emotions_by_kind():
    said = dict(
        questioning="Em có đi không|Anh mệt à|Vui nhỉ|Con ăn chưa|Ai đấy|Bao giờ về|Không?|đi mô "
        "rứa"
        "|Bộ anh quên rồi sao|con ngủ rồi hay còn thức|có rảnh hông, qua tui chơi|mặc gì giờ ta",
        affirming="Tôi đồng ý.|Phải đấy.|Được em, mai anh qua.|Tôi xin hứa.|Chắc chắn rồi|Để tao "
        "lo."
        "|VÂNG Ạ|Dạ được|Cửa hàng cam kết đổi trả.|Chính hắn, tôi nhận ra.",
        alerting="Sơ tán khẩn cấp!|Cẩn thận kẻo ngã.|Cấm trèo.|Đừng chạm vào dây điện|ê coi chừng "
        "xe"
        "|Cháy nhà, chạy mau!|Cầu sắp sập, lùi lại.|Rắn kìa!|Trẻ em không được bơi ở ao này."
        "|Công an khuyến cáo không bấm vào link lạ.|BÃO SẮP ĐỔ BỘ, DI DỜI NGAY!")
    wrong = {t: ours(t) for e, texts in said.items() for t in texts.split("|") if ours(t) != e}
    assert wrong == {}


# kinds that a third writer's sentences showed, in words of our own
KINDS = dict(
    affirming="Tụi tui không phản đối đâu, cứ vậy mà làm.|Ba mẹ cho phép con đi trại hè rồi đó."
    "|Thôi được rồi, anh chiều em một lần.|Thôi cũng được, mai mình tính tiếp."
    "|Em cũng nghĩ giống chị."
    "|Tui cũng tính vậy á.|Chị nói cũng có lý.|Cậu nói không sai.|Hổng sai chút nào."
    "|Không có vấn đề gì, em làm được ạ.|Biết rồi mà, để con đi liền.|Chứ sao nữa."
    "|Có thật đó, chính tai em nghe thấy.|Má ưng rồi, tụi con cứ cưới đi."
    "|Mình cùng quan điểm với bạn."
    "|Yêu cầu đổi mật khẩu của bạn được chấp nhận.|Con muốn học vẽ thì mẹ ủng hộ."
    "|Không còn nghi ngờ gì nữa, chính là nó.|Anh phân tích chuẩn rồi đấy.|Tụi em nghe theo thầy.",
    alerting="Đoạn này nhiều ổ gà, em đi từ từ thôi.|Nồi canh đang sôi, con đứng xa ra."
    "|Bếp rò rỉ khí, khóa van lại đã.|Sương mù dày lắm, bác tài chạy chậm lại."
    "|Con chó này dữ lắm, đừng thò tay vào chuồng.|Có lính gác đằng trước, nói nhỏ thôi."
    "|Nước chảy xiết, khoan lội qua.|Trời sắp mưa đá, vô nhà đi con.|Chó dữ."
    "|Mày mà còn uống nữa thì có ngày mất xác.|Chạy ẩu vậy có ngày vô bệnh viện đó."
    "|Thuốc này trẻ dưới hai tuổi không được uống.|Không sử dụng khi bao bì đã rách."
    "|Khu vực thường xuyên sạt lở.|Lan can bị gãy, không được tựa vào."
    "|Cầu trơn lắm, con vịn tay mẹ."
    "|Phát hiện khói phải báo ngay cho nhân viên.|Xe ben lùi kìa, tránh qua một bên."
    "|Cô ơi, sau lưng cô có con ong vò vẽ.",
    neutral="Bà dặn tôi đừng lội qua suối mùa lũ.|Mẹ thường nhắc anh em tôi không được chơi gần ao."
    "|Trên cửa dán tờ giấy cấm vào.|Ừ một tiếng, cô quay đi.|Dạ một tiếng thật khẽ, con bé chạy đi."
    "|Đúng mười hai giờ đêm, pháo hoa rực sáng.|Đúng hôm ấy trời đổ mưa."
    "|Nước sôi rồi, con pha trà đi."
    "|Hôm qua đoạn này có ổ gà, nay vá rồi.|Sương mù dày đặc bao phủ thành phố suốt buổi sáng."
    "|Anh ấy không phản đối cũng không đồng ý.|Giám đốc không cho phép nghỉ hôm nay."
    "|Tui không chịu giá đó đâu.|Mình ăn cơm trước hen.|Ở đây mát ghê á.|Đi sao thì đi, miễn kịp."
    "|Anh nói có lý hay không thì cũng muộn rồi.|Luật cho phép doanh nghiệp nộp hồ sơ qua mạng."
    "|Bố mẹ bằng lòng cho cưới, hai đứa mừng lắm.|Con mèo này hay cắn dép lắm."
    "|Ở quê tôi có nhiều rắn."
    "|Đứa nào phá tao thì phải trả giá|Tôi tiếp thu bài chậm hơn các bạn."
    "|Cửa hàng ủng hộ bà con vùng lũ hai tấn gạo.",
    questioning="Tối nay bạn đi được chứ|Nhà mình còn gạo chứ má"
    "|Mẹ cần gì để con mua|Mai cậu ở nhà chứ"
    "|Anh thích món gì để em nấu|Em ăn gì chị gọi luôn cho|Nay ai trực để tôi báo|Ý mày là kìa á")


def test_assent_and_warning_without_an_opening_word():
    "Consent, a danger with advice, and the same words in narration."
    wrong = {t: ours(t) for e, texts in KINDS.items() for t in texts.split("|") if ours(t) != e}
    assert wrong == {}


def test_few_alarms_in_narrative_speech():
    "Common Voice reads out stories: about one sentence in five hundred is a warning."
    if not REAL.is_dir(): pytest.skip("no shared data")
    lines = (REAL/"manifest.jsonl").read_text(encoding="utf-8").splitlines()
    found = Counter(map(ours, {json.loads(line)["text"] for line in lines}))
    assert found["alerting"] <= 15 and found["affirming"] <= 65 and found["questioning"] <= 350


@pytest.mark.parametrize("unit", ("a", "Ộ", "7", ".", "!?", ",", " ", "_", "a, ", "a. ", "không ",
                                  "em ơi anh ơi ", "có hay thì ", "a\u0302\u0301", "Đi: "))
def test_time_grows_with_the_length(unit):
    "100 kB of any text, also in one sentence, take less than a second."
    start = time.process_time()
    emotion_of(unit * (100_000 // len(unit)))
    assert time.process_time() - start < 1


def test_marks_of_letters_and_capitals_do_not_change_the_verdict():
    for r in OUTSIDE[:100]:
        apart = unicodedata.normalize("NFD", r["sentence"])
        assert ours(apart) == ours(r["sentence"]), r["sentence"]
    for text in ("?!", "\u0300", "🙂", "-", "\n"): assert ours(text) == "neutral"


def test_noise_at_a_known_ratio_is_measured(voices):
    for colour in ("white", "rumble"):
        for snr in (30, 20, 10, 5):
            found = np.array([measure(add_noise(x, snr, colour))["snr"] for x in voices])
            assert abs(found - snr).max() < 6 and abs(found.mean() - snr) < 4, (colour, snr, found)
        assert {scene_of(measure(add_noise(x, 5, colour))) for x in voices} == {
            dict(white="noisy_room", rumble="outdoor")[colour]
        }


def test_rooms_and_telephones_are_heard(voices):
    decays = [
        np.median([measure(add_room(x, rt, 2))["decay"] for x in voices])
        for rt in (0.2, 0.4, 0.6, 0.8, 1.2)
    ]
    assert decays == sorted(decays), decays
    assert all(
        scene_of(measure(add_room(x, rt, 2))) == "reverberant_room"
        for x in voices
        for rt in (0.8, 1.2)
    )
    assert not any(
        scene_of(measure(y)) == "reverberant_room" for x in voices for y in (x, add_room(x, 0.2, 2))
    )
    assert {scene_of(measure(telephone(x))) for x in voices} == {"phone_call"}


def test_pitch_and_rate_follow_what_was_changed(voices):
    for x in voices[:3]:
        was = measure(x)
        for n in (-4, 4):
            assert (
                abs(
                    12
                    * np.log2(
                        measure(load_librosa().effects.pitch_shift(x, sr=24_000, n_steps=n))["hz"]
                        / was["hz"]
                    )
                    - n
                )
                < 0.7
            )
        for rate in (0.7, 1.4):
            assert (
                abs(
                    was["speech"]
                    / measure(load_librosa().effects.time_stretch(x, rate=rate))["speech"]
                    / rate
                    - 1
                )
                < 0.1
            )
    t = np.arange(24_000) / 24_000
    assert measure(0.3 * np.sin(2 * np.pi * np.cumsum(150 + 60 * (t > 0.7)) / 24_000))["rise"] > 4
    assert np.isnan(f0(np.zeros(24_000))).all() and len(f0(np.zeros(100))) == 0
    with pytest.raises(ValueError, match="0.2 s"):
        measure(np.zeros(100))


def test_the_sound_votes_only_where_the_text_is_unsure():
    for text, rise, energy, said in (
        ("anh về hay ở nhà", 6, 0, "questioning"),
        ("anh về nhà", 6, 0, "neutral"),
        ("Anh về nhà.", 6, 9, "neutral"),
        ("anh về hay ở lớp", 6, 0, "neutral"),
        ("Lan ơi!", 0, 9, "alerting"),
        ("Lan ơi!", 0, 1, "neutral"),
        ("Vâng!", 0, 9, "affirming"),
    ):
        assert vote(emotion_of(text), text, rise, energy).emotion == said, text


@pytest.fixture
def folder(tmp_path):
    """A Higgs folder of the demo clips: one became noisy after it was checked, and two have tags
    given by the user.
    """
    samples, _ = prepare(DataSettings(output_dir=str(tmp_path/"d")))
    meta = json.loads((tmp_path/"d/metadata.json").read_text())
    meta["samples"][0] |= dict(emotion="affirming", mine=[1, None], dialect="Miền nam,Southern")
    meta["samples"][1]["scene"] = "stadium"
    (tmp_path/"d/metadata.json").write_text(json.dumps(meta))
    noisy = tmp_path/"d"/samples[2]["audio_file"]
    write_wav(noisy, add_noise(read_audio(noisy), 5))
    return tmp_path/"d"


def test_a_folder_is_tagged_whole_and_again_the_same(folder):
    before = json.loads((folder / "metadata.json").read_text())
    rows, m = tag(TagSettings(data=str(folder)))
    first = (folder / "metadata.json").read_bytes()
    main(["--data", str(folder)])
    assert (folder / "metadata.json").read_bytes() == first and not list(folder.glob(".*tmp"))
    after = json.loads(first)
    assert after["dataset_info"] == before["dataset_info"] and len(m) == len(rows) == 80
    for old, new in zip(before["samples"], after["samples"], strict=True):
        assert {k: v for k, v in new.items() if k not in (*TAGS, "tagged")} == {
            k: v for k, v in old.items() if k not in TAGS
        }
    a, b, c = after["samples"][:3]
    assert (a["emotion"], a["dialect"], a["mine"], b["scene"], c["scene"]) == (
        "affirming",
        "Nam",
        [1, None],
        "stadium",
        "noisy_room",
    )
    assert (
        "emotion" not in a["tagged"]
        and "scene" not in b["tagged"]
        and {"emotion", "scene", "pitch", "rate"} <= set(c["tagged"])
    )
    write_wav(
        folder / c["audio_file"], read_audio(VOICES[0])
    )  # this step's tags follow the sound, other people's stay
    rows, _ = tag(TagSettings(data=str(folder), bins_file=str(folder / "tag_bins.json")))
    assert rows[2].scene in ("studio", "quiet_room") and rows[1].scene == "stadium"


def test_tags_reach_the_prompt_or_stay_out(folder):
    rows = tag(TagSettings(data=str(folder)))[0]
    r = next(r for r in rows if r["text"] == "Quyển sách này hay không?")
    told, untold = (render(prompt_from_row(r, r["text"], tags=t)) for t in (True, False))
    assert (
        f"SPEAKER0: Male, {r['rate']} speaking rate, {r['pitch']}-pitch, questioning tone" in told
        and "SPEAKER0" not in untold
    )
    assert "noisy room." in render(prompt_from_row(rows[2], rows[2]["text"]))


def test_texts_alone_and_broken_input(folder):
    rows, m = tag(TagSettings(data=str(folder), measure_sound=False))
    assert (
        m is None
        and not any("pitch" in r for r in rows)
        and not (folder / "tag_bins.json").exists()
        and {r.emotion for r in rows} == set(EMOTIONS)
    )
    (folder / "odd.json").write_text('{"rate": [1, 2]}')
    with pytest.raises(ValueError, match="does not hold the limits of pitch"):
        tag(TagSettings(data=str(folder), bins_file=str(folder / "odd.json")))
    sounds = sorted(folder.glob("*.wav"))
    sounds[0].write_bytes(b"no sound")
    rows, m = tag(TagSettings(data=str(folder)))
    assert (m["problem"] != "").sum() == 1 and rows[
        (m["problem"] != "").argmax()
    ].pitch == "unknown"
    for f in sounds:
        f.write_bytes(b"no sound")
    with pytest.raises(ValueError, match="none of the 80 clips can be measured"):
        tag(TagSettings(data=str(folder)))
    with pytest.raises(SystemExit, match="not a Higgs folder"):
        main(["--data", str(folder / "nowhere")])


@pytest.mark.skipif(not REAL.is_dir(), reason="no shared data")
def test_real_people_are_measured_fast_enough():
    clips = [read_audio(f) for f in sorted((REAL/"clips").iterdir())[:60]]
    start = time.process_time()
    found = [measure(x) for x in clips]
    rate = 60/(time.process_time() - start)
    print(f"{rate:.0f} clips/s on one core")
    assert rate > 15 and sum(np.isfinite(m["hz"]) for m in found) >= 57


def test_silence_and_an_even_tone_are_measured_or_say_why():
    with pytest.raises(ValueError, match="silent"):
        measure(np.zeros(24_000, np.float32))
    for hz in (93.75, 1000):
        assert (
            abs(
                measure(
                    (0.1 * np.sin(2 * np.pi * hz * np.arange(48_000) / 24_000)).astype(np.float32)
                )["level"]
                + 23
            )
            < 1
        )


def test_pairs_do_not_count_twice_in_the_bins(folder):
    tag(TagSettings(data=str(folder)))
    before, meta = (
        (folder / "tag_bins.json").read_text(),
        json.loads((folder / "metadata.json").read_text()),
    )
    meta["samples"] += [
        s | dict(id=f"{s['id']}_clone", pair_of=[s["id"]]) for s in meta["samples"][:20]
    ]
    (folder / "metadata.json").write_text(json.dumps(meta))
    tag(TagSettings(data=str(folder)))
    after = json.loads((folder / "tag_bins.json").read_text())
    assert {k: after[k] for k in ("pitch", "rate")} == {
        k: json.loads(before)[k] for k in ("pitch", "rate")
    }
