"""Balanced speakers, splits without leaks, pairs, and weights that reach the sampler: on random
manifests, on folders and in training.
"""
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import higgs_vi.files as files_module
from higgs_vi.batch import epoch_batches, sample_by_weight
from higgs_vi.check import CheckSettings
from higgs_vi.check import check as look_through
from higgs_vi.checkpoint import read_metrics
from higgs_vi.data import DataSettings, prepare
from higgs_vi.loop import train
from higgs_vi.manifest import Sample, read_samples
from higgs_vi.pairs import kind_of
from higgs_vi.plan import Dataset, plan_after, plan_epoch, split
from higgs_vi.speakers import SpeakersSettings, execute, original_rows
from higgs_vi.speakers import balance as balance_samples
from higgs_vi.splits import SPLITS, effective_number, seconds_by, speakers_of, texts_of
from higgs_vi.train import start
from tests.runs import short_run

CV = Path(__file__).parents[1]/"../shared/data/cv_vi/manifest.jsonl"


def balance(rows, *options):
    "Balance rows that these tests write as plain dicts with a text."
    records = [{k: v for k, v in r.items() if k != "text"} for r in rows]
    texts = [r["text"] for r in rows]
    return balance_samples(list(map(Sample.of, records, [None] * len(rows), texts)), *options)


def manifest(rng):
    """Random rows: speakers with many clips and with one, sentences said by several people,
    existing dialogues, odd characters.
    """
    shared, rows = [f"Câu chung {i}." for i in range(rng.integers(1, 40))], []
    often, most = rng.choice([0, 0.1, 0.5, 1]), rng.integers(2, 60)
    for p in range(rng.integers(1, 25)):
        for i in range(1 + int(most / (p + 1))):
            text = rng.choice(shared) if rng.random() < often else f"Câu {i} của người {p}!"
            row = dict(
                id=f"p{p}_{i:03d}",
                speaker_id=f"p{p}",
                text=text.upper() if rng.random() < 0.3 else text,
                audio_file=f"p{p}_{i}.wav",
                transcript_file=f"p{p}_{i}.txt",
                duration=round(float(rng.uniform(0.5, 12)), 3),
                gender="female",
                anything=[1],
            )
            if rng.random() < 0.03:
                row |= dict(text=f"[SPEAKER0] {text} [SPEAKER1] Vâng {p}.")
            if rng.random() < 0.03:
                row |= dict(
                    ref_audio_file=["x.wav"],
                    ref_transcript=[str(rng.choice(shared))],
                    ref_speakers=[f"p{p}"],
                )
            rows.append(row)
    return rows


def options(rng):
    "Random settings."
    valid, test = rng.choice([(0.05, 0.05), (0.1, 0), (0, 0.2), (0, 0), (0.3, 0.3)])
    return SpeakersSettings(
        disjoint=str(rng.choice(["utterance", "speaker"])),
        valid_share=valid,
        test_share=test,
        max_minutes=float(rng.choice([0, 0, 0.5, 2])),
        max_clips=int(rng.choice([0, 0, 7])),
        temperature=float(rng.choice([1, 2, 5])),
        clone_share=float(rng.choice([0, 0.3, 1])),
        dialogue_share=float(rng.choice([0, 0.2])),
        seed=int(rng.integers(5)),
    )


def dirty(row): return row["id"].endswith("3")


