"""What becomes of a typed text before it is spoken: markup, pronunciations, limits."""
import random
import time

import pytest

from higgs_vi.longtext import divide
from higgs_vi.markup import plain_text
from higgs_vi.pronounce import Pronunciations, read_pronunciations
from higgs_vi.say import MAX_CHARACTERS, SaySettings, build_prompt, main, prepare_text


@pytest.mark.parametrize(
    "text, spoken, removed",
    [
        ("<p>Xin <b>chào</b>!</p>", "Xin chào!", "<p>"),
        ("<b>Xin</b><i>chào</i>", "Xin chào", "<b>"),
        ("<h1>Tin</h1><p>Hết</p>", "Tin. Hết.", "<h1>"),
        ('<a href="x.vn" title="a > b">Xem</a> đi', "Xem đi", "<a href="),
        ("H<sub>2</sub>O, m<sup>2</sup>", "H2O, m2", "<sub>"),
        ("AT&amp;T &lt; 5&nbsp;km &amp;amp; R&D", "AT&T < 5 km & R&D", ""),
        ("<!-- ẩn --><script>var a = 1;</script><style>p {}</style>Chào", "Chào", "<!-- ẩn -->"),
        ('<?xml version="1.0"?><speak>Một<break time="1s"/>hai.</speak>', "Một, hai.", "<speak>"),
        ('<say-as interpret-as="date">Nay</say-as>', "Nay", "<say-as"),
        ('<mstts:express-as style="sad">Buồn</mstts:express-as>', "Buồn", "<mstts:express-as"),
        ("# Tiêu đề #1\nThân", "Tiêu đề #1. Thân", "#"),
        ("> Trích\n- Một\n* Hai\n+ Ba\n- [x] Bốn", "Trích. Một. Hai. Ba. Bốn.", ">"),
        ("**Đậm**, *nghiêng*, __hai__, _một_, ~~bỏ~~, `mã`", "Đậm, nghiêng, hai, một, bỏ, mã", "~"),
        ("***Rất đậm*** ở **đây và *kia* nữa**", "Rất đậm ở đây và kia nữa", "***"),
        ("Xem [trang](https://a.vn/b_c) và ![ảnh](a.png)", "Xem trang và ảnh", "https://a.vn/b_c"),
        ("```python\nchào\n```\n---\nXong", "chào Xong", "```python"),
        ("~~~~Chào bạn\n```xin chào```", "~~~~Chào bạn xin chào", "```"),
        ("| a | b |\n|---|:-:|\n| một | hai |", "a, b. một, hai.", "|---|:-:|"),
        ("Vui quá 😀👍🏽 ❤️!", "Vui quá !", "😀"),
        ("[SPEAKER0] **Chào**\n[SPEAKER1] <i>Vâng</i>", "[SPEAKER0] Chào [SPEAKER1] Vâng", "**"),
    ],
)
def test_markup_is_removed_and_reported(text, spoken, removed):
    plain, note = plain_text(text)
    assert " ".join(plain.split()) == spoken
    assert note.startswith("not spoken: ") and removed in note if removed else note == ""


@pytest.mark.parametrize(
    "text",
    [
        "Nếu a < b và c > d thì a<b, b>a.",
        "2 * 3 * 4 = 24, 2*3*4, 5* và 6*, a_b_c, x_1 + y_2, ~5",
        "- 5 độ, + 3 điểm",
        "-5 độ\n+3 điểm\n- 7\n> 8 tuổi",
        "5 > 3 | 2 # 1, #1, C# và F#",
        "Anh ấy nói: \"Ừ...\" -- rồi đi - xa",
        "lan@x.vn, https://x.vn/a_b?c=<d>, <sil> [cười] (nhỏ) {a}",
        "[SPEAKER0](.a) Chào. [SPEAKER1] Vâng & dạ; R&D",
        "© 2024 ° ™ № → ≤ ½ €",
        "<|audio_eos|> <SE> <3",
    ],
)
def test_what_is_no_markup_stays(text):
    assert plain_text(text) == (text, "")


def test_no_word_is_lost_between_any_marks():
    marks = ["<b>", "</b>", "<p>", " < ", " > ", "*", "**", "_", "`", "\n", "# ", "- ", "> ", "|"]
    marks += ["[SPEAKER0] ", "&amp;", "😀", "\n---\n", " ", "5", "2*3", "[", "](", "(", ")", "~~"]
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choice(marks + ["chào ", "bạn", "đi"] * 6) for _ in range(20))
        plain, _ = plain_text(text)
        assert [plain.count(w) for w in ("chào", "bạn", "đi")] == [
            text.count(w) for w in ("chào", "bạn", "đi")
        ], text


def test_removing_markup_cannot_build_a_control_token():
    with pytest.raises(ValueError, match="control token <|audio_eos|>"):
        build_prompt(SaySettings(text="Chào <|audio<b></b>_eos|>."))


@pytest.mark.parametrize("bait", ["<!--", "<script>", "*x ", "<b ", "[a](http", "`", "<a x='"])
def test_the_longest_text_of_open_marks_takes_no_time(bait):
    start = time.process_time()
    plain_text((bait * MAX_CHARACTERS)[:MAX_CHARACTERS])
    assert time.process_time() - start < 5


