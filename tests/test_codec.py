"""Encoding and decoding padded batches gives what each clip gives alone."""
import json
import os
import random
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HiggsAudioV2TokenizerModel

from higgs_vi import codec as module
from higgs_vi.audio import DEMO, read_audio
from higgs_vi.boson import released_codec_config
from higgs_vi.codec import (
    StreamDecoder,
    batch_by_length,
    decode,
    decode_all,
    encode,
    fill_codebooks,
    first_differences,
    load_codec,
    start_decoding,
)
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


@pytest.fixture(scope="module")
def spoken():
    "Random codes of clips of 1 to 80 frames."
    rng = np.random.default_rng(0)
    lengths = [1, 80, 2, 79, 1, *rng.integers(1, 81, 9)]
    return [rng.integers(0, 1024, (8, n)).astype(np.int16) for n in lengths]


def wave_alone(codec, codes):
    "The wave from HF's own `decode` of one clip."
    x = torch.from_numpy(codes.astype(np.int64))[None].to(codec.device)
    with torch.inference_mode():
        return codec.decode(x).audio_values[0, 0].cpu().numpy()


def check_waves(codec, clips, waves, tolerance=1e-5):
    "Assert that `waves` equal those of each clip alone, to `tolerance` of the loudest sample."
    true = [wave_alone(codec, c) for c in clips]
    assert [w.shape for w in waves] == [(960*c.shape[1],) for c in clips]
    worst = max(np.abs(a - b).max() for a, b in zip(waves, true, strict=True))
    assert worst <= tolerance * max(np.abs(w).max() for w in true)


def decode_packed(codec, clips, seconds=120.0):
    "Decode batches of packed clips on a CPU, as a GPU does."
    decoding = module.Decoding([codes.shape[1] for codes in clips], 960)
    for rows, waves in module._decode_packed(codec, clips, seconds):
        (done := Future()).set_result(waves)
        decoding.add(rows, done)
    return decoding.result()


def test_decoding_keeps_the_waves(codec, spoken):
    "Measured on a CPU: at most 1.3e-6 of the loudest sample."
    check_waves(codec, spoken, decode_all(codec, spoken))
    check_waves(codec, spoken[:3], [decode(codec, c) for c in spoken[:3]])


@pytest.mark.parametrize("cuts", [[1] * 80, [0, 15, 2, 16, 47], [80]])
def test_a_stream_of_codes_gives_the_wave_of_the_whole(codec, spoken, cuts):
    "However the codes are divided; the sound of a chunk is there before the next comes."
    whole, stream, at = spoken[1], StreamDecoder(codec), 0
    for n in cuts:
        stream.add(whole[:, at : at + n])
        at += n
        assert len(stream.waves) == min(at, 80) // 16
    wave = stream.finish()
    check_waves(codec, [whole], [wave])
    assert np.array_equal(wave, decode(codec, whole))  # not only up to rounding
    assert stream.frames == 80
    with pytest.raises(ValueError, match="has ended"): stream.add(whole)
    with pytest.raises(ValueError, match="has ended"): stream.finish()
    assert StreamDecoder(codec).finish().shape == (0,)


def test_a_stream_refuses_what_is_no_code(codec, spoken):
    stream, good = StreamDecoder(codec), spoken[1][:, :20]
    for bad in (good - 1024, good + 1024, good[:7], good[0], good.astype(float), good * np.nan):
        with pytest.raises(ValueError, match="the (codes have shape|ids range)"): stream.add(bad)
    stream.add(good.astype(np.uint64))
    check_waves(codec, [good], [stream.finish()])


@pytest.mark.parametrize("part", ["_clear", "_keep"])
def test_what_a_stream_forgets_would_be_heard(codec, spoken, monkeypatch, part):
    "Without zeros outside the clip, or without the end of the chunk before, the check fails."
    def forget(self, layer, x, n):
        return torch.cat([x.new_zeros(*x.shape[:2], n), x], 2)

    monkeypatch.setattr(StreamDecoder, part, forget if part == "_keep" else lambda _, x, *at: x)
    with pytest.raises(AssertionError): check_waves(codec, spoken, decode_all(codec, spoken))


