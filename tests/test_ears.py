"""Ears: what is heard in a sound, and how it is compared with the text."""
import json
import math
import random
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from higgs_vi import recognise, settings, voiceprint
from higgs_vi.audio import DEMO, SAMPLE_RATE, read_audio, to_16k
from higgs_vi.recognise import Recogniser, cut_at_quiet, load_recogniser
from higgs_vi.text import split_tone, words
from higgs_vi.wer import align, corpus, readings, score_words

REAL = Path(__file__).resolve().parents[2] / "shared/data/cv_vi"
needs_people = pytest.mark.skipif(not REAL.is_dir(), reason="needs real recordings")


def people(n, split, least_words=4):
    "Sounds and texts of `n` clips of people, of as many speakers as there are."
    rows = [json.loads(line) for line in (REAL / "manifest.jsonl").open(encoding="utf-8")]
    rows = [r for r in rows if r["split"] == split and len(words(r["text"])) >= least_words]
    random.Random(0).shuffle(rows)
    seen = {}
    for r in rows: r["turn"] = seen[r["speaker"]] = seen.get(r["speaker"], -1) + 1
    rows = sorted(rows, key=lambda r: r["turn"])[:n]
    return [read_audio(REAL / r["audio"]) for r in rows], [r["text"] for r in rows]


@pytest.fixture(scope="module")
def viet_asr():
    pytest.importorskip("vietasr")
    return load_recogniser("viet-asr")


def seconds_of(pieces): return [f"{len(p) / 16_000:.2f}\ns" for p in pieces]


# what reaches a recogniser