def check(rows, samples, dropped, cfg):
    "Assert the invariants of every balanced manifest."
    plain, of = [s for s in samples if kind_of(s) == "plain"], {r["id"]: r for r in rows}
    assert (
        sorted([s["id"] for s in plain] + list(dropped["id"])) == sorted(of)
        and dropped["reason"].str.len().gt(20).all()
    )
    assert all(s[k] == v for s in plain for k, v in of[s["id"]].items()), "columns are kept"
    assert len({s["id"] for s in samples}) == len(samples)
    side = {}
    for s in samples:
        for text in texts_of(s):
            assert side.setdefault(text, s["split"]) == s["split"], text
        if cfg.disjoint == "speaker":
            for p in speakers_of(s):
                assert side.setdefault("person " + p, s["split"]) == s["split"], p
    assert set(Counter(s["split"] for s in plain)) == {"train"} | {
        n for n in ("valid", "test") if getattr(cfg, f"{n}_share")
    }
    for own in by(plain, "speaker_id").values():
        assert (
            len(own) <= (cfg.max_clips or 10**9)
            and sum(s["duration"] for s in own) <= (cfg.max_minutes * 60 or 10**9) + 1e-6
        )
    check_pairs(samples, {s["audio_file"]: s for s in plain}, {s["id"]: s for s in plain}, cfg)


def by(rows, key):
    out = defaultdict(list)
    for r in rows: out[r[key]].append(r)
    return out


def check_pairs(samples, file, of, cfg):
    for s in samples:
        if kind_of(s) == "plain":
            continue
        refs, turns = [file[f] for f in s["ref_audio_file"]], [of[i] for i in s["pair_of"]]
        assert [r["text"] for r in refs] == s["ref_transcript"] and [
            r["speaker_id"] for r in refs
        ] == s["ref_speakers"]
        assert {x["split"] for x in refs + turns} == {s["split"]} and not set().union(
            *map(texts_of, refs)
        ) & set().union(*map(texts_of, turns))
        assert all(
            cfg.min_seconds <= r["duration"] <= cfg.max_seconds and not dirty(r) for r in refs
        )
        assert {t["speaker_id"] for t in turns} == set(s["ref_speakers"]) and len(
            set(s["ref_speakers"])
        ) == len(refs)
        if kind_of(s) == "dialogue":
            assert [
                f"[SPEAKER{s['ref_speakers'].index(t['speaker_id'])}] {t['text']}" for t in turns
            ] == s["text"].replace(" [SPEAKER", "\n[SPEAKER").split("\n")
    for name in SPLITS:
        n = Counter(kind_of(s) for s in samples if s["split"] == name)
        assert n["pair"] <= round(cfg.clone_share * n["plain"]) and n["dialogue"] <= round(
            cfg.dialogue_share * n["plain"]
        )


def test_random_manifests_are_divided_without_leaks_whatever_their_order():
    "200 random manifests; refusals give the reason with counts."
    done, why = Counter(), Counter()
    for i in range(200):
        rng = np.random.default_rng(i)
        rows, cfg = manifest(rng), options(rng)
        try:
            samples, dropped = balance(rows, cfg, lambda r: not dirty(r))
        except ValueError as e:
            assert any(c.isdigit() for c in str(e)) and ("set " in str(e) or "parameter" in str(e))
            why[str(e).split()[-1]] += 1
            continue
        done[cfg.disjoint] += 1
        done.update(kind_of(s) for s in samples)
        check(rows, samples, dropped, cfg)
        again, _ = balance(
            [rows[j] for j in rng.permutation(len(rows))], cfg, lambda r: not dirty(r)
        )
        assert {s["id"]: (s["split"], s.get("ref_audio_file")) for s in again} == {
            s["id"]: (s["split"], s.get("ref_audio_file")) for s in samples
        }
    assert (
        done["utterance"] > 60
        and done["speaker"] > 30
        and done["pair"] > 1000
        and done["dialogue"] > 100
    ), (done, why)


@pytest.mark.parametrize("temperature", [1, 2, 5])
def test_time_goes_with_the_power_of_what_there_is(temperature):
    for i in range(20):
        rows = manifest(np.random.default_rng(i))
        samples, _ = balance(
            rows,
            SpeakersSettings(
                temperature=temperature, dialogue_share=0, valid_share=0, test_share=0
            ),
        )
        want, got = (
            seconds_by([{k: v for k, v in s.items() if k != "weight"} for s in samples]),
            seconds_by(samples),
        )
        ratio = np.array([got[p] / want[p] ** (1 / temperature) for p in want])
        assert np.allclose(ratio, ratio[0], rtol=1e-3) and any("weight" in s for s in samples) == (
            temperature > 1
        )
        assert effective_number(got) > effective_number(want) - 1e-6


