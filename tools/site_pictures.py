"""Pictures of the built site in a real browser, in docs/pictures/site; `make site` first.

    python -m tools.site_pictures

Needs Chromium. Two pages, as wide as a screen and as a telephone.
"""

from __future__ import annotations

from tests.support import ROOT
from tests.support.browser import served, take_picture_of_site

SITE = ROOT / "build" / "site"
PICTURES = ROOT / "docs" / "pictures" / "site"
PAGES = {"home": "index.html", "tour": "tour.html"}
SIZES = {1280: 900, 390: 844}


def main() -> None:
    """Make them anew."""
    if not (SITE / "index.html").is_file():
        raise SystemExit("there is no site in build/site: run `make site` first")
    PICTURES.mkdir(exist_ok=True)
    with served(SITE) as address:
        for name, page in PAGES.items():
            for width, height in SIZES.items():
                file = PICTURES / f"{name}_{width}.png"
                take_picture_of_site(f"{address}/{page}", file, width, height)


if __name__ == "__main__":
    main()
