"""The reading page in headless Chromium, doing what a person does."""

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pypdfium2 as pdfium
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from melanoma.evidence.prevalence import per_thousand, shifted
from melanoma.explain.overlay import COLOURS
from tests.serving import Service

pytestmark = [pytest.mark.browser, pytest.mark.ray]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None:
        pytest.skip("no Chromium is here: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, service: Service) -> Iterator[Page]:
    """The page, opened; afterwards no script failed, nothing broke the policy and no outside
    address was asked for."""
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: (
            wrong.append(message.text) if _is_wrong(message.type, message.text) else None
        ),
    )
    page.on(
        "request",
        lambda asked: wrong.append(asked.url) if not _is_own(asked.url, service.url) else None,
    )
    page.goto(service.url)
    yield page
    assert wrong == []


def _is_wrong(kind: str, text: str) -> bool:
    """Say whether a console message tells of a fault; none is a request refused or cut off by a
    test, nor a map read by one."""
    own = r"status of (401|403|415|422|503)|net::ERR_FAILED|willReadFrequently"
    return kind in ("error", "warning") and not re.search(own, text)


def _is_own(url: str, base: str) -> bool:
    return url.startswith((base, "data:", "blob:"))


@pytest.fixture
def several(phantom_source: Path) -> list[Path]:
    """Three images of one lesion."""
    rows = pd.read_csv(phantom_source / "metadata.csv").sort_values("image_id")
    lesion = rows["lesion_id"].value_counts(sort=False).loc[lambda counts: counts == 3].index[0]
    ids = rows.loc[rows["lesion_id"] == lesion, "image_id"]
    return [phantom_source / "images" / f"{image_id}.jpg" for image_id in ids]


@pytest.fixture
def lesion(phantom_source: Path) -> Path:
    return sorted((phantom_source / "images").iterdir())[1]


def _read(page: Page, service: Service, *images: Path) -> None:
    """Choose one or several images and type the key that the page asks for."""
    page.set_input_files("#file", images)
    page.get_by_label("API key").fill(service.key)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#answer")).to_be_visible(timeout=60_000)


def _answer(service: Service, data: bytes, explain: str = "grad_cam") -> dict[str, object]:
    response = httpx.post(
        f"{service.url}/v1/predict?explain={explain}",
        content=data,
        headers=service.authorization,
        timeout=60,
    )
    answer: dict[str, object] = response.json()
    return answer


def test_a_person_reads_one_lesion(page: Page, service: Service, lesion: Path) -> None:
    answer = _answer(service, lesion.read_bytes())
    _read(page, service, lesion)
    verdict = {"refer": "Refer", "no_referral": "No referral"}[str(answer["decision"])]
    expect(page.locator("#verdict")).to_have_text(verdict)
    expect(page.locator("#contract")).to_have_text(str(answer["contract_sentence"]))
    expect(page.locator(".disclaimer")).to_contain_text("Research use only.")
    shown = page.locator("#probabilities .value").all_inner_texts()
    expected = sorted(answer["probabilities"].values(), reverse=True)  # type: ignore[attr-defined]
    assert shown == [f"{100 * p:.1f} %" for p in expected]
    expect(page.locator("#reading")).to_be_focused()


def test_the_slider_explains_a_referral_and_never_moves_the_decision(
    page: Page, service: Service, lesion: Path
) -> None:
    answer: Any = _answer(service, lesion.read_bytes())
    contract = answer["contract"]
    _read(page, service, lesion)
    before = page.locator("#decision").inner_text()
    told = set()
    slider = page.get_by_label("Melanomas among the lesions you examine")
    for key in ("Home", "End"):
        slider.press(key)
        prevalence = 0.001 if key == "Home" else 0.5
        text = page.locator("#meaning").inner_text()
        told.add(text)
        counted = per_thousand(
            prevalence,
            sensitivity=contract["target_sensitivity"],
            specificity=contract["specificity"],
        )
        expected = (
            f"a referral means melanoma in about {100 * counted.target_if_referred:.1f} %"
            if "are referred" in text
            else f"at most {counted.missed:.1f} of them"
            if prevalence < 0.01
            else f"in up to {100 * counted.target_if_not_referred:.2f} %"
        )
        assert expected in text
        at = shifted(
            answer["probabilities"]["mel"],
            calibrated_at=contract["target_share"],
            prevalence=prevalence,
        )
        expect(page.locator("#shifted")).to_contain_text(f"is {100 * at:.1f} %")
        assert page.locator("#decision").inner_text() == before
    assert len(told) == 2


