"""Report and group page in headless Chromium, from files, without network: they are used."""

import numpy as np
import pytest
from browser import chromium, complaints
from conftest import RAS_OBLIQUE, nifti, write_tree
from finished_session import finish_session

from bids_synthseg.bids.group import write_group
from bids_synthseg.bids.quality import Quality
from bids_synthseg.bids.report import write_report

pytestmark = pytest.mark.browser

START_S = 60  # software drawing on a busy machine
JUDGED = {"Quality": Quality("check", ("Look at the thalamus.",), {"predicted_dice": 0.7}).record()}


@pytest.fixture(scope="module")
def data(tmp_path_factory, phantom_image, phantom_labels):
    """Raw data set and output with the reports of sub-01 (to check) and sub-02 (older)."""
    root = tmp_path_factory.mktemp("pages")
    description = {"Name": "phantom", "BIDSVersion": "1.10.0"}
    tree = {"dataset_description.json": description}
    for subject in ("sub-01", "sub-02"):
        scans = {"T1w": phantom_image, "T2w": 200 - phantom_image}
        images = {f"{subject}_{name}.nii.gz": nifti(d, RAS_OBLIQUE) for name, d in scans.items()}
        tree[subject] = {"anat": images}
    raw, out = write_tree(root / "raw", tree), root / "out"
    finish_session(raw, out, phantom_labels, ("01", None), details=JUDGED)
    finish_session(raw, out, phantom_labels, ("02", None), maps=False)
    for subject in ("01", "02"):
        write_report(raw, out, (subject, None))
    write_group(raw, out)
    return raw, out


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


def wait(driver, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, START_S, 0.1).until(lambda d: d.execute_script(script))


def find(driver, css):
    return driver.find_element("css selector", css)


def press(driver, css):
    """A click that no sticky bar can intercept."""
    driver.execute_script("arguments[0].click()", find(driver, css))


def canvas(driver):
    """What the viewer shows, as PNG; it paints on the next frame."""
    painted = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    driver.execute_async_script(painted)
    return find(driver, "#viewer-canvas").screenshot_as_png


def place(driver):
    return find(driver, "#viewer-place").text


@pytest.fixture
def report(driver, data):
    """The report of sub-01 with its viewer started."""
    driver.get((data[1] / "sub-01.html").as_uri())
    driver.execute_script("document.getElementById('viewer').scrollIntoView()")
    wait(driver, "return document.getElementById('viewer-place').textContent.includes(' mm')")
    yield driver
    assert complaints(driver) == []


def test_the_viewer_is_alive(report):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    with_labels = canvas(report)
    press(report, "#viewer-labels")
    without = canvas(report)
    assert without != with_labels
    press(report, "#viewer-labels")
    assert canvas(report) == with_labels

    before = place(report)
    stage = find(report, "#viewer-stage")
    left_third = -stage.size["width"] // 3
    origin = ScrollOrigin.from_element(stage, left_third, -30)
    ActionChains(report).scroll_from_origin(origin, 0, 240).perform()
    wait(report, f"return document.getElementById('viewer-place').textContent !== {before!r}")
    # The wheel over the axial slice goes up or down, and nowhere else.
    assert place(report).split(", z")[0].split("x ")[1] == before.split(", z")[0].split("x ")[1]
    assert canvas(report) != with_labels

    planes = canvas(report)
    press(report, "label:has(input[value=render])")
    assert canvas(report) != planes


def test_the_viewer_names_what_lies_under_the_cross(report):
    assert "Left-" in place(report) or "Right-" in place(report)
    stage = find(report, "#viewer-stage")
    names = set()
    from selenium.webdriver.common.action_chains import ActionChains

    # The first of three planes is axial; its left is the subject's left.
    for share in (-0.42, -0.38, -0.29, -0.25):
        dx = round(share * stage.size["width"])
        ActionChains(report).move_to_element_with_offset(stage, dx, 0).click().perform()
        names.add((share < -1 / 3, place(report).partition("-")[0]))
    assert (True, "Left") in names and (False, "Right") in names
    assert (True, "Right") not in names and (False, "Left") not in names


