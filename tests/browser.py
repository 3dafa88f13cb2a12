"""Headless Chromium for tests that drive a page; they skip themselves where it is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def chromium(profile: Path, *, webgl: bool = True) -> Iterator:
    """A selenium driver with a window of 1280 x 1000 and no way to the network."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    arguments = [
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000",
        "--hide-scrollbars", f"--user-data-dir={profile}",
        # A proxy that does not answer: whatever a page asks of the network fails.
        "--proxy-server=127.0.0.1:9",
    ]  # fmt: skip
    graphics = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    for argument in [*arguments, *(graphics if webgl else ["--disable-3d-apis"])]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    session = webdriver.Chrome(options=options, service=service)
    try:
        yield session
    finally:
        session.quit()


def complaints(driver) -> list[str]:
    """What the console of the page says above the level of information, but for advice on speed,
    which Chromium gives when it has the leisure."""
    return [
        line["message"]
        for line in driver.get_log("browser")
        if line["level"] != "INFO" and "willReadFrequently" not in line["message"]
    ]
