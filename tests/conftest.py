"""Shared fixtures: an untrained nano, and one that is overfitted on four clips."""
import os
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")


import pytest
import torch
from transformers.utils import logging

from higgs_vi.audio import DEMO, read_audio
from higgs_vi.batch import build_example, collate
from higgs_vi.codec import encode
from higgs_vi.data import DataSettings, prepare
from higgs_vi.files import write_text
from higgs_vi.model import nano, write_nano
from higgs_vi.prompt import Prompt
from higgs_vi.step import train_step

logging.disable_progress_bar()

# demo clips of four speakers and four lengths
FOUR = {"minh_000": "Xin chào các bạn.", "ngan_001": "Hôm nay trời đẹp quá!",
        "thu_002": "Bạn ăn cơm chưa?", "son_003": "Tôi tên là Lan."}


@pytest.fixture(scope="session")
def parts():
    "An untrained nano. Tests that change its model must copy it."
    return nano()


@pytest.fixture(scope="session")
def clips(parts):
    "The clips of `FOUR` as (prompt, codes)."
    codes = encode(parts.codec, [read_audio(DEMO/f"clips/{name}.ogg") for name in FOUR])
    return [(Prompt(text), c) for text, c in zip(FOUR.values(), codes, strict=True)]


@pytest.fixture(scope="session")
def four(tmp_path_factory):
    "A Higgs folder with the clips of `FOUR`, read-only by convention."
    folder = tmp_path_factory.mktemp("four")
    rows = "".join(f"clips/{name}.ogg,{text},{name[:-4]}\n" for name, text in FOUR.items())
    write_text(folder / "four.csv", "wav_filename,text,speaker\n" + rows)
    prepare(
        DataSettings(
            table=str(folder / "four.csv"), audio=str(DEMO), output_dir=str(folder / "four")
        )
    )
    return folder / "four"


@pytest.fixture(scope="module")
def place(tmp_path_factory, four):
    "A folder with a nano, the demo clips, and a folder of four of them."
    folder = tmp_path_factory.mktemp("train")
    write_nano(folder/"nano")
    prepare(DataSettings(output_dir=str(folder/"data")))
    (folder/"four").symlink_to(four)
    return folder


@pytest.fixture(scope="session")
def overfitted(clips):
    "A nano after full fine-tuning on four clips until it reproduces them."
    own = nano(seed=1)
    examples = [build_example(own.tokenizer, p, c, p.text) for p, c in clips]
    batch = collate(examples, own.tokenizer)
    optimizer = torch.optim.AdamW(own.model.train().parameters(), lr=3e-3)
    losses = [train_step(own.model, optimizer, [batch])["loss"] for _ in range(150)]
    own.model.eval()
    return SimpleNamespace(**vars(own), examples=examples, losses=losses)
