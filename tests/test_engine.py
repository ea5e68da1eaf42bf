"""The decoding engine: equal to HF's generate, the same alone or in any batch, bounded."""
import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from higgs_vi import speech as speech_part
from higgs_vi.adapters import add_lora, lora_config, save_adapter
from higgs_vi.codec import decode
from higgs_vi.decoder import Decoder, read_adapter
from higgs_vi.engine import PAST, Engine
from higgs_vi.files import Damaged
from higgs_vi.generate import (
    Sampling,
    candidates,
    draw_codes,
    generate_delayed_codes,
    gumbel,
    noise_key,
)
from higgs_vi.model import NANO, Checkpoint, load_checkpoint, save_checkpoint
from higgs_vi.prompt import Prompt, Reference
from higgs_vi.say import SaySettings, load_speaker
from higgs_vi.speech import say_many
from higgs_vi.voices import make_prompt

TEXTS = ["Hôm nay trời đẹp quá!", "Xin chào các bạn.", "Vâng.", "Trời mưa to quá, ta về thôi."]


@pytest.fixture(scope="module")
def prompts(clips):
    "Prompts without and with references, in turns and in the scene, and a dialogue."
    refs = [Reference(p.text, c) for p, c in clips]
    return [
        Prompt(TEXTS[0]),
        make_prompt(TEXTS[1], [refs[0]]),
        Prompt(TEXTS[2]),
        make_prompt(TEXTS[3], [refs[1]], place="scene"),
        make_prompt("[SPEAKER0] Chào anh. [SPEAKER1] Chào em.", refs[2:4]),
    ]


def generated(parts, prompts, samplings, adapters=None, **options):
    "The delayed codes of each prompt by an engine with `options`."
    engine = options.pop("engine", None) or Engine(parts, **options)
    adapters = adapters or [None] * len(prompts)
    numbers = [
        engine.submit(p, s, a) for p, s, a in zip(prompts, samplings, adapters, strict=True)
    ]
    codes = dict(engine.run())
    return [codes[n] for n in numbers]


def greedy(seconds, scale=1.0):
    return Sampling(temperature=0, ras_win_len=0, max_seconds=seconds, guidance_scale=scale)


def test_a_cpu_decodes_while_it_generates(monkeypatch):
    "The wave is that of the whole codes, alone and beside others."
    engine, given = Engine(load_checkpoint(NANO)), []
    own = speech_part._go_on

    def go_on(before, stream, codes, last):
        given.append((stream, codes.shape[1], last, engine.busy))
        return own(before, stream, codes, last)

    monkeypatch.setattr(speech_part, "_go_on", go_on)
    for n in (1, 3):
        given.clear()
        prompts = [Prompt(text) for text in TEXTS[:n]]
        spoken = dict(say_many(engine, prompts, Sampling(max_seconds=3), max_retries=0))
        for speech in spoken.values():  # torch may round otherwise with more threads
            whole = decode(engine.parts.codec, speech.codes)
            assert np.abs(speech.wave - whole).max() <= 1e-5 * np.abs(whole).max()
        early = [frames for _, frames, last, busy in given if not last and busy]
        assert early and min(early) >= 16 and len({id(x) for x, *_ in given}) == n
        total = sum(frames for _, frames, *_ in given)
        assert total == sum(s.codes.shape[1] for s in spoken.values())


def test_an_error_while_decoding_is_raised_before_the_clip_ends(monkeypatch):
    engine, advances = Engine(load_checkpoint(NANO)), []
    own = engine.advance
    monkeypatch.setattr(engine, "advance", lambda: advances.append(1) or own())

    def fail(self, codes): raise RuntimeError("no memory for a chunk")

    monkeypatch.setattr(speech_part.StreamDecoder, "add", fail)
    greedy = Sampling(temperature=0, max_seconds=20)
    with pytest.raises(RuntimeError, match="no memory for a chunk"):
        list(say_many(engine, [Prompt(" ".join(TEXTS * 2))], greedy))
    assert 5 <= len(advances) <= 15 and not engine.busy
    assert engine.so_far() == []


