"""Damaged and hostile files are refused with one kind of error and leave no partial results."""
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_vi.adapters import add_lora, load_adapter, lora_config, read_adapter_config, save_adapter
from higgs_vi.checkpoint import (
    checkpoints,
    load_state,
    load_trained_weights,
    lock_run,
    read_metrics,
    save_state,
    unlock_run,
)
from higgs_vi.codec import load_codec
from higgs_vi.delay import delay, undelay
from higgs_vi.files import Damaged, atomic, atomic_folder, read_json, remove_stale_files, write_text
from higgs_vi.model import (
    NANO,
    build_processor,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from tests.runs import short_run


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    "A checkpoint folder, and a run with a checkpoint of a briefly trained adapter."
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(folder/"nano", parts)
    model = add_lora(copy.deepcopy(parts.model), lora_config(rank=4, audio_embeddings=True))
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n: p.normal_(std=0.01)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    for step in (3, 6): save_state(folder, step, model, optimizer, "")
    save_adapter(model, folder/"adapter", "")
    return folder


def change(tensors, how):
    "Return a damaged copy of `tensors`."
    names = sorted(tensors)
    if how == "half":
        return {n: tensors[n] for n in names[::2]}
    if how == "one":
        return {names[0]: tensors[names[0]]}
    if how == "none":
        return {}
    if how == "extra":
        return tensors | {"base_model.model.stranger.lora_A.weight": torch.zeros(2, 2)}
    if how == "shape":
        return tensors | {names[0]: torch.zeros(3, 5)}
    return tensors | {names[-1]: torch.full_like(tensors[names[-1]], float(how))}


WEIGHTS = ["half", "one", "none", "extra", "shape", "nan", "inf"]
BYTES = dict(
    empty=lambda b: b"",
    cut=lambda b: b[: len(b) // 2],
    header=lambda b: b"\xff" * 16 + b[16:],
    tail=lambda b: b[:-1],
    zeros=lambda b: bytes(len(b)),
    text=lambda b: b"<html>404</html>",
)


def damage(path, how):
    "Damage a file of weights."
    if how in BYTES:
        path.write_bytes(BYTES[how](path.read_bytes()))
    else:
        save_file(
            {n: t.contiguous() for n, t in change(load_file(path), how).items()},
            path,
            metadata=dict(format="pt"),
        )


@pytest.mark.parametrize("how", [*WEIGHTS, *BYTES, "missing"])
def test_damaged_weights_are_refused_wherever_they_are_loaded(parts, saved, tmp_path, how):
    "Adapter, checkpoint, full model and codec; the target of the load stays unchanged."

    def hurt(path):
        damage(path, how) if how != "missing" else path.unlink()

    shutil.copytree(saved / "adapter", tmp_path / "adapter")
    hurt(tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(Damaged, match="adapter_model.safetensors.* is damaged"):
        load_adapter(copy.deepcopy(parts.model), tmp_path / "adapter")
    model = load_adapter(copy.deepcopy(parts.model), saved / "adapter")
    before = {n: w.clone() for n, w in model.state_dict().items()}
    with pytest.raises(Damaged):
        load_trained_weights(model, tmp_path / "adapter")
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
    shutil.copytree(saved / "nano", tmp_path / "nano")
    hurt(tmp_path / "nano/model.safetensors")
    with pytest.raises(Damaged, match="model .* is damaged"):
        load_model(tmp_path / "nano")
    if how != "extra":  # HF's codec has leftovers of its converter
        hurt(tmp_path / "nano/codec/model.safetensors")
        with pytest.raises(Damaged, match="codec .* is damaged"):
            load_codec(tmp_path / "nano/codec")
    full = copy.deepcopy(parts.model)
    full.save_pretrained(tmp_path / "full")
    hurt(tmp_path / "full/model.safetensors")
    with pytest.raises(Damaged):
        load_trained_weights(full, tmp_path / "full")


@pytest.mark.parametrize(
    "name, how",
    [
        ("trainer.pt", "cut"),
        ("trainer.pt", "zeros"),
        ("adapter_model.safetensors", "nan"),
        ("trainer.pt", "missing"),
        ("complete", "text"),
        ("adapter_model.safetensors", "bit"),
        ("trainer.pt", "text"),
    ],
)
def test_a_checkpoint_is_as_it_was_written_or_refused(parts, saved, tmp_path, name, how):
    shutil.copytree(saved / "checkpoints/step-000006", tmp_path / "c")
    path = tmp_path / "c" / name
    if how == "missing":
        path.unlink()
    elif how == "bit":
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    else:
        damage(path, how)
    model = load_adapter(copy.deepcopy(parts.model), saved / "adapter")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(Damaged, match=name):
        load_state(tmp_path / "c", model, optimizer)


def test_an_optimiser_s_state_that_is_not_finite_is_refused_and_no_such_weight_is_saved(
    parts, saved, tmp_path
):
    model = load_adapter(copy.deepcopy(parts.model), saved / "adapter")
    for p in model.parameters():
        p.requires_grad_(p.dtype == torch.float32 and p.requires_grad)
    optimizer = torch.optim.AdamW(trained := [p for p in model.parameters() if p.requires_grad])
    load_state(saved / "checkpoints/step-000006", model, optimizer)
    optimizer.state[trained[0]]["exp_avg"].fill_(float("nan"))
    save_state(tmp_path, 1, model, optimizer, "")
    with pytest.raises(Damaged, match="trainer.pt is damaged .*exp_avg"):
        load_state(checkpoints(tmp_path)[0], model, optimizer)
    with torch.no_grad():
        trained[0].fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="not finite after step 2.*: start another run"):
        save_state(tmp_path, 2, model, optimizer, "")
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000001"]


# --- strangers' configurations --------------------------------------------------------------------

ODD = [None, True, -1, 0, 1.5, 1e300, 2**70, "", "x", [], {}, [1], {"a": 1}, [[]], "\0"]


def fuzzed(path, names=None):
    """Copies of the JSON object in `path`, each with one odd value, then files that are not a JSON
    object.
    """
    good = json.loads(path.read_text(encoding="utf-8"))
    for name in names or good:
        for value in ODD:
            yield json.dumps(good | {name: value})
    yield from (
        "",
        "[]",
        "null",
        "3",
        '"x"',
        "{",
        "{}",
        '{"a": NaN}',
        "[" * 100_000,
        "\0",
        '{"a": ' + "9" * 5000 + "}",
    )


def told(function, *args):
    """Assert that `function` refuses its files with a `ValueError` (which a command shows as one
    line).
    """
    try: function(*args)
    except ValueError as e:
        assert str(e)
        return True
    return False


def test_odd_values_in_an_adapter_s_files_are_clear_errors(parts, saved, tmp_path):
    shutil.copytree(saved/"adapter", tmp_path/"a")
    refused = 0
    for text in fuzzed(tmp_path/"a/adapter_config.json"):
        (tmp_path/"odd.json").write_text(text)
        refused += told(read_adapter_config, tmp_path/"odd.json")
    assert refused > 100
    for text in list(fuzzed(tmp_path/"a/base.json"))[::2]:
        (tmp_path/"a/base.json").write_text(text)
        told(load_adapter, copy.deepcopy(parts.model), tmp_path/"a")
    (tmp_path/"a/base.json").write_text('{"base": "x", "fingerprint": {}}')
    assert told(load_adapter, copy.deepcopy(parts.model), tmp_path/"a")


@pytest.mark.parametrize(
    "change",
    [
        dict(target_modules="(a+)+$"),
        dict(target_modules="(.*)*x"),
        dict(target_modules=[".*"]),
        dict(rank_pattern={"(a+)+$": 2}),
        dict(exclude_modules="(a|a)*$"),
        dict(init_lora_weights="pissa"),
        dict(layer_replication=[[0, 2]]),
        dict(lora_alpha=0),
        dict(r=10**9),
        dict(peft_type="LOHA"),
        dict(modules_to_save=["lm_head"]),
        dict(bias="all"),
    ],
)
def test_an_adapter_s_options_that_are_not_ours_are_refused_at_once(saved, tmp_path, change):
    good = json.loads((saved / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(good | change))
    with pytest.raises(Damaged, match=next(iter(change))):
        read_adapter_config(tmp_path / "adapter_config.json")


SIZES = [
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "num_attention_heads",
    "head_dim",
    "codebook_size",
    "rope_parameters",
    "model_type",
    "hidden_act",
    "eos_token_id",
    "rms_norm_eps",
    "attention_dropout",
    "dtype",
    "quantization_config",
    "architectures",
    "audio_token_id",
]


@pytest.mark.parametrize("every", [15, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_values_in_a_checkpoint_s_configurations_are_clear_errors(saved, tmp_path, every):
    for file, load, names in (
        ("config.json", load_model, SIZES),
        ("generation_config.json", load_model, None),
        ("tokenizer_config.json", load_tokenizer, None),
    ):
        folder = tmp_path / file[:4]
        shutil.copytree(saved / "nano", folder, ignore=shutil.ignore_patterns("codec"))
        texts = list(fuzzed(folder / file, names))
        for text in texts[::every]:
            (folder / file).write_text(text)
            told(load, folder)
    shutil.copytree(saved / "nano/codec", tmp_path / "codec")
    for text in list(fuzzed(tmp_path / "codec/config.json"))[::every]:
        (tmp_path / "codec/config.json").write_text(text)
        told(load_codec, tmp_path / "codec")


def test_generation_settings_that_are_absent_are_set_and_senseless_ones_refused(saved, tmp_path):
    shutil.copytree(saved / "nano", tmp_path / "n")
    file = tmp_path / "n/generation_config.json"
    for text in (
        "{}",
        json.dumps(dict(eos_token_id=5, num_beams=4, penalty_alpha=0.6, custom_generate="x")),
    ):
        file.write_text(text)
        g = load_model(tmp_path / "n").generation_config
        assert (g.ras_win_len, g.ras_win_max_num_repeat, g.num_beams or 1) == (7, 2, 1)
    file.unlink()
    assert load_model(tmp_path / "n").generation_config.ras_win_len == 7
    for change in (
        dict(text_guidance="x"),
        dict(text_guidance=-1),
        dict(ras_win_len="7"),
        dict(ras_win_len=-7),
    ):
        file.write_text(json.dumps(change))
        with pytest.raises(ValueError, match=next(iter(change))):
            load_model(tmp_path / "n")


CODE = """from pathlib import Path
Path(r'{marker}').write_text('ran')
class Evil: pass
from_pretrained = None
"""
LOADS = """
import sys
from higgs_vi.model import load_checkpoint, load_processor
for folder in sys.argv[1:]:
    for load in (load_checkpoint, load_processor):
        try: load(folder)
        except ValueError as e: print(type(e).__name__)
"""


def with_code(folder, file):
    """A checkpoint in `folder` whose `file` names code of its own; the code leaves a mark if it
    runs.
    """
    marker = folder.with_suffix(".ran")
    for inner in (folder, folder / "codec", folder / "custom_generate"):
        inner.mkdir(exist_ok=True)
        for name in ("evil.py", "generate.py"):
            (inner / name).write_text(CODE.format(marker=marker))
    kinds = "Config Model ModelForCausalLM Processor FeatureExtractor".split()
    classes = {f"Auto{k}": f"{folder}--evil.Evil" for k in kinds}
    own = dict(auto_map=classes | dict(AutoTokenizer=["evil.Evil", "evil.Evil"]))
    if file == "custom_generate":
        own, file = dict(custom_generate=str(folder)), "generation_config.json"
    path = folder / ("codec/config.json" if file == "parts of the codec" else file)
    config = json.loads(path.read_text())
    if file == "parts of the codec":
        for part in ("acoustic_model_config", "semantic_model_config"):
            config[part] |= own
    else:
        config |= own
    path.write_text(json.dumps(config))
    return marker


def test_no_code_of_a_checkpoint_runs_even_after_a_yes(saved, tmp_path):
    markers = []
    for i, file in enumerate(
        [
            "tokenizer_config.json",
            "config.json",
            "codec/config.json",
            "processor_config.json",
            "parts of the codec",
            "custom_generate",
        ]
    ):
        shutil.copytree(saved / "nano", tmp_path / f"n{i}")
        markers.append(with_code(tmp_path / f"n{i}", file))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, tmp_path.glob("n?"))],
        input="y\n" * 100,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not any(m.exists() for m in markers) and "trust_remote_code" not in done.stdout


# --- files and locks ------------------------------------------------------------------------------

KILLED = """
import os, sys, signal
from higgs_vi.files import atomic, atomic_folder
with atomic(sys.argv[1] + "/settings.json"), atomic_folder(sys.argv[1] + "/merged") as folder:
    (folder/"half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_at_the_next_start_and_what_a_living_one_writes_stays(
    tmp_path,
):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    (tmp_path / ".foreign.other-1.abc.tmp").write_text("another machine's")
    with atomic(tmp_path / "mine") as own:
        remove_stale_files(tmp_path)
        assert own.exists() and sorted(p.name for p in tmp_path.glob(".*.tmp")) == sorted(
            [".foreign.other-1.abc.tmp", own.name]
        )
    with atomic_folder(tmp_path / "merged") as folder:
        write_text(folder / "deep/a", "x")
    assert (tmp_path / "merged/deep/a").read_text() == "x"


def test_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    real_fsync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd))[1]
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), real_rename(a, b))[1])
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        (folder / "sub").mkdir()
        (folder / "sub/b").write_text("y")
    named = done.index("rename")
    assert {Path(p).name for p in done[:named]} >= {"a", "b", "sub"} and done[-1] == str(tmp_path)


HOLD = """
import sys
from pathlib import Path
from higgs_vi.checkpoint import lock_run
lock = lock_run(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_folder_is_held_by_one_process_that_is_named_and_falls_when_it_dies(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"in use by process {other.pid} on"):
        lock_run(tmp_path / "run")
    other.kill()
    other.wait()
    lock = lock_run(tmp_path / "run")
    assert lock_run(tmp_path / "run") is lock  # the same process may begin again
    unlock_run(lock)
    assert (
        not lock.is_locked
        and [p.name for p in (tmp_path / "run").iterdir() if p.suffix == ".json"] == []
    )


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"loss": 1}', '{"step": "x"}', "\0\0\0", '{"step": 2, "loss": NaN']
)
def test_a_torn_line_of_metrics_is_named(tmp_path, capsys, line):
    from higgs_vi.checkpoint import Metrics

    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 3}\n{"step": 4')
    with pytest.raises(Damaged, match="metrics.jsonl, line 2, is damaged"):
        read_metrics(tmp_path)
    assert (
        [r["step"] for r in Metrics(tmp_path, 3).rows]
        == [1, 3]
        == [r["step"] for r in read_metrics(tmp_path)]
    )
    assert "line 2, is damaged" in capsys.readouterr().out and (
        tmp_path / "metrics.damaged.jsonl"
    ).read_text().endswith('{"step": 4')


def test_json_that_cannot_be_read_is_damaged(tmp_path):
    for text in (
        "",
        "{",
        "[]",
        '{"a": Infinity}',
        "[" * 10**5,
        "\udcff".encode("utf-8", "surrogateescape"),
    ):
        (tmp_path / "a").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(Damaged, match="a is damaged"):
            read_json(tmp_path / "a")
    with pytest.raises(Damaged, match="it is missing"):
        read_json(tmp_path / "b")


# --- where speech is cut --------------------------------------------------------------------------

def hf_codes(parts, columns):
    "The codes that HF's processor would decode."
    heard = []
    class Ear:
        def decode(self, codes):
            heard.append(codes)
            return type("Out", (), dict(audio_values=torch.zeros(1, 1, 960)))
    processor = build_processor(parts.tokenizer, copy.copy(parts.codec))
    processor.audio_tokenizer = Ear()
    processor.batch_decode(torch.from_numpy(columns)[None])
    return heard[0][0].numpy()


def late(columns, bos=1024):
    """Delayed codes as HF's decoding ends them: codebooks after the first get EOS one frame later
    than the labels say.
    """
    L, K = columns.shape
    out = np.concatenate([columns, np.full((1, K), 1025)])
    for k in range(1, K): out[L - K + k, k] = 7
    return out


@pytest.mark.parametrize("marker", [1024, 1025])
@pytest.mark.parametrize("codebook", [0, 3, 7])
def test_a_stray_marker_in_one_codebook_does_not_cut_the_sentence(parts, marker, codebook):
    "Compare with what HF's processor decodes, without the trailing marker frames."
    codes = np.random.default_rng(0).integers(0, 1024, (8, 40))
    for columns in (delay(codes), late(delay(codes))):
        assert (undelay(columns) == codes).all()
        columns[codebook + 1 + 20, codebook] = marker
        ours, theirs = undelay(columns), hf_codes(parts, columns)
        assert (
            ours.shape[1] == 40
            and 0 <= theirs.shape[1] - 40 <= 1
            and (ours == theirs[:, :40]).all()
        )
        assert (
            ours[codebook, 20] == 1023
            and (
                np.delete(ours.ravel(), codebook * 40 + 20)
                == np.delete(codes.ravel(), codebook * 40 + 20)
            ).all()
        )


# --- a run that goes on ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def run(saved, tmp_path_factory):
    "A short adapter run saved at steps 1, 2 and 3, and its settings."
    from higgs_vi.data import DataSettings, prepare
    from higgs_vi.train import execute

    place = tmp_path_factory.mktemp("run")
    prepare(DataSettings(output_dir=str(place / "data")))
    cfg = short_run(
        model=str(saved / "nano"),
        data=str(place / "data"),
        output_dir=str(place / "run"),
        code_cache=str(place / "codes"),
        token_budget=512,
        max_steps=3,
        eval_steps=100,
        save_steps=1,
        validation_share=0.05,
        save_total_limit=5,
    )
    execute(cfg)
    return cfg


def again(cfg, tmp_path, **more):
    "The settings that resume a copy of a run."
    from dataclasses import replace
    shutil.copytree(cfg.output_dir, tmp_path/"run")
    return replace(cfg, output_dir=str(tmp_path/"run"), resume_from_checkpoint=True, **more)


def begin(cfg):
    "Call `start` and release the folder's lock."
    from higgs_vi.loop import close_logs
    from higgs_vi.train import start
    begun = start(cfg)
    close_logs(begun)
    return begun


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(run, tmp_path, capsys):
    cfg = again(run, tmp_path)
    folder = tmp_path / "run/checkpoints"
    damage(folder / "step-000003/adapter_model.safetensors", "half")
    assert (
        begin(cfg).step == 2
        and "step-000003/adapter_model.safetensors is damaged" in capsys.readouterr().out
    )
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-000001", "step-000002"] and (
        folder / "damaged-step-000003"
    ).is_dir()
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == [1, 2]
    for step in (1, 2):
        damage(folder / f"step-{step:06d}/trainer.pt", "cut")
    with pytest.raises(ValueError, match="none of the 2 checkpoints .* can be read"):
        begin(cfg)


def test_the_best_checkpoint_damaged_is_said_and_another_one_written_out(run, tmp_path, capsys):
    from higgs_vi.loop import close_logs, save_best
    from higgs_vi.train import start

    begun = start(again(run, tmp_path))
    damage(
        tmp_path / f"run/checkpoints/step-{begun.best_step:06d}/adapter_model.safetensors", "nan"
    )
    save_best(begun)
    close_logs(begun)
    assert "is damaged" in capsys.readouterr().out
    assert (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes() == (
        tmp_path / "run/checkpoints/step-000002/adapter_model.safetensors"
    ).read_bytes()


def test_a_changed_base_and_changed_sound_are_seen_on_resuming(run, saved, tmp_path):
    cfg = again(run, tmp_path, model=str(tmp_path / "nano"))
    shutil.copytree(saved / "nano", tmp_path / "nano")
    begin(cfg)  # the same weights elsewhere
    weights = load_file(tmp_path / "nano/model.safetensors")
    name = next(n for n in weights if "layers.1.self_attn.k_proj" in n)
    save_file(
        weights | {name: weights[name] * 1.01},
        tmp_path / "nano/model.safetensors",
        metadata=dict(format="pt"),
    )
    with pytest.raises(ValueError, match="has other weights now"):
        begin(cfg)
    shutil.copytree(run.data, tmp_path / "data")
    from dataclasses import replace

    from higgs_vi.audio import read_audio, write_wav

    cfg = replace(cfg, model=run.model, data=str(tmp_path / "data"))
    begin(cfg)  # the same clips elsewhere
    first = next(iter(sorted((tmp_path / "data").glob("minh*.wav"))))
    write_wav(
        first, np.random.default_rng(0).normal(0, 0.1, len(read_audio(first))).astype(np.float32)
    )
    with pytest.raises(ValueError, match="resume it with the same clips"):
        begin(cfg)


def test_a_temporary_file_alone_blocks_nothing_and_torn_settings_are_named(run, tmp_path):
    from dataclasses import replace

    from higgs_vi.loop import check_folder

    new = replace(run, output_dir=str(tmp_path / "new"))
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    (tmp_path / "new").mkdir()
    (tmp_path / "new/.settings.json.h-1.abc.tmp").write_text("x")
    with pytest.raises(ValueError, match="no run to resume"):
        check_folder(replace(new, resume_from_checkpoint=True))
    assert check_folder(new) == tmp_path / "new"
    for text in ("", "{", "[]", '{"rank": NaN}'):
        (tmp_path / "new/settings.json").write_text(text)
        with pytest.raises(Damaged, match="settings.json is damaged"):
            check_folder(replace(new, resume_from_checkpoint=True))


def test_a_run_that_another_process_writes_is_left_alone(run, tmp_path):
    cfg = again(run, tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, cfg.output_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(ValueError, match=f"process {other.pid} "):
        begin(cfg)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    other.kill()
    other.wait()
    assert begin(cfg).step == 3


# --- merging --------------------------------------------------------------------------------------

def merged(run, folder, **more):
    "Merge the adapter of a run into `folder`."
    from higgs_vi.merge import MergeSettings, merge

    return merge(
        MergeSettings(adapter=more.pop("adapter", run.output_dir), output_dir=str(folder), **more)
    )


def test_a_nan_adapter_is_no_failing_disk_and_leaves_no_model(run, tmp_path):
    shutil.copytree(Path(run.output_dir) / "adapter", tmp_path / "a")
    damage(tmp_path / "a/adapter_model.safetensors", "nan")
    with pytest.raises(Damaged, match="not finite"):
        merged(run, tmp_path / "out", adapter=str(tmp_path / "a"))
    weights = load_file(Path(run.output_dir) / "adapter/adapter_model.safetensors")
    save_file(
        {n: torch.full_like(w, 1e30) if "lora" in n else w for n, w in weights.items()},
        tmp_path / "a/adapter_model.safetensors",
    )
    with pytest.raises(ValueError, match="not finite once the adapter .* is merged"):
        merged(run, tmp_path / "out", adapter=str(tmp_path / "a"))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_while_merging_is_one_clear_error(run, tmp_path, monkeypatch):
    from safetensors import SafetensorError
    from transformers import HiggsAudioV2ForConditionalGeneration as Model

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Model, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        merged(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


CHECK = """
size = sum(p.numel() for p in model.parameters())
print(size, tokenizer.__class__.__name__, processor.audio_tokenizer.config.num_quantizers)
turns = dict(system="Generate audio following instruction.", user="Xin chào.")
conversation = [dict(role=k, content=[dict(type="text", text=v)]) for k, v in turns.items()]
inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True,
                                       return_dict=True, return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=12).shape)
"""


def test_a_merged_folder_loads_in_plain_transformers_from_another_directory(run, tmp_path):
    from higgs_vi.merge import PLAIN

    merged(run, tmp_path / "m")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN.format(folder=str(tmp_path / "m")) + CHECK],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_odd_samples_are_named(tmp_path):
    from higgs_vi.listen import sample_rows

    (tmp_path / "samples").mkdir()
    for text in (
        "{}",
        "[3]",
        '[{"text": 3}]',
        '[{"real": "a"}]',
        '[{"text": "a", "real": 3}]',
        '[{"text": "a", "after": {}}]',
        "[",
        "null",
        '[{"text": NaN}]',
    ):
        (tmp_path / "samples/samples.json").write_text(text)
        with pytest.raises(Damaged, match="samples.json is damaged"):
            sample_rows(tmp_path)


# --- odd metadata ---------------------------------------------------------------------------------

def odd_metadata(good):
    "Copies of a metadata.json, each with one value of a wrong type."
    first, *others = good["samples"]
    values = [*ODD, "a/../../b"]
    names = [
        *first,
        "ref_audio_file",
        "ref_transcript",
        "ref_speakers",
        "pair_of",
        "weight",
        "split",
        "tagged",
        "snr",
    ]
    for v in values:
        yield from (good | {k: v} for k in ("dataset_info", "samples"))
        yield from (
            good | dict(dataset_info=good["dataset_info"] | {k: v})
            for k in [*good["dataset_info"], "balanced"]
        )
        yield from (good | dict(samples=[first | {k: v}, *others]) for k in names)


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_values_in_metadata_are_clear_errors(tmp_path, every):
    "Each step that reads a Higgs folder either accepts it or refuses it with a ValueError."
    from higgs_vi.audio import DEMO
    from higgs_vi.check import CheckSettings, check
    from higgs_vi.data import DataSettings, prepare
    from higgs_vi.speakers import SpeakersSettings, execute
    from higgs_vi.tags import TagSettings, tag

    (tmp_path / "t.csv").write_text(
        "".join((DEMO / "demo.csv").read_text(encoding="utf-8").splitlines(True)[:6]),
        encoding="utf-8",
    )
    table = dict(table=str(tmp_path / "t.csv"), audio=str(DEMO))
    prepare(DataSettings(**table, output_dir=str(tmp_path / "good")))
    steps = [
        lambda d: check(CheckSettings(data=d)),
        lambda d: execute(SpeakersSettings(data=d, clone_share=0, dialogue_share=0)),
        lambda d: tag(TagSettings(data=d, measure_sound=False)),
        lambda d: prepare(DataSettings(table=d, output_dir=f"{d}-again")),
        lambda d: prepare(DataSettings(**table, output_dir=d)),
    ]
    for i, meta in enumerate(
        list(
            odd_metadata(json.loads((tmp_path / "good/metadata.json").read_text(encoding="utf-8")))
        )[::every]
    ):
        for n, step in enumerate(steps):
            shutil.copytree(tmp_path / "good", folder := tmp_path / f"{i}-{n}")
            (folder / "metadata.json").write_text(json.dumps(meta))
            told(step, str(folder))


@pytest.mark.parametrize(
    "name",
    ["temperature", "top_k", "top_p", "ras_win_len", "seed", "max_seconds", "guidance_scale"],
)
def test_sampling_takes_finite_numbers_alone(name):
    from higgs_vi.generate import Sampling

    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            Sampling(**{name: value})


def test_four_bits_on_a_cpu_refuse_sizes_that_its_kernels_do_not_take():
    with pytest.raises(ValueError, match="multiples of 64, and .* has 480: use mode lora"):
        load_model(NANO, quantised=True)
