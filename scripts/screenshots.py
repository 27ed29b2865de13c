"""Take docs/images/airflow-*.png: the real UI of the embedded stack, in a headless Chromium.

    make run && .venvs/airflow/bin/python scripts/screenshots.py

Starts `make ui` unless it runs, and ends it afterwards. The pictures show the last run that published, and a backfill.
They show where the lake is, too: `--data /tmp/fruits` (of `make run`'s program as well) keeps your own folders out.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from fruits.errors import FruitsError
from fruits.run import DAG_ID
from local.api import AirflowAPI

ROOT = Path(__file__).parents[1]
SIZE = (1440, 900)
_MOST_BYTES = 150_000
_WAIT_SECONDS = 90
_BACKFILL_SECONDS = 600
_STILL_SECONDS = 1.0  # a page that looks the same for so long has come to rest

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-prefers-reduced-motion",
)  # fmt: skip


def find_chromium() -> tuple[str, str]:
    """The programs chromium and chromedriver.

    Raises:
        FruitsError: saying how to install them.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        raise FruitsError(
            f"{'chromedriver' if chromium else 'chromium'} is not on the PATH; install both with "
            "`apt-get install chromium chromium-driver` (Debian) or `apt-get install chromium-browser "
            "chromium-chromedriver` (Ubuntu)"
        )
    return chromium, driver


@contextmanager
def browser() -> Iterator[Chrome]:
    """A headless Chromium with a profile of its own and a window of 1440 x 900."""
    chromium, program = find_chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = chromium
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options=options, service=Service(program))
        try:
            metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            yield driver
        finally:
            driver.quit()


def wait_until(driver: Chrome, look: Callable[[], Any], what: str) -> Any:
    """The first answer of ``look`` that is not empty."""
    wait = WebDriverWait(
        driver, _WAIT_SECONDS, ignored_exceptions=(NoSuchElementException, StaleElementReferenceException)
    )
    return wait.until(lambda _: look(), f"{what} did not appear within {_WAIT_SECONDS} s on {driver.current_url}")


def log_in(driver: Chrome, ui: AirflowAPI) -> None:
    """Log in as a person does."""
    driver.get(f"{ui.url}/auth/login")
    wait_until(driver, lambda: driver.find_element(By.NAME, "username"), "the login form").send_keys(ui.user)
    driver.find_element(By.NAME, "password").send_keys(ui.password)
    driver.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    wait_until(driver, lambda: "/auth/login" not in driver.current_url, "the page after the login")


def open_trigger_form(driver: Chrome, ui: AirflowAPI) -> WebElement:
    """Open the DAG's trigger form; returns the dialog."""
    driver.get(f"{ui.url}/dags/{DAG_ID}")
    wait_until(driver, lambda: button(driver, "Trigger"), "the button Trigger").click()

    def form() -> WebElement | None:
        dialogs = driver.find_elements(By.CSS_SELECTOR, "[role=dialog]")
        return next((dialog for dialog in dialogs if "Run Parameters" in dialog.text), None)

    dialog: WebElement = wait_until(driver, form, "the trigger form")
    return dialog


def paste(driver: Chrome, field: WebElement, text: str) -> None:
    """Put text into a field at once, as a paste does: typed keys get lost where the machine is slow."""
    driver.execute_script("arguments[0].focus(); document.execCommand('insertText', false, arguments[1])", field, text)


def button(parent: Chrome | WebElement, name: str) -> WebElement:
    """The button with a text or label that starts with ``name``."""
    buttons = parent.find_elements(By.TAG_NAME, "button")
    for candidate in buttons:
        label = candidate.get_attribute("aria-label") or ""
        if candidate.text.strip().startswith(name) or label.startswith(name):
            return candidate
    raise NoSuchElementException(f"no button {name!r}")


def take(driver: Chrome, path: Path) -> None:
    """Take a picture of the page once the page is at rest, in few colours."""
    before, since, deadline = b"", time.monotonic(), time.monotonic() + _WAIT_SECONDS
    while time.monotonic() - since < _STILL_SECONDS and time.monotonic() < deadline:
        now = driver.get_screenshot_as_png()
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    for colours in (256, 128, 64, 32):
        Image.open(BytesIO(before)).convert("RGB").quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= _MOST_BYTES:
            break
    print(f"{path}: {path.stat().st_size / 1_000:.0f} kB")


