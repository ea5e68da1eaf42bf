"""The length guard (which takes `say` draws again, and what it reports), and long texts."""
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import higgs_vi.engine as engine_part
import higgs_vi.speech as speech_part
from higgs_vi.adapters import add_lora, lora_config
from higgs_vi.delay import delay
from higgs_vi.engine import Engine
from higgs_vi.generate import GREEDY, Sampling
from higgs_vi.longtext import divide, say_all, say_long
from higgs_vi.model import load_checkpoint
from higgs_vi.prompt import Prompt, Reference, scene_lines
from higgs_vi.say import SaySettings, load_speaker, main, prepare_text, speak
from higgs_vi.speech import Speech, length_problem, loud_seconds, say, say_many, syllables_to_say
from higgs_vi.voices import make_prompt


@pytest.mark.parametrize(
    "text, least, most",
    [
        ("Xin chào các bạn.", 4, 4),
        ("[SPEAKER0] Chào. [SPEAKER1] Vâng!", 2, 2),
        ("", 0, 0),
        ("Phòng 12", 2, 7),
        ("Tôi ở Paris", 4, 7),
        ("tivi", 2, 4),
        ("ATM", 1, 3),
    ],
)
def test_syllables_of_a_text(text, least, most):
    assert syllables_to_say(text) == (least, most)

def sound(seconds, silence=0.4, noise=0.002):
    "A tone of `seconds` with noise 45 dB below it before and after."
    rng = np.random.default_rng(0)
    x = rng.normal(0, noise, int((seconds + 2 * silence) * 24_000)).astype(np.float32)
    at = int(silence * 24_000)
    x[at : at + int(seconds * 24_000)] += 0.4 * np.sin(
        np.arange(int(seconds * 24_000)) * 0.05
    ).astype(np.float32)
    return x

def test_silence_around_does_not_count():
    assert abs(loud_seconds(sound(1.5)) - 1.5) <= 0.04
    assert (
        loud_seconds(np.zeros(24_000, np.float32))
        == loud_seconds(np.zeros(0, np.float32))
        == 0
    )

@pytest.mark.parametrize("seconds, fits", [(0.4, False), (0.52, True), (2.8, True), (3.0, False)])
def test_four_syllables_take_between_048_and_29_seconds(seconds, fits):
    off, why = length_problem("Xin chào các bạn.", sound(seconds))
    assert (off == 1, why == "") == (fits, fits)

def test_a_take_that_was_cut_is_not_too_short():
    assert length_problem("Xin chào các bạn.", sound(0.2), ended=False) == (1.0, "")
    assert length_problem("Xin chào các bạn.", sound(4), ended=False)[0] > 1

class FakeEngine(Engine):
    """A fake model whose take with seed i lasts `lengths[i]` seconds (0: silence).

    `seeds` lists the seeds requested.
    """

    def __init__(self, lengths):
        self.lengths, self.seeds, self.queue = lengths, [], deque()
        self.rows, self.submitted = [], 0
        self.config = SimpleNamespace(audio_stream_bos_id=1024, audio_stream_eos_id=1025)
        self.parts, self.device = SimpleNamespace(codec=None), torch.device("cpu")
        self.codec_stream = None

    def submit(self, prompt, how, adapter=None):
        self.seeds.append(how.seed)
        self.queue.append((self.submitted, how.seed))
        self.submitted += 1
        return self.submitted - 1

    def advance(self):
        number, seed = self.queue.popleft()
        return [(number, delay(np.full((8, round(25*self.lengths[seed])), seed)))]

    def cancel(self, numbers): pass

    def so_far(self): return []

@pytest.fixture
def fake(monkeypatch):
    "Class of a fake engine whose codes sound as a tone of their length."
    class Tone:
        "A stream decoder whose sound is a tone."
        chunk = 16

        def __init__(self, codec): self.frames = 0
        def add(self, codes): self.frames += codes.shape[1]
        def finish(self): return sound(self.frames/25)

    monkeypatch.setattr(speech_part, "StreamDecoder", Tone)
    return FakeEngine

def test_an_odd_take_is_drawn_again_and_the_next_is_taken(fake, capsys):
    engine = fake([0.2, 9, 1.2, 1.2])
    speech = say(engine, Prompt("Xin chào các bạn."))
    assert engine.seeds == [0, 1, 2] and speech.tries == 3
    assert speech.length_problem == "" and speech.codes[0, 0] == 2
    assert capsys.readouterr().out == ""