def test_what_is_generated_so_far_is_a_copy_that_begins_the_whole():
    engine = Engine(load_checkpoint(NANO))
    number = engine.submit(Prompt(TEXTS[0]), Sampling(max_seconds=2))
    for _ in range(3): engine.advance()
    ((found, begun),) = engine.so_far()
    kept = begun.copy()
    ((_, whole),) = engine.run()
    assert found == number and np.array_equal(begun, kept)
    assert len(begun) == 13 and np.array_equal(whole[:13], begun)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("which", ["untrained", "nano"])
def test_greedy_codes_are_those_of_hf(parts, prompts, which, scale):
    """Mixed in one batch and each alone: the codes of HF's `generate`.

    Some of them end by themselves, some at the limit.
    """
    own = parts if which == "untrained" else load_checkpoint(NANO)
    how = [greedy(1.2 if which == "nano" else 2, scale)] * len(prompts)
    wanted = [generate_delayed_codes(own, p, s) for p, s in zip(prompts, how, strict=True)]
    for found in (generated(own, prompts, how), generated(own, prompts, how, max_rows=2)):
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    ends = {len(x) for x in wanted}
    assert len(ends) > 1 or (which, scale) != ("untrained", 1.0)


def test_the_comparison_with_hf_fails_for_a_wrong_position(parts, prompts, monkeypatch):
    how = [greedy(0.4)] * len(prompts)
    step = Decoder.step
    monkeypatch.setattr(
        Decoder, "step", lambda self, c, f, at, a, length: step(self, c, f, at - 1, a, length)
    )
    wanted = [generate_delayed_codes(parts, p, s) for p, s in zip(prompts, how, strict=True)]
    found = generated(parts, prompts, how)
    assert not all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_request_says_the_same_alone_and_while_rows_are_filled_again(parts, prompts):
    """Guided and unguided requests share the rows; with 3 and 5 rows they wait for each other,
    are moved and follow on rows that others have used.
    """
    every = prompts * 2
    how = [
        Sampling(seed=7 * i, max_seconds=0.3 + 0.2 * (i % 4), guidance_scale=1 + i % 3)
        for i in range(len(every))
    ]
    together = generated(parts, every, how)
    for rows in (2, 3, 5):
        found = generated(parts, every, how, max_rows=rows)
        assert all(np.array_equal(a, b) for a, b in zip(found, together, strict=True)), rows
    assert not np.array_equal(together[0][:5], together[5][:5])  # another seed


def test_nothing_of_an_earlier_request_is_seen(parts, prompts):
    """A row whose cache and state hold other speech, later and longer, gives the same codes.

    If a row's past were not set anew, repetition-aware sampling would notice.
    """
    engine, how = Engine(parts, max_rows=2), Sampling(max_seconds=0.5, guidance_scale=2)
    alone = generated(parts, [prompts[2]], [how])[0]
    for earlier in (prompts[4], prompts[1]):
        generated(parts, [earlier], [replace(how, seed=9, max_seconds=2)], engine=engine)
        with torch.inference_mode():
            for tensor in (*engine.cache.keys, *engine.cache.values): tensor += 100
            engine.state["past"][:] = torch.from_numpy(alone[3])  # would be drawn again
        found = generated(parts, [prompts[2]], [how], engine=engine)[0]
        assert np.array_equal(found, alone)


def test_the_noise_depends_on_seed_frame_codebook_code_and_stream():
    base = torch.tensor([5]), torch.tensor([3])
    noise = gumbel(noise_key(*base, 0)[:, None], torch.arange(8208))
    others = [
        noise_key(torch.tensor([6]), base[1], 0),
        noise_key(base[0], torch.tensor([4]), 0),
        noise_key(torch.tensor([2**32 - 1]), base[1], 0),
        noise_key(*base, 1),
    ]
    for key in others:
        other = gumbel(key[:, None], torch.arange(8208))
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.05
    assert torch.isfinite(noise).all() and len(noise.unique()) > 8000
    assert abs(noise.mean() - 0.5772) < 0.05 and abs(noise.std() - 1.2825) < 0.05


@pytest.mark.parametrize("top_k", [0, 1, 50])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
def test_the_distribution_is_that_of_hf(top_k, top_p):
    logits = torch.randn(40, 1026, generator=torch.Generator().manual_seed(0)) * 3
    wanted = TemperatureLogitsWarper(0.7)(None, logits)
    if top_k: wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1: wanted = TopPLogitsWarper(top_p)(None, wanted)
    ones = torch.ones(40)
    scores, codes = candidates(
        logits[:, None], ones * 0.7, (ones * top_k).long(), ones * top_p, top_k or 1026
    )
    found = torch.full_like(logits, -torch.inf).scatter(1, codes[:, 0], scores[:, 0])
    assert torch.equal(found.isinf(), wanted.isinf())
    assert torch.allclose(found.softmax(1), wanted.softmax(1), atol=1e-6)