def test_a_long_sentence_without_any_mark_is_divided_at_once():
    start, text = time.process_time(), "xin chào các bạn " * 1200
    pieces = divide(text, 10)
    assert time.process_time() - start < 5
    assert " ".join(p.text for p in pieces).split() == text.split()


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "text is '': it must hold at least one word"),
        ("?! … 😀👍", "it must hold at least one word"),
        ("<p>&nbsp;</p><br/>", "it must hold at least one word"),
        ("**", "it must hold at least one word"),
        ("[SPEAKER0] ...", "it must hold at least one word"),
        ("a " * 500_000, "has 1,000,000 characters: it takes at most 100,000; divide it into rows"),
    ],
)
def test_a_text_without_words_or_end_is_refused_before_anything_is_loaded(text, why, capsys):
    with pytest.raises(SystemExit) as end: main(["--text", text])
    said = capsys.readouterr().err
    assert end.value.code == 2 and why in said and len(said) < 2000


@pytest.mark.parametrize(
    "options, why",
    [
        (["--text", "<|audio_eos|> Chào."], "control token"),
        (["--text", "[speaker] Chào."], "not a speaker tag"),
        (["--voice", "nobody"], "there is no folder .*parameter voices_dir"),
        (["--profile", "a,b"], "has one voice"),
        (["--words_file", "nowhere.csv"], "there is no file .*parameter words_file"),
    ],
)
def test_faults_are_told_before_a_model_is_loaded(options, why, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("higgs_vi.say.load_speaker", None)
    with pytest.raises(SystemExit, match=why): main(options)


def test_a_text_in_another_script_or_with_markup_is_spoken_with_a_note():
    text, notes = prepare_text("<p>Привет, как дела?</p>", aloud=False)
    assert "script" in notes[1] and notes[0] == "not spoken: <p>  </p>"
    assert text.strip() == "Привет, как дела?"


WORDS = {"wifi": "oai phai", "WHO": "vê kép", "chat gpt": "chát gi pi ti", "chat": "chát",
         "hòa": "hoà hợp", "C++": "xê cộng", "Covid-19": "cô vít", "19": "mười chín"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("WiFi, WIFI và (wifi)!", "oai phai, oai phai và (oai phai)!"),
        ("WHO, Who và who", "vê kép, Who và who"),
        ("Chat GPT hay chat?", "chát gi pi ti hay chát?"),
        ("wifix xwifi 5wifi wifi5 wifi_a wi-fi", "wifix xwifi 5wifi wifi5 wifi_a wi-fi"),
        ("wifi.com a@wifi.vn #wifi wifi's x.wifi", "wifi.com a@wifi.vn #wifi wifi's x.wifi"),
        ("wifi-hotspot; wifi/4G", "oai phai-hotspot; oai phai/4G"),
        ("Học C++.", "Học xê cộng."),
        ("Covid-19 là 19", "cô vít là mười chín"),
        ("ho\u0300a", "hoà hợp"),  # NFD
        ("hoà", "hoà hợp"),  # the tone mark on the other vowel
        ("wifi\u0301", "wifí"),  # another word
        ("[SPEAKER0] wifi [SPEAKER1] Chào", "[SPEAKER0] oai phai [SPEAKER1] Chào"),
    ],
)
def test_whole_words_of_the_list_are_replaced(text, said):
    assert Pronunciations(WORDS).apply(text) == said


def test_what_was_replaced_is_not_replaced_again():
    assert Pronunciations({"a": "b", "b": "a"}).apply("a b a") == "b a b"


def test_a_list_with_wrong_lines_names_them(tmp_path):
    path, rows = tmp_path / "words.csv", ["wifi,oai phai", "zalo,", ",x", "&,và", "wifi,uy phi",
                                          "a,[SPEAKER0] b", "b,c,d", "x"]
    path.write_text("\n".join(["Written,Spoken", *rows]), encoding="utf-8")
    with pytest.raises(ValueError) as refused: read_pronunciations(path)
    lines = str(refused.value).splitlines()
    assert "has 7 line(s) that cannot be used (parameter words_file)" in lines[0]
    assert lines[1:] == [
        "- row 2: its spoken is '': it takes at least one letter or digit",
        "- row 3: its written is '': it takes at least one letter or digit",
        "- row 4: its written is '&': it takes at least one letter or digit",
        "- row 5: its written 'wifi' is spoken 'uy phi', but 'oai phai' in row 1: keep one of the "
        "two",
        "- row 6: its spoken is '[SPEAKER0] b': it takes no speaker tag",
        "- and 2 more",
    ]


def test_the_list_comes_before_numbers_are_written_as_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("written;spoken\n5G;năm gờ\nTP;tê pê 2\n", encoding="utf-8")
    cfg = SaySettings(text="**TP** có 5G và 3 km.", words_file=str(tmp_path / "words.csv"))
    assert build_prompt(cfg).text == "tê pê 2 có năm gờ và 3 km."
    cfg.aloud = True
    assert build_prompt(cfg).text == "tê pê hai có năm gờ và ba ki lô mét."
    (tmp_path / "words.csv").write_text("written;spoken\n5G;mạng năm\n", encoding="utf-8")
    assert "mạng năm" in build_prompt(cfg).text  # the changed list is read
