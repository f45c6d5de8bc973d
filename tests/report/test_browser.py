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
    full_bundle,
    hostile_bundle,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

TELEPHONE, WIDE = 400, 1600  # px

# Runs in the page once it is there, and tells the page around it what it saw.
PROBE = """
const seen = { inner: innerWidth, scroll: document.documentElement.scrollWidth, ran: window.ran || 0 };
const shown = (e) => e && e.getClientRects().length > 0;
seen.background = getComputedStyle(document.body).backgroundColor;
seen.verdict = document.querySelector("#verdict h2").textContent.trim();
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
    assert hostile.seen["verdict"] == "verified"
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
