"""Voices to clone: what is odd with them, and their codes, which are computed once."""
import os
from types import SimpleNamespace

import numpy as np
import pytest

from higgs_vi import say
from higgs_vi.audio import DEMO, read_audio, write_wav
from higgs_vi.cache import CodeCache
from higgs_vi.say import SaySettings, speak, voice_faults
from higgs_vi.sound import add_noise
from higgs_vi.speech import Speech
from higgs_vi.voices import lint_voices, load_voice, read_transcript

WORDS = "Bức tranh treo ở phòng khách là của bà ngoại."


@pytest.fixture
def clip():
    "A clip of 3.1 s in which `WORDS` are said, and which has no fault."
    return read_audio(DEMO / "clips/thu_026.ogg")


def add_voice(folder, name, wave, text):
    write_wav(folder / f"{name}.wav", wave)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def faults(folder, *names):
    return [f["fault"] for f in lint_voices(folder, list(names) or None)]


@pytest.mark.parametrize(
    "change, text, expected",
    [
        (lambda x: x, WORDS, []),
        (lambda x: np.concatenate([x] * 4), 4 * WORDS, ["length"]),
        (lambda x: x[12_000:48_000], WORDS[:20], ["length"]),
        (lambda x: x[24_000:26_400], "Ừ", ["length"]),
        (lambda x: add_noise(x, 8), WORDS, ["noise"]),
        (lambda x: add_noise(x, 30), WORDS, []),
        (lambda x: np.clip(40 * x, -1, 1), WORDS, ["clipped"]),
        (lambda x: np.pad(x, 24_000), WORDS, ["silence"]),
        (lambda x: np.pad(x, (48_000, 0)), WORDS, ["silence"]),
        (lambda x: x, "Ừ.", ["pace"]),
        (lambda x: x, 3 * WORDS, ["pace"]),
        (lambda x: x, " … ", ["no text"]),
        (lambda x: x, "[SPEAKER0] " + WORDS, ["no text"]),
        (lambda x: x * 0, WORDS, ["no speech"]),
        (lambda x: np.random.default_rng(0).normal(size=96_000) / 9, WORDS, ["no speech", "noise"]),
    ],
)
def test_a_fault_of_a_voice_is_found_and_nothing_else(tmp_path, clip, change, text, expected):
    add_voice(tmp_path, "a", change(clip).astype(np.float32), text)
    assert faults(tmp_path) == expected


def test_files_without_partners_and_files_that_cannot_be_read(tmp_path, clip):
    add_voice(tmp_path, "good", clip, WORDS)
    add_voice(tmp_path, "twice", clip, WORDS)
    write_wav(tmp_path / "twice.flac.wav", clip)
    (tmp_path / "twice.FLAC").write_bytes(b"")
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    (tmp_path / "torn.txt").write_bytes("Chào bạn".encode("utf-16"))
    (tmp_path / "text.txt").write_text(WORDS, encoding="utf-8")
    (tmp_path / "notes.md").write_text("no voice")
    found = {(f["voice"], f["fault"]) for f in lint_voices(tmp_path)}
    assert found == {
        ("twice", "several"), ("twice", "undecodable"), ("twice.flac", "no text"),
        ("torn", "no text"), ("torn", "undecodable"), ("text", "no sound"),
    }
    assert faults(tmp_path, "good") == [] and faults(tmp_path, "text") == ["no sound"]
    with pytest.raises(ValueError, match="torn.txt of the voice .torn. is not UTF-8 .*save it"):
        read_transcript(tmp_path, "torn")


