"""The page in a real browser: generate, stream, compare, cancel, an error shown, a reload, keys, a narrow screen."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adadiff.serving.app import PAGE
from adadiff.serving.served import ServedModel
from tests.serving.conftest import eventually, serving
from tests.serving.scripted import ScriptedEngine

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
if not Path(CHROMIUM).is_file():
    pytest.skip("there is no /usr/bin/chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def address(engine: ScriptedEngine, served: ServedModel) -> Iterator[str]:
    with serving(engine, served) as address:
        yield address


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, loaded; at the end there must have been no error in it, and no request to another host."""
    page = browser.new_page(viewport={"width": 1180, "height": 860})
    page.set_default_timeout(10_000)
    errors, hosts = [], set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(address)
    page.wait_for_selector("#plans input", state="attached")
    yield page
    page.close()
    assert errors == []
    assert hosts <= {address.removeprefix("http://"), ""}


def sources(page: Any) -> list[str]:
    return page.eval_on_selector_all(".image img:not([hidden])", "images => images.map(image => image.src)")


def finished(page: Any, words: str = "Seed") -> str:
    page.wait_for_selector(f"#verdict:has-text('{words}')")
    return page.inner_text("#verdict")


def test_a_class_is_generated_beside_the_full_model_from_the_same_noise(page, engine):
    page.select_option("#class", label="dog")
    page.fill("#seed", "7")
    page.fill("#n", "2")
    page.click("#generate")
    text = finished(page)
    assert "Seed 7" in text
    (request,) = (ticket.request for ticket in engine.tickets)
    assert request.class_label == 1
    assert request.seeds == (7, 8)
    assert request.previews == 3
    assert len(sources(page)) == 2
    assert page.get_attribute(".image img >> nth=1", "alt") == "Image 2, seed 8"
    facts = page.inner_text("dl >> nth=0").split("\n")
    assert [fact for fact in facts if fact] == [
        "Seconds", "0.25", "Steps", "50", "Layers a step", "5.0 of 5", "Compute", "100% of full",
    ]  # fmt: skip
    assert page.is_hidden("#budget")


def test_early_exits_are_compared_with_the_full_model(browser, tmp_path, class_pipeline, engine):
    from adadiff import CorrectedScheduleExit
    from adadiff.sampling import SamplingPlan

    planned = class_pipeline.with_plan(SamplingPlan(4, CorrectedScheduleExit((5, 1, 5, 1))))
    with serving(engine, ServedModel("animals", planned)) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#plans input", state="attached")
        assert page.inner_text("#plans-base").endswith(". The model's own plan: 4 steps, unguided.")
        page.click("#generate")
        assert "1.00 times as fast as the full model in 4 steps" in finished(page)
        own, full = (ticket.request for ticket in engine.tickets)
        assert own.seeds == full.seeds
        assert type(full.plan.policy).__name__ == "NeverExit"
        assert own.plan.policy == planned.own_settings.stored.policy
        assert page.locator(".exits >> nth=0").get_attribute("aria-label") == (
            "Layers run at each of 4 steps, of 5: 5, 1, 5, 1"
        )
        assert page.locator(".exits >> nth=1").get_attribute("aria-label").endswith(": 5, 5, 5, 5")
        page.click("text=Keep this seed")
        assert page.input_value("#seed") == str(own.seeds[0])
        engine.open.add(99)  # a request of somebody else
        page.click("#generate")
        assert "Other requests ran meanwhile" in finished(page)
        page.close()


