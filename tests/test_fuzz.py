"""Randomly damaged tables (seeded): either a clear error that names the file, or every row
accounted for, within bounded time and memory.
"""
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ODD = [
    "",
    "nan",
    "NaN",
    "1e30",
    "-1e30",
    "inf",
    "0",
    "-1",
    "1,5",
    "N/A",
    "null",
    "\0",
    "a\0b.wav",
    "\ud83d",
    "\udcff",
    "loop.wav",
    "folder",
    "..",
    "../1.wav",
    "/etc/passwd",
    "~/1.wav",
    "C:\\1.wav",
    "x" * 300,
    "a" * 5000 + ".wav",
    '"',
    '""',
    '"a',
    'a"',
    "a\nb",
    "a\r",
    "\r\n",
    "\t",
    "|",
    ",",
    ";",
    "\\",
    '\\"',
    "'",
    "[SPEAKER0]",
    "[SPEAKER1] a [SPEAKER0]",
    "<b>",
    "&amp;" * 50,
    "\u200b",
    "\u2028",
    "😀",
    "ð",
    "Ã¡",
    "=1+1",
    "{",
    "[",
    "true",
    "None",
    "1" * 5000,
    "a" * 150_000,
    "0.wav",
    "1.wav,2.wav",
    "a,b,c,d,e,f",
    "test",
    "vi",
    "0-1.5",
    "Không",
    "<|audio_eos|>",
    "<unk>",
    "a <laugh> b",
    "[cười] a",
    "(không nghe rõ)",
    "xxx",
    "(a",
    "vui",
    '{"text": "a"}',
    "{'bytes': None, 'path': '3.wav'}",
    "Cau so 1 rat hay.",
]
VALUES = [
    None,
    True,
    0,
    1,
    -1.5,
    1e30,
    float("nan"),
    float("inf"),
    [],
    {},
    [1, [2]],
    dict(path="1.wav"),
    dict(path=None),
    dict(bytes=None, path="2.wav"),
    10**30,
    [dict(a=1)],
]


def good(rng):
    rows = [
        dict(
            audio=f"{i}.wav",
            text=f"Câu số {i} rất hay.",
            speaker=rng.choice(["lan", "minh"]),
            duration="0.5",
            split="train",
        )
        for i in range(6)
    ]
    return (
        [
            {
                k: r[k]
                for k in (
                    *("audio", "text"),
                    *rng.sample(["speaker", "duration", "split"], rng.randint(0, 3)),
                )
            }
            for r in [rows[0]] * 0 + rows
        ]
        if rng.random() < 0.3
        else rows
    )


def odd_rows(rng, typed):
    """Good rows, some of which have an odd cell, are duplicated, lack a cell, or have misleading
    column names.
    """
    rows = good(rng)
    keys = list(rows[0])
    rows = [{k: r[k] for k in keys if k in r} for r in rows]
    for _ in range(rng.randint(1, 6)):
        r, k = rng.choice(rows), rng.choice(keys)
        kind = rng.random()
        if kind < 0.75 and k in r:
            r[k] = rng.choice(VALUES) if typed and rng.random() < 0.4 else rng.choice(ODD)
        elif kind < 0.85:
            rows.append(dict(rng.choice(rows)))
        elif kind < 0.92:
            r.pop(k, None)
        else:
            rows = [dict(zip(rng.sample(list(q), len(q)), q.values(), strict=True)) for q in rows]
    if rng.random() < 0.01:
        rng.choice(rows)["text"] = rng.choice(["a", "a ", '"', "ă.", "1/2 "]) * (10_000_000 // 2)
    return rows


def delimited(rng, path):
    rows, d = odd_rows(rng, False), rng.choice(",;|\t")
    keys = list(dict.fromkeys(k for r in rows for k in r))
    def cell(v):
        return v if rng.random() < 0.7 else '"' + str(v).replace('"', '""') + '"'
    lines = [d.join(keys)] * (rng.random() < 0.8) + [
        d.join(cell(r.get(k, "")) for k in keys) for r in rows
    ]
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(ODD))
    path.write_bytes(
        rng.choice(["\n", "\r\n", "\r"])
        .join(lines)
        .encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "cp1258"]), "replace")
    )


def swift(rng, row):
    "A row in ms-swift's message format, one part of which may be odd."
    said = [dict(role="user", content="<audio>"), dict(role="assistant", content=row.get("text"))]
    out = dict(messages=said, audios=[row.get("audio")])
    if rng.random() < 0.3:
        out[rng.choice(list(out))] = rng.choice(VALUES)
    if rng.random() < 0.3:
        rng.choice(said)[rng.choice(["role", "content"])] = rng.choice([*VALUES, *ODD[:40]])
    return out


