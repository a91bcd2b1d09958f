"""Takes the screenshot of the reading page that the README shows, of a service that is running.

make demo                                  # at a terminal it keeps serving
python -m benchmarks.screenshot http://127.0.0.1:PORT LESION.jpg docs/page.png
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

SIZE = {"width": 1180, "height": 900}


def main() -> None:
    """Read one image and save the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address")
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.goto(args.address)
        page.set_input_files("#file", args.image)
        expect(page.locator("#answer")).to_be_visible(timeout=60_000)
        page.wait_for_timeout(1000)  # the heatmap is drawn after the answer
        page.screenshot(path=args.out, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