def test_repeated_codes_are_drawn_again_from_all_codes():
    """As in HF: two or more equal codes in the window, markers not counted."""
    logits = torch.zeros(1, 2, 1026)
    logits[..., 7] = 9
    state = dict(
        seed=torch.tensor([0]), frame=torch.tensor([40]), temperature=torch.zeros(1),
        top_k=torch.tensor([1]), top_p=torch.ones(1), ras_win_len=torch.tensor([7]),
        past=torch.full((1, PAST, 2), 1024),
    )

    def drawn(past):
        state["past"] = torch.full((1, PAST, 2), 1024)
        for age, code in past.items(): state["past"][0, (39 - age) % PAST] = torch.tensor(code)
        seen = [
            draw_codes(logits, state | dict(seed=torch.tensor([n])), 1, 1024)[0].tolist()
            for n in range(40)
        ]
        return [len({s[k] for s in seen}) > 1 for k in range(2)]  # whether it varies

    assert drawn({}) == [False, False]
    assert drawn({0: [7, 7], 6: [7, 3]}) == [True, False]
    assert drawn({0: [7, 7], 7: [7, 7]}) == [False, False]  # outside the window
    logits[..., 7], logits[..., 1024] = 0, 9
    assert drawn({0: [1024, 1024], 1: [1024, 1024]}) == [False, False]


PRESETS = dict(
    lora=dict(targets=["attention", "text_ffn", "audio_ffn"]),
    rslora=dict(targets=["attention"], kind="rslora", rank=3),
    whole=dict(targets=["audio_ffn"], audio_embeddings=True),
)


def adapted(parts, name, seed=0):
    "A PEFT model of a copy of `parts`, its adapter with random weights."
    own = copy.deepcopy(parts.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft = add_lora(own, lora_config(**PRESETS[name] | dict(dropout=0.5)))
        for n, p in peft.named_parameters():
            if "lora_" in n or "modules_to_save" in n: p.data += torch.randn_like(p) * 0.05
    return peft


def test_several_adapters_in_one_batch_are_each_that_of_peft(parts, prompts, tmp_path):
    "Each request has its own adapter, or none: the codes are those of HF with that one."
    how, models = greedy(0.6), {}
    for seed, name in enumerate(PRESETS):
        models[name] = adapted(parts, name, seed).eval()
        save_adapter(models[name], tmp_path / name, "")
    adapters = {n: read_adapter(parts.model, tmp_path / n) for n in PRESETS}
    engine = Engine(parts, adapters)
    names = ["", *PRESETS, "rslora", ""]
    asked = [prompts[i % len(prompts)] for i in range(len(names))]
    found = generated(parts, asked, [how] * len(names), names, engine=engine)
    for p, name, codes in zip(asked, names, found, strict=True):
        alone = Checkpoint(models.get(name, parts.model), parts.tokenizer, parts.codec)
        assert np.array_equal(codes, generate_delayed_codes(alone, p, how)), name
    other = generated(parts, asked[:1], [how], ["lora"], engine=engine)[0]
    assert not np.array_equal(found[0], other)
    with pytest.raises(ValueError, match="unknown adapter 'x': .*'lora', 'rslora', 'whole'"):
        engine.submit(prompts[0], how, "x")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_peft_model_speaks_with_its_adapter_and_without_dropout(
    parts, prompts, kind, monkeypatch
):
    "Also in training mode, in which the model is left."
    if kind == "dora":
        monkeypatch.setitem(PRESETS, "dora", PRESETS["whole"] | dict(kind="dora"))
    peft = adapted(parts, kind).train()
    own = Checkpoint(peft, parts.tokenizer, parts.codec)
    how = [greedy(0.5)] * 2
    found = generated(own, prompts[:2], how)
    assert peft.training
    wanted = [generate_delayed_codes(own, p, s) for p, s in zip(prompts[:2], how, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    plain = generated(parts, prompts[:2], how)
    assert not all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))


def test_a_folder_with_dora_or_another_shape_is_refused(parts, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "dora", dict(targets=["attention"], kind="dora"))
    save_adapter(adapted(parts, "dora"), tmp_path / "dora", "")
    with pytest.raises(ValueError, match="dora is a DoRA adapter.*merge it"):
        read_adapter(parts.model, tmp_path / "dora")
    save_adapter(adapted(parts, "lora"), tmp_path / "lora", "")
    with pytest.raises(ValueError, match="trained on another base"):
        read_adapter(load_checkpoint(NANO).model, tmp_path / "lora")
    (tmp_path / "lora/base.json").unlink()
    with pytest.raises(Damaged, match="adapter_model.safetensors.*the shapes"):
        read_adapter(load_checkpoint(NANO).model, tmp_path / "lora")
    with pytest.raises(ValueError, match="holds no adapter"): read_adapter(parts.model, tmp_path)


def test_joined_weights_are_stored_once_and_saved_as_before(parts, tmp_path):
    own = Checkpoint(copy.deepcopy(parts.model), parts.tokenizer, parts.codec)
    before = {n: w.clone() for n, w in own.model.state_dict().items()}

    def stored():
        every = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes()
                 for w in own.model.parameters()}
        return sum(every.values())

    size = stored()
    first = Decoder(own.model)
    assert stored() == size
    joined = first.layers[0].qkv.weight
    assert Decoder(own.model).layers[0].qkv.weight.data_ptr() == joined.data_ptr()
    assert all(torch.equal(w, before[n]) for n, w in own.model.state_dict().items())
    own.model.model.layers[0].self_attn.k_proj.weight.data.add_(1)  # training changes the engine
    q = len(own.model.model.layers[0].self_attn.q_proj.weight)
    k = own.model.model.layers[0].self_attn.k_proj.weight
    assert torch.equal(joined[q : q + len(k)], k)
    save_checkpoint(tmp_path / "saved", own)
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert saved.keys() == before.keys()
    again = load_checkpoint(tmp_path / "saved").model.state_dict()
    assert all(torch.equal(w, own.model.state_dict()[n]) for n, w in again.items())


