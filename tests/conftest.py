"""What all tests share: the offline guard, seeded single-threaded torch, the image pack, a port and a browser.

Nothing here reaches the network, and nothing under test may: see tests/offline/sitecustomize.py for Python and
`open_page` for the browser.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parents[1]
OFFLINE_FOLDER = ROOT / "tests" / "offline"

# Two test workers, or a test beside its own trainer, must not fight over the cores. Children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _install_offline_guard() -> Path:
    """Guard this process and, by PYTHONPATH, every Python child. Returns the file that collects the attempts."""
    log = Path(tempfile.mkstemp(prefix="dfw-offline-", suffix=".log")[1])
    os.environ["DFW_OFFLINE_LOG"] = str(log)
    paths = [str(OFFLINE_FOLDER), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    spec = importlib.util.spec_from_file_location("dfw_offline_guard", OFFLINE_FOLDER / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.install()
    return log


OFFLINE_LOG = _install_offline_guard()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests run last: Playwright's synchronous API keeps an event loop running in the main thread, and
    tests that call `asyncio.run` there must come before it."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_unconfigure() -> None:
    OFFLINE_LOG.unlink(missing_ok=True)


@pytest.fixture
def offline_log() -> Path:
    """The file of attempts to leave the machine, one a line. A test that provokes one empties it afterwards."""
    return OFFLINE_LOG


@pytest.fixture(autouse=True)
def stays_on_this_machine() -> Iterator[None]:
    """Fail the test if Python, here or in a child process, tried to reach another machine while it ran."""
    yield
    attempts = OFFLINE_LOG.read_text(encoding="utf-8")
    if attempts:
        OFFLINE_LOG.write_text("", encoding="utf-8")
        pytest.fail(f"this test tried to reach another machine:\n{attempts}", pytrace=False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same global random state, with torch on one thread where torch is in use.

    The code under test takes explicit generators; this covers what the tests themselves draw.
    """
    random.seed(0)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def pack() -> Path:
    """The labelled cut-out pack: $DFW_PACK, or the folder shared/data beside the repository."""
    folder = Path(os.environ.get("DFW_PACK") or ROOT.parent / "shared" / "data")
    if not (folder / "index.csv").is_file():
        pytest.skip(f"no image pack: {folder} has no index.csv; set DFW_PACK to a folder that has one")
    return folder.resolve()


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    # No host but this machine exists for the browser, so that even a request nobody watches goes nowhere.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE [::1]",
)
LOCAL_URL = re.compile(
    r"^(?:(?:https?|wss?)://(?:127\.\d+\.\d+\.\d+|localhost|\[::1\])(?:[:/?#]|$)|(?:data|blob|about|file):)"
)


def _no_browser(reason: str) -> None:
    """Skip, or fail where DFW_REQUIRE_BROWSER says that skipping is not good enough (CI)."""
    if os.environ.get("DFW_REQUIRE_BROWSER"):
        pytest.fail(f"{reason} (DFW_REQUIRE_BROWSER is set)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium, headless: $DFW_CHROMIUM or the first of chromium, chromium-browser, google-chrome."""
    program = os.environ.get("DFW_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if program is None:
        _no_browser("no Chromium: install the system's `chromium` package or set DFW_CHROMIUM to the program")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _no_browser("no Playwright: pip install playwright")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, headless=True, args=list(CHROMIUM_ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def page_problems() -> list[str]:
    """What went wrong in the pages of this test. A test that expects an error checks it here and clears the list."""
    return []


def _watch(context: BrowserContext, problems: list[str]) -> None:
    """Record requests that leave the machine, uncaught errors and console errors of every page of the context."""

    def check(kind: str, url: str) -> None:
        if not LOCAL_URL.match(url):
            problems.append(f"{kind} leaves the machine: {url}")

    def check_console(message: Any) -> None:
        if message.type == "error":
            problems.append(f"console error: {message.text} ({message.location.get('url', '')})")

    context.on("request", lambda request: check("request", request.url))
    context.on("page", lambda page: page.on("websocket", lambda socket: check("websocket", socket.url)))
    context.on("console", check_console)
    context.on("weberror", lambda error: problems.append(f"uncaught error: {error.error}"))


@pytest.fixture
def open_page(browser: Browser, page_problems: list[str]) -> Iterator[Callable[..., Page]]:
    """`open_page(color_scheme="dark", locale="zh-CN", …)`: a page in a fresh context, 1440x900 unless told otherwise.

    Options go to Playwright's `Browser.new_context`. At the end the test fails if a page sent a request to an address
    that is not this machine's, or had an uncaught or console error.
    """
    contexts: list[BrowserContext] = []

    def open_one(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "locale": "en-US", **options})
        contexts.append(context)
        _watch(context, page_problems)
        return context.new_page()

    yield open_one
    for context in contexts:
        context.close()
    if page_problems:
        pytest.fail("the page had problems:\n" + "\n".join(page_problems), pytrace=False)


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """One such page, 1440x900, English, light."""
    return open_page()