def test_what_cannot_be_is_refused_with_counts():
    rows = [
        dict(id=f"{p}{i}", speaker_id=p, text=f"Câu {i}.", audio_file=f"{p}{i}.wav", duration=3.0)
        for p in "abcdef"
        for i in range(20)
    ]
    with pytest.raises(
        ValueError,
        match=r"20 of 20 texts are said by several of 6 speakers.*0 of 20 clips in "
        r"valid.*utterance",
    ):
        balance(rows, SpeakersSettings(disjoint="speaker"))
    assert len(balance(rows, SpeakersSettings(clone_share=0, dialogue_share=0))[0]) == 120
    with pytest.raises(
        ValueError, match=r"2 speaker\(s\) cannot be divided into 3 splits \(train, valid, test\)"
    ):
        balance([r for r in rows if r["speaker_id"] in "ab"], SpeakersSettings(disjoint="speaker"))
    with pytest.raises(ValueError, match="1 different text"):
        balance([r for r in rows if r["text"] == "Câu 1."], SpeakersSettings())
    with pytest.raises(
        ValueError, match=r"each of the 120 clips alone is longer than the 0.01 min.*3.0 s"
    ):
        balance(rows, SpeakersSettings(max_minutes=0.01))
    with pytest.raises(ValueError, match="none of the 120 clips has a split"):
        balance(rows, SpeakersSettings(disjoint="given"))
    half = [r | dict(split="valid" if r["speaker_id"] == "a" else "train") for r in rows]
    with pytest.raises(
        ValueError,
        match=r"the table's own split would keep 100 of 100 clips in train, 0 of 20 clips in valid",
    ):
        balance(half, SpeakersSettings(disjoint="given"))
    for bad in (
        dict(temperature=0.5),
        dict(valid_share=0.6, test_share=0.4),
        dict(disjoint="word"),
        dict(min_seconds=10.0, max_seconds=3.0),
        dict(clone_share=2),
    ):
        with pytest.raises(
            ValueError,
            match=next(
                iter(
                    set(bad)
                    & {"temperature", "test_share", "disjoint", "min_seconds", "clone_share"}
                )
            ),
        ):
            SpeakersSettings(**bad)


def test_a_given_split_stays_and_loses_its_leaks_only():
    rows = [
        dict(
            id=f"{p}{i}",
            speaker_id=p,
            text=f"Câu {i} {p}.",
            audio_file=f"{p}{i}.wav",
            duration=3.0,
            split=dict(a="train", b="dev", c="test")[p],
        )
        for p in "abc"
        for i in range(10)
    ]
    rows[0]["text"] = rows[10]["text"]
    samples, dropped = balance(
        rows, SpeakersSettings(disjoint="given", clone_share=0, dialogue_share=0)
    )
    assert list(dropped["id"]) == ["a0"] and Counter(s["split"] for s in samples) == dict(
        train=9, valid=10, test=10
    )


def test_thirty_eight_thousand_rows_by_91_speakers_keep_500_each():
    "As many rows as the corpus commonly used in this field."
    rows = [
        dict(
            id=f"{i:05d}",
            speaker_id=f"s{i % 91}" if i < 91 * 100 else f"s{int(91 * np.sqrt(i / 38625))}",
            text=f"Câu số {i}.",
            duration=3.9,
            audio_file=f"{i}.wav",
        )
        for i in range(38_625)
    ]
    had = Counter(r["speaker_id"] for r in rows)
    samples, dropped = balance(
        rows, SpeakersSettings(max_clips=500, clone_share=0, dialogue_share=0)
    )
    assert (
        Counter(s["speaker_id"] for s in samples) == {p: min(n, 500) for p, n in had.items()}
        and len(had) == 91
    )
    assert len(samples) + len(dropped) == 38_625 and "500 clips" in dropped["reason"][0]