def test_what_stays_odd_is_said(fake, capsys):
    engine = fake({5: 9, 6: 0.4, 7: 0, 8: 20})
    speech = say(engine, Prompt("Xin chào các bạn."), Sampling(seed=5))
    assert engine.seeds == [5, 6, 7, 8] and speech.tries == 4
    assert speech.codes[0, 0] == 6  # the nearest
    assert "words are missing" in speech.length_problem
    assert speech.length_problem in capsys.readouterr().out

@pytest.fixture
def hears():
    """Return a check that hears the words of the takes with these seeds only (see `FakeEngine`).

    It is given how far each other take is off, by its length in seconds.
    """
    def make(off):
        def check(text, wave):
            seconds = min(off, key=lambda s: abs(s + 0.8 - len(wave) / 24_000))
            asked.append(seconds)
            return off[seconds], f"heard for {seconds}" if off[seconds] else ""

        asked = check.asked = []
        return check

    return make

def test_what_is_not_heard_is_drawn_again_and_the_take_that_is_heard_is_kept(fake, hears):
    engine, check = fake([1.0, 1.2, 1.4, 1.6]), hears({1.0: 0.5, 1.2: 0.0, 1.4: 0.0})
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], check=check)
    assert engine.seeds == [0, 1] and speech.tries == 2 and check.asked == [1.0, 1.2]
    assert speech.codes[0, 0] == 1 and speech.word_problem == speech.problem == ""

def test_takes_that_are_never_heard_are_bounded_and_the_best_is_kept(fake, hears):
    engine, check = fake([1.0, 1.2, 1.4, 1.6, 1.8]), hears({1.0: 0.5, 1.2: 0.7, 1.4: 0.2, 1.6: 0.3})
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], check=check)
    assert engine.seeds == [0, 1, 2, 3] and speech.tries == 4
    assert speech.codes[0, 0] == 2 and speech.word_problem == "heard for 1.4"
    engine = fake([1.0, 1.2])
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], max_retries=1, check=check)
    assert engine.seeds == [0, 1] and speech.codes[0, 0] == 0
    engine = fake([1.0])
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], GREEDY, check=check)
    assert engine.seeds == [0] and speech.word_problem == "heard for 1.0"

def test_words_count_more_than_length_and_both_are_said(fake, hears):
    "The first take has its words but is too long, the others have other words."
    engine, check = fake([9, 1.2, 1.4, 1.6]), hears({9: 0.0, 1.2: 0.1, 1.4: 0.1, 1.6: 0.1})
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], check=check)
    assert len(engine.seeds) == 4 and speech.codes[0, 0] == 0
    assert speech.length_problem == speech.problem
    engine, check = fake([9] * 4), hears({9: 0.3})
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], check=check)
    assert speech.problem == f"{speech.word_problem}; {speech.length_problem}"

def test_a_take_whose_words_cannot_be_checked_is_kept_and_says_so(fake):
    engine = fake([1.0, 1.2])
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], check=lambda *_: (0, "why"))
    assert engine.seeds == [0] and speech.word_problem == "why"

def test_silent_takes_are_not_heard(fake, hears):
    engine, check = fake([0, 1.2]), hears({1.2: 0.0})
    ((_, speech),) = say_many(engine, [Prompt("Xin chào các bạn.")], check=check)
    assert check.asked == [1.2] and speech.tries == 2

def test_a_greedy_take_is_drawn_once_and_none_is_drawn_again_on_request(fake):
    for how, again in ((GREEDY, 3), (Sampling(), 0)):
        engine = fake([0.2])
        speech = say(engine, Prompt("Xin chào các bạn."), how, max_retries=again)
        assert speech.length_problem and engine.seeds == [0]

def test_only_silence_is_an_error(fake):
    engine = fake([0]*4)
    with pytest.raises(ValueError, match="said nothing"): say(engine, Prompt("Xin chào các bạn."))
    assert engine.seeds == [0, 1, 2, 3]

def test_one_silent_prompt_among_many_is_an_error_of_its_own(fake):
    engine = fake({0: 1.2, 1: 1.2, 5: 0, 6: 0})
    spoken = dict(say_many(
        engine, [Prompt("Xin chào các bạn.")] * 3, [Sampling(seed=n) for n in (0, 5, 1)],
        max_retries=1,
    ))
    assert isinstance(spoken[1], ValueError) and [spoken[i].tries for i in (0, 2)] == [1, 1]


