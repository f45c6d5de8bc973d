"""The report in a real browser: no errors, no script but our own, and it fits a telephone as well as a wide screen."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from skdeploy.report.page import write_report
from tests.report.reported import (
    HOSTILE,
    add,
    bench,
    comparison,
    full_bundle,
    hostile_bundle,
    make_bundle,
    parity,
    receipt,
    sensitivity,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

TELEPHONE, WIDE = 400, 1600  # px

# Runs in the page once it is there, and tells the page around it what it saw.
PROBE = r"""
const seen = { inner: innerWidth, scroll: document.documentElement.scrollWidth, ran: window.ran || 0 };
const shown = (e) => e && e.getClientRects().length > 0;
seen.background = getComputedStyle(document.body).backgroundColor;
seen.headlines = [...document.querySelectorAll("h1")].map((h) => h.textContent.trim());
seen.pictures = [...document.images].map((image) => (
  { loaded: image.complete && image.naturalWidth > 0, top: image.getBoundingClientRect().top }
));
seen.wide = shown(document.querySelector(".wide")); seen.narrow = shown(document.querySelector(".narrow"));
seen.drawings = [...document.querySelectorAll("figure svg[role=img]")].filter(shown).map((svg) => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
  return {
    title: svg.getAttribute("aria-label"), font: 12 * box.width / svg.viewBox.baseVal.width,
    outside: texts.filter((t) => t.left < box.left - 1 || t.right > box.right + 1 || t.bottom > box.bottom + 1).length,
  };
});
const table = [...document.querySelectorAll("table")].find((t) => t.caption.textContent.includes("sensitivity of each unit"));
const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
const header = table.tHead.rows[0].cells[1];
seen.orders = [order()]; seen.sorts = [header.getAttribute("aria-sort")];
for (let press = 0; press < 3; press++) {
  header.querySelector("button").click();
  seen.orders.push(order()); seen.sorts.push(header.getAttribute("aria-sort"));
}
seen.focusable = header.querySelector("button").tabIndex;
const closed = () => document.querySelectorAll("details:not([open])").length;
seen.closed = [closed()];
for (const event of ["beforeprint", "afterprint"]) { dispatchEvent(new Event(event)); seen.closed.push(closed()); }
document.querySelectorAll("details").forEach((d) => { d.open = true; });
seen.opened = document.documentElement.scrollWidth;
const boxes = [...document.querySelectorAll(".scroll")];
seen.cut = boxes.filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.innerText);
const colour = (text) => text.match(/[\d.]+/g).map(Number);
// WCAG 2.2's relative luminance
const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const light = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const found = colour(getComputedStyle(e).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  throw new Error("nothing is behind the page");
};
const block = "div,p,li,dd,dt,td,th,h1,h2,h3,figcaption,caption,pre,summary,section,footer,nav";
seen.broken = []; seen.faint = []; seen.texts = 0;
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const text = walk.currentNode, holder = text.parentElement;
  if (!text.data.trim() || !shown(holder) || holder.closest("script")) continue;
  seen.texts++;
  const style = getComputedStyle(holder), own = colour(holder.closest("svg") ? style.fill : style.color);
  const [dark, bright] = [light(own), light(behind(holder))].sort((a, b) => a - b);
  const contrast = (bright + 0.05) / (dark + 0.05);
  if (contrast < 4.5) seen.faint.push(`${text.data.trim()}: ${contrast.toFixed(2)}`);
  const all = document.createRange();
  all.selectNodeContents(text);
  const right = Math.max(...[...all.getClientRects()].map((box) => box.right));
  const room = holder.closest("svg") ? Infinity : holder.closest(block).getBoundingClientRect().right;
  if (right > room + 1) seen.cut.push(text.data.trim());
  // options, and words of no more letters than a column of a telephone has room for: a digest has to be broken
  for (const word of text.data.matchAll(/--[a-z][a-z0-9-]*|\p{L}[\p{L}\p{N}]*/gu)) {
    if (word[0].length > 26) continue;
    const range = document.createRange();
    range.setStart(text, word.index); range.setEnd(text, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) seen.broken.push(word[0]);
  }
}
seen.text = document.body.innerText;
parent.postMessage(JSON.stringify(seen), "*");
"""

# Chromium's own window is 500 px wide at least; a frame is as wide as it is told to be.
AROUND = """<!doctype html><style>:root { color-scheme: light dark } body { margin: 0 } iframe { border: 0 }</style>
<script>addEventListener("message", (m) => { document.documentElement.dataset.seen = m.data; })</script>
<iframe src="copy.html" width="WIDTH" height="900"></iframe>
"""


@dataclass(frozen=True)
class Visit:
    """What the probe saw, and the console's lines."""

    seen: dict[str, Any]
    console: tuple[str, ...]