def _map_pixels(page: Page, index: int = 0) -> Image.Image:
    canvas = page.locator(".frame canvas").nth(index)
    data = canvas.evaluate("canvas => canvas.toDataURL().split(',')[1]")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def _wait_for_map(page: Page, index: int = 0) -> None:
    page.wait_for_function(
        "index => document.querySelectorAll('.frame canvas')[index].width > 0", arg=index
    )


def _shown_together(page: Page, index: int = 0) -> Image.Image:
    """The image and the map over it, in the size of the map."""
    data = page.evaluate(
        """(index) => {
            const [image, map] = ["img", "canvas"].map(
                (tag) => document.querySelectorAll(`.frame ${tag}`)[index]);
            const canvas = Object.assign(document.createElement("canvas"),
                { width: map.width, height: map.height });
            const context = canvas.getContext("2d");
            for (const part of [image, map]) context.drawImage(part, 0, 0);
            return canvas.toDataURL().split(",")[1];
        }""",
        index,
    )
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def _shown_and_expected(
    page: Page, explanation: dict[str, str], index: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    overlay = Image.open(io.BytesIO(base64.b64decode(explanation["overlay_png"])))
    shown = _shown_together(page, index)
    return np.asarray(shown).astype(int), np.asarray(overlay.convert("RGB")).astype(int)


def test_the_page_shows_what_the_overlay_shows(page: Page, service: Service, lesion: Path) -> None:
    answer: Any = _answer(service, lesion.read_bytes())
    _read(page, service, lesion)
    expect(page.locator("#legend")).to_be_visible()
    shown, expected = _shown_and_expected(page, answer["explanation"])
    original = np.asarray(Image.open(lesion).convert("RGB")).astype(int)
    assert np.abs(expected - original).max() > 40  # the map is visible
    assert np.abs(shown - expected).max() <= 4  # the browser decodes and blends in its own way


def test_the_map_lies_on_the_image_and_can_be_faded(
    page: Page, service: Service, lesion: Path
) -> None:
    answer = _answer(service, lesion.read_bytes())
    _read(page, service, lesion)
    heatmap = Image.open(io.BytesIO(base64.b64decode(answer["explanation"]["heatmap_png"])))  # type: ignore[index]
    _wait_for_map(page)
    boxes = [page.locator(name).bounding_box() for name in (".frame img", ".frame canvas")]
    assert boxes[0] is not None
    assert boxes[0] == pytest.approx(boxes[1], abs=1)
    assert _map_pixels(page).size == heatmap.size
    shown = np.asarray(_map_pixels(page))[..., 3]
    assert np.array_equal(shown, COLOURS[:, 3][np.asarray(heatmap)])
    expect(page.locator("#legend")).to_contain_text("most in this image")
    expect(page.locator("#legend")).to_contain_text("this image's own peak")
    assert "linear-gradient" in page.locator("#scale").evaluate("bar => bar.style.backgroundImage")
    page.get_by_label("Strength of the map").press("Home")
    for drawn in (".frame canvas", "#scale"):
        assert page.locator(drawn).evaluate("drawn => drawn.style.opacity") == "0"
    expect(page.locator("#map-meaning")).to_contain_text("each 32 px")
    page.get_by_label("Guided Grad-CAM").check()
    expect(page.locator("#map-meaning")).to_contain_text("small spots", timeout=60_000)
    expect(page.locator("#map-meaning")).to_contain_text("do not read disease from it")


def test_a_button_and_a_key_hide_the_map(page: Page, service: Service, lesion: Path) -> None:
    _read(page, service, lesion)
    button = page.get_by_role("button", name="Hide the map")
    for press in (button.click, lambda: page.keyboard.press("m")):
        expect(button).to_have_attribute("aria-pressed", "false")
        expect(page.locator(".frame canvas")).to_be_visible()
        press()
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".frame canvas")).to_be_hidden()
        page.keyboard.press("m")