def test_with_too_little_memory_fewer_rows_are_used_and_nothing_is_lost(
    parts, prompts, monkeypatch, capsys
):
    how = [Sampling(seed=i, max_seconds=0.4) for i in range(10)]
    wanted = generated(parts, prompts * 2, how)
    new = Decoder.new_cache

    def small(self, rows, length):
        if rows > 3: raise torch.OutOfMemoryError("no memory")
        return new(self, rows, length)

    monkeypatch.setattr(Decoder, "new_cache", small)
    engine = Engine(parts, max_rows=8)
    found = generated(parts, prompts * 2, how, engine=engine)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "memory is short: at most 4 rows at once instead of 8",
        "memory is short: at most 2 rows at once instead of 4",
    ]
    monkeypatch.setattr(Decoder, "new_cache", lambda *_: small(None, 4, 0))
    engine = Engine(parts, max_rows=2)
    engine.submit(prompts[0], how[0])
    with pytest.raises(torch.OutOfMemoryError): list(engine.run())


def test_a_request_that_never_ends_stops_at_its_limit(parts):
    "All logits are 0, so EOS is never drawn; the limit of the frames is HF's."
    never = torch.zeros_like(parts.model.audio_lm_head.weight)
    own = Checkpoint(copy.deepcopy(parts.model), parts.tokenizer, parts.codec)
    own.model.audio_lm_head.weight.data = never
    for seconds in (0.2, 1.0):
        how = Sampling(temperature=0, ras_win_len=0, max_seconds=seconds)
        codes = generated(own, [Prompt("Vâng.")], [how])[0]
        hf = generate_delayed_codes(own, Prompt("Vâng."), how)
        assert len(codes) == len(hf) == how.options(25, 8)["max_new_tokens"]


def test_the_cache_grows_with_what_is_said(parts, prompts):
    engine = Engine(parts)
    generated(parts, prompts[:1], [greedy(0.3)], engine=engine)
    short = engine.cache.length
    long = make_prompt(" ".join(["Xin chào các bạn."] * 60))
    how = Sampling(max_seconds=1, seed=3)
    found = generated(parts, [long], [how], engine=engine)[0]
    assert engine.cache.length > short
    assert np.array_equal(found, generated(parts, [long], [how])[0])