# what reaches the sampler

def test_weights_are_met_in_every_process_and_every_epoch_and_nothing_changes_without():
    rng = np.random.default_rng(0)
    cfg = SimpleNamespace(
        token_budget=400,
        seed=3,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        max_steps=0,
        replay_share=0.25,
    )
    data = Dataset([range(n) for n in rng.integers(20, 90, 300)], [], [])
    sizes = [len(e) for e in data.train]
    assert [b for s in plan_epoch(cfg, data, 1, 2) for b in s] == epoch_batches(sizes, 400, 3, 1)
    heavy = replace(data, weights=tuple(rng.choice([0.1, 1.0, 6.0], 300).tolist()))
    ideal = np.array(heavy.weights) / sum(heavy.weights) * 300
    for epoch in range(3):
        one, four = (
            [i for s in plan_epoch(cfg, heavy, epoch, world) for b in s for i in b]
            for world in (1, 4)
        )
        assert (
            one == four == [i for b in plan_batches(cfg, heavy, epoch) for i in b]
            and len(one) == 300
        )
        assert (np.abs(np.bincount(one, minlength=300) - ideal) < 1).all()
    steps = list(plan_after(cfg, heavy, 0, 2))
    assert all(list(plan_after(cfg, heavy, n, 2)) == steps[n:] for n in (1, 7, len(steps) - 1))
    mixed = replace(heavy, train=data.train + data.train[:50], replayed=50)
    met = [i for s in plan_epoch(cfg, mixed, 0, 1) for b in s for i in b]
    assert len(met) == 400 and sum(i >= 300 for i in met) == 100


def plan_batches(cfg, data, epoch):
    "The batches of an epoch, computed independently of the plan."
    chosen = sample_by_weight(data.weights, cfg.seed, epoch)
    return [
        [chosen[i] for i in b]
        for b in epoch_batches(
            [len(data.train[i]) for i in chosen], cfg.token_budget, cfg.seed, epoch
        )
    ]


def test_only_rows_that_train_bring_their_weights():
    rows = [
        dict(id="a", split="train", weight=2.0),
        dict(id="b", split="valid", weight=9.0),
        dict(id="c", split="train", weight=None),
    ]
    assert (
        split(list("abc"), rows, 0.5).weights == (2.0, 1.0)
        and split(list("abc"), [dict(id=i) for i in "abc"], 0.5).weights == ()
    )
    with pytest.raises(ValueError, match="'c': -1"):
        split(list("abc"), [*rows[:2], dict(id="c", weight=-1)], 0.5)


# on folders

@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")/"demo"
    prepare(DataSettings(output_dir=str(folder)))
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path/"demo")
    return tmp_path/"demo"


