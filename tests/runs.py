"""Small runs of 04_train for tests."""
import shutil
from pathlib import Path

import torch

from higgs_vi.checkpoint import checkpoints, read_metrics
from higgs_vi.forecast import apply_preset
from higgs_vi.ranks import from_main, gather
from higgs_vi.recipe import TrainSettings
from higgs_vi.train import execute


def short_options(**given) -> TrainSettings:
    """Settings of a short run on the CPU, each step logged, no samples; preset demo, not applied.

    LoRA on attention and audio FFN, embeddings and head in full: every kind of trained weight.
    """
    common = dict(
        preset="demo",
        target_modules=["attention", "audio_ffn"],
        audio_embeddings=True,
        logging_steps=1,
        sample_sentences=0,
        device="cpu",
    )
    return TrainSettings.of(common | given)


def short_run(**given) -> TrainSettings:
    "`short_options` with the values of the preset."
    return apply_preset(short_options(**given))


def options(place, out, **change) -> TrainSettings:
    "Twelve LoRA steps with dropout, validation every four steps; the preset is not applied."
    given = dict(
        model=str(place / "nano"),
        data=str(place / "data"),
        output_dir=str(out),
        code_cache=str(place / "codes"),
        token_budget=1024,
        max_steps=12,
        eval_steps=4,
        save_steps=3,
    )
    return short_options(**given | change)


def settings(place, out, **change) -> TrainSettings:
    "`options` with the values of the preset."
    return apply_preset(options(place, out, **change))


def steps_of(run):
    "The metrics of a run that do not depend on the clock."
    keys = ("step", "epoch", "kind", "loss", "by_codebook", "eos_loss", "grad_norm", "rate")
    return [{k: r.get(k) for k in keys} for r in read_metrics(run)]


def back_to(run, step, out):
    "Copy a run as it stood after its checkpoint of `step`."
    shutil.copytree(run, out)
    for checkpoint in checkpoints(out):
        if checkpoint.name > f"step-{step:06d}": shutil.rmtree(checkpoint)
    for written in ("adapter", "model"): shutil.rmtree(Path(out) / written, ignore_errors=True)
    return out


def executed(runs):
    """Train with each of the options `runs`, on every rank of this process's group; yield the runs.

    The option `copy_of` names a run to be copied first, as it stood after step 2.
    """
    for given in runs:
        if whole := given.pop("copy_of", ""):
            if gather(0)[1:] and torch.distributed.get_rank() == 0:
                back_to(whole, 2, given["output_dir"])
            from_main()
        yield execute(apply_preset(TrainSettings.of(given)))