def test_a_caller_that_needs_no_more_leaves_the_engine_free(parts, prompts):
    engine, how = Engine(parts, max_rows=4), Sampling(max_seconds=0.4)
    spoken = say_many(engine, prompts * 2, how, max_retries=0)
    next(spoken)
    spoken.close()
    assert not engine.busy and not any(engine.rows)
    i, speech = next(say_many(engine, prompts[:1], how, max_retries=0))
    assert i == 0 and np.array_equal(speech.codes, dict(
        say_many(parts, prompts[:1], how, max_retries=0)
    )[0].codes)


def test_a_base_in_four_bits_speaks_like_hf(place, prompts):
    "Also with an adapter, whose codes differ; `mode nf4` of 07 loads such a base."
    own = load_speaker(SaySettings(model=str(place / "nano"), mode="nf4", device="cpu")).parts
    assert "4bit" in type(own.model.model.layers[0].mlp.up_proj).__name__
    how, cloned = greedy(0.3), prompts[1]  # bitsandbytes' CPU code crashes without a reference
    found = generated(own, [cloned], [how])[0]
    assert np.array_equal(found, generate_delayed_codes(own, cloned, how))
    own.model = add_lora(own.model, lora_config(4))
    for n, p in own.model.named_parameters():
        if "lora_" in n: p.data += 0.05
    adapted = generated(own, [cloned], [how])[0]
    assert np.array_equal(adapted, generate_delayed_codes(own, cloned, how))
    assert not np.array_equal(adapted, found)


def test_without_prompts_no_engine_is_made():
    "A model that cannot speak here, such as one divided among ranks, is not touched."
    assert list(say_many(Checkpoint(None, None, None), [])) == []


def test_two_rows_are_the_least():
    with pytest.raises(ValueError, match="max_rows is 1: guidance needs at least 2 rows"):
        Engine(load_checkpoint(NANO), max_rows=1)


KERNELS = """
import torch, higgs_vi
from higgs_vi.decoder import Decoder, adapter_of
from higgs_vi import speech as speech_part
from higgs_vi.adapters import add_lora, lora_config
from higgs_vi.model import nano
torch.manual_seed(0)
for rank in (0, 3):
    model = nano(hidden=64 if not rank else 128).model
    if rank:
        model = add_lora(model, lora_config(rank, targets=["attention", "audio_ffn"]))
        for n, p in model.named_parameters():
            if "lora_" in n: p.data += torch.randn_like(p) * 0.05
    adapters = [adapter_of(model)] if rank else []
    found = {}
    for kernels in (True, False):
        decoder = Decoder(model, adapters)
        if rank or not kernels: assert (decoder.scratch is not None) or not rank
        if not kernels: decoder.scratch = None
        R = 3
        rows, adapter = torch.arange(R), torch.tensor([0, 1, 1]) * bool(rank)
        cache = decoder.new_cache(R, 64)
        ids = torch.arange(12).repeat(R, 1) + 20
        ids[:, 3:6] = model.config.audio_token_id if not rank else decoder.config.audio_token_id
        frames = torch.arange(R * 3 * 8).view(R * 3, 8)
        decoder.prefill(cache, rows, ids, frames, adapter)
        for n in range(2):
            logits = decoder.step(cache, frames[n::3] + n, rows * 0 + 12 + n, adapter, 64)
        found[kernels] = logits
    wrong = ((found[True] - found[False]).norm() / found[False].norm()).item()
    print(rank, wrong)
    assert wrong < 1e-5
"""


def test_each_kernel_computes_what_pytorch_does():
    "54_kernels in a process of its own, in which Triton's interpreter can be switched on."
    notebook = Path(__file__).parents[1] / "nbs/54_kernels.ipynb"
    code = (
        "import sys, pathlib; from nbdev.test import test_nb; "
        "sys.exit(not test_nb(pathlib.Path(sys.argv[1]))[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(notebook)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "nothing is computed" not in done.stdout


def test_kernels_give_the_logits_of_pytorch():
    "The whole decoder in Triton's interpreter, with and without adapters."
    env = os.environ | dict(TRITON_INTERPRET="1")
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