def files(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def small(folder, **change):
    return SpeakersSettings(
        **dict(
            data=str(folder), min_seconds=1.5, valid_share=0.15, test_share=0.1, dialogue_share=0.1
        )
        | change
    )


def test_a_folder_balanced_again_is_the_same_and_other_settings_begin_from_all_rows(folder):
    meta = json.loads((folder / "metadata.json").read_text())
    for i, s in enumerate(meta["samples"]):
        s["mood"] = i
    (folder / "metadata.json").write_text(json.dumps(meta))
    before = files(folder)
    execute(small(folder))
    first = files(folder)
    assert (
        first["unbalanced.json"] == before["metadata.json"]
        and len([f for f in first if f.startswith("dialogue")]) > 4
    )
    assert {
        s["mood"] for s in json.loads(first["metadata.json"])["samples"] if "pair_of" not in s
    } == set(range(len(meta["samples"])))
    execute(small(folder))
    assert files(folder) == first
    rows, samples, dropped = execute(small(folder, max_clips=5, dialogue_share=0))
    assert (
        len(rows) == len(meta["samples"])
        and len(dropped) == len(rows) - 20
        and not [f for f in files(folder) if f.startswith("dialogue")]
    )
    execute(small(folder))
    assert files(folder) == first
    prepare(
        DataSettings(output_dir=str(folder))
    )  # 00_data again: its rows count, not those kept aside
    assert "mood" not in original_rows(folder)[1][0]


def test_a_run_broken_off_leaves_the_folder_usable_and_the_next_one_ends_as_if_unbroken(
    folder, monkeypatch
):
    whole = shutil.copytree(folder, folder.parent / "whole")
    execute(small(whole))
    real = files_module.os.replace
    for doomed in ("dialogue_train_000001.txt", "unbalanced.json", "metadata.json"):
        with monkeypatch.context() as m:

            def replace_file(written, path, doomed=doomed):
                if Path(path).name == doomed:
                    raise OSError("no space")
                real(written, path)

            m.setattr(files_module.os, "replace", replace_file)
            with pytest.raises(OSError):
                execute(small(folder))
        assert len(read_samples(folder)) == 80
    execute(small(folder))
    assert files(folder) == files(whole)


def test_tags_given_after_balancing_are_not_lost_silently(folder):
    execute(small(folder))
    meta = json.loads((folder / "metadata.json").read_text())
    meta["samples"][0]["emotion"] = "questioning"
    (folder / "metadata.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="changed after it was balanced.*unbalanced.json"):
        execute(small(folder))


def test_training_obeys_sides_pairs_dialogues_and_weights_and_resumes(folder):
    _, samples, _ = execute(small(folder, temperature=3))
    cfg = short_run(
        data=str(folder),
        output_dir=str(folder.parent / "run"),
        code_cache=str(folder.parent / "codes"),
        max_steps=2,
        eval_steps=2,
        save_steps=1,
    )
    run = train(start(cfg))
    names, of = [e.name for e in run.data.train], {s["id"]: s for s in samples}
    assert sorted(names) == sorted(i for i, s in of.items() if s["split"] == "train") and {
        kind_of(of[n]) for n in names
    } == {"plain", "pair", "dialogue"}
    assert sorted(e.name for e in run.data.valid) == sorted(
        i for i, s in of.items() if s["split"] == "valid"
    )
    assert (
        run.data.weights == tuple(of[n]["weight"] for n in names) and len(set(run.data.weights)) > 3
    )
    rows = read_metrics(run.folder)
    assert len(rows) == 4 and all(np.isfinite(r["loss"]) for r in rows)
    shutil.rmtree(run.folder / "checkpoints/step-000002")
    assert [
        r["loss"]
        for r in read_metrics(train(start(replace(cfg, resume_from_checkpoint=True))).folder)
    ] == [r["loss"] for r in rows]
    execute(small(folder, temperature=5))
    with pytest.raises(ValueError, match="resume it with the same clips"):
        start(replace(cfg, resume_from_checkpoint=True))


@pytest.mark.skipif(not CV.is_file(), reason="Common Voice is not here")
def test_common_voice_is_balanced():
    "259 speakers, three of whom have 4.75 of the 10.95 hours."
    table = [json.loads(line) for line in CV.open(encoding="utf-8")]
    rows = [
        dict(
            id=r["id"],
            speaker_id=r["speaker"],
            text=r["text"],
            audio_file=r["audio"],
            duration=r["duration"],
        )
        for r in table
    ]
    before = seconds_by(rows)
    cfg = SpeakersSettings(disjoint="speaker", max_minutes=20)
    samples, dropped = balance(rows, cfg, lambda r: not dirty(r))
    check(rows, samples, dropped, cfg)
    train = [s for s in samples if s["split"] == "train"]
    three = sum(seconds_by(train)[p] for p, _ in before.most_common(3)) / sum(
        seconds_by(train).values()
    )
    assert sum(v for _, v in before.most_common(3)) / sum(before.values()) > 0.4 and three < 0.06
    assert effective_number(before) < 15 and effective_number(seconds_by(train)) > 120


def test_a_balanced_folder_is_not_broken(folder):
    "Repeated clips in pairs and dropped clips on disk are not faults; a foreign file is."
    execute(small(folder, max_clips=15, clone_share=1, seed=1))
    clips, faults = look_through(CheckSettings(data=str(folder), strict=True))
    assert sum(i.endswith("_clone") for i in clips["id"]) > 3 and list(faults["fault"]) == []
    (folder/"mine.txt").write_text("Xin chào.")
    assert list(look_through(CheckSettings(data=str(folder)))[1]["fault"]) == ["unlisted"]


def test_another_balancing_broken_off_leaves_no_dialogue_whose_words_are_not_its_sound(
    folder, monkeypatch
):
    "Files of the interrupted run are removed too."
    whole = shutil.copytree(folder, folder.parent / "whole")
    for f in (folder, whole):
        execute(small(f))
    with monkeypatch.context() as m:
        real = files_module.os.replace

        def replace_file(written, path):
            if Path(path).name == "dialogue_train_000001.txt":
                raise OSError("no space")
            real(written, path)

        m.setattr(files_module.os, "replace", replace_file)
        with pytest.raises(OSError):
            execute(small(folder, seed=5, dialogue_share=0.3))
    left = read_samples(folder)
    assert len(left) == 80 and not any(kind_of(s) == "dialogue" for s in left)
    execute(small(folder))
    assert files(folder) == files(whole)


def test_a_dialogue_keeps_its_raw_text_and_a_clip_without_words_is_named(folder):
    meta = json.loads((folder / "metadata.json").read_text())
    for s in meta["samples"]:
        s |= dict(raw_text=f"{s['id']}!", foreign=s["id"])
    (folder / "metadata.json").write_text(json.dumps(meta))
    talk = next(s for s in execute(small(folder))[1] if kind_of(s) == "dialogue")
    assert (
        talk["raw_text"]
        == " ".join(f"[SPEAKER{i % 2}] {t}!" for i, t in enumerate(talk["pair_of"]))
        and talk["foreign"] == talk["pair_of"][0]
    )
    (folder / meta["samples"][3]["transcript_file"]).write_text("\n")
    with pytest.raises(
        ValueError,
        match=f"1 of 80 clips in .* have no text, the first is {meta['samples'][3]['id']}",
    ):
        execute(small(folder))


def test_dialogues_of_a_folder_made_again_keep_their_people_apart(folder, tmp_path):
    """A balanced folder as input of 00: the speakers of its dialogues are known, so no speaker is
    in two splits.
    """
    execute(small(folder, valid_share=0, test_share=0, dialogue_share=0.3))
    prepare(DataSettings(table=str(folder), output_dir=str(tmp_path/"again")))
    talks = [r for r in original_rows(tmp_path/"again")[1] if "[SPEAKER" in r["text"]]
    people = {r["speaker_id"] for r in original_rows(folder)[1]}
    assert talks and all(len(speakers_of(r)) == 2 and set(speakers_of(r)) <= people for r in talks)


def test_a_share_drawn_for_validation_has_no_pair_in_training(folder):
    _, samples, _ = execute(
        small(folder, valid_share=0, test_share=0, clone_share=1, dialogue_share=0.2)
    )
    data = split([SimpleNamespace(name=s["id"]) for s in samples], samples, 0.1, 3)
    of = {s["id"]: {s["id"], *s.get("pair_of", [])} for s in samples}
    held, trained = (
        set().union(*(of[r["id"]] for r in data.rows)),
        set().union(*(of[e.name] for e in data.train)),
    )
    assert data.rows and len(data.train) > 60 and not held & trained