def test_a_file_of_another_kind_is_refused_and_digits_are_pointed_out(tmp_path):
    with pytest.raises(ValueError, match="output_file is .*a.mp3.* ends in .wav"):
        speak(SaySettings(output_file=str(tmp_path / "a.mp3")), None)
    text, (note,) = prepare_text("Năm 2024.", aloud=False)
    assert text == "Năm 2024." and "aloud true" in note
    assert prepare_text("[SPEAKER0] Chào.", aloud=False)[1] == []


LONG = (
    "Sáng sớm bà Lan đi chợ mua trứng, rau muống và hai con cá. Trời mưa, bà đứng đợi dưới mái "
    "hiên vì quên mang ô, rồi gặp ông Ba. Hai người nói chuyện về quê hương."
)


@pytest.fixture
def pieces_said(monkeypatch):
    """Replace `say_many` by a tone for each piece; returns the prompts and samplings given to it.

    A piece with the word câm is silent.
    """
    said = []

    def tone(prompt, sampling):
        said.append((prompt, sampling))
        if "câm" in prompt.text: return ValueError(f"said nothing for {prompt.text}")
        n, late = len(said), "takes" if len(said) == 2 else ""
        wave = np.sin(np.arange(12_000) * 0.1).astype(np.float32) * 0.1 * n
        wave = np.concatenate([np.zeros(12_000, np.float32), wave, np.zeros(9_600, np.float32)])
        return Speech(wave, np.full((8, 10), n), n != 3, late, tries=2)

    def tones(engine, prompts, samplings, check=None):
        yield from enumerate([tone(*asked) for asked in zip(prompts, samplings, strict=True)])

    monkeypatch.setattr("higgs_vi.longtext.say_many", tones)
    return said


def test_a_long_text_is_spoken_whole_in_pieces_of_one_voice(parts, pieces_said, capsys):
    prompt, how = make_prompt(LONG, profiles=["feminine"]), Sampling(seed=5, max_seconds=9)
    speech = say_long(parts, prompt, how)
    texts = [p.text for p, _ in pieces_said]
    assert " ".join(texts).split() == LONG.split() and len(texts) > 3
    assert all(len(t.split()) <= 10 for t in texts)
    assert all((p.voices, p.scene, s) == (prompt.voices, prompt.scene, how) for p, s in pieces_said)
    pauses = sum(p.pause for p in divide(LONG, 10)[:-1])
    assert abs(len(speech.wave) / 24_000 - 0.5 * len(texts) - pauses) < 0.1 * len(texts)
    assert speech.codes.shape == (8, 10 * len(texts)) and speech.tries == 2 * len(texts)
    assert not speech.ended and speech.length_problem == f"{texts[1][:40]!r}: takes"
    assert f"piece {len(texts)} of {len(texts)}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["Xin chào các bạn.", "[SPEAKER0] Chào bạn.\n[SPEAKER1] Vâng ạ."])
def test_a_short_text_and_a_short_dialogue_are_spoken_at_once(
    parts, pieces_said, text, monkeypatch
):
    prompt = make_prompt(text)
    assert len(say_long(parts, prompt, piece_words=10).wave) == 13_920  # silence is cut
    assert [p for p, _ in pieces_said] == [prompt]
    if not prompt.speakers: return
    say_long(parts, prompt)  # the nano gets no dialogue at once, a large model does
    assert [p.text for p, _ in pieces_said[1:]] == ["Chào bạn.", "Vâng ạ."]
    monkeypatch.setattr("higgs_vi.longtext.is_small", lambda model: False)
    say_long(parts, prompt)
    assert pieces_said[3][0] == prompt and len(pieces_said) == 4


TURNS = [(1, "Chào ông."), (0, LONG), (1, "Vâng ạ."), (0, "Tôi đợi xe.")]