def allowed(html: str, code: str) -> str:
    """The page with one more script, which its policy is told of."""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = html.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    assert policy != html
    return policy.replace("</body>", f"<script>{code}</script></body>")


def visit(page: Path, folder: Path, width: int, *, dark: bool = False, damage: tuple[str, str] = ("", "")) -> Visit:
    """Opens a copy of the page with the probe in it; ``damage`` is replaced in the copy first."""
    assert CHROMIUM is not None
    html = page.read_text(encoding="utf-8")
    if damage[0]:
        assert damage[0] in html
        html = html.replace(*damage, 1)
    (folder / "copy.html").write_text(allowed(html, PROBE), encoding="utf-8")
    around = folder / "around.html"
    around.write_text(AROUND.replace("WIDTH", str(width)), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900", "--virtual-time-budget=5000",
        "--enable-logging=stderr", "--v=0",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", around.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None, done.stderr
    console = tuple(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Visit(json.loads(unescape(found[1])), console)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(full_bundle(tmp_path_factory.mktemp("page") / "b"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """The page of a bundle that failed, with latency of an engine that has not run here, in the dark on a telephone."""
    folder = tmp_path_factory.mktemp("failed")
    report = parity(
        comparison("model.onnx"),
        comparison("model.int8.onnx", "fail", problems=("SQNR 28.9 dB in image images[35], at least 60 dB",)),
        comparison("model.plan", "unproven", "tensorrt_rtx", reason="no GPU to run an engine on: no NVIDIA driver"),
    )
    bundle = make_bundle(
        folder / "b", report=report, engine=True, verdict="failed", notes=("mind the --int8-fallback",)
    )
    add(bundle, sensitivity=sensitivity())
    receipt(bundle, "recorded", "latency", **bench(1.84, others=0.4))
    return visit(write_report(bundle), folder, TELEPHONE, dark=True)


@pytest.fixture(scope="module")
def telephone(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visit(page, tmp_path_factory.mktemp("telephone"), TELEPHONE)


@pytest.fixture(scope="module")
def wide(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visit(page, tmp_path_factory.mktemp("wide"), WIDE, dark=True)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    folder = tmp_path_factory.mktemp("hostile")
    return visit(write_report(hostile_bundle(folder / "b")), folder, TELEPHONE)


def test_nothing_is_wrong_in_the_console(telephone: Visit, wide: Visit) -> None:
    assert telephone.console == ()
    assert wide.console == ()


def test_the_console_is_heard(page: Path, tmp_path: Path) -> None:
    # an image from elsewhere is refused by the page's policy, which the browser reports; so is a script that it does not name
    for damage in ("<img src='https://example.invalid/x.png'>", "<script>ran = 1</script>"):
        found = visit(page, tmp_path, TELEPHONE, damage=("<footer>", f"{damage}<footer>"))
        assert any("Content Security Policy" in line for line in found.console), damage
        assert found.seen["ran"] == 0


def test_a_script_that_runs_is_seen(page: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text(allowed(page.read_text(encoding="utf-8"), "ran = 1"), encoding="utf-8")
    assert visit(other, tmp_path, TELEPHONE).seen["ran"] == 1


@pytest.mark.parametrize("width", [TELEPHONE, WIDE])
def test_the_page_does_not_scroll_sideways_closed_or_open(width: int, telephone: Visit, wide: Visit) -> None:
    seen = (telephone if width == TELEPHONE else wide).seen
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["opened"] <= width


def test_a_page_that_scrolls_sideways_is_seen(page: Path, tmp_path: Path) -> None:
    broad = "<footer><svg width='2000' height='1'></svg>"
    assert visit(page, tmp_path, TELEPHONE, damage=("<footer>", broad)).seen["scroll"] > TELEPHONE


def test_no_table_is_cut_no_word_broken_and_no_text_faint(telephone: Visit, wide: Visit, failed: Visit) -> None:
    for found in (telephone.seen, wide.seen, failed.seen):
        assert found["texts"] > 100
        assert (found["cut"], found["broken"], found["faint"]) == ([], [], [])


def test_a_cut_table_a_broken_word_faint_text_and_a_second_headline_are_seen(page: Path, tmp_path: Path) -> None:
    long = "Donaudampfschifffahrt"  # 21 letters in a column of a narrow table
    tile = f"<dl class='figures'><div>{'W' * 60}</div></dl>"
    wrong = {
        "cut": "<div class='scroll'>wide<svg width='900' height='1'></svg></div>" + tile,
        "broken": f"<table><tbody><tr><td>a</td><td>{long}</td></tr></tbody></table>",
        "faint": "<p><font color='#999999'>fog</font></p>",  # on white
        "headlines": "<h1>second</h1>",
    }
    seen = visit(page, tmp_path, TELEPHONE, damage=("<footer>", "".join(wrong.values()) + "<footer>")).seen
    found = [seen[sign] for sign in wrong]
    assert found == [["wide", "W" * 60], [long], ["fog: 2.85"], ["verified", "second"]]


def test_a_page_has_one_headline_and_it_is_the_verdict(telephone: Visit, failed: Visit) -> None:
    assert telephone.seen["headlines"] == ["verified"]
    assert failed.seen["headlines"] == [
        "failed: model.int8.onnx on onnxruntime: SQNR 28.9 dB in image images[35], at least 60 dB"
    ]


def test_a_failed_page_says_what_to_do_next(failed: Visit) -> None:
    _, _, after = failed.seen["text"].partition("What to do next")
    assert "--blame shows where the error enters" in after.split("In parity")[0]


@pytest.mark.parametrize("width", [TELEPHONE, WIDE])
def test_drawings_keep_their_text_readable_and_inside(width: int, telephone: Visit, wide: Visit) -> None:
    drawings = (telephone if width == TELEPHONE else wide).seen["drawings"]
    assert len(drawings) >= 9
    assert [d["title"] for d in drawings if d["outside"]] == []
    assert [d["title"] for d in drawings if d["font"] < 11] == []  # px: what labels of phones have at least


def test_each_width_has_its_own_drawings(telephone: Visit, wide: Visit) -> None:
    assert (telephone.seen["narrow"], telephone.seen["wide"]) == (True, False)
    assert (wide.seen["narrow"], wide.seen["wide"]) == (False, True)


@pytest.mark.parametrize(
    "figure",
    [
        "verified",
        "31.2 dB",
        "94.00 %",
        "+0.37",
        "912x",
        "98.8 %",
        "41.8 dB",
        "0.99870",
        "No receipt, no claim",
        "2026-01-02",
    ],
)
def test_the_key_figures_are_on_the_screen(figure: str, telephone: Visit, wide: Visit) -> None:
    assert figure in telephone.seen["text"]
    assert figure in wide.seen["text"]


def test_the_page_follows_the_scheme_that_the_reader_prefers(telephone: Visit, wide: Visit) -> None:
    def brightness(visit: Visit) -> int:
        return sum(map(int, re.findall(r"\d+", visit.seen["background"])[:3]))

    assert brightness(telephone) == 3 * 255
    assert brightness(wide) < 3 * 50


def test_a_header_sorts_its_table_up_down_and_back(wide: Visit) -> None:
    units = [f"stages.{i}" for i in range(4)]  # as the report has them: the costliest, with the fewest dB, first
    assert wide.seen["orders"] == [units, units, units[::-1], units]
    assert wide.seen["sorts"] == ["none", "ascending", "descending", "none"]
    assert wide.seen["focusable"] == 0


def test_what_is_closed_is_open_on_paper_and_closed_again(wide: Visit) -> None:
    before, during, after = wide.seen["closed"]
    assert (before > 5, during, after) == (True, 0, before)


def test_hostile_names_run_nothing_and_break_nothing(hostile: Visit) -> None:
    assert hostile.seen["ran"] == 0
    assert hostile.console == ()
    assert [picture["loaded"] for picture in hostile.seen["pictures"]] == [True] * 3
    assert len({picture["top"] for picture in hostile.seen["pictures"]}) == 1  # side by side
    assert hostile.seen["headlines"] == ["verified"]
    assert hostile.seen["scroll"] <= TELEPHONE
    assert hostile.seen["opened"] <= TELEPHONE
    assert HOSTILE.split("\n")[0] in hostile.seen["text"]


def test_paper_gets_the_whole_report(page: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    pdf = tmp_path / "report.pdf"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer", f"--print-to-pdf={pdf}", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert pdf.read_bytes().startswith(b"%PDF-")
