"""The forecast of 03_memory compared with the memory that the training code really uses, counted on
fake tensors and by the compiler.
"""
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgs_vi import step
from higgs_vi.adapters import add_lora, lora_config, prepare_full_training
from higgs_vi.forecast import (
    GIB,
    LENGTH,
    SHARE,
    SPARE,
    forecast,
    gathered_gib,
    meta_model,
    model_config,
    plans_by_card,
    resident_gib,
    saved_bytes,
    saved_bytes_compiled,
)
from higgs_vi.recipe import MemorySettings

WIDE = dict(lora_rank=32, target_modules=["attention", "text_ffn", "audio_ffn"])


class Live(TorchDispatchMode):
    "Dispatch mode that counts the bytes of all live tensors created under it, and their peak."

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if (
                isinstance(t, torch.Tensor)
                and (key := (s := t.untyped_storage())._cdata) not in self.seen
            ):
                self.seen[key] = s.nbytes()
                self.now += s.nbytes()
                weakref.finalize(s, self.gone, key)
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key):
        self.now -= self.seen.pop(key)


class Unpacked(torch.autograd.Function):
    "Imitates bitsandbytes: a 4-bit matrix is unpacked for each product and stored packed."
    @staticmethod
    def forward(ctx, x, packed, shape):
        ctx.packed, ctx.shape = packed, shape
        return x @ torch.empty(shape, dtype=x.dtype).t()

    @staticmethod
    def backward(ctx, grad): return grad @ torch.empty(ctx.shape, dtype=grad.dtype), None, None


class In4Bits(torch.nn.Module):
    "A 4-bit linear layer of `shape` with one byte of scale per 64 values."

    def __init__(self, shape):
        super().__init__()
        self.shape, self.packed = (
            shape,
            torch.empty(int(shape[0] * shape[1] * (0.5 + (1 + 4 / 256) / 64)), dtype=torch.uint8),
        )

    def forward(self, x):
        return Unpacked.apply(x, self.packed, self.shape)


def made_of(model):
    "Replace a model's meta tensors by tensors of the active mode."
    for m in model.modules():
        for name, p in m._parameters.items():
            if p is not None:
                m._parameters[name] = torch.nn.Parameter(
                    torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad
                )
        for name, b in m._buffers.items():
            if b is not None:
                m._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
    return model


def batch_of(n):
    "A batch of `n` positions in clips of equal length."
    clips, zeros, sound = (
        n // LENGTH,
        lambda *shape: torch.zeros(*shape, dtype=torch.long),
        int(n * SHARE),
    )
    return dict(
        text_ids=zeros(n - sound),
        delayed_codes=zeros(sound, 8),
        place=zeros(n),
        order=zeros(n),
        predict_at=zeros(sound),
        targets=zeros(sound, 8),
        shape=(clips, LENGTH),
        names=[],
    )


def peak_of_a_step(cfg):
    "Peak GiB of one step of the real training code, with the optimiser state already allocated."
    model = meta_model(model_config(cfg))
    if cfg.mode == "full":
        model = prepare_full_training(model, torch.bfloat16)
    else:
        model = add_lora(
            model,
            lora_config(
                cfg.lora_rank,
                2 * cfg.lora_rank,
                cfg.lora_dropout,
                cfg.target_modules,
                cfg.audio_embeddings,
            ),
        )
    with FakeTensorMode(), Live() as live:
        if cfg.mode == "qlora":
            for m in list(step.unwrap_peft(model).model.layers.modules()):
                for name, child in list(m.named_children()):
                    if (
                        type(child) is torch.nn.Linear
                        and "lora" not in type(m).__name__.lower()
                        and name not in ("default",)
                    ):
                        setattr(m, name, In4Bits(tuple(child.weight.shape)))
        model = made_of(model).train()
        core = step.unwrap_peft(model).model
        core.gradient_checkpointing = cfg.gradient_checkpointing
        trained = [p for p in model.parameters() if p.requires_grad]
        state = [
            torch.empty(p.numel() * (2 if cfg.mode == "full" else 8), dtype=torch.uint8)
            for p in trained
        ]
        for p in trained * (cfg.gradient_accumulation_steps > 1):
            p.grad = torch.empty_like(p)
        elsewhere = (
            core.embed_tokens.weight.untyped_storage().nbytes() if cfg.mode == "qlora" else 0
        )  # in the host's memory
        step.audio_loss(model, batch_of(cfg.token_budget)).total.backward()
        if (
            cfg.optim == "rounded8bit"
        ):  # torchao's update, compiled: both moments of a weight in fp32 (exps/speed.ipynb)
            update = torch.empty(2, max(p.numel() for p in trained))
            del update
        del state
    return (live.peak - elsewhere) / GIB


