"""Encoding padded batches gives the same codes as encoding each clip alone."""
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HiggsAudioV2TokenizerModel

from higgs_vi import codec as module
from higgs_vi.audio import DEMO, read_audio
from higgs_vi.boson import released_codec_config
from higgs_vi.codec import batch_by_length, encode, fill_codebooks, first_differences, load_codec
from higgs_vi.model import NANO

SHARED = Path(__file__).parents[1]/"../shared/data/cv_vi"


@pytest.fixture(scope="module", params=["group", "layer"])
def codec(request, parts):
    """Codecs with both of HuBERT's norms: over the whole clip (as in the released codec) and within
    a frame (as in the nano).
    """
    own = parts.codec if request.param == "group" else load_codec(NANO/"codec")
    assert own.config.semantic_model_config.feat_extract_norm == request.param
    return own


@pytest.fixture(scope="module")
def waves():
    """Demo clips cut to 1 to 40 frames, two of each length: few padded shapes, some smaller than
    HuBERT's receptive field.
    """
    clips = [read_audio(p) for p in sorted((DEMO / "clips").glob("*_0*.ogg"))[:12]]
    return [
        x[9600 : 9600 + n]
        for x, n in zip(
            clips,
            [900, 960, 4800, 8000, 9700, 16_000, 19_200, 20_000, 23_900, 30_000, 33_000, 38_400],
            strict=True,
        )
    ]


def alone(codec, waves):
    "The codes from HF's own `encode`, one clip at a time, padded to whole frames."
    with torch.inference_mode():
        return [
            codec.encode(
                torch.from_numpy(module.pad_to_frames(x, 960))[None, None].to(codec.device)
            )
            .audio_codes[0]
            .cpu()
            .numpy()
            for x in waves
        ]


def share(codes, others):
    return np.mean(np.concatenate([(a == b).ravel() for a, b in zip(codes, others, strict=True)]))


def check(codec, waves, codes):
    """Assert that 99.9 % of the codes equal those of each clip alone, and that every first
    difference is a near tie.
    """
    true = alone(codec, waves)
    assert (
        all(a.shape == b.shape for a, b in zip(codes, true, strict=True))
        and share(codes, true) >= 0.999
    )
    # HF takes distances as |z|² - 2z·e + |e|², whose fp32 rounding alone is some 1e-4 of them
    assert all(
        abs(g) < 5e-4
        for x, a, b in zip(waves, codes, true, strict=True)
        for g in first_differences(codec, x, a, b)
    )


def test_padding_keeps_the_codes(codec, waves):
    frames = [-(-len(x) // 960) for x in waves]
    shapes = batch_by_length(frames, 1500)
    assert any(len({frames[i] for i in b}) > 1 for b, _ in shapes) and any(
        len(b) == 1 and size > frames[b[0]] for b, size in shapes
    )
    check(codec, waves, encode(codec, waves))
    check(codec, waves[::-1], encode(codec, waves[::-1], seconds=3))


def test_products_are_not_rounded_to_tf32(codec, waves, monkeypatch):
    """TF32 would change about 2 % of the nano's codes, so it is off while encoding whatever the
    caller allows, and restored afterwards.
    """
    seen, own = [], codec.encode

    def spy(x):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return own(x)

    monkeypatch.setattr(codec, "encode", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        encode(codec, waves[:2])
        assert set(seen) == {("highest", False)} and (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
        ) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", ["nano", "released"])
def test_padding_keeps_the_codes_on_a_gpu(waves, size):
    if size == "nano":
        codec = load_codec(NANO / "codec", "cuda")
    else:
        torch.manual_seed(0)
        codec = HiggsAudioV2TokenizerModel(released_codec_config()).cuda().eval()
        fill_codebooks(
            codec, [read_audio(p) for p in sorted((DEMO / "clips").glob("*_*.ogg"))[:40]]
        )
    sound = np.concatenate([read_audio(p) for p in sorted((DEMO / "clips").glob("*_*.ogg"))])
    rng = np.random.default_rng(0)
    more = [
        sound[(_at := rng.integers(0, len(sound) - n)) :][:n]
        for n in (24_000 * rng.lognormal(1.2, 0.55, 100).clip(0.8, 15)).astype(int)
    ]
    with module.without_tf32():
        check(codec, waves + more, encode(codec, waves + more))


@pytest.mark.parametrize("left_out", ["_clear", "_norm", "attention"])
def test_what_stands_behind_a_clip_would_be_heard(codec, waves, monkeypatch, left_out):
    """Without any one of the three masking steps, padding changes the codes and the check above
    fails.
    """
    if left_out == "_norm" and codec.config.semantic_model_config.feat_extract_norm == "layer":
        pytest.skip("its norm is within a frame")
    if left_out == "_clear":
        monkeypatch.setattr(module, "_clear", lambda x, ends: x)
    if left_out == "_norm":
        monkeypatch.setattr(
            module,
            "_norm",
            lambda m, x, ends: torch.nn.functional.group_norm(
                x, m.num_groups, m.weight, m.bias, m.eps
            ),
        )
    if left_out == "attention":
        blind = type(codec.semantic_model)._get_feature_vector_attention_mask
        monkeypatch.setattr(
            type(codec.semantic_model),
            "_get_feature_vector_attention_mask",
            lambda *a: torch.ones_like(blind(*a)),
        )
    with pytest.raises(AssertionError):
        check(codec, waves, encode(codec, waves))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_padding_keeps_the_codes_of_two_hundred_people():
    rows = [json.loads(line) for line in (SHARED / "manifest.jsonl").open()]
    waves, codec = (
        [read_audio(SHARED / r["audio"]) for r in random.Random(0).sample(rows, 200)],
        load_codec(NANO / "codec"),
    )
    check(codec, waves, encode(codec, waves))
