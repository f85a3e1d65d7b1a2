"""A headless Chromium that reaches nothing but the WebUI on this machine."""

import contextlib
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium():
    """The path of a Chromium, or None."""
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES), *filter(os.path.exists, PLACES)]
    return next(filter(None, found), None)


@contextlib.contextmanager
def chromium():
    """A running browser (playwright's Browser)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_webui(browser, url, folder=None, timeout=120):
    """A page (playwright's Page) with the WebUI loaded. Requests to other machines (fonts, scripts) are refused.

    Errors of the page's own scripts are gathered in page.errors. If an exception leaves the page, a screenshot is
    saved in `folder`.
    """
    host = urlsplit(url).netloc
    context = browser.new_context(viewport={"width": 1400, "height": 1400}, locale="en-US")
    context.route(lambda address: urlsplit(address).netloc != host, lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(timeout * 1000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    try:
        page.goto(url, wait_until="domcontentloaded")
        # The host's own sign that gradio has built the page; its scripts run shortly after.
        page.wait_for_function("() => window.gradioApp && gradioApp().querySelector('#txt2img_prompt textarea')")
        page.wait_for_function("() => typeof executedOnLoaded !== 'undefined' && executedOnLoaded")
        yield page
    except BaseException:
        if folder is not None:
            page.screenshot(path=Path(folder) / "page.png")
        raise
    finally:
        context.close()
