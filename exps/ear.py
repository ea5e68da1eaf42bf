"""A recogniser of our own for sound that comes out of the nano's codec.

Whisper-base's encoder with a linear layer, trained with CTC to recognise the onset, rime and tone
of each syllable. `nano_takes` trains it and learns from it, and `demo_clips` chooses takes by it.
It judges no results: those are judged by `judges.py`. Frames are the codec's, 25 a second; log-mels
have four columns a frame and log-probabilities two. A clip may last at most 30 s.
"""
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from rapidfuzz.distance import Levenshtein
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import WhisperConfig, WhisperModel
from transformers.audio_utils import mel_filter_bank

from higgs_vi.audio import SAMPLE_RATE
from higgs_vi.text import split_tone, words

CLUSTER = "ngh|ng|nh|ch|gh|gi(?=[aăâeêoôơuư])|kh|ph|qu|th|tr"
ONSET = re.compile(rf"({CLUSTER}|[bcdđghklmnprstvx])?(.*)")
SIZES = 400, 1024  # of the windows: Whisper's 25 ms, and 64 ms, in which the pitch is seen
BASE = WhisperConfig(
    d_model=512,
    encoder_layers=6,
    encoder_attention_heads=8,
    encoder_ffn_dim=2048,
    decoder_layers=1,
    decoder_attention_heads=8,
)


def mixed(device: torch.device):
    "Return autocast to bfloat16 on a GPU; it does nothing on a CPU."
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def sounds_of(text: str) -> list[str]:
    "Return the onset, rime and tone of each syllable of `text`, in order."
    out = []
    for word in words(text):
        base, tone = split_tone(word)
        onset, rime = ONSET.match(base).groups()
        out += [f"{onset or '-'}_", f"_{rime}", f"={tone}"]
    return out


def frequent_sounds(texts: Sequence[str], least: int) -> list[str]:
    "Return the sounds that stand at least `least` times in `texts`, sorted."
    count = Counter(s for t in texts for s in sounds_of(t))
    return sorted(s for s, n in count.items() if n >= least)