def test_a_pressed_button_looks_pressed(page: Page, service: Service, lesion: Path) -> None:
    _read(page, service, lesion)
    button = page.locator("#hide-map")
    ground = "button => getComputedStyle(button).backgroundColor"
    before = button.evaluate(ground)
    button.click()
    assert button.evaluate(ground) != before


def test_a_letter_of_the_key_does_not_hide_the_map(
    page: Page, service: Service, lesion: Path
) -> None:
    _read(page, service, lesion)
    page.route("**/v1/predict*", lambda route: route.fulfill(status=401, json={"detail": "No."}))
    page.get_by_label("Guided Grad-CAM").check()
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    key.press("m")
    expect(key).to_have_value("m")
    expect(page.locator("#hide-map")).to_have_attribute("aria-pressed", "false")


def test_an_empty_map_has_no_legend(page: Page, service: Service, lesion: Path) -> None:
    def empty(body: dict[str, Any]) -> None:
        body["explanation"]["peak"] = 0

    page.route("**/v1/predict*", _with_contract(empty))
    _read(page, service, lesion)
    _wait_for_map(page)
    expect(page.locator("#legend")).to_be_hidden()


def test_a_first_visitor_can_try_a_synthetic_image(page: Page, service: Service) -> None:
    page.get_by_role("button", name="Try a synthetic image").click()
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_be_visible(timeout=60_000)
    expect(page.locator("#verdict")).not_to_be_empty()
    expect(page.locator("#synthetic")).to_have_text(re.compile("synthetic image"))
    expect(page.get_by_alt_text("A synthetic image")).to_be_visible()


def test_only_the_sample_is_called_synthetic(page: Page, service: Service, lesion: Path) -> None:
    page.get_by_role("button", name="Try a synthetic image").click()
    expect(page.locator("#synthetic")).to_be_visible()
    page.set_input_files("#file", lesion)
    expect(page.get_by_alt_text("The image you chose")).to_be_visible()
    expect(page.locator("#synthetic")).to_be_hidden()


