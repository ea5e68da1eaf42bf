"""Pages in a real browser: the gallery plays, and JupyterLab opens an executed notebook.

Skipped without Chromium.
"""
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from higgs_vi.audio import DEMO, read_audio
from higgs_vi.show import Clip, gallery

CHROMIUM = next(
    (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
ROOT = Path(__file__).parents[1]

WATCH = """<script>
Promise.all([...document.querySelectorAll('audio')].map(a => new Promise((ok, bad) => {
  a.onerror = () => bad('cannot play'); a.onloadedmetadata = () => ok(a.duration); a.load() })))
.then(d => document.title = 'durations ' + JSON.stringify(d), e => document.title = 'failed ' + e)
</script></body>"""


def dom(url, folder, wait=8000):
    "The HTML of the page at `url` after its scripts have run."
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--mute-audio",
            f"--user-data-dir={folder}",
            f"--virtual-time-budget={wait}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


def test_the_gallery_plays_offline(tmp_path):
    waves = [read_audio(p) for p in sorted(DEMO.glob("clips/*_00*.ogg"))[:4]]
    page = gallery(
        tmp_path / "index.html",
        [
            dict(text="Một.", real=Clip(waves[0]), after=Clip(waves[1])),
            dict(text="Hai.", real=Clip(waves[2]), after=Clip(waves[3])),
        ],
        "Pairs",
    )
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.(?!data:)", text) and text.count("<img") == 4
    page.write_text(text.replace("</body>", WATCH), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", dom(page.as_uri(), tmp_path / "profile"))[1]
    assert title.startswith("durations "), title
    assert np.allclose(
        json.loads(title.removeprefix("durations ")), [len(w) / 24_000 for w in waves], atol=0.1
    )


@pytest.mark.parametrize("width, scheme", [(400, "dark"), (1280, "light")])
def test_a_page_is_readable_on_a_phone_and_in_the_dark(tmp_path, width, scheme):
    """Players keep their width, each text has its own line, nothing scrolls sideways, and no
    picture is too bright or too dark for the page.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    clip = Clip(read_audio(DEMO / "clips/ngan_001.ogg"))
    text = "Hôm nay trời đẹp quá, chúng tôi đi dạo quanh bờ hồ rồi về nhà."
    page = gallery(
        tmp_path / "index.html",
        [dict(text=text, real=clip, before=clip, after="it ended at once")],
        "Pairs",
    )
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
        tab.goto(page.as_uri())
        players, pictures = (
            [e.bounding_box() for e in tab.locator(kind).all()] for kind in ("audio", "img")
        )
        heading, wide = (
            tab.get_by_text(text).bounding_box(),
            tab.evaluate("document.documentElement.scrollWidth"),
        )
        browser.close()
    assert len(players) == len(pictures) == 2 and wide <= width
    assert all(
        b["width"] >= 250 and b["x"] >= 0 and b["x"] + b["width"] <= width
        for b in players + pictures
    )
    assert heading["width"] > 300 and heading["height"] < 80
    border = np.asarray(Image.open(io.BytesIO(clip.picture())).convert("L"))[:3]
    assert 30 < border.mean() < 120


@pytest.mark.slow
def test_jupyterlab_opens_the_executed_notebook(tmp_path):
    """JupyterLab's page, served on loopback, shows the notebook's cells, and the browser logs no
    errors.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = (
        os.environ
        | {f"JUPYTER_{k}_DIR": str(tmp_path / k) for k in ("CONFIG", "DATA", "RUNTIME")}
        | dict(JUPYTERLAB_SETTINGS_DIR=str(tmp_path / "lab"))
    )
    lab = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--ip=127.0.0.1",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={ROOT}",
            "--LabApp.collaborative=False",
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(60):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/lab", timeout=1)
                break
            except OSError:
                time.sleep(1)
        with playwright.sync_playwright() as p:
            browser = p.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
            )
            page, errors = browser.new_page(), []
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.goto(f"http://127.0.0.1:{port}/lab/tree/nbs/04_train.ipynb")
            page.wait_for_selector(".jp-Notebook .jp-MarkdownCell h1", timeout=90_000)
            assert (
                "Training" in page.inner_text(".jp-Notebook .jp-MarkdownCell h1")
                and page.locator(".jp-Notebook .jp-Cell").count() > 5
            )
            assert not errors and not page.locator(".jp-Dialog").count()
            browser.close()
    finally:
        lab.terminate()
        lab.wait(20)
