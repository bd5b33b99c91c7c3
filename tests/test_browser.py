"""The pages in a real browser: quiet, self-contained, readable at any width, in both colour schemes and in print.

A browser that is installed already is driven (Chromium or Chrome); where there is none, or no playwright, this is skipped.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from misdirect import runs, storage
from misdirect.reporting import compare, report
from misdirect.runs import Metric, Result
from misdirect.text import clean
from report_data import HOSTILE, full_run, save_answers, save_mcq, save_nll, small_run, write_config, write_log

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGES = ("full", "hostile", "comparison", "empty", "base")
# name -> width of the window, colour scheme, medium; a sheet of A4 less its margins is 688 pixels wide
VIEWS = {
    "desktop": (1100, "light", "screen"),
    "desktop-dark": (1100, "dark", "screen"),
    "phone": (360, "light", "screen"),
    "phone-dark": (360, "dark", "screen"),
    "print": (688, "dark", "print"),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)}): apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    full = full_run(folder / "full")
    other = small_run(folder / "other")
    save_mcq(other, "biology", 0.625, 0.45)
    base = folder / "base"
    row = Metric("cloze_accuracy", 0.625, 0.03, 200, 0.575, 0.675, 0.25, 0.315, headline=True, base_knows=True)
    runs.save_result(base, "base", Result("mcq", "biology", {}, (row,), ()))
    (folder / "empty").mkdir()
    write_config(folder / "empty")
    return {
        "full": report(full),
        "hostile": report(named_run(folder / "hostile", HOSTILE), show_text=True),
        "harmless": report(named_run(folder / "harmless", "harmless"), show_text=True),
        "comparison": compare([full, other, folder / "hostile"], folder / "comparison.html"),
        "empty": report(folder / "empty"),
        "base": report(base),
    }


def named_run(folder: Path, name: str) -> Path:
    """A run in which every string that comes from outside is `name`."""
    folder.mkdir()
    topic = {"name": name, "source": name}
    chosen = {"trained": [name], "topics": {name: {"median_norm": 1.5}}, "retain": {name: {}}}
    corpus = {"name": name, "source": name, "weight": 1.0}
    write_config(folder, topics=[topic], chosen=chosen, retain=[corpus], command=name,
                 data={"dtype": name, "forget_sha256": {name: name}})  # fmt: skip
    write_log(folder, topics=(name, "_second"))
    save_mcq(folder, name, 0.6, 0.3)
    save_mcq(folder, f"kept {name}", 0.6, 0.5)
    save_nll(folder, name, 0.5)
    save_answers(folder, name, name, {"base": name, "unlearned": name})
    row = {"metric": name, "value": 0.5, "n": 3}
    result = {"measurement": name, "set": name, "config": {}, "metrics": [row], "records": [], "attack": None}
    for model in ("base", "unlearned"):
        storage.write_json(folder / "results" / model / "odd.json", result | {"model": model})
    return folder


@dataclass
class Opened:
    """A page with all that it did while it was open."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)


@contextmanager
def opened(browser: Any, path: Path, view: str = "desktop") -> Iterator[Opened]:
    """The page with every folded part open (in print they are left to the style sheet)."""
    width, scheme, medium = VIEWS[view]
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    seen = Opened(page)
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    page.emulate_media(media=medium)
    page.goto(path.as_uri())
    if medium == "screen":
        seen.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield seen
    context.close()