@pytest.mark.parametrize("cloned", [True, False])
def test_a_long_dialogue_is_spoken_turn_by_turn_in_the_voice_of_each(parts, pieces_said, cloned):
    "The pieces of a speaker have the speaker's voice, and nobody else's words or voice."
    references = [Reference(f"Giọng {i}.", np.full((8, 5), i)) for i in range(2 * cloned)]
    profiles = [] if cloned else ["feminine", "masculine, calm tone"]
    text = " ".join(f"[SPEAKER{n}] {words}" for n, words in TURNS)
    prompt = make_prompt(text, references, profiles, "Audio is recorded from a studio.")
    speech, said = say_long(parts, prompt), [p for p, _ in pieces_said]
    assert " ".join(p.text for p in said).split() == " ".join(w for _, w in TURNS).split()
    assert max(len(p.text.split()) for p in said) <= 10
    assert {p.scene for p in said} == {prompt.scene}
    who = [n for n, words in TURNS for _ in divide(words, 10)]
    if cloned: assert [p.references[0].codes[0, 0] for p in said] == who
    else: assert [p.voices for p in said] == [(profiles[n],) for n in who]
    assert {len(p.references) + len(p.voices) for p in said} == {1}
    assert speech.codes.shape == (8, 10 * len(who)) and len(who) > len(TURNS)


def test_speakers_without_profiles_keep_their_voices(parts, pieces_said, capsys):
    prompt = make_prompt(f"[SPEAKER7] {LONG} [SPEAKER2] {LONG}")
    assert scene_lines(prompt) == ["SPEAKER2: feminine", "SPEAKER7: masculine"]
    say_long(parts, prompt)
    n = len(divide(LONG, 10))
    assert [p.voices for p, _ in pieces_said] == [("masculine",)] * n + [("feminine",)] * n
    assert f"piece {2 * n} of {2 * n}, 1.4 s: [SPEAKER2] " in capsys.readouterr().out


def test_a_large_model_keeps_the_voice_of_the_first_piece(parts, pieces_said, monkeypatch):
    """Later pieces are cloned from their speaker's first; a reference or a bad first piece is not
    replaced or used.
    """
    monkeypatch.setattr("higgs_vi.longtext.is_small", lambda model: False)
    say_long(parts, make_prompt(LONG, profiles=["feminine"]), piece_words=10)
    (first, _), *others = pieces_said
    assert first.voices == ("feminine",) and not first.references and len(others) > 2
    for prompt, _ in others:
        (reference,) = prompt.references
        assert reference.text == first.text and (reference.codes == 1).all()
        assert prompt.task == "zero_shot_voice_cloning" and prompt.voices == ()

    pieces_said.clear()
    say_long(parts, make_prompt(f"[SPEAKER0] {LONG} [SPEAKER1] {LONG}"), piece_words=10)
    n, described = len(divide(LONG, 10)), [p.voices for p, _ in pieces_said if not p.references]
    assert described == [("feminine",)] + [("masculine",)] * n  # the second one's length is odd
    cloned = [p.references[0].codes[0, 0] for p, _ in pieces_said if p.references]
    assert cloned == [1] * (n - 1)
    pieces_said.clear()
    own = Reference("Giọng.", np.full((8, 5), 77))
    say_long(parts, make_prompt(LONG, [own]), piece_words=10)
    assert {p.references[0].codes[0, 0] for p, _ in pieces_said} == {77}


def test_many_texts_are_spoken_at_once_and_one_that_fails_harms_no_other(parts, pieces_said):
    prompts = [make_prompt(t) for t in (LONG, "Xin chào.", LONG + " Người câm.", "Vâng.")]
    lines = []
    hows = [Sampling(seed=i) for i in range(4)]
    spoken = dict(say_all(parts, prompts, hows, 10, report=lines.append))
    assert isinstance(spoken[2], ValueError) and "câm" in str(spoken[2])
    assert all(isinstance(spoken[i], Speech) for i in (0, 1, 3)) and len(spoken) == 4
    n = len(divide(LONG, 10))
    assert len([x for x in lines if x.startswith("piece ")]) == 2 * n - 1
    assert [how.seed for _, how in pieces_said] == sorted(how.seed for _, how in pieces_said)


def test_silence_is_cut_from_speech_unless_a_judge_hears_it(parts, monkeypatch):
    "Without `cut` a text of one piece stays as it was spoken; longer texts are joined as before."
    silence = np.zeros(12_000, np.float32)
    voice = np.concatenate([silence, np.sin(np.arange(24_000) * 0.1).astype(np.float32), silence])

    def takes(engine, prompts, samplings, check=None):
        for i in range(len(prompts)): yield i, Speech(voice, np.zeros((8, 50)), True)

    monkeypatch.setattr("higgs_vi.longtext.say_many", takes)
    prompts, hows = [make_prompt("Xin chào."), make_prompt(LONG)], [Sampling()] * 2
    short, long = (dict(say_all(parts, prompts, hows, 10, cut=c)) for c in (True, False))
    assert len(short[0].wave) < 28_000 and np.array_equal(long[0].wave, voice)
    assert np.array_equal(short[1].wave, long[1].wave)