def small(folder, **change):
    "Write the released configuration with some numbers changed to `folder` and return its path."
    config = HiggsAudioV2Config(codebook_size=1026, **change)
    config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "how",
    [
        dict(gradient_checkpointing=0),
        dict(gradient_checkpointing=1),
        dict(gradient_checkpointing=3),
        dict(gradient_checkpointing=0, lora_dropout=0.0),
        dict(gradient_checkpointing=0, **WIDE),
        dict(gradient_checkpointing=1, audio_embeddings=True, **WIDE),
        dict(gradient_checkpointing=0, mode="qlora"),
        dict(gradient_checkpointing=1, mode="qlora", **WIDE),
        dict(
            gradient_checkpointing=1,
            mode="full",
            optim="rounded8bit",
            gradient_accumulation_steps=1,
        ),
    ],
    ids=lambda how: ",".join(f"{k}={v}" for k, v in how.items() if k != "rank"),
)
def test_a_step_takes_what_the_forecast_says(tmp_path, how):
    """Full width, six layers, 24 clips, not compiled: the peak is within 3 % of the forecast
    without its spare workspace.
    """
    cfg = MemorySettings(
        model=small(tmp_path, num_hidden_layers=6),
        token_budget=24 * LENGTH,
        torch_compile=False,
        **how,
    )
    parts, peak = forecast(cfg), 0
    with mock.patch.object(step, "codebook_weights", lambda weights, n: torch.ones(n)):
        peak = peak_of_a_step(cfg)
    said = parts["total"] - SPARE
    print(f"forecast {said:.3f}, counted {peak:.3f}")
    assert abs(said / peak - 1) < 0.03


@pytest.mark.parametrize(
    "how", [dict(), dict(lora_dropout=0.0, **WIDE)], ids=["attention, dropout", "wide"]
)
def test_the_compiler_keeps_what_the_formula_says(tmp_path, how):
    """One layer at a quarter of the width on the CPU, eager and partitioned by the compiler: bytes
    per position saved for the backward pass.
    """
    torch._dynamo.reset()
    cfg = MemorySettings(
        model=small(
            tmp_path,
            num_hidden_layers=1,
            hidden_size=768,
            intermediate_size=2048,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=1000,
            pad_token_id=0,
        ),
        token_budget=2 * LENGTH,
        **how,
    )
    n, sound, config = cfg.token_budget, int(cfg.token_budget * SHARE), model_config(cfg)
    model = HiggsAudioV2ForConditionalGeneration(config).to(torch.bfloat16)
    layer = (
        step.unwrap_peft(
            add_lora(model, lora_config(cfg.lora_rank, 32, cfg.lora_dropout, cfg.target_modules))
        )
        .model.train()
        .layers[0]
    )
    def rows(n):
        return torch.randn(n, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    args = (
        layer,
        rows(n - sound),
        rows(sound),
        (torch.randn(n, config.head_dim, dtype=torch.bfloat16),) * 2,
    )
    for way, said in (
        (step._layer, saved_bytes(cfg)),
        (
            torch.compile(step._layer, backend="aot_eager_decomp_partition"),
            saved_bytes_compiled(cfg),
        ),
    ):
        seen = {}
        def keep(t, seen=seen):
            return seen.setdefault(t.untyped_storage()._cdata, t) is None or t
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast("cpu", torch.bfloat16),
        ):
            way(*args, dict(order=torch.arange(n), place=torch.arange(n), shape=(2, LENGTH)))
        real = sum(
            t.untyped_storage().nbytes()
            for t in seen.values()  # of positions: no weights, nor the turn of all layers
            if t.dim()
            and t.shape[0] in (n, sound, n - sound, 2)
            and t.data_ptr() != args[3][0].data_ptr()
        )
        print(f"said {said / n:.0f}, kept {real / n:.0f} bytes a position")
        assert abs(said / real - 1) < 0.03


@pytest.mark.parametrize(
    "users, told",
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
    ],
)
def test_the_allocator_is_set_by_the_library(users, told):
    """Importing the package turns on expandable segments unless the user has configured the
    allocator.
    """
    env = {k: v for k, v in os.environ.items() if not k.endswith("ALLOC_CONF")} | users
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "import higgs_vi, torch; print(torch._C._accelerator_getAllocatorSettings())",
        ],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == told


def test_the_table_of_cards_in_the_readme_is_what_03_prints():
    "Peak and hours per epoch; the parameters are those of the command in the README."
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    options = re.search(r"`higgs-vi-memory ([^`]*)`", text)[1].replace("--", "").split()
    cfg = MemorySettings.of(dict(zip(options[::2], options[1::2], strict=True)))
    found = plans_by_card(cfg)[["GiB, forecast", "hours per epoch of 10 h, forecast"]]
    rows = re.findall(r"(?m)^\| (\d+ GB \([^)]+\)) \|[^|]*\| ([\d.]+) \| ([\d.]+) \|$", text)
    assert len(rows) == 5
    assert all([float(gib), float(h)] == found.loc[card].tolist() for card, gib, h in rows)


def test_several_gpus_divide_the_memory_of_full_training_alone():
    """Weights, gradients and moments shrink with the number of GPUs; what is gathered does not. The
    released model in fp32 with AdamW is too large for a card of 80 GB, and fits two.
    """
    plans = {n: MemorySettings(mode="full", gpus=n) for n in (1, 2, 8)}
    kept = {n: resident_gib(plan) for n, plan in plans.items()}
    for part in ("gradients", "optimiser"):
        assert kept[1][part] == pytest.approx(2 * kept[2][part]) == pytest.approx(8 * kept[8][part])
    assert kept[2]["weights"] == pytest.approx(4 * kept[8]["weights"])
    gathered = [gathered_gib(plan) for plan in plans.values()]
    assert gathered[0] == (0, 0) and gathered[1] == gathered[2] and min(gathered[1]) > 1
    peaks = [forecast(plan)["total"] for plan in plans.values()]
    assert peaks[0] > 80 > peaks[1] > peaks[2] > sum(kept[8].values())
    assert resident_gib(MemorySettings(gpus=8)) == resident_gib(MemorySettings())
    assert gathered_gib(MemorySettings(gpus=8)) == (0, 0)
