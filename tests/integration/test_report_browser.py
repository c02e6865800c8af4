"""The page of a hostile run in a browser: nothing runs, nothing is fetched, the keyboard reaches everything."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser

from infinity_mm.report.run_report import ReportConfig, write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))
from report_runs import HOSTILE, make_run  # pyright: ignore[reportMissingImports]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

TEXTS = "h1, h2, h3, p, dt, dd, th, td, li, a, button, label, summary, caption, del, ins, .fate"
WORST_CONTRAST = f"""(() => {{
  const rgb = (color) => color.match(/[\\d.]+/g).map((value) => value / 255);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (color) => {{ const [r, g, b] = rgb(color).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; }};
  const behind = (node) => {{
    for (; node; node = node.parentElement) {{
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }}
    return "rgb(255, 255, 255)";
  }};
  const shown = [...document.querySelectorAll("{TEXTS}")].filter((e) => e.textContent.trim() && e.offsetParent);
  return Math.min(...shown.map((e) => {{
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }}));
}})()"""
"""WCAG contrast of the least readable text that is shown."""
HANDLERS = (
    "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
)
FOCUS = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        run = make_run(tmp_path_factory.mktemp("hostile"), patch)
        yield Path(write_report(run.run_dir, ReportConfig(per_section=200)).path)


def visit(
    page: Path, look: Callable[[Browser], Awaitable[None]], *, width: int = 1280, dark: bool = False
) -> None:
    async def go() -> None:
        async with browser() as tab:
            await tab.open(page, width=width, dark=dark)
            await look(tab)
            said = [
                event
                for event in tab.events
                if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
            ]
            assert said == []

    asyncio.run(go())


def test_hostile_words_do_nothing_in_a_browser(page: Path) -> None:
    async def look(tab: Browser) -> None:
        sections = await tab.ask("document.querySelectorAll('#tabs button').length")
        assert sections == 7
        for number in range(sections):
            await tab.ask(f"document.querySelectorAll('#tabs button')[{number}].click()")
            while not await tab.ask("document.getElementById('more').hidden"):
                await tab.ask("document.getElementById('more').click()")
            for row in range(0, await tab.ask("document.querySelectorAll('.open').length"), 5):
                await tab.ask(f"document.querySelectorAll('.open')[{row}].click()")
                await tab.ask("document.getElementById('dialog').close()")
        assert await tab.ask("document.title") == "Run tiny"
        assert await tab.ask("document.querySelectorAll('script:not([type])').length") == 1
        assert await tab.ask(HANDLERS) == []
        assert (
            await tab.ask("document.querySelectorAll('iframe, object, embed, link, base, [src^=x]').length")
            == 0
        )
        urls = {event["params"]["request"]["url"][:5] for event in tab.events
                if event["method"] == "Network.requestWillBeSent"}  # fmt: skip
        assert urls <= {"file:", "data:"}
        # The policy stops what a person at the console might try.
        blocked = "try { document.body.innerHTML = '<b>x</b>'; 'ran' } catch (error) { error.name }"
        assert await tab.ask(blocked) == "TypeError"
        fetched = "fetch('http://127.0.0.1:9/').then(() => 'ran', error => error.name)"
        assert await tab.ask(fetched) == "TypeError"
        tab.events.clear()

    visit(page, look)


def test_the_keyboard_reaches_everything(page: Path) -> None:
    async def look(tab: Browser) -> None:
        await tab.press("Tab")
        assert await tab.ask(FOCUS) == "skip"
        await tab.press("Enter")
        assert await tab.ask("location.hash") == "#gallery"
        await tab.press("Tab")
        assert await tab.ask(FOCUS) == "tab0"
        await tab.press("ArrowRight", times=2)
        assert await tab.ask(FOCUS) == "tab2"
        assert await tab.ask("document.querySelector('[aria-selected=true]').id") == "tab2"
        await tab.press("Tab")
        assert await tab.ask(FOCUS) == "search"
        await tab.press("Tab", times=7)
        assert await tab.ask("document.activeElement.type") == "reset"
        await tab.press("Tab")
        assert await tab.ask(FOCUS) == "open"
        first = await tab.ask("document.activeElement.dataset.row")
        await tab.press("ArrowDown")
        second = await tab.ask("document.activeElement.dataset.row")
        assert second != first
        outline = await tab.ask("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        await tab.press("Enter")
        assert await tab.ask("document.getElementById('dialog').open")
        assert await tab.ask(FOCUS) == "shown-title"
        assert (await tab.ask("document.getElementById('place').textContent")).startswith("2 of ")
        await tab.press("ArrowRight")
        assert (await tab.ask("document.getElementById('place').textContent")).startswith("3 of ")
        await tab.press("Escape")
        assert not await tab.ask("document.getElementById('dialog').open")
        assert await tab.ask("document.activeElement.dataset.row") == second

    visit(page, look)


def test_filters_narrow_what_is_shown(page: Path) -> None:
    count = "document.getElementById('count').textContent"

    async def look(tab: Browser) -> None:
        everything = int((await tab.ask(count)).split(" ")[0])
        await tab.ask("document.getElementById('search').focus()")
        await tab.type("onmouseover")
        some = int((await tab.ask(count)).split(" ")[0])
        assert 0 < some < everything
        shown = await tab.ask("document.getElementById('cards').textContent")
        assert HOSTILE[3] in shown
        await tab.ask("document.querySelector('#filters button').click()")
        await asyncio.sleep(0.1)
        assert (await tab.ask(count)).startswith(f"{everything} of")
        await tab.ask("document.getElementById('fate').value = 'quarantined'")
        await tab.ask("document.getElementById('fate').dispatchEvent(new Event('input'))")
        fates = await tab.ask(
            "[...new Set([...document.querySelectorAll('.sample .fate')].map(e => e.textContent))]"
        )
        assert fates == ["quarantined"]
        await tab.ask("document.querySelector('button.reason[data-end=\"check: not_answerable\"]').click()")
        await asyncio.sleep(0.1)
        ends = await tab.ask("[...document.querySelectorAll('.sample .meta')].map(e => e.textContent)")
        assert ends
        assert all("check: not_answerable" in end for end in ends)
        assert await tab.ask("document.querySelector('.card img').alt.startsWith('Picture ')")

    visit(page, look)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window_and_can_be_read_in_it(page: Path, width: int, dark: bool) -> None:
    async def look(tab: Browser) -> None:
        for number in range(await tab.ask("document.querySelectorAll('#tabs button').length")):
            await tab.ask(f"document.querySelectorAll('#tabs button')[{number}].click()")
            assert await tab.ask("document.documentElement.scrollWidth") <= width
            assert await tab.ask(WORST_CONTRAST) >= 4.5
        await tab.ask("document.querySelector('.open').click()")
        wide = "document.getElementById('dialog').scrollWidth - document.getElementById('dialog').clientWidth"
        assert await tab.ask(wide) <= 0

    visit(page, look, width=width, dark=dark)
