"""Checks the built site: `python tools/check_site.py docs/_build/html [--browser]`.

Every link leads somewhere, to anchors too, every picture has a text, and nothing is loaded from
elsewhere. With `--browser` headless Chromium opens each page at the width of a desk and of a phone,
light and dark: none is wider than its window, none writes an error to the console, every picture
shows, and the search finds what people look for. It needs selenium, chromium and chromedriver.
"""

import argparse
import functools
import shutil
import sys
import threading
from collections import Counter
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

WIDTHS = {"desk": 1280, "phone": 390}
SEARCHES = ("RBF", "logdet", "gaps", "NetCDF")
# Loaded by a page, unlike a link that a reader may follow.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.untold = []
        self.counts = Counter()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors.update(given[key] for key in ("id", "name") if given.get(key))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in LOADED and given.get(LOADED[tag]):
            self.loaded.append(given[LOADED[tag]])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given["href"])
        if tag == "img":
            self.counts["pictures"] += 1
            if not given.get("alt"):
                self.untold.append(given.get("src"))
        self.counts["executed cells"] += "cell_output" in (given.get("class") or "").split()


def problems_of(site: Path, pages: dict[Path, Page]):
    """One line for everything that is wrong in the files."""
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in page.links + page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded and parts.scheme != "data":
                    yield f"{name} loads {address}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{name} links to {address}, which is not there"
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                yield f"{name} links to {address}, where there is no such anchor"
        yield from (f"{name} shows {picture} without a text" for picture in page.untold)


def serve(site: Path) -> str:
    """The address of a server of the folder, in this process."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def browser():
    """Headless Chromium that keeps what is written to its console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # By its path: otherwise selenium looks for another one on the network.
    return webdriver.Chrome(options, Service(shutil.which("chromedriver")))


# The contents scroll by themselves where something in them is wider.
WIDER = """
const shown = [document.documentElement, document.querySelector(".content")].filter(e => e);
return Math.max(0, ...shown.map(e => e.scrollWidth - e.clientWidth))
"""
BROKEN = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"


def seen_in(driver, address: str, names: list[str], pictures: Path | None):
    """One line for everything that is wrong to the eye."""
    for width_name, width in WIDTHS.items():
        for theme in ("light", "dark"):
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
            )
            for name in names:
                where = f"{name} ({width_name}, {theme})"
                driver.get(f"{address}/{name}")
                driver.execute_script(f"document.body.dataset.theme = '{theme}'")
                if (wider := driver.execute_script(WIDER)) > 0:
                    yield f"{where} is {wider} pixels wider than its window"
                yield from (f"{where}: no picture at {p}" for p in driver.execute_script(BROKEN))
                for entry in driver.get_log("browser"):
                    if entry["level"] == "SEVERE" and "favicon" not in entry["message"]:
                        yield f"{where}: {entry['message']}"
                if pictures and "generated/" not in name:
                    file = f"{name.replace('/', '_')}.{width_name}.{theme}.png"
                    driver.save_screenshot(str(pictures / file))


def searched_in(driver, address: str):
    """What the search does not find."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    for word in SEARCHES:
        driver.get(f"{address}/search.html?q={word}")
        try:
            WebDriverWait(driver, 20).until(
                lambda d: d.find_elements(By.CSS_SELECTOR, "#search-results li a")
            )
        except TimeoutException:
            yield f"the search does not find {word}"


def main() -> int:
    """Print what is wrong, and what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of every page")
    arguments = parser.parse_args()
    site = arguments.site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    problems = list(problems_of(site, pages))
    if arguments.browser:
        names = [str(path.relative_to(site)) for path in pages if "_modules" not in path.parts]
        address, driver = serve(site), browser()
        try:
            problems += seen_in(driver, address, names, arguments.pictures)
            problems += searched_in(driver, address)
        finally:
            driver.quit()
    print(*problems, sep="\n")
    total = sum((page.counts for page in pages.values()), Counter())
    counted = ", ".join(f"{total[what]} {what}" for what in ("pictures", "executed cells"))
    print(f"{len(pages)} pages, {counted}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
