"""Jobs on the page: started, followed, cancelled, downloaded, deleted."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adadiff.serving.job_store import JobStore
from adadiff.serving.jobs import Jobs
from adadiff.serving.served import ServedModel
from tests.serving.conftest import serving
from tests.serving.scripted import ScriptedEngine
from tests.serving.test_page import browser

__all__ = ["browser"]


@pytest.fixture(params=[None, "secret"])
def page(request: Any, browser: Any, engine: ScriptedEngine, served: ServedModel, tmp_path: Path) -> Iterator[Any]:
    """The page of a service with jobs, without a key and with one."""
    jobs = Jobs(JobStore(tmp_path / "jobs", {}), engine)
    with jobs, serving(engine, served, request.param, jobs) as address:
        page = browser.new_page(viewport={"width": 1180, "height": 860})
        page.set_default_timeout(10_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        if request.param is not None:
            page.wait_for_selector("#key-field:not([hidden])")
            page.fill("#key", request.param)
            page.keyboard.press("Tab")
        page.wait_for_selector("#jobs:not([hidden])")
        yield page
        page.close()
        engine.gate.set()
        assert errors == []


def test_a_job_is_started_followed_cancelled_and_deleted(page, engine):
    page.select_option("#class", label="owl")
    page.fill("#seed", "7")
    page.fill("#job-n", "3")
    page.click("#job-start")
    page.wait_for_selector("#job-list li:has-text('finished · 3 of 3 images')")
    assert page.inner_text("#job-list .name") == "owl · seed 7 · 50 steps"
    assert page.locator("#job-list button:visible").all_inner_texts() == ["Delete"]
    with page.expect_download() as download:
        page.click("#job-list a:has-text('Download')")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == ["000000.png", "000001.png", "000002.png"]
    engine.gate.clear()
    page.click("#job-start")
    first = "#job-list li >> nth=0"
    page.wait_for_selector(f"{first} >> text=running · 0 of 3 images")
    page.focus(f"{first} >> button:has-text('Cancel')")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{first} >> text=cancelled · 0 of 3 images")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(f"{first} >> button:has-text('Delete')")
    page.wait_for_selector(f"{first} >> text=finished · 3 of 3 images")
    assert page.locator("#job-list li").count() == 1


def test_what_the_service_refuses_is_shown(page, engine):
    page.click("summary")
    page.fill("#guidance", "2000")
    page.click("#job-start")
    page.wait_for_selector("#job-error:has-text('guidance_scale: input should be less than or equal to 1000.')")
    page.set_viewport_size({"width": 320, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_without_jobs_there_is_no_section(browser, engine, served):
    with serving(engine, served) as address:
        page = browser.new_page()
        with page.expect_response("**/v1/jobs"):
            page.goto(address)
        page.wait_for_selector("#plans input", state="attached")
        assert page.locator("#jobs").is_hidden()
        page.close()
