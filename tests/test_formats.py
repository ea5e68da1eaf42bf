"""Prompts, tokenizer and checkpoints agree with what Boson and HF released (facts in
released.json).
"""
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from higgs_vi.batch import build_example, collate
from higgs_vi.boson import codec_config_from_boson, model_config_from_boson
from higgs_vi.cache import codec_key
from higgs_vi.codec import encode, load_codec
from higgs_vi.generate import GREEDY
from higgs_vi.model import (
    Checkpoint,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from higgs_vi.prompt import SPECIAL_TOKENS, Prompt, Reference, encode_prompt, render, token_id
from higgs_vi.speech import say
from higgs_vi.step import target_logits

RELEASED = json.loads((Path(__file__).parent/"released.json").read_text(encoding="utf-8"))


def prompt_of(case):
    voice = Reference(RELEASED["reference_text"], np.zeros((8, 3), np.int16))
    return Prompt(
        **case
        | dict(
            voices=tuple(case.get("voices", ())), references=(voice,) * case.get("references", 0)
        )
    )


# --- 8: one prompt --------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "case",
    RELEASED["template"],
    ids=lambda c: c["prompt"].get("task", "single") + "-" + c["prompt"].get("place", ""),
)
def test_prompt_is_what_hf_s_published_template_renders(parts, case):
    prompt = prompt_of(case["prompt"])
    assert render(prompt) == case["rendered"]
    e, (ids, delayed_codes) = (
        build_example(parts.tokenizer, prompt, np.ones((8, 5), int)),
        encode_prompt(parts.tokenizer, prompt),
    )
    assert (e.input_ids[: len(ids)] == ids).all() and (
        e.delayed_codes[: len(delayed_codes)] == delayed_codes
    ).all()
    assert len(ids) >= 8 and len(e) == len(ids) + 5 + 9


# --- 10: the real tokenizer -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def llama_tokenizer():
    """Llama 3's text tokenizer with Higgs' control tokens, rebuilt from the BPE ranks in
    llama-models.
    """
    import importlib.util

    ranks = (
        Path(importlib.util.find_spec("llama_models").submodule_search_locations[0])
        / "llama3/tokenizer.model"
    )
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bpe = TikTokenConverter(
        str(ranks), pattern=pattern, extra_special_tokens=SPECIAL_TOKENS
    ).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[1]
    )


def test_special_tokens_have_the_released_ids(llama_tokenizer):
    assert (
        len(RELEASED["special_tokens"]) == len(SPECIAL_TOKENS) == 256
        and len(llama_tokenizer) == 128_256
    )
    for token, i in RELEASED["special_tokens"].items():
        assert token_id(llama_tokenizer, token) == i
    assert (
        llama_tokenizer.decode(llama_tokenizer("Hôm nay trời đẹp quá!").input_ids)
        == "Hôm nay trời đẹp quá!"
    )


def test_prompts_work_with_the_real_tokenizer(llama_tokenizer):
    ids, _ = encode_prompt(llama_tokenizer, Prompt("Hôm nay trời đẹp quá!"))
    assert ids[0] == 128000 and ids[-1] == 128013 and (ids == 128009).sum() == 2


def test_special_tokens_stand_in_the_same_order_in_the_nano(parts):
    first, base = (
        token_id(parts.tokenizer, SPECIAL_TOKENS[0]),
        RELEASED["special_tokens"][SPECIAL_TOKENS[0]],
    )
    assert all(
        token_id(parts.tokenizer, t) - first == i - base
        for t, i in RELEASED["special_tokens"].items()
    )


def test_released_configuration_is_hf_s_big_model(llama_tokenizer):
    ours, hf = (
        model_config_from_boson(RELEASED["config"], llama_tokenizer),
        HiggsAudioV2Config(codebook_size=1026),
    )
    skip = {
        "max_position_embeddings",
        "rope_parameters",
        "bos_token_id",
        "architectures",
        "dtype",
        "transformers_version",
        "_name_or_path",
    }
    a, b = ours.to_dict(), hf.to_dict()
    assert {k: v for k, v in a.items() if k not in skip} == {
        k: v for k, v in b.items() if k not in skip
    }
    for r in (a["rope_parameters"], b["rope_parameters"]):  # two spellings of the same wavelengths
        assert r["original_max_position_embeddings"] / r["low_freq_factor"] == 8192
        assert r["original_max_position_embeddings"] / r["high_freq_factor"] == 2048
        assert r["factor"] == 32 and r["rope_theta"] == 500_000


# --- 9: Boson's layout ----------------------------------------------------------------------------

def to_boson(weights):
    "Boson's names for HF's weights: the mapping of 33_boson inverted, written independently."
    new = {}
    for n, w in weights.items():
        n = n.replace("model.embed_audio_tokens.embed_audio_tokens", "audio_codebook_embeddings")
        n = re.sub(
            r"^(audio_lm_head|text_lm_head)", r"audio_decoder_proj.\1", re.sub(r"^model\.", "", n)
        )
        new[n] = w.clone()
    return new


