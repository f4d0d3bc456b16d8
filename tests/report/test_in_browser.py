"""Reports as people see them: in a real browser, wide and narrow, light and dark, and printed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from passportize.report.examination import Examination, ExaminedFile
from passportize.report.page import render_report
from passportize.verification.verdict import SiteVerdict
from tests.report.test_report import READING, STRANGERS, VERDICT
from tests.support.browser import BROWSER, measure, print_pdf

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser; on Debian: apt-get install chromium"
)

LONG = "stages_with_a_rather_long_name.3.blocks.11.token_mixer.projection_without_any_space"
EXAMINED = Examination(
    files=tuple(
        ExaminedFile(f"downloads/{LONG}-{part}.safetensors", "ab" * 32, 10**9) for part in "123"
    ),
    when=datetime(2026, 2, 3, 14, 5, 9, tzinfo=timezone.utc),
    command=f"passportize verify downloads --passport acme.passport --claim {LONG}",
    owner="Acme Vision and Partners of the Long Name",
    commitment="cd" * 32,
    published="The release commitment is timestamped: 2026-01-31, on the word of CN=Test TSA.",
    data="/data/imagenet/val",
    preprocessing="3 x 224 x 224, bicubic, center crop of 0.875, mean 0.485 0.456 0.406",
    compared=(("released weights", ExaminedFile("model.safetensors", "ef" * 32, 10**9)),),
)
MANY = (
    *(
        SiteVerdict(f"{LONG}.{n}", f"{LONG}.{n}.weight", 512 - n % 3 * (n % 40), 512)
        for n in range(80)
    ),
    SiteVerdict("gone", "", 0, 0, f"no tensor stands for {LONG}"),
)
PAGES = {
    "accepted": render_report(
        replace(VERDICT, sites=MANY, fidelity=False, samples=50000),
        title=f"Whose signature is in {LONG}?",
        reading=READING,
        strangers=STRANGERS,
        examination=EXAMINED,
    ),
    "refused": render_report(
        replace(VERDICT, accepted=False, matched=150, strength=0.4, fidelity=None, notes=()),
        reading=READING,
        examination=EXAMINED,
    ),
    "open": render_report(
        replace(VERDICT, accepted=None, sites=(), matched=0, total=0, reason="no layer was found")
    ),
}
WIDTHS = (390, 1280)


@pytest.fixture(scope="module", params=["light", "dark"])
def looked_at(request):
    """What the browser found, by kind of report and width."""
    pages = [(page, width) for page in PAGES.values() for width in WIDTHS]
    found = measure(pages, dark=request.param == "dark")
    names = [(kind, width) for kind in PAGES for width in WIDTHS]
    return request.param, dict(zip(names, found, strict=True))


def test_nothing_is_cut_off_at_any_width(looked_at):
    for place, found in looked_at[1].items():
        assert found["overflow"] <= 0, place
        assert not found["cut"], (place, found["cut"])


def test_letters_can_be_read(looked_at):
    scheme, all_found = looked_at
    for place, found in all_found.items():
        assert not found["faint"], (place, found["faint"])
        assert not found["small"], (place, found["small"])
        assert (found["ground"] > 0.5) == (scheme == "light"), place


def test_pictures_are_drawn_for_the_width(looked_at):
    """Letters of 9.5 points in the drawing are at least 10 pixels high on the screen."""
    for (kind, width), found in looked_at[1].items():
        assert len(found["pictures"]) == {"accepted": 3, "refused": 1, "open": 0}[kind]
        for natural, shown in found["pictures"]:
            assert 0 < shown <= width
            assert 9.5 / 72 * 96 * shown / natural >= 10, (kind, width)


def test_what_it_does_not_show_is_as_large_as_the_finding(looked_at):
    for place, found in looked_at[1].items():
        finding, limits = found["boxes"]["found"], found["boxes"]["limits"]
        assert limits[2] == finding[2] >= 16, place
        assert limits[0] == finding[0] and limits[1] >= finding[1], place


def test_it_prints(tmp_path):
    print_pdf(PAGES["accepted"], tmp_path / "report.pdf")
    data = (tmp_path / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF") and 2 <= data.count(b"/Type /Page\n") <= 16


def test_the_test_itself_sees_what_is_wrong():
    wide = PAGES["open"].replace("</footer>", "<p style='width:900px'>x</p></footer>")
    faint = PAGES["open"].replace("</footer>", "<p style='color:#ccc;font-size:9px'>x</p></footer>")
    first, second = measure([(wide, 390), (faint, 1280)])
    assert first["overflow"] > 0 and first["cut"]
    assert second["faint"] and second["small"] and not second["cut"]