def published_run(ui: AirflowAPI) -> str:
    """The key of the last run that published.

    Raises:
        FruitsError: when there is none.
    """
    query = urllib.parse.urlencode({"task_id": "publish", "state": "success", "order_by": "-start_date", "limit": 1})
    found = ui.ask(f"dags/{DAG_ID}/dagRuns/~/taskInstances?{query}")["task_instances"]
    if not found:
        raise FruitsError(f"no run of {DAG_ID} has published yet; `make run` makes one")
    return str(found[0]["dag_run_id"])


def finished_backfill(ui: AirflowAPI) -> None:
    """Make sure that there is a backfill to show: otherwise create one of three hours long ago, without photos."""
    if ui.ask(f"backfills?dag_id={DAG_ID}")["backfills"]:
        return
    hours = {"from_date": "2026-01-02T00:00:00Z", "to_date": "2026-01-02T02:00:00Z"}
    body = {"dag_id": DAG_ID, "max_active_runs": 1, "reprocess_behavior": "none", "dag_run_conf": {}, **hours}
    paused = ui.ask(f"dags/{DAG_ID}")["is_paused"]
    ui.ask(f"dags/{DAG_ID}", "PATCH", {"is_paused": False})
    try:
        made = ui.ask("backfills", "POST", body)["id"]
        deadline = time.monotonic() + _BACKFILL_SECONDS
        while ui.ask(f"backfills/{made}")["completed_at"] is None:
            if time.monotonic() > deadline:
                raise FruitsError(f"backfill {made} has not ended within {_BACKFILL_SECONDS} s; see {ui.url}")
            time.sleep(5)
    finally:
        ui.ask(f"dags/{DAG_ID}", "PATCH", {"is_paused": paused})


def take_all(driver: Chrome, ui: AirflowAPI, folder: Path) -> None:
    """Take every picture."""
    run = published_run(ui)
    finished_backfill(ui)
    quoted = urllib.parse.quote(run)
    run_url, dag_url = f"{ui.url}/dags/{DAG_ID}/runs/{quoted}", f"{ui.url}/dags/{DAG_ID}"
    log_in(driver, ui)
    shows = partial(_shows, driver)

    driver.get(run_url)
    shows("Task Instances")
    take(driver, folder / "airflow-run.png")

    wait_until(driver, lambda: button(driver, "Show Graph"), "the button of the graph").click()
    button(driver, "Collapse Details Panel").click()
    wait_until(driver, lambda: driver.find_element(By.CSS_SELECTOR, ".react-flow__node"), "the graph")
    button(driver, "Fit View").click()
    take(driver, folder / "airflow.png")
    driver.execute_script("localStorage.clear()")

    form = open_trigger_form(driver, ui)
    keys = form.find_element(By.NAME, "element_keys")
    paste(driver, keys, "Training/Apple/Training_000.jpg\nTest/Apple/Test_000.jpg")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", keys)
    take(driver, folder / "airflow-trigger.png")

    driver.get(f"{dag_url}/backfills")
    shows("Completed at")
    take(driver, folder / "airflow-backfills.png")

    for url, name in ((f"{ui.url}/plugin/fruits", "overview"), (f"{run_url}/plugin/fruits-report", "report")):
        driver.get(url)
        frame = wait_until(driver, lambda: driver.find_element(By.TAG_NAME, "iframe"), "the report's frame")
        driver.switch_to.frame(frame)
        shows("Fruits")
        driver.switch_to.default_content()
        take(driver, folder / f"airflow-{name}.png")


def _shows(driver: Chrome, text: str) -> None:
    wait_until(driver, lambda: text in driver.find_element(By.TAG_NAME, "body").text, repr(text))


@contextmanager
def running_ui(data: Path) -> Iterator[AirflowAPI]:
    """The UI on a data folder: the running one, or else a new one, which ends with the block."""
    command = [sys.executable, "-m", "local", "--data", str(data)]
    started = not (data / "ui.json").is_file()
    done = subprocess.run([*command, "ui"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise FruitsError(done.stderr.strip())
    try:
        yield AirflowAPI.of(data)
    finally:
        if started:
            subprocess.run([*command, "stop"], cwd=ROOT, capture_output=True, check=False)  # noqa: S603


def main() -> int:
    """Run the command; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the embedded stack (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "images", help="where the pictures go (%(default)s)"
    )
    arguments = parser.parse_args()
    try:
        find_chromium()  # before a minute goes into starting Airflow
        with running_ui(arguments.data.resolve()) as ui, browser() as driver:
            take_all(driver, ui, arguments.out)
    except FruitsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