# Elements that stick out of the page to the right, those left out that scroll inside a box of their own.
OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth;
    const scrolls = e => e && (getComputedStyle(e).overflowX === 'auto' || scrolls(e.parentElement));
    return [...document.body.querySelectorAll('*')]
        .filter(e => e.getBoundingClientRect().right > width + 0.5 && !scrolls(e))
        .map(e => e.tagName + ' ' + e.textContent.slice(0, 40));
}"""

# The least contrast of any text with what it stands on (WCAG 2), and where that is.
CONTRAST = """() => {
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
    const ground = e => {
        for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] === 1) return c;
        }
        return [255, 255, 255];
    };
    let least = [99, ''], count = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; node = walker.nextNode();) {
        const e = node.parentElement;
        if (!node.data.trim() || !e.checkVisibility() || e.closest('title, desc, style')) continue;
        const style = getComputedStyle(e), inside = e instanceof SVGElement;
        const values = [parse(inside ? style.fill : style.color), ground(e)].map(luminance).sort((a, b) => b - a);
        const ratio = (values[0] + 0.05) / (values[1] + 0.05);
        count += 1;
        if (ratio < least[0]) least = [ratio, e.tagName + ' ' + node.data.trim().slice(0, 40)];
    }
    return [least[0], least[1], count];
}"""


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PAGES)
def test_page_is_quiet_and_fits_and_can_be_read(browser: Any, pages: dict[str, Path], name: str, view: str) -> None:
    with opened(browser, pages[name], view) as seen:
        assert seen.messages == []
        assert seen.dialogs == []
        assert seen.requests == [pages[name].as_uri()]
        assert seen.ask("document.documentElement.scrollWidth") <= VIEWS[view][0]
        assert seen.ask(OVERFLOWING) == []
        ratio, where, count = seen.ask(CONTRAST)
        assert count > 20
        assert ratio >= 4.5, where


def test_checks_can_fail(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    text = pages["base"].read_text(encoding="utf-8")
    added = (
        '<p style="color: #777; background: #888">grey</p><img src="https://nowhere.invalid/x.png">'
        '<script>alert("under the policy")</script>'
    )
    path = tmp_path / "page.html"
    path.write_text(text.replace("</main>", added + "</main>"), encoding="utf-8")
    with opened(browser, path) as seen:  # the policy stops all three and says so
        assert len(seen.messages) >= 3
        assert seen.dialogs == []
    unruled = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
    path.write_text(unruled.replace("<main>", "<main><div style='width: 2000px'>wide</div>"), encoding="utf-8")
    with opened(browser, path) as seen:
        assert seen.dialogs == ["under the policy"]
        assert len(seen.requests) == 2
        assert any("wide" in element for element in seen.ask(OVERFLOWING))
        ratio, where, _ = seen.ask(CONTRAST)
        assert ratio < 1.5
        assert where == "P grey"


def test_color_scheme_is_followed(browser: Any, pages: dict[str, Path]) -> None:
    grounds = {}
    for view in ("desktop", "desktop-dark", "print"):
        with opened(browser, pages["full"], view) as seen:
            grounds[view] = seen.ask("getComputedStyle(document.body).backgroundColor")
    assert grounds["desktop"] == grounds["print"] == "rgb(255, 255, 255)"
    assert grounds["desktop-dark"] == "rgb(20, 22, 26)"


def test_print_shows_what_is_folded_and_keeps_cards_whole(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["full"], "print") as seen:
        assert seen.ask("[...document.querySelectorAll('details')].every(d => !d.open)")
        hidden = "[...document.querySelectorAll('details td')].filter(e => !e.checkVisibility()).length"
        assert seen.ask(hidden) == 0
        assert seen.ask("document.querySelectorAll('details td').length") > 500
        for selector in (".card", "figure", "tr", ".pair", ".unproven"):
            broken = f"[...document.querySelectorAll('{selector}')].map(e => getComputedStyle(e).breakInside)"
            assert set(seen.ask(broken)) == {"avoid"}, selector
        assert seen.page.pdf(format="A4").startswith(b"%PDF")


def test_folded_parts_open_and_close(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["full"]) as seen:
        seen.ask("document.querySelectorAll('details').forEach(d => d.open = false)")
        cell = seen.page.get_by_role("rowheader", name="college_astronomy").first
        assert not cell.is_visible()
        seen.page.get_by_text("mmlu mcq").click()
        seen.page.get_by_text("letter accuracy by subject").first.click()
        assert cell.is_visible()


@pytest.mark.parametrize("name", PAGES)
def test_headings_are_in_order_and_pictures_have_names(browser: Any, pages: dict[str, Path], name: str) -> None:
    with opened(browser, pages[name]) as seen:
        levels = seen.ask("[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(e => +e.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels)), levels
        pictures = seen.page.get_by_role("img")
        assert pictures.count() == seen.ask("document.querySelectorAll('svg').length")
        for picture in pictures.all():
            assert picture.locator("title").text_content()
            assert picture.locator("desc").text_content()
        landmarks = "['main', 'header', 'footer'].map(tag => document.querySelectorAll('body > ' + tag).length)"
        assert seen.ask(landmarks) == [1, 1, 1]
        assert seen.ask("document.documentElement.lang") == "en"


ELEMENTS = "[...document.querySelectorAll('*')].filter(e => !e.closest('svg')).map(e => e.localName)"
IN_PICTURES = "[...new Set([...document.querySelectorAll('svg, svg *')].map(e => e.localName))]"


def test_hostile_strings_stay_text(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["harmless"]) as seen:
        elements, drawn = Counter(seen.ask(ELEMENTS)), set(seen.ask(IN_PICTURES))
    with opened(browser, pages["hostile"]) as seen:
        assert Counter(seen.ask(ELEMENTS)) == elements
        assert set(seen.ask(IN_PICTURES)) == drawn <= {"svg", "title", "desc", "g", "path", "text", "tspan", "use", "defs",
                                                       "clipPath", "rect"}  # fmt: skip
        handlers = (
            "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
        )
        assert seen.ask(handlers) == []
        assert seen.ask("document.links.length + document.images.length + document.scripts.length") == 0
        words = clean(HOSTILE)
        assert words in seen.page.title()
        text = seen.page.locator("body").inner_text().replace("\u00a0", " ")
        assert text.count(words) > 20  # heading, cards, tables, prompt, answers, settings, command
        assert not set("\u202e\u2066\x07") & set(text)
        assert seen.page.locator("blockquote").all_inner_texts() == [words, words]
        assert seen.dialogs == []