@torch.no_grad()
def wave_of(codec, codes: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    "Decode `codes` `(B, 8, T)` to 16 kHz waves `(B, 640 T)`, zero after the `frames` of each."
    T = codes.shape[2]
    with mixed(codes.device):
        x = codec.decode(codes.clamp(0, 1023)).audio_values[:, 0].float()
    x = _to16(str(x.device))(x)[:, : T * 640]
    return x.masked_fill(torch.arange(T * 640, device=x.device) >= frames[:, None] * 640, 0)


@cache
def _to16(device: str) -> nn.Module:
    return torchaudio.transforms.Resample(SAMPLE_RATE, 16_000).to(device)


@cache
def _bands(n: int, device: str) -> torch.Tensor:
    bank = mel_filter_bank(n // 2 + 1, 80, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank).to(device, torch.float32)


@torch.no_grad()
def mel_of(x: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Return the log-mels `(B, 2, 4T, 80)` of 16 kHz waves `(B, 640 T)`: Whisper's, and one with
    longer windows (for `nano_takes`'s critic). They are -1 after the `frames` of each.
    """
    logs = []
    for n in SIZES:
        window = torch.hann_window(n, device=x.device)
        power = torch.stft(x, n, 160, window=window, return_complex=True)[..., :-1].abs().square()
        log = power.transpose(1, 2) @ _bands(n, str(x.device))
        log = log.clamp_min(1e-10).log10()
        logs.append((torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4)
    log, place = torch.stack(logs, 1), torch.arange(x.shape[1] // 160, device=x.device)
    return log.masked_fill((place >= 4 * frames[:, None])[:, None, :, None], -1.0)


class Ear(nn.Module):
    """The recogniser: log-probabilities `(B, 2T, 1 + sounds)` of Whisper's log-mel `(B, 4T, 80)`;
    the first of them is CTC's blank.
    """

    def __init__(self, encoder: nn.Module, sounds: Sequence[str]):
        super().__init__()
        self.encoder, self.out = encoder, nn.Linear(512, len(sounds) + 1)
        self.number = {s: i + 1 for i, s in enumerate(sounds)}

    def forward(self, log: torch.Tensor) -> torch.Tensor:
        "Return the log-probabilities of `log`."
        e = self.encoder
        h = F.gelu(e.conv2(F.gelu(e.conv1(log.transpose(1, 2))))).transpose(1, 2)
        h = h + e.embed_positions.weight[: h.shape[1]].to(h.dtype)
        for layer in e.layers:
            h = layer(h, attention_mask=None)
            h = h[0] if isinstance(h, tuple) else h
        return self.out(e.layer_norm(h)).float().log_softmax(-1)

    def labels(self, text: str) -> list[int]:
        "Return the numbers of the sounds of `text`, without the sounds that it does not know."
        return [self.number[s] for s in sounds_of(text) if s in self.number]


def new_ear(sounds: Sequence[str], teacher: str = "") -> Ear:
    """Return Whisper-base's encoder with a new output layer.

    `teacher` is a folder with the encoder in `encoder.safetensors`; empty: the hub's.
    """
    if not teacher: return Ear(WhisperModel.from_pretrained("openai/whisper-base").encoder, sounds)
    encoder = WhisperModel(BASE).encoder
    weights = load_file(f"{teacher}/encoder.safetensors")
    encoder.load_state_dict({k: v.float() for k, v in weights.items()})
    return Ear(encoder, sounds)


def save_ear(ear: Ear, path: Path):
    "Write the weights in half precision, with the list of sounds."
    weights = {k: v.half().contiguous() for k, v in ear.state_dict().items()}
    save_file(weights, path, {"sounds": json.dumps(list(ear.number))})


def load_ear(path: Path, device: torch.device) -> Ear:
    """Return the recogniser of a file that `save_ear` wrote.

    Raises `ValueError` for a file without the list of sounds.
    """
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
    if "sounds" not in told:
        raise ValueError(f"{path} names no sounds: delete it, and let nano_takes train it again")
    ear = Ear(WhisperModel(BASE).encoder, json.loads(told["sounds"]))
    ear.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return ear.to(device).eval().requires_grad_(False)


def in_batches(order: np.ndarray, lengths: np.ndarray, seconds: float) -> Iterator[np.ndarray]:
    """Split `order` so that no batch has more than `seconds` of audio.

    `lengths` are the clips' frames. The first clip of `order` must be its longest.
    """
    at = 0
    while at < len(order):
        n = max(1, int(25 * seconds) // max(1, int(lengths[order[at]])))
        yield order[at : at + n]
        at += n


def stacked(mels: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    "Return Whisper's of the `mels`, each `(2, 4T, 80)`, as `(B, most 4T, 80)` padded with -1."
    most = -(-max(m.shape[1] for m in mels) // 32) * 32
    x = torch.full((len(mels), most, 80), -1.0, device=device)
    for b, m in enumerate(mels):
        x[b, : m.shape[1]] = m[0]
    return x


def hidden(log: torch.Tensor) -> torch.Tensor:
    """SpecAugment: set two spans of up to 0.3 s and two of up to ten bands of log-mels
    `(B, 4T, 80)` to zero.
    """
    for dim, most in (1, 30), (1, 30), (2, 10), (2, 10):
        place = torch.arange(log.shape[dim], device=log.device)
        at, wide = torch.rand(2, len(log), 1, device=log.device)
        first = (log.shape[dim] - most) * at
        gone = (place >= first) & (place < first + most * wide)
        log = log.masked_fill(gone.unsqueeze(3 - dim), 0.0)
    return log


def ctc(
    log_p: torch.Tensor, frames: np.ndarray, wanted: list[list[int]], zero_infinity: bool = False
) -> torch.Tensor:
    """Return the CTC loss `(B,)` in nats of the labels `wanted`, given log-probabilities `(B, 2T,
    1 + sounds)` and the number of codec frames of each clip. It is infinite for a clip that is too
    short for its labels; `zero_infinity` makes that 0, without a gradient.
    """
    return F.ctc_loss(
        log_p.transpose(0, 1),
        torch.tensor(sum(wanted, []), dtype=torch.long, device=log_p.device),
        torch.from_numpy(2 * np.asarray(frames)),
        torch.tensor([len(w) for w in wanted]),
        reduction="none",
        zero_infinity=zero_infinity,
    )


def heard(log_p: torch.Tensor, frames: Sequence[int]) -> list[list[int]]:
    """Decode log-probabilities `(B, 2T, 1 + sounds)` greedily: the labels of each clip, without
    repetitions and blanks. `frames` are the clips' codec frames.
    """
    out = []
    for row, n in zip(log_p.argmax(-1).cpu().numpy(), frames):
        row = row[: 2 * n]
        out.append([int(v) for v, before in zip(row, np.r_[-1, row[:-1]]) if v != before and v])
    return out


def train_ear(
    ear: Ear,
    mels: Sequence[torch.Tensor],
    texts: Sequence[str],
    minutes: float,
    seed: int,
    seconds: float = 200.0,
) -> int:
    """Train for `minutes` on the clips of at most 15 s, given by their `mels`, each `(2, 4T, 80)`,
    and `texts`.

    A batch has about `seconds` of audio of similar length. Returns the number of steps. Raises
    `ValueError` if there is no such clip.
    """
    device, rng = ear.out.weight.device, np.random.default_rng(seed)
    lengths = np.array([m.shape[1] // 4 for m in mels])
    labels, usable = [ear.labels(t) for t in texts], np.flatnonzero(lengths <= 375)
    if not len(usable): raise ValueError("no clip of at most 15 s to train the recogniser on")

    def batches():
        while True:
            order = usable[np.argsort(-lengths[usable] - rng.integers(0, 12, len(usable)))]
            chunks = list(in_batches(order, lengths, seconds))
            yield from (chunks[i] for i in rng.permutation(len(chunks)))

    optimizer, since = torch.optim.AdamW(ear.parameters(), betas=(0.9, 0.99)), time.time()
    for step, part in enumerate(batches()):
        if (gone := (time.time() - since) / 60 / minutes) >= 1: return step
        fall = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * gone))
        for g in optimizer.param_groups:
            g["lr"] = 2e-4 * min(1, (step + 5) / 200) * fall
        optimizer.zero_grad()
        with mixed(device):
            log_p = ear(hidden(stacked([mels[i] for i in part], device)))
        wanted = [labels[i] for i in part]
        loss = ctc(log_p, lengths[part], wanted, zero_infinity=True).sum()
        loss = loss / max(1, sum(map(len, wanted)))
        loss.backward()
        nn.utils.clip_grad_norm_(ear.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def misheard(
    ear: Ear, mels: Sequence[torch.Tensor], texts: Sequence[str], seconds: float = 200.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Listen to clips, given by their `mels`, each `(2, 4T, 80)`.

    Returns for each of `texts` how many of its sounds were heard wrongly, left out or put in, their
    number, and the CTC loss in nats a sound (infinite for a clip too short for its text). A batch
    has at most `seconds` of audio.
    """
    device, lengths = ear.out.weight.device, np.array([m.shape[1] // 4 for m in mels])
    labels = [ear.labels(t) for t in texts]
    wrong, nats = np.zeros(len(mels), int), np.zeros(len(mels))
    total = np.array([len(x) for x in labels])
    was = ear.training
    ear.eval()
    for part in in_batches(np.argsort(-lengths), lengths, seconds):
        with mixed(device):
            log_p = ear(stacked([mels[i] for i in part], device))
        loss = ctc(log_p, lengths[part], [labels[i] for i in part]).tolist()
        for i, got, x in zip(part, heard(log_p, lengths[part]), loss):
            wrong[i], nats[i] = Levenshtein.distance(got, labels[i]), x / max(1, total[i])
    ear.train(was)
    return wrong, total, nats


@torch.no_grad()
def mels_of_waves(
    waves: Sequence[np.ndarray], device: torch.device, seconds: float = 200.0
) -> list[torch.Tensor]:
    "Return the log-mels `(2, 4T, 80)` of each of the 24 kHz `waves`, cut to whole frames."
    lengths, out = np.array([len(x) // 960 for x in waves]), [None] * len(waves)
    for part in in_batches(np.argsort(-lengths), lengths, seconds):
        x = np.zeros((len(part), 960 * int(lengths[part[0]])), np.float32)
        for b, i in enumerate(part):
            x[b, : 960 * lengths[i]] = waves[i][: 960 * lengths[i]]
        n = torch.from_numpy(lengths[part]).to(device)
        m = mel_of(_to16(str(device))(torch.from_numpy(x).to(device)), n)
        for b, i in enumerate(part):
            out[i] = m[b, :, : 4 * lengths[i]].clone()
    return out