def test_the_other_scan_keeps_the_place(report):
    from selenium.webdriver.support.ui import Select

    first, where = canvas(report), place(report)
    Select(find(report, "#viewer-scan")).select_by_visible_text("T2w")
    shown = "return document.getElementById('viewer-scan').value === '1'"
    wait(report, shown)
    wait(report, f"return document.getElementById('viewer-place').textContent === {where!r}")
    assert canvas(report) != first


def test_pictures_show_outlines_filled_labels_or_the_scan(report):
    def fill(css):
        path = find(report, '#figure-T1w path[data-label="10"]')
        return path.value_of_css_property(css)

    assert (fill("fill"), fill("display")) == ("none", "inline")
    press(report, "#figure-T1w label:has(input[value=filled])")
    assert fill("fill") == "rgb(0, 118, 14)"
    press(report, "#figure-T1w label:has(input[value=plain])")
    assert fill("display") == "none"


def test_a_row_picks_its_structure_out(report):
    row = find(report, '#structures tr[data-label="49"]')
    report.execute_script("arguments[0].click()", row)
    picked = "return [...document.querySelectorAll('path.picked')].map(p => p.dataset.label)"
    assert set(report.execute_script(picked)) == {"49"}
    report.execute_script("arguments[0].click()", row)
    assert report.execute_script(picked) == []


def test_nothing_overflows_the_window(report):
    for width in (1280, 480):
        report.set_window_size(width, 1000)
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert report.execute_script(wide) <= 0
    report.set_window_size(1280, 1000)


def test_without_webgl_the_page_says_so(data, tmp_path):
    with chromium(tmp_path / "profile", webgl=False) as driver:
        driver.get((data[1] / "sub-01.html").as_uri())
        problem = find(driver, "#viewer-problem")
        wait(driver, "return !document.getElementById('viewer-problem').hidden")
        assert "WebGL2" in problem.text and not find(driver, "#viewer-live").is_displayed()
        assert find(driver, "#figure-T1w svg").is_displayed()


def test_nilearn_shows_the_session_without_network(data, driver):
    pytest.importorskip("nilearn")
    raw, out = data
    page = write_report(raw, out, ("02", None), viewer="nilearn")
    try:
        driver.get(page.as_uri())
        driver.switch_to.frame(find(driver, "iframe"))
        drawn = wait(driver, "return document.querySelector('canvas')?.toDataURL()")
        assert len(drawn) > 2000
        driver.switch_to.default_content()
        assert complaints(driver) == []
    finally:
        write_report(raw, out, ("02", None))


def test_the_group_page_leads_to_reports(data, driver):
    driver.get((data[1] / "group.html").as_uri())
    shown = (
        "return [...document.querySelectorAll('#sessions tbody tr')]"
        ".filter(row => !row.hidden && row.offsetParent)"
        ".map(row => row.cells[0].textContent.trim())"
    )
    # What needs a look comes first.
    assert driver.execute_script(shown) == ["sub-01", "sub-02"]
    press(driver, "label:has(input[value=check])")
    assert driver.execute_script(shown) == ["sub-01"]
    press(driver, "label:has(input[value=all])")
    find(driver, "#filter").send_keys("sub-02")
    assert driver.execute_script(shown) == ["sub-02"]
    find(driver, "#filter").send_keys(6 * "\ue003")  # backspace
    heading = find(driver, "#sessions th button")
    for wanted in (["sub-01", "sub-02"], ["sub-02", "sub-01"]):
        driver.execute_script("arguments[0].click()", heading)
        wait(driver, f"{shown}.join() === '{','.join(wanted)}'")
    driver.get_log("browser")
    driver.execute_script("arguments[0].click()", find(driver, "#sessions a"))
    wait(driver, "return document.getElementById('verdict') !== null")
    assert driver.title == "sub-02: brain segmentation"
    assert complaints(driver) == []


def test_screens_are_not_blank(report):
    from io import BytesIO

    from PIL import Image

    pixels = np.asarray(Image.open(BytesIO(canvas(report))).convert("RGB"), float)
    saturated = np.ptp(pixels, axis=-1) > 40
    # Labels have colours, a scan and its ground have none.
    assert 0.02 < saturated.mean() < 0.9 and pixels.std() > 20
