"""The page as the README shows it: a class by the model's own plan and by the full model, then other requests running.

python benchmarks/serving_picture.py --out docs/images/serve.png
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx2
from playwright.sync_api import sync_playwright
from serving_process import Service, serving

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def ask(service: Service, label: int) -> None:
    """Ask for two images of a class, which stay on their way while the picture is taken."""
    with service.client() as client, suppress(httpx2.HTTPError):  # when the service ends first
        client.post("/v1/images/generations", json={"class_label": label, "n": 2, "num_inference_steps": 250})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-class-xs", help="a model of classes")
    parser.add_argument("--class", dest="label", default="horse")
    parser.add_argument("--seed", default="11")
    parser.add_argument("--requests", type=int, default=9, help="others, of two images each")
    parser.add_argument("--out", type=Path, default=Path("docs/images/serve.png"))
    options = parser.parse_args()
    with serving(options.model) as service, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1120, "height": 860})
        page.goto(service.address)
        page.wait_for_selector("#plans input", state="attached")
        page.select_option("#class", label=options.label)
        page.fill("#seed", options.seed)
        page.fill("#n", "4")
        page.click("#generate")
        page.wait_for_selector("#verdict:has-text('Seed')", timeout=120_000)
        for label in range(options.requests):
            threading.Thread(target=ask, args=(service, label), daemon=True).start()
            time.sleep(0.2)
        time.sleep(1)  # the page asks for the running batch every half second
        page.screenshot(path=options.out, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