def test_each_piece_is_heard_and_what_stays_wrong_is_reported(parts, monkeypatch, capsys):
    "The check reaches the pieces of a long text; the first piece that is off names itself."
    asked = []

    def takes(engine, prompts, samplings, check=None):
        for i, prompt in enumerate(prompts):
            wave = np.sin(np.arange(24_000) * 0.1).astype(np.float32)
            off, why = check(prompt.text, wave)
            yield i, Speech(wave, np.zeros((8, 5)), True, "", 4 if off else 1, why)

    def check(text, wave):
        asked.append(text)
        return (0.5, "other words") if "bà đứng" in text or "Hai người" in text else (0.0, "")

    monkeypatch.setattr("higgs_vi.longtext.say_many", takes)
    speech = say_long(parts, make_prompt(LONG), check=check)
    pieces = [p.text for p in divide(LONG, 10)]
    bad = [p for p in pieces if "bà đứng" in p or "Hai người" in p]
    assert asked == pieces and len(bad) == 2 and speech.tries == len(pieces) + 6
    assert speech.word_problem == f"{bad[0][:40]!r}: other words" and not speech.length_problem
    said = capsys.readouterr().out
    for text in bad: assert f"other words after 4 take(s) of {text[:40]!r}: other words" in said
    assert said.count("take(s)") == 2


def test_the_number_of_words_reaches_the_pieces(parts, pieces_said, tmp_path):
    cfg = SaySettings(text=LONG, piece_words=5, output_file=str(tmp_path / "a.wav"))
    speak(cfg, Engine(parts))
    assert max(len(p.text.split()) for p, _ in pieces_said) == 5
    with pytest.raises(ValueError, match="parameter piece_words is 2: it takes 0 .* at least 3"):
        replace(cfg, piece_words=2)


def test_the_words_of_a_number_stay_together():
    text, _ = prepare_text("Năm 2024 có 365 ngày, và năm 1995 cũng vậy.", aloud=True)
    pieces = [piece.text for piece in divide(text, 10)]
    assert " ".join(pieces) == text and len(pieces) > 2
    for number in ("hai nghìn không trăm hai mươi tư", "ba trăm sáu mươi lăm"):
        assert sum(number in piece for piece in pieces) == 1


def test_an_engine_is_prepared_once_and_anew_for_another_model_or_adapter(
    place, tmp_path, monkeypatch
):
    "A second press of the button in 07_say speaks with the engine of the first."
    made, prepare = [], engine_part.Decoder.__init__
    monkeypatch.setattr(
        engine_part.Decoder, "__init__", lambda self, *a: made.append(self) or prepare(self, *a)
    )
    cfg = SaySettings(
        text="Chào.", model=str(place / "nano"), output_file=str(tmp_path / "a.wav"),
        max_seconds=0.2, device="cpu",
    )
    engine = load_speaker(cfg)
    first, hotter, again = (speak(replace(cfg, temperature=t), engine) for t in (0.5, 1.5, 0.5))
    assert len(made) == 1 and not engine.busy
    assert np.array_equal(first.wave, again.wave)
    assert not np.array_equal(first.codes, hotter.codes)
    adapter = tmp_path / "adapter"
    adapted = add_lora(load_checkpoint(place / "nano").model, lora_config(4))
    for name, p in adapted.named_parameters():
        if "lora_B" in name: p.data += 0.05
    adapted.save_pretrained(adapter)
    tuned = load_speaker(replace(cfg, adapter=str(adapter)))
    assert len(made) == 2 and not np.array_equal(speak(cfg, tuned).codes, first.codes)
    assert len(made) == 2


def test_an_output_file_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("higgs_vi.say.load_speaker", None)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").touch()
    for path, why in (("folder.wav", "is a folder"), ("file/a.wav", "file is a file")):
        with pytest.raises(SystemExit, match=f"{why}.*parameter output_file"):
            main(["--text", "Chào.", "--output_file", str(tmp_path / path)])


def test_an_interruption_is_one_line(tmp_path, monkeypatch):
    def interrupt(cfg): raise KeyboardInterrupt

    monkeypatch.setattr("higgs_vi.say.load_speaker", interrupt)
    with pytest.raises(SystemExit, match="interrupted .*a.wav is not written.*again"):
        main(["--text", "Chào.", "--output_file", str(tmp_path / "a.wav")])