def test_a_transcript_is_compared_with_its_clip_if_there_are_both(tmp_path, clip):
    asked = []

    def compare(text, wave):
        asked.append((text, len(wave)))
        return "" if text == WORDS else "the recogniser heard 'chào'"

    add_voice(tmp_path, "good", clip, WORDS)
    add_voice(tmp_path, "other", clip, "Trời hôm nay nhiều mây, gió nhẹ và hơi lạnh.")
    add_voice(tmp_path, "silent", clip * 0, WORDS)
    add_voice(tmp_path, "empty", clip, " … ")
    found = lint_voices(tmp_path, compare=compare)
    assert [f["voice"] for f in found if f["fault"] == "heard otherwise"] == ["other"]
    assert "the recogniser heard 'chào': the transcript may belong" in found[1]["what"]
    assert [n for _, n in asked] == [len(clip)] * 2, "without words or speech nothing is compared"
    assert {f["voice"] for f in lint_voices(tmp_path)} == {"silent", "empty"}


def test_only_the_voices_that_are_used_are_judged(tmp_path, clip):
    add_voice(tmp_path, "good", clip, WORDS)
    add_voice(tmp_path, "bad", clip, "Ừ.")
    cfg = SaySettings(voices_dir=str(tmp_path), voice=["good"])
    assert voice_faults(cfg) == [] and voice_faults(SaySettings(voices_dir="nowhere")) == []
    cfg.voice = ["bad", "bad"]
    assert [f["fault"] for f in voice_faults(cfg)] == ["pace"]
    assert voice_faults(cfg, SimpleNamespace(voices=lambda: ["good"])) == []


@pytest.fixture
def encoded(parts, monkeypatch):
    "Count the calls of the codec's encoder."
    calls, encode = [], parts.codec.encode
    monkeypatch.setattr(parts.codec, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
    return calls


def test_a_voice_is_encoded_once(parts, encoded, tmp_path, clip, monkeypatch):
    add_voice(tmp_path, "a", clip, WORDS)
    plain = load_voice(parts.codec, tmp_path, "a")
    monkeypatch.setattr(
        say, "say_long", lambda parts, prompt, *_: Speech(prompt.references[0].codes, None, True)
    )
    monkeypatch.setattr(say, "write_wav", lambda *_: None)
    cfg = SaySettings(voices_dir=str(tmp_path), voice=["a"], code_cache=str(tmp_path / "codes"))
    engine = SimpleNamespace(parts=parts)
    del encoded[:]
    said = [speak(cfg, engine).wave for _ in range(3)]
    assert len(encoded) == 1 and all((codes == plain.codes).all() for codes in said)
    assert read_transcript(tmp_path, "a") == WORDS == plain.text
    add_voice(tmp_path, "a", clip[:48_000], WORDS)  # another clip under the same name
    assert speak(cfg, engine).wave.shape[1] < plain.codes.shape[1] and len(encoded) == 2


def test_a_damaged_cache_file_is_replaced_and_one_that_may_not_be_read_is_not(
    parts, encoded, tmp_path, clip, capsys
):
    add_voice(tmp_path, "a", clip, WORDS)
    cache = CodeCache(tmp_path / "codes", parts.codec, replace_damaged=True)
    codes = load_voice(parts.codec, tmp_path, "a", cache).codes
    shard, = (tmp_path / "codes").rglob("*.safetensors")
    whole = shard.read_bytes()
    for torn in (b"", whole[:20], whole[:-1], b"x" * len(whole)):
        shard.write_bytes(torn)
        with pytest.raises(ValueError, match="delete it"):
            CodeCache(tmp_path / "codes", parts.codec)
        capsys.readouterr()
        cache = CodeCache(tmp_path / "codes", parts.codec, replace_damaged=True)
        said = capsys.readouterr().out
        assert said == f"the code cache's {shard.name} was damaged: its clips are encoded again\n"
        assert (load_voice(parts.codec, tmp_path, "a", cache).codes == codes).all()
        assert shard.read_bytes() == whole
    assert len(encoded) == 5
    os.remove(shard)
    shard.mkdir()  # a folder cannot be opened, and is no damaged file
    with pytest.raises(ValueError, match="cannot be read"):
        CodeCache(tmp_path / "codes", parts.codec, replace_damaged=True)