def budget_model(pipeline: Any, folder: Path) -> ServedModel:
    """A model of 10 steps by default, whose folder holds plans of 4, 6 and 8 steps, the second its own."""
    from adadiff import AdaDiffPipeline, CorrectedScheduleExit
    from adadiff.policies.stored import save_policies
    from adadiff.sampling import SamplingPlan
    from adadiff.sampling.defaults import SamplingDefaults

    pipeline.save_pretrained(folder)
    SamplingDefaults("ddpm", 10).save(folder)
    schedules = [CorrectedScheduleExit((5, 1) * (steps // 2)) for steps in (6, 4, 8)]
    plans = [pipeline.with_plan(SamplingPlan(len(schedule.layers), schedule)) for schedule in schedules]
    stored = [plan.own_settings.stored for plan in plans]
    save_policies([replace(each, goal={"compute": k / 10}) for k, each in enumerate(stored)], folder)
    return ServedModel("animals", AdaDiffPipeline.from_pretrained(folder))


def test_a_budget_is_chosen_on_a_slider_over_the_plans_on_offer(browser, tmp_path, class_pipeline, engine):
    with serving(engine, budget_model(class_pipeline, tmp_path)) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#budget:visible")
        names = [entry["plan"] for entry in page.evaluate("model.plans")]
        _, least, middle, most, _ = names
        assert page.inner_text("#stops").split() == [f"{round(100 * name)}%" for name in (least, middle, most)]
        assert page.get_attribute("#steps", "placeholder") == "6"  # the own plan's
        page.focus("#budget")
        for _ in range(3):  # as far as it goes
            page.keyboard.press("ArrowRight")
        assert page.is_checked("[name=plan][value=budget]")
        assert page.get_attribute("#budget", "aria-valuetext") == f"{round(100 * most)}% compute"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.get_attribute("#steps", "placeholder") == "4"
        page.click("#generate")
        assert "times as fast as the full model in 10 steps" in finished(page)
        taken, full = (ticket.request.plan for ticket in engine.tickets)
        assert (taken.steps, full.steps) == (4, 10)
        assert page.inner_text(".result h2 >> nth=0") == f"Budget {round(100 * least)}%"
        page.reload()
        page.wait_for_selector("#budget:visible")
        assert page.is_checked("[name=plan][value=budget]")
        assert page.input_value("#budget") == "0"
        page.set_viewport_size({"width": 320, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        page.close()


def test_the_image_grows_from_previews_and_the_batch_is_shown(page, engine):
    engine.gate.clear()
    page.click("#generate")
    page.wait_for_selector(".slot.mine")
    assert page.get_attribute(".slot.mine", "title") == "request 0, image 1: step 2 of 4, 3 of 5 layers"
    assert "1 of 4 slots" in page.inner_text("#summary")
    assert sources(page) == []
    page.evaluate(
        """window.sources = [];
        new MutationObserver(changes => changes.forEach(change => sources.push(change.target.src)))
        .observe(document.querySelector("#results"), {subtree: true, attributes: true, attributeFilter: ["src"]})"""
    )
    engine.gate.set()
    finished(page)
    assert len(set(page.evaluate("window.sources"))) == 2  # two: the previews are the same image
    assert page.eval_on_selector_all(".slot", "slots => slots.length") == 4


@pytest.mark.parametrize("how", ["button", "escape"])
def test_cancel_frees_the_slot(page, engine, how):
    engine.gate.clear()
    page.click("#generate")
    eventually(lambda: engine.open or page.wait_for_timeout(20))
    if how == "button":
        page.click("#cancel")
    else:
        page.keyboard.press("Escape")
    assert "Cancelled." in finished(page, "Cancelled")
    eventually(lambda: engine.cancelled == [0] or page.wait_for_timeout(20))
    assert page.is_disabled("#cancel")
    engine.gate.set()
    page.click("#generate")
    finished(page)


def test_errors_are_shown_and_the_next_request_works(page, engine):
    engine.overloaded = 4.0
    page.click("#generate")
    page.wait_for_selector("#error:has-text('The service is busy: try again in 4 s.')")
    engine.overloaded, engine.failure = None, "the image came out NaN"
    page.click("#generate")
    page.wait_for_selector("#error:has-text('The image came out NaN.')")
    engine.failure = None
    page.click("#generate")
    finished(page)
    assert page.inner_text("#error") == ""


def test_a_reload_mid_way_cancels_and_keeps_the_form(page, engine):
    page.select_option("#class", label="owl")
    page.fill("#seed", "21")
    engine.gate.clear()
    page.click("#generate")
    eventually(lambda: engine.open or page.wait_for_timeout(20))
    page.reload()
    page.wait_for_selector("#plans input", state="attached")
    eventually(lambda: engine.cancelled == [0] or page.wait_for_timeout(20))
    engine.gate.set()
    assert page.input_value("#seed") == "21"
    page.keyboard.press("Tab")  # from the top of the page to its links, and through the form
    page.focus("#seed")
    page.keyboard.press("Enter")
    assert "Seed 21" in finished(page)
    assert engine.tickets[-1].request.class_label == 2


def test_the_key_is_asked_for(browser, engine, served):
    with serving(engine, served, api_key="secret") as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#error:has-text('API key')")
        page.fill("#key", "secret")
        page.keyboard.press("Tab")
        page.wait_for_selector("#plans input", state="attached")
        page.click("#generate")
        finished(page)
        page.close()


def test_everything_has_a_name_and_fits_a_narrow_screen(page):
    unnamed = page.eval_on_selector_all(
        "input, select, textarea, button",
        "all => all.filter(n => !n.closest('[hidden]') && !n.labels?.length && !n.textContent.trim()).map(n => n.id)",
    )
    assert unnamed == []
    for width in (320, 390, 900):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_names_no_other_host():
    assert re.findall(r"(?:https?:)?//[a-z]", PAGE.read_text()) == []