def test_silence_is_not_passed_to_the_model_and_lines_are_joined():
    asked = []
    echo = Recogniser("echo", lambda pieces: asked.extend(pieces) or seconds_of(pieces))
    tone = 0.1 * np.sin(np.arange(SAMPLE_RATE) / 20)
    faint = tone / 1000
    waves = [np.zeros(0), np.zeros(90_000), np.full(90_000, 0.3), faint, tone, tone.astype("f4")]
    assert echo(waves) == ["", "", "", "", "1.00 s", "1.00 s"]
    assert len(asked) == 2 and all(p.dtype == np.float32 and p.shape == (16_000,) for p in asked)
    assert echo(x for x in waves[3:5]) == ["", "1.00 s"] and echo([]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_wave_that_is_not_finite_is_named_before_anything_is_heard(bad):
    def hear(pieces): raise AssertionError("asked")

    waves = [np.zeros(10), np.ones(10), np.full(10, bad), np.ones(30_000)]
    with pytest.raises(ValueError, match="wave 2 has 10 values that are not finite"):
        Recogniser("echo", hear)(waves)


def test_a_sound_is_cut_in_its_pauses():
    "Loud stretches of 2 s with pauses of 0.3 s: no piece may begin or end in a loud one."
    loud = np.random.default_rng(0).normal(size=2 * SAMPLE_RATE) * 0.1
    x = np.concatenate([loud, np.zeros(7_200)] * 20).astype(np.float32)
    pieces = cut_at_quiet(x)
    assert np.array_equal(np.concatenate(pieces), x) and len(pieces) >= 4
    for piece in pieces[:-1]:
        assert 6 <= len(piece) / SAMPLE_RATE <= 12 and not piece[-1_000:].any()
    for piece in pieces[1:]: assert not piece[:1_000].any()


# comparing

NAN = float("nan")


@pytest.mark.parametrize(
    "text", ["😀😀", "", "  ", "**", "[SPEAKER0]", "<b></b>", NAN, None, "x1" * 150]
)
def test_a_text_that_cannot_be_read_has_no_score_but_a_fault(text):
    score = score_words(text, "xin chào")
    assert math.isnan(score.cer) and math.isnan(score.wer) and score.heard == "xin chào"
    assert score.fault.startswith("no words to compare: ")


@pytest.mark.parametrize("heard", ["", " \n", "...", "♪ ♪"])
def test_nothing_heard_is_all_wrong(heard):
    score = score_words("Xin chào các bạn.", heard)
    assert (score.cer, score.wer, score.right_tones, score.deletions) == (1, 1, 0, 4)
    assert score.fault == "nothing was heard" and score.char_errors == score.n_chars == 16


SAME = [
    ("Xin chào.", "XIN\nCHÀO"),
    ("XIN CHÀO CÁC BẠN", "xin chào các bạn"),
    ("hoà thuỷ", "hòa thủy"),
    ("Kĩ sư Lí ở Mĩ", "kỹ sư lý ở mỹ"),
    ("[SPEAKER0] Chào anh. [SPEAKER1] Dạ, chào!", "chào anh dạ chào"),
    ("**Xin** <b>chào</b> 😀", "xin chào"),
    ("12345", "mười hai nghìn ba trăm bốn mươi lăm"),
    ("12345", "mười hai ngàn ba trăm bốn lăm"),
    ("24 và 104", "hăm tư và một trăm lẻ bốn"),
    ("24 và 104", "hai tư và một trăm linh tư"),
    ("Có 24 người.", "có 24 người"),
    ("3,14", "ba phẩy mười bốn"),
    ("3,14", "ba phẩy một bốn"),
    ("3,5", "ba dấu phẩy năm"),
    ("Năm 2024", "năm hai không hai tư"),
    ("Năm 2024", "năm hai nghìn không trăm hai mươi bốn"),
    ("Lúc 7h30", "lúc bảy giờ rưỡi"),
    ("Lúc 7h30", "lúc bẩy giờ ba mươi phút"),
    ("Lúc 7h45", "lúc bảy giờ bốn lăm"),
    ("Ngày 2/9", "ngày hai tháng chín"),
    ("5 km", "năm ki lô mét"),
]


@pytest.mark.parametrize("text, heard", SAME)
def test_right_readings_count_as_right(text, heard):
    for written in (text, unicodedata.normalize("NFD", text)):
        score = score_words(written, heard)
        assert score.cer == score.wer == 0 and score.right_tones == 1 and not score.fault, score


@pytest.mark.parametrize(
    "text, heard",
    [
        ("thứ tư", "thứ bốn"),
        ("hai mươi năm", "hai mươi lăm"),
        ("bán lẻ", "bán linh"),
        ("dấu phẩy", "phẩy"),
        ("7h35", "bảy giờ rưỡi lăm phút"),
        ("có 25 người", "có hai mươi bốn người"),
        ("ngành", "nghành"),
        ("hỏi mai", "hỏi may"),
        ("ma", "mạ"),
        ("ba giờ nghỉ năm phút", "ba giờ nghỉ năm"),
    ],
)
def test_other_words_are_still_wrong(text, heard):
    assert score_words(text, heard).cer > 0


def test_counts_tones_and_the_nearest_of_several():
    score = score_words("Hôm nay trời đẹp quá", ["", "hôm này trời đẹp lắm rồi", "chào"])
    assert score.heard == "hôm này trời đẹp lắm rồi"
    assert (score.substitutions, score.deletions, score.insertions) == (2, 0, 1)
    assert score.wer == 3 / 5 and score.right_tones == 4 / 5 and score.n_syllables == 5
    mixed = score_words("Dùng Windows đi", "dùng đi")
    assert mixed.n_syllables == 2 and mixed.right_tones == 1 and mixed.deletions == 1
    with pytest.raises(ValueError, match="empty list"): score_words("a", [])


def test_the_rates_of_many_are_sums_over_sums():
    scores = [score_words(*p) for p in (("a b", "a"), ("c d e f g h", "c d e f g h"), ("😀", "a"))]
    total = corpus(scores)
    assert total["cer"] == 2 / 14 and total["wer"] == 1 / 8 and total["right_tones"] == 7 / 8
    assert (total["n_clips"], total["n_without"], total["n_words"]) == (2, 1, 8)
    assert math.isnan(corpus([])["wer"])


def plain_align(text, heard):
    "The same alignment, written cell by cell."
    a, b = words(text), words(heard)
    cost = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}

    def differ(x, y):
        (base, tone), (base_heard, tone_heard) = split_tone(x), split_tone(y)
        return ((base != base_heard) + (tone != tone_heard)) / 2

    for i, x in enumerate(a):
        for j, y in enumerate(b):
            pair = cost[i, j] + differ(x, y)
            cost[i + 1, j + 1] = min(pair, cost[i, j + 1] + 1, cost[i + 1, j] + 1)
    pairs, i, j = [], len(a), len(b)
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + differ(a[i - 1], b[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((a[i], b[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            pairs.append((a[i], ""))
        else:
            j -= 1
            pairs.append(("", b[j]))
    return pairs[::-1]


def test_the_alignment_equals_a_plain_one():
    draw = random.Random(0)
    for _ in range(300):
        text, heard = (
            " ".join(draw.choices("ma má mạ la lá ba bà mà".split(), k=draw.randrange(9)))
            for _ in range(2)
        )
        assert align(text, heard) == plain_align(text, heard), (text, heard)


def test_a_huge_text_takes_seconds():
    draw = random.Random(0)
    text = " ".join(draw.choices("hôm nay trời đẹp quá 25 người đi".split(), k=5_000))
    began = time.process_time()
    said = readings(text)[0]
    score = score_words(text, said[:-2000])
    assert time.process_time() - began < 20
    assert 2000 <= score.char_errors <= 2001 and score.n_words == len(said.split()) > 5_000


def test_a_chapter_in_one_cell_is_read_in_pieces():
    text = "hôm nay trời đẹp, " * 3000  # at once, it stops sea-g2p
    assert set(score_words(text, text).reading.split()) == set("hôm nay trời đẹp".split())
    assert score_words(text, text).cer == 0


def test_no_text_of_any_letters_ends_in_an_unexpected_error():
    draw = random.Random(0)
    pieces = "chào 25 3,5 [SPEAKER0] [speaker < > <b> ** 😀 - / . TP. VTV % № a\u0301 1/2 ١ 中 _ |"
    pieces = ["\n", *pieces.split()]
    for _ in range(400):
        text, heard = (
            draw.choice(["", " "]).join(draw.choices(pieces, k=draw.randrange(1, 8)))
            for _ in range(2)
        )
        score = score_words(text, heard)
        assert math.isnan(score.cer) == score.fault.startswith("no words"), (text, score)
        assert score_words(text, text).cer in (0, 1) or math.isnan(score.cer), text


# models

@pytest.mark.parametrize(
    "name, module", [("viet-asr", "vietasr"), ("faster-whisper:{}", "faster_whisper")]
)
def test_a_missing_package_is_named_with_the_way_out(name, module, monkeypatch, tmp_path):
    (tmp_path / "model.bin").touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install .*or name another recogniser, such as"):
        load_recogniser(name.format(tmp_path))


def test_a_model_s_folder_starts_where_other_paths_do(monkeypatch, tmp_path):
    monkeypatch.setitem(settings._START, "folder", tmp_path)
    (tmp_path / "ear").mkdir()
    asked = []
    for part, name in (
        (recognise, "_load_pipeline"), (recognise, "_load_faster_whisper"),
        (voiceprint, "_load_xvector"),
    ):
        monkeypatch.setattr(part, name, lambda name, device: asked.append(name))
    names = "ear", "faster-whisper:ear", "some/model"
    assert [load_recogniser(name).name for name in names] == list(names)
    for name in ("ear", "some/model"): voiceprint.load_voiceprint(name)
    ear = str(tmp_path / "ear")
    assert asked == [ear, ear, "some/model", ear, "some/model"]


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no file .*model\.bin: name a folder in CTranslate2"):
        load_recogniser(f"faster-whisper:{tmp_path}")
    with pytest.raises(ValueError, match="the recogniser '.*' is damaged|cannot be"):
        load_recogniser(str(tmp_path))


@pytest.fixture(scope="module")
def ctc(tmp_path_factory):
    "A Wav2Vec2 without training whose head says 'ạ' everywhere."
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
    )

    folder = tmp_path_factory.mktemp("ctc")
    vocabulary = {"<pad>": 0, "<unk>": 1, "|": 2, "ạ": 3, "<s>": 4, "</s>": 5}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=6,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    model = Wav2Vec2ForCTC(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad(): model.lm_head.bias.copy_(torch.eye(6)[3])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    "A multilingual Whisper without training, with the tokens of four words."
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    folder = tmp_path_factory.mktemp("whisper")
    plain = {w: i for i, w in enumerate(["a", "b", "c", "d"])}
    special = "<|endoftext|> <|startoftranscript|> <|vi|> <|transcribe|> <|notimestamps|>".split()
    tokenizer = WhisperTokenizer(vocab=plain, merges=[])
    tokenizer.add_special_tokens(dict(additional_special_tokens=special))
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    ids = dict(zip(special, tokenizer.convert_tokens_to_ids(special), strict=True))
    end, start, vi, transcribe, plain_text = ids.values()
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            decoder_start_token_id=start,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            begin_suppress_tokens=None,
        )
    )
    model.generation_config = GenerationConfig(
        lang_to_id={"<|vi|>": vi},
        task_to_id={"transcribe": transcribe},
        is_multilingual=True,
        no_timestamps_token_id=plain_text,
        decoder_start_token_id=start,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        max_length=448,
        do_sample=True,
    )
    model.save_pretrained(folder)
    return folder


def test_a_model_of_transformers_hears_long_and_short_sounds(ctc):
    before = torch.get_num_threads()
    recogniser = load_recogniser(str(ctc), device="cpu")
    noise = np.random.default_rng(0).normal(size=30 * SAMPLE_RATE).astype(np.float32) * 0.1
    pieces = len(cut_at_quiet(noise))
    assert pieces >= 3 and recogniser.name == str(ctc)
    assert recogniser([noise[:9000], np.zeros(9000), noise]) == ["ạ", "", " ".join("ạ" * pieces)]
    assert torch.get_num_threads() == before


def test_whisper_is_asked_for_vietnamese_and_never_draws(whisper, monkeypatch):
    from transformers import WhisperForConditionalGeneration as Model

    asked, generate = [], Model.generate
    monkeypatch.setattr(
        Model, "generate", lambda self, **k: asked.append(k) or generate(self, **k)
    )
    recogniser = load_recogniser(str(whisper), device="cpu")
    noise = np.random.default_rng(0).normal(size=2 * SAMPLE_RATE).astype(np.float32) * 0.1
    heard = recogniser([noise, noise[:9000]])
    assert recogniser([noise, noise[:9000]]) == heard and all(isinstance(h, str) for h in heard)
    assert len(asked) == 4
    for k in asked:
        assert (k["language"], k["task"], k["do_sample"]) == ("vi", "transcribe", False)


def test_a_recogniser_in_the_old_format_of_weights_is_refused(ctc, tmp_path):
    from safetensors.torch import load_file

    for path in ctc.iterdir():
        if path.suffix == ".json": (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(ctc / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"): load_recogniser(str(tmp_path))


def test_viet_asr_hears_as_many_words_in_pieces_as_one_by_one(viet_asr):
    "Demo clips of 20 s; joined they are cut elsewhere, which changes words but loses none."
    waves = [read_audio(p) for p in sorted((DEMO / "clips").glob("minh_*.ogg"))[:7]]
    alone = viet_asr(waves)
    assert viet_asr(waves[:2]) == alone[:2] and "xin chào các bạn" in alone
    joined = np.concatenate(waves)
    assert len(cut_at_quiet(joined)) > 1
    assert len(viet_asr([joined])[0].split()) >= 0.9 * len(" ".join(alone).split())


@needs_people
@pytest.mark.parametrize("clips", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_no_words_are_lost_in_forty_seconds_of_people(viet_asr, clips):
    "Ten clips in a row, joined without a pause: heard as well as one by one, uncut badly."
    waves, texts = people(clips, "dev", 8)
    alone, joined = [], []
    for first in range(0, clips, 10):
        some, text = waves[first : first + 10], " ".join(texts[first : first + 10])
        whole = np.concatenate(some)
        assert len(whole) > 40 * SAMPLE_RATE
        alone.append(score_words(text, " ".join(viet_asr(some))))
        joined.append(score_words(text, viet_asr([whole])[0]))
        assert joined[-1].deletions <= alone[-1].deletions + 0.05 * joined[-1].n_words
    assert corpus(joined)["cer"] < corpus(alone)["cer"] + 0.03 < 0.2
    uncut = score_words(text, viet_asr._hear([to_16k(whole)])[0])
    assert uncut.deletions > 0.3 * uncut.n_words


def planted(texts, seed=0):
    "Each text as it is, with two other words, without its last third, with a third more, another."
    draw, shifted = random.Random(seed), texts[len(texts) // 2 :] + texts[: len(texts) // 2]
    every = [w for t in texts for w in words(t)]
    found = []
    for text, other in zip(texts, shifted, strict=True):
        w, n = words(text), round(len(words(text)) / 3)
        swapped = list(w)
        for i in draw.sample(range(len(w)), 2):
            swapped[i] = draw.choice([x for x in every if x != w[i]])
        longer = w + words(other)[:n]
        found.append([text, " ".join(swapped), " ".join(w[:-n]), " ".join(longer), other])
    return found


def test_planted_texts_raise_the_error_rate(viet_asr):
    "Clips of people where there are any, else the nano's."
    if REAL.is_dir(): waves, texts = people(12, "test")
    else:
        rows = pd.read_csv(DEMO / "demo.csv").iloc[:80:4]
        rows = rows[rows["text"].map(lambda t: len(words(t)) >= 4)].head(12)
        waves = [read_audio(DEMO / p) for p in rows["wav_filename"]]
        texts = list(rows["text"])
    pairs = zip(planted(texts), viet_asr(waves), strict=True)
    cer = np.array([[score_words(t, h).cer for t in row] for row, h in pairs])
    assert (cer[:, 1:] >= cer[:, :1]).mean() > 0.9
    assert (cer[:, 4] > cer[:, 0]).all() and cer[:, 4].mean() > cer[:, 0].mean() + 0.3


@pytest.mark.slow
@needs_people
def test_the_thresholds_of_the_experiment_find_what_its_table_says(viet_asr):
    "At those of exps/ears.ipynb: CER 0.387, missing words 0.212, additional words 0."
    waves, texts = people(60, "test")
    pairs = zip(planted(texts), viet_asr(waves), strict=True)
    scores = [[score_words(t, h) for t in row] for row, h in pairs]
    cer, missing, more = (
        np.array([[of(s) for s in row] for row in scores]).mean(0)
        for of in (
            lambda s: s.cer > 0.387,
            lambda s: s.deletions / s.n_words > 0.212,
            lambda s: s.insertions > 0,
        )
    )
    assert max(cer[0], missing[0], more[0]) < 0.2, "false alarms"
    assert cer[4] > 0.95 and cer[2] > 0.8 and more[2] > 0.9 and missing[3] > 0.7
