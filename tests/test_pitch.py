"""The pitch line in the pictures: correct for sounds of known pitch, absent in silence, and equal
to Praat's on real speech.
"""
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from higgs_vi.audio import SAMPLE_RATE, frame_levels, read_audio
from higgs_vi.show import HIGHEST, LOWEST, Clip, draw_spectrogram, pitch, table

REAL = Path(__file__).resolve().parents[2]/"shared/data/cv_vi"


def voiced(hz, noise=0.003):
    """A buzz with the pitch contour `hz` (one value per 10 ms) and harmonics that fall by 12 dB per
    octave.
    """
    track = np.repeat(np.asarray(hz, float), 240)
    phase = 2*np.pi*np.cumsum(track)/SAMPLE_RATE
    x = sum(np.sin(k*phase)/k**2*(k*track < 5_000) for k in range(1, 20))
    return (0.2*x + np.random.default_rng(0).normal(0, noise, len(x))).astype(np.float32)


TONES = dict(
    ngang=np.full(60, 180.0),
    huyền=np.linspace(160, 110, 60),
    sắc=np.geomspace(150, 260, 60),
    low=np.full(60, 82.0),
    hỏi=np.r_[np.linspace(170, 110, 30), np.linspace(110, 175, 30)],
    high=np.full(60, 370.0),
)


@pytest.mark.parametrize("tone", TONES)
def test_a_known_pitch_is_followed_without_a_gap(tone):
    found = pitch(voiced(TONES[tone]))[3:57]
    assert np.isfinite(found).all() and np.abs(found/TONES[tone][3:57] - 1).max() < 0.04


def test_silence_and_noise_have_no_pitch():
    """The line is empty between two syllables, in hum 40 dB below them and in noise.

    A DC offset or half the level changes nothing.
    """
    gap = 0.002 * np.sin(2 * np.pi * 120 * np.arange(12_000) / SAMPLE_RATE)
    x = np.concatenate([voiced(TONES["sắc"]), gap, voiced(TONES["huyền"])]).astype(np.float32)
    found = pitch(x)
    assert (
        np.isnan(found[64:106]).all()
        and np.isfinite(found[5:55]).all()
        and np.isfinite(found[115:165]).all()
    )
    assert np.allclose(pitch(0.5 * x + 0.2)[2:-2], found[2:-2], equal_nan=True, rtol=0.01)
    assert (
        np.isfinite(
            pitch(np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32))
        ).mean()
        < 0.1
    )
    for still in (np.zeros(9_000), np.full(9_000, 0.5), np.zeros(10)):
        assert np.isnan(pitch(still.astype(np.float32))).all()


def test_the_picture_has_an_axis_for_pitch():
    figure = Figure()
    draw_spectrogram(figure.add_subplot(), voiced(TONES["sắc"]))
    line = figure.axes[1]
    assert line.get_yscale() == "log" and line.get_ylim() == (LOWEST, HIGHEST) == (75, 400)
    assert np.nanmax(line.lines[0].get_ydata()) > 240


def test_a_title_is_printed_once():
    "It is the caption in the table, and the picture does not repeat it."
    wave = voiced(TONES["sắc"])
    assert Clip(wave, "one").picture() == Clip(wave, "two").picture()
    for clip, caption in ((Clip(wave, "one"), "one"), (Clip(wave), "cell")):
        assert re.findall("<figcaption.*?>(.*?)<", table([dict(cell=clip)])) == [caption]


@pytest.mark.skipif(not REAL.is_dir(), reason="the Common Voice clips are not at hand")
def test_real_people_are_heard_as_praat_hears_them():
    """At least 90 % of Praat's voiced frames agree within 5 %, and at most a twentieth of the line
    lies where the level is 35 dB below the clip's peak level.
    """
    parselmouth = pytest.importorskip("parselmouth")
    lines = [json.loads(line) for line in (REAL / "manifest.jsonl").open(encoding="utf-8")][
        11::1000
    ]
    near, ours, theirs, quiet = 0, 0, 0, 0
    for r in lines:
        x = read_audio(REAL / r["audio"])
        praat = parselmouth.Sound(x.astype(np.float64), SAMPLE_RATE).to_pitch_ac(
            time_step=0.01, pitch_floor=75, pitch_ceiling=400
        )
        hz, found = praat.selected_array["frequency"], pitch(x)
        at = np.clip(np.rint(praat.xs() * 100).astype(int), 0, len(found) - 1)[hz > 0]
        near += np.sum(np.abs(found[at] / hz[hz > 0] - 1) <= 0.05)
        theirs += np.sum(hz > 0)
        levels = frame_levels(x, SAMPLE_RATE, 0.01)
        line = np.isfinite(found[: len(levels)])
        ours += line.sum()
        quiet += (line & (levels[: len(line)] < np.percentile(levels, 99) - 35)).sum()
    print(
        f"{len(lines)} clips: {near / theirs:.1%} of Praat's voiced frames within 5 %, "
        f"{quiet / ours:.1%} of the line in silence"
    )
    assert near / theirs >= 0.9 and ours / theirs < 1.25 and quiet / ours < 0.05