def boson_config(config):
    "The released config.json with another model's sizes and ids."
    c, rope = config, dict(config.rope_parameters)
    text = RELEASED["config"]["text_config"] | {
        k: getattr(c, k)
        for k in RELEASED["config"]["text_config"]
        if hasattr(c, k) and "rope" not in k
    }
    text |= dict(rope_theta=rope.pop("rope_theta"), rope_scaling=rope)
    return RELEASED["config"] | dict(
        text_config=text,
        audio_dual_ffn_layers=list(range(c.num_hidden_layers)),
        pad_token_id=c.pad_token_id,
        audio_out_token_idx=c.audio_token_id,
        audio_out_bos_token_id=c.audio_bos_token_id,
    )


def codec_to_boson(weights):
    """Boson's names for a codec's weights, with the acoustic convolutions split into direction and
    magnitude as weight norm does.
    """
    unit, new = dict(snake1=0, conv1=1, snake2=2, conv2=3), {}
    for n, w in weights.items():
        n = re.sub(
            r"^acoustic_encoder\.block\.(\d)\.res_unit(\d)\.(\w+\d)",
            lambda m: f"encoder.block.{int(m[1]) + 1}.block.{int(m[2]) - 1}.block.{unit[m[3]]}",
            n,
        )
        n = re.sub(
            r"^acoustic_encoder\.block\.(\d)\.(snake1|conv1)",
            lambda m: f"encoder.block.{int(m[1]) + 1}.block.{dict(snake1=3, conv1=4)[m[2]]}",
            n,
        )
        n = re.sub(
            r"^acoustic_encoder\.(conv1|snake1|conv2)",
            lambda m: f"encoder.block.{dict(conv1=0, snake1=6, conv2=7)[m[1]]}",
            n,
        )
        n = re.sub(
            r"^acoustic_decoder\.block\.(\d)\.res_unit(\d)\.(\w+\d)",
            lambda m: f"decoder_2.model.{int(m[1]) + 1}.block.{int(m[2]) + 1}.block.{unit[m[3]]}",
            n,
        )
        n = re.sub(
            r"^acoustic_decoder\.block\.(\d)\.(snake1|conv_t1)",
            lambda m: f"decoder_2.model.{int(m[1]) + 1}.block.{dict(snake1=0, conv_t1=1)[m[2]]}",
            n,
        )
        n = re.sub(
            r"^acoustic_decoder\.(conv1|snake1|conv2)",
            lambda m: f"decoder_2.model.{dict(conv1=0, snake1=6, conv2=7)[m[1]]}",
            n,
        )
        if re.match(r"(en|de)coder_semantic\.", n):
            n = re.sub(r"\.(conv[12]?)\.(weight|bias)$", r".\1.conv.\2", n)
        n = n.replace("quantizer.quantizers.", "quantizer.vq.layers.").replace(
            ".codebook.", "._codebook."
        )
        n = re.sub(
            r"^fc([12]?)\.",
            lambda m: {"": "fc_prior.", "1": "fc_post1.", "2": "fc_post2."}[m[1]],
            n,
        )
        if re.match(r"(encoder|decoder_2)\.", n) and n.endswith("weight") and w.dim() == 3:
            g = w.norm(dim=(1, 2), keepdim=True)
            new |= {n + "_g": g, n + "_v": 3 * w}
        else:
            new[n] = w.clone()
    return new | {"fc1.weight": torch.zeros(2, 2)}  # Boson's file carries one that nothing uses


def write_boson(folder, parts, split=False):
    """Write a checkpoint folder in Boson's first layout.

    `split` halves the tensors that some of their checkpoints store in two parts.
    """
    folder.mkdir()
    weights = to_boson(parts.model.state_dict())
    for name in ("embed_tokens", "audio_decoder_proj.audio_lm_head") if split else ():
        kind, w = "embedding" if "embed" in name else "linear", weights.pop(f"{name}.weight")
        weights |= {
            f"{name}.{kind}_frozen.weight": w[:100].clone(),
            f"{name}.{kind}_trainable.weight": w[100:].clone(),
        }
        weights["audio_codebook_weights"] = torch.ones(8)
    names = sorted(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for file, own in shards.items():
        save_file({n: weights[n] for n in own}, folder / file)
    weight_map = {n: f for f, own in shards.items() for n in own}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(dict(metadata={}, weight_map=weight_map))
    )
    (folder / "config.json").write_text(json.dumps(boson_config(parts.model.config)))
    (folder / "generation_config.json").write_text(json.dumps(RELEASED["generation_config"]))
    parts.tokenizer.save_pretrained(folder)
    (folder / "codec").mkdir()
    torch.save(codec_to_boson(parts.codec.state_dict()), folder / "codec/model.pth")
    (folder / "codec/config.json").write_text(
        json.dumps(
            RELEASED["codec_config"] | dict(D=parts.codec.config.acoustic_model_config.hidden_size)
        )
    )
    return folder