def jsonl(rng, path):
    rows = odd_rows(rng, True)
    if rng.random() < 0.15:
        rows = [swift(rng, r) for r in rows]
    if rng.random() < 0.05:
        rows = [{k: {str(i): r.get(k) for i, r in enumerate(rows)} for k in rows[0]}]
    lines = [json.dumps(r, ensure_ascii=rng.random() < 0.5) for r in rows]
    if rng.random() < 0.2:
        lines.insert(
            rng.randrange(len(lines) + 1),
            rng.choice(
                [
                    "[" * 100_000,
                    '{"a":' * 50_000,
                    "null",
                    "[]",
                    '"',
                    "{}",
                    "1e999",
                    '{"audio":"1.wav","audio":"2.wav"}',
                ]
            ),
        )
    text = (
        "[" + ",\n".join(lines) + "]"
        if path.suffix == ".json" and rng.random() < 0.7
        else "\n".join(lines)
    )
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def parquet(rng, path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = odd_rows(rng, True)
    keys, columns = list(dict.fromkeys(k for r in rows for k in r)), []
    for k in keys:
        values = [r.get(k) for r in rows]
        try:
            columns.append(pa.array(values))
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            as_text = [str(v).encode("utf-8", "surrogatepass") for v in values]
            columns.append(
                pa.array(as_text, pa.binary())
                if rng.random() < 0.5
                else pa.array(as_text, pa.binary()).view(pa.string())
            )
    if rng.random() < 0.2:
        i = rng.randrange(len(keys))
        keys.append(keys[i])
        columns.append(columns[rng.randrange(len(columns))])
    sound = rng.random()
    if 0.4 < sound < 0.5:
        keys, columns = (
            [*keys[1:], "audio"],
            [
                *columns[1:],
                pa.array(
                    [rng.choice([b"0.wav", b"1.wav", b"x\0.wav"]).ljust(8, b"\0") for _ in rows],
                    pa.binary(8),
                ),
            ],
        )
    if sound < 0.3:
        keys, columns = (
            [*keys[1:], "audio"],
            [
                *columns[1:],
                pa.array(
                    [rng.choice([None, b"", b"RIFF", rng.randbytes(99)]) for _ in rows], pa.binary()
                ),
            ],
        )
    elif sound < 0.4:
        keys, columns = (
            [*keys[1:], "audio"],
            [
                *columns[1:],
                pa.array(
                    [
                        dict(
                            array=[0.1] * rng.randint(0, 9),
                            sampling_rate=rng.choice([0, 16_000, None]),
                        )
                        for _ in rows
                    ]
                ),
            ],
        )
    pq.write_table(
        pa.Table.from_arrays(columns, names=keys), path, row_group_size=rng.choice([1, 3, 100])
    )


def damage(rng, raw):
    kind, n = rng.randrange(6), len(raw)
    if kind == 0:
        return raw[: rng.randrange(n + 1)]
    if kind == 1:
        return rng.randbytes(rng.randint(0, 3000))
    a = rng.randrange(n + 1)
    b = min(n, a + rng.randint(1, 60))
    if kind == 2:
        return raw[:a] + rng.randbytes(b - a) + raw[b:]
    if kind == 3:
        return (
            raw[:a] + rng.choice([b"\0" * 20, b"\xff\xfe", b'"', b"\n", b"\r", b"\xe1"]) + raw[a:]
        )
    if kind == 4:
        return raw[:a] + raw[b:]
    return raw + raw[a:]


WRITERS = {
    ".csv": delimited,
    ".tsv": delimited,
    ".txt": delimited,
    ".jsonl": jsonl,
    ".json": jsonl,
    ".parquet": parquet,
}


def one(seed, folder, out):
    "Run case `seed`. Returns what is wrong with it, or None, and how it ended."
    from higgs_vi.data import DataSettings, prepare, read_source

    rng = random.Random(seed)
    path = folder / f"case{seed}{rng.choice(list(WRITERS))}"
    WRITERS[path.suffix](rng, path)
    if rng.random() < 0.4:
        path.write_bytes(damage(rng, path.read_bytes()))
    size, began = path.stat().st_size, time.process_time()
    try:
        cfg = DataSettings(table=str(path), output_dir=str(out / str(seed)), num_workers=1)
        source = read_source(cfg)
        with contextlib.redirect_stdout(io.StringIO()):
            samples, rejected = prepare(cfg, source)
        ended = "read"
        import pandas as pd

        if len(samples) + len(rejected) != len(source[0].rows):
            return f"{len(samples)} + {len(rejected)} of {len(source[0].rows)} rows", ended
        if len(pd.read_csv(out / str(seed) / "rejected.csv")) != len(rejected):
            return "rejected.csv reads back otherwise", ended
    except ValueError as e:
        ended = "refused"
        if type(e) is not ValueError or path.name not in str(e):
            return f"{type(e).__name__} that names no file: {e}"[:300], ended
        if len(str(e)) > 3000 or "\n" in str(e):
            return f"a message of {len(str(e))} letters", ended
    except BaseException as e:
        return f"{type(e).__name__}: {e}"[:300], "traceback"
    used = time.process_time() - began
    path.unlink()
    return (f"{used:.1f} s for {size} bytes" if used > 1 + size / 1e6 else None), ended


def main(first, n, folder):
    """Run cases `first` to `first + n` in this process; print failures, outcomes and peak memory in
    GiB.
    """
    import soundfile as sf
    from sounds import spoken  # beside this file, which runs as a script

    from higgs_vi.monitor import memory_gib

    folder = Path(folder)
    out = folder.with_name(folder.name + "_out")
    folder.mkdir()
    out.mkdir()
    for i in range(6):
        sf.write(folder / f"{i}.wav", spoken(i, 0.5, 16_000), 16_000)
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "folder").mkdir()
    os.sync = lambda: None  # it waits for other programs' files
    found, ends = {}, {}
    for seed in range(first, first + n):
        wrong, ended = one(seed, folder, out)
        ends[ended] = ends.get(ended, 0) + 1
        if wrong:
            found[seed] = wrong
    print(json.dumps(dict(found=found, ends=ends, peak=memory_gib())))


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_table_broken_at_random_is_read_or_refused_with_its_name(tmp_path, n):
    done = subprocess.run(
        [sys.executable, __file__, "0", str(n), str(tmp_path / "in")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | dict(PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8:backslashreplace"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    got = json.loads(done.stdout.splitlines()[-1])
    print(got["ends"], f"peak {got['peak']:.2f} GiB")
    assert not got["found"] and got["ends"]["read"] > n / 3 and got["peak"] < 1.5, got


if __name__ == "__main__": main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