def test_packing_keeps_the_waves(codec, spoken):
    for n in (120, 8, 3, 0.1): check_waves(codec, spoken, decode_packed(codec, spoken, n))
    check_waves(codec, spoken[::-1], decode_packed(codec, spoken[::-1], 8))


@pytest.mark.parametrize("mend", ["_GAP", "clear"])
def test_what_is_beside_a_clip_would_be_heard_when_decoded(codec, spoken, monkeypatch, mend):
    "Without the gap, or if it is not cleared, the check above fails."
    if mend == "_GAP": monkeypatch.setattr(module, "_GAP", 2)
    else: monkeypatch.setattr(module._Places, "clear", lambda _, x: x)
    waves = decode_packed(codec, spoken, 8)
    with pytest.raises(AssertionError): check_waves(codec, spoken, waves)


def test_batches_have_few_shapes_and_every_clip_once():
    draw, shapes = random.Random(0), set()
    for _ in range(200):
        frames = [draw.randint(1, 400) for _ in range(draw.randint(0, 60))]
        found = []
        for rows, size in module._batches(frames, 120):
            shapes.add((len(rows), size))
            for row in rows:
                row = sorted(row, key=lambda place: place[1])
                ends = [start + frames[i] for i, start in row]
                assert ends[-1] <= size and len(rows) * size <= 3000
                assert all(b[1] - a >= 4 for a, b in zip(ends[:-1], row[1:], strict=True))
                found += [i for i, _ in row]
        assert sorted(found) == list(range(len(frames)))
    assert len(shapes) <= 8
    assert sorted(size for _, size in module._batches([4000, 10], 120)) == [32, 4500]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c[:, :0], "clip 2 have no frame: give at least one"),
        (lambda c: c[:7], "have shape (7, 80) and type int16: give this codec an array of shape"),
        (lambda c: c[0], "clip 2 have shape (80,) and type int16: give this codec an array"),
        (lambda c: c / 2, "clip 2 have shape (8, 80) and type float64: give this codec an array"),
        (lambda c: c - 1024, "clip 2 range from -1024 to"),
        (lambda c: np.where(c == c[3, 7], 1024, c), "to 1024, but the codec takes codes from 0 to"),
    ],
)
def test_a_clip_that_cannot_be_decoded_is_named(codec, spoken, change, said):
    with pytest.raises(ValueError) as e:
        decode_all(codec, [spoken[0], spoken[3], change(spoken[1])])
    assert said in str(e.value)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", ["nano", "released"])
def test_packing_keeps_the_waves_on_a_gpu(spoken, size):
    "No batch waits for the GPU, and 30 s at once need less than 4 GiB beside the weights."
    if size == "nano":
        codec = load_codec(NANO / "codec", "cuda")
    else:
        torch.manual_seed(0)
        codec = HiggsAudioV2TokenizerModel(released_codec_config()).cuda().eval()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with module.without_tf32():
        torch.cuda.set_sync_debug_mode("error")
        try: decoding = start_decoding(codec, spoken * 4)
        finally: torch.cuda.set_sync_debug_mode("default")
        waves = decoding.result()
        assert decoding.done() and torch.cuda.max_memory_allocated() - before < 4 * 2**30
        check_waves(codec, spoken * 4, waves, tolerance=1e-4)


def test_the_kernel_is_the_activation():
    "In Triton's interpreter, which must be chosen before Triton is imported."
    script = """if True:
        import torch
        from transformers.models.dac.modeling_dac import Snake1d
        from higgs_vi import codec
        m = Snake1d(16)
        m.alpha.data.uniform_(0.3, 2)
        rows, frames = [[(0, 0), (1, 14)], [(2, 0)]], [10, 6, 17]
        places = codec._Places(rows, frames, 20, torch.device("cpu"))
        x = torch.randn(2, 16, 20*40)
        with torch.no_grad():
            plain, kernel = codec._snake(m, x, places), codec._snake_kernel(m, x, places)
        torch.testing.assert_close(kernel, plain)
        outside = 1 - places.inside.repeat_interleave(40, 1)[:, None]
        assert not (kernel*outside).any() and kernel.abs().max() > 1 and outside.any()
        print("same")
    """
    env = os.environ | dict(TRITON_INTERPRET="1")
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "same", run.stderr