@pytest.fixture(scope="module")
def boson_folder(parts, tmp_path_factory):
    return write_boson(tmp_path_factory.mktemp("boson") / "old", parts)


def test_the_folder_has_the_released_names(boson_folder):
    index = json.loads((boson_folder / "model.safetensors.index.json").read_text())["weight_map"]
    ours = {re.sub(r"layers\.\d+\.", "layers.N.", n) for n in index}
    assert ours == set(RELEASED["weights"]) - {
        "audio_decoder_proj.text_lm_head.weight"
    }  # HF leaves the text head out
    assert RELEASED["weights_total"] == 28 * (len(ours) - 4) + 5


@pytest.mark.parametrize("split", [False, True])
def test_a_boson_folder_loads_to_equal_weights_and_logits(parts, clips, tmp_path, split):
    loaded = load_checkpoint(write_boson(tmp_path / "old", parts, split))
    for n, w in parts.model.state_dict().items():
        assert torch.equal(w, loaded.model.state_dict()[n]), n
    batch = collate([build_example(loaded.tokenizer, p, c) for p, c in clips], loaded.tokenizer)
    with torch.no_grad():
        assert torch.equal(target_logits(parts.model, batch), target_logits(loaded.model, batch))
    theirs = loaded.codec.state_dict()
    for n, w in parts.codec.state_dict().items():
        assert torch.allclose(w, theirs[n], atol=1e-6), n
    g = loaded.model.generation_config
    assert (g.eos_token_id, g.pad_token_id, g.ras_win_len, g.ras_win_max_num_repeat) == (
        parts.model.config.eos_token_id,
        parts.model.config.pad_token_id,
        7,
        2,
    )


def test_a_converted_folder_loads_with_plain_transformers(parts, boson_folder, tmp_path):
    save_checkpoint(tmp_path/"new", load_checkpoint(boson_folder))
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(tmp_path/"new")
    assert all(torch.equal(w, model.state_dict()[n]) for n, w in parts.model.state_dict().items())
    assert model.generation_config.eos_token_id == parts.model.config.eos_token_id
    x = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    same = encode(load_codec(tmp_path/"new/codec"), [x])[0] == encode(parts.codec, [x])[0]
    assert same.mean() > 0.99


def test_the_released_codec_configuration_means_eight_codebooks(parts):
    config = codec_config_from_boson(RELEASED["codec_config"], parts.codec.state_dict())
    assert (config.num_quantizers, config.hop_length, config.frame_rate, config.codebook_size) == (
        8,
        960,
        25,
        1024,
    )


def test_generation_stops_after_conversion(overfitted, clips, tmp_path):
    """The old folder's generation_config names the end id 128001, which decoding never emits.

    The converted model stops all the same.
    """
    save_checkpoint(tmp_path / "new", load_checkpoint(write_boson(tmp_path / "old", overfitted)))
    stale = json.loads((tmp_path / "new/generation_config.json").read_text()) | dict(
        eos_token_id=overfitted.model.config.pad_token_id
    )
    (tmp_path / "new/generation_config.json").write_text(
        json.dumps(stale)
    )  # what others' conversions leave
    again = load_checkpoint(tmp_path / "new")
    for prompt, codes in clips:
        speech = say(again, prompt, replace(GREEDY, max_seconds=12))
        assert speech.ended and abs(speech.codes.shape[1] - codes.shape[1]) <= 1


def test_a_lost_shard_is_named(boson_folder, parts, tmp_path):
    folder = write_boson(tmp_path / "old", parts)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
        load_model(folder)


def test_an_incomplete_codec_is_named(boson_folder, parts, tmp_path):
    folder = write_boson(tmp_path / "old", parts)
    old = torch.load(folder / "codec/model.pth", weights_only=True)
    for damaged in ({}, {n: w for n, w in old.items() if "fc_post2" not in n}):
        torch.save(damaged, folder / "codec/model.pth")
        with pytest.raises(ValueError, match="no complete Higgs codec"):
            load_codec(folder / "codec")
    shutil.rmtree(folder / "codec")
    save_checkpoint(tmp_path / "new", parts)
    shutil.rmtree(tmp_path / "new/codec")
    with pytest.raises(ValueError, match="says that its codec lies in"):
        load_checkpoint(tmp_path / "new")


def test_a_saved_checkpoint_is_the_same_checkpoint(parts, tmp_path):
    save_checkpoint(tmp_path/"a", parts)
    (tmp_path/"a").rename(tmp_path/"b")
    again = load_checkpoint(tmp_path/"b")
    assert isinstance(again, Checkpoint) and codec_key(again.codec) == codec_key(parts.codec)
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path/"b").rglob("*.json"))