_DROP = """([data, name]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const carried = new DataTransfer();
    carried.items.add(new File([bytes], "lesion.jpg", { type: "image/jpeg" }));
    const event = name === "drop" ? new DragEvent("drop", { dataTransfer: carried, bubbles: true,
    cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: carried, bubbles: true });
    document.getElementById("drop").dispatchEvent(event);
}"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_can_be_dropped_and_pasted(
    page: Page, service: Service, lesion: Path, way: str
) -> None:
    page.evaluate(_DROP, [base64.b64encode(lesion.read_bytes()).decode(), way])
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_be_visible(timeout=60_000)


def test_the_keyboard_is_enough(page: Page, service: Service, lesion: Path) -> None:
    # From here on Chromium's own dialogue is held back: asked for only with the key, that may come
    # late.
    page.on("filechooser", lambda _: None)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the reading")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(lesion)
    expect(page.locator("#key")).to_be_focused(timeout=60_000)
    page.keyboard.type(service.key)
    page.keyboard.press("Enter")
    expect(page.locator("#reading")).to_be_focused(timeout=60_000)
    for control in ("#prevalence", "#pdf", "#again"):
        page.keyboard.press("Tab")
        expect(page.locator(control)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_be_hidden()
    expect(page.locator("#file")).to_be_focused()


def test_the_pdf_is_saved_under_a_name_that_tells_nothing(
    page: Page, service: Service, lesion: Path
) -> None:
    _read(page, service, lesion)
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Save as PDF").click()
    assert download.value.suggested_filename == "melanoma-triage.pdf"
    with pdfium.PdfDocument(Path(download.value.path())) as document:
        assert len(document) == 1


def test_a_wrong_key_and_a_bad_image_are_said_in_words(
    page: Page, service: Service, lesion: Path
) -> None:
    page.set_input_files("#file", lesion)
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The API key must be valid here")
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Another image").click()
    page.set_input_files(
        "#file", {"name": "words.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}
    )
    expect(page.get_by_role("alert")).to_contain_text("must be JPEG, PNG, WebP or DICOM")
    expect(page.locator("#answer")).to_be_hidden()


def test_a_service_that_is_away_is_said_in_words(page: Page, lesion: Path) -> None:
    page.route("**/v1/*", lambda route: route.abort())
    page.set_input_files("#file", lesion)
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute("**/v1/*")


def test_nothing_is_kept_in_the_browser(
    page: Page, context: BrowserContext, service: Service, lesion: Path
) -> None:
    _read(page, service, lesion)
    kept = (
        "[localStorage.length, sessionStorage.length, document.cookie, (await"
        " indexedDB.databases()).length, (await caches.keys()).length]"
    )
    assert page.evaluate(f"async () => {kept}") == [0, 0, "", 0, 0]
    assert context.cookies() == []
    page.reload()
    expect(page.locator("#answer")).to_be_hidden()
    assert page.locator("#key").input_value() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everybody_can_use_it(
    browser: Browser,
    service: Service,
    lesion: Path,
    scheme: str,
    size: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Axe finds nothing, before and after a reading; nothing is wider than the screen. The
    screenshots stay to be looked at."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(service.url)
    shots = tmp_path_factory.getbasetemp() / "screenshots"
    shots.mkdir(exist_ok=True)

    def check(name: str) -> None:
        page.screenshot(path=shots / f"{size}-{scheme}-{name}.png", full_page=True)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    check("start")
    page.set_input_files("#file", lesion)
    expect(page.locator("#key-form")).to_be_visible(timeout=60_000)
    check("key")
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_be_visible(timeout=60_000)
    page.wait_for_timeout(300)
    check("reading")
    context.close()


def test_the_schema_page_needs_no_outside_address(
    context: BrowserContext, service: Service
) -> None:
    page, outside = context.new_page(), []
    page.on(
        "request",
        lambda asked: outside.append(asked.url) if not _is_own(asked.url, service.url) else None,
    )
    page.goto(f"{service.url}/docs")
    expect(page.get_by_text("/v1/predict", exact=True)).to_be_visible(timeout=60_000)
    assert outside == []


def _with_contract(route_answer: Callable[[dict[str, object]], None]) -> Callable[..., None]:
    def answer(route: object) -> None:
        response = route.fetch()  # type: ignore[attr-defined]
        body = response.json()
        route_answer(body)
        route.fulfill(response=response, json=body)  # type: ignore[attr-defined]

    return answer


def test_a_network_without_a_contract_gives_no_verdict(
    page: Page, service: Service, lesion: Path
) -> None:
    """The answer of such a bundle, put in the place of the real one."""

    def unmet(body: dict[str, object]) -> None:
        if "decision" in body:
            body.update(decision="cannot_assess", warnings=["contract_not_met", "unusual_image"])

    page.route("**/v1/predict*", _with_contract(unmet))
    _read(page, service, lesion)
    expect(page.locator("#verdict")).to_have_text("Cannot assess")
    expect(page.locator("#warnings")).to_contain_text("contract of this network is not met")
    expect(page.locator("#warnings")).to_contain_text("Take the image again")
    expect(page.locator("#because")).to_have_text(
        ""
    )  # which side of the threshold it lies on would be a decision
    expect(page.locator("#probabilities .mark")).to_have_count(0)
    expect(page.locator("#clinic")).to_be_hidden()


def _answer_to(service: Service, images: list[Path]) -> Any:
    return httpx.post(
        f"{service.url}/v1/predict?explain=grad_cam",
        files=[("image", image.read_bytes()) for image in images],
        headers=service.authorization,
        timeout=60,
    ).json()


_NOTE_FORMS = """() => {
    const send = window.fetch;
    window.forms = [];
    window.fetch = (path, options) => {
        if (options?.body instanceof FormData)
            window.forms.push([...options.body].map(([field, { name }]) => [field, name]));
        return send(path, options);
    };
}"""


def test_several_images_of_one_lesion_are_read_together(
    page: Page, service: Service, several: list[Path]
) -> None:
    answer = _answer_to(service, several)
    page.evaluate(_NOTE_FORMS)
    _read(page, service, *several)
    expect(page.locator("#judged")).to_have_text("3 images of one lesion, judged together.")
    expect(page.locator("#contract")).to_have_text(answer["contract_sentence"])
    shown = page.locator("#probabilities .value").all_inner_texts()
    assert shown == [f"{100 * p:.1f} %" for p in sorted(answer["probabilities"].values())[::-1]]
    explanations = [answer["explanation"], *answer["further_explanations"]]
    for index, explanation in enumerate(explanations):
        expect(page.get_by_alt_text(f"Image {index + 1} of 3")).to_be_visible()
        _wait_for_map(page, index)
        ours, expected = _shown_and_expected(page, explanation, index)
        assert np.abs(ours - expected).max() <= 4
    page.get_by_label("Strength of the map").press("Home")
    for index in range(3):
        boxes = [
            page.locator(f".frame {tag}").nth(index).bounding_box() for tag in ("img", "canvas")
        ]
        assert boxes[0] is not None
        assert boxes[0] == pytest.approx(boxes[1], abs=1)
        drawn = page.locator(".frame canvas").nth(index)
        assert drawn.evaluate("drawn => drawn.style.opacity") == "0"
    expect(page.locator("#legend")).to_have_count(1)
    expect(page.locator("#legend")).to_contain_text("each image's own peak")
    page.keyboard.press("m")
    for canvas in page.locator(".frame canvas").all():
        expect(canvas).to_be_hidden()
    # What the files are called is not sent.
    assert page.evaluate("forms.at(-1)") == [["image", "image"]] * 3


def test_images_side_by_side_stand_below_each_other_on_a_phone(
    page: Page, service: Service, several: list[Path]
) -> None:
    _read(page, service, *several[:2])

    def corners() -> list[tuple[float, float]]:
        boxes = [image.bounding_box() for image in page.locator(".frame img").all()]
        return [(box["x"], box["y"]) for box in boxes if box is not None]

    (left, top), (right, same) = corners()
    assert right > left
    assert same == top
    page.set_viewport_size({"width": 390, "height": 844})
    (left, top), (same, lower) = corners()
    assert same == left
    assert lower > top
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert Axe().run(page).violations_count == 0


def test_more_than_six_images_are_refused_before_they_are_sent(page: Page, lesion: Path) -> None:
    sent = []
    page.on("request", lambda asked: sent.append(asked.method))
    page.set_input_files("#file", [lesion] * 7)
    expect(page.get_by_role("alert")).to_contain_text("up to 6 images here; these are 7")
    expect(page.locator("#shown")).to_be_hidden()
    assert "POST" not in sent


def test_the_pdf_of_several_images_is_one_page(
    page: Page, service: Service, several: list[Path]
) -> None:
    _read(page, service, *several)
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="Save as PDF").click()
    with pdfium.PdfDocument(Path(download.value.path())) as document:
        assert len(document) == 1
        assert "3 images of one lesion" in document[0].get_textpage().get_text_range()


def test_addresses_of_images_are_given_back(
    page: Page, service: Service, several: list[Path]
) -> None:
    """The browser would keep the images otherwise until the page is closed."""
    page.evaluate(
        """() => {
            const revoke = URL.revokeObjectURL;
            window.revoked = [];
            URL.revokeObjectURL = (address) => { window.revoked.push(address); revoke(address); };
        }"""
    )
    _read(page, service, *several)
    addresses = page.locator(".frame img").evaluate_all("images => images.map(({ src }) => src)")
    assert len(set(addresses)) == 3
    assert page.evaluate("revoked") == []
    page.get_by_role("button", name="Another image").click()
    expect(page.locator(".frame img")).to_have_count(0)
    assert page.evaluate("revoked") == addresses


def test_one_image_after_several_looks_as_before(
    page: Page, service: Service, several: list[Path]
) -> None:
    _read(page, service, *several)
    page.set_input_files("#file", several[0])
    expect(page.get_by_alt_text("The image you chose")).to_be_visible()
    expect(page.locator(".frame img")).to_have_count(1)
    expect(page.locator("#answer")).to_be_visible(timeout=60_000)
    expect(page.locator("#judged")).to_be_hidden()
    expect(page.locator("figcaption")).to_be_hidden()
    expect(page.locator("#legend")).to_contain_text("this image's own peak")


def test_a_model_for_single_images_says_so(
    page: Page, service: Service, several: list[Path]
) -> None:
    told = "This model has no threshold for several images of one lesion. Send one image."
    _read(page, service, several[0])
    page.route("**/v1/predict*", lambda route: route.fulfill(status=422, json={"detail": told}))
    page.set_input_files("#file", several)
    expect(page.get_by_role("alert")).to_have_text(told)
    expect(page.locator("#answer")).to_be_hidden()
