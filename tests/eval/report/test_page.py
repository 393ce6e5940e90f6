"""The HTML report: valid, self-contained, escaped, complete; and the pictures inside it."""

import base64
import html.parser
import io
import re

import pytest
from PIL import Image

from wvq.errors import ConfigError
from wvq.eval.report.page import Report
from wvq.eval.report.plots import loss_curves


class Checker(html.parser.HTMLParser):
    """Checks that every tag is closed in order; collects the pictures and the addresses."""

    void = frozenset({"meta", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.images, self.addresses, self.ids, self.text = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [value for name, value in attrs.items() if name in ("src", "href", "srcset", "action")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture
def full_report():
    report = Report("Run <1>", "seed 0 & more")
    report.cards([("PSNR", 22.4, "dB"), ("U", "99.1%", "")]).warning("cut short")
    report.section("Pictures", "First `code` part.\n\nSecond <part>.")
    report.figure(Image.new("RGB", (8, 6), "red"), "a red <picture>", scale=4)
    report.figures([(Image.new("L", (4, 4)), "left"), (Image.new("L", (4, 4)), "right")])
    report.section("Curves").figure(loss_curves([{"images": i, "loss": 1 / i} for i in range(1, 5)], []), alt="a curve")
    report.section("Next").code(["wvq sample --out 'a b' && ls"], "Type:")
    return report.table([{"name": "fid", "value": 1234.567}, {"name": "kid"}], {"name": "metric", "value": "value"})


def test_page_is_well_formed_and_self_contained(full_report):
    page = full_report.html()
    checker = check(page)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in checker.addresses)
    assert {address[1:] for address in checker.addresses if address.startswith("#")} == set(checker.ids)
    assert "://" not in page
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "image-rendering: pixelated" in page


def test_pictures_are_embedded_without_loss_and_have_alt_texts(full_report):
    images = check(full_report.html()).images
    assert [image["alt"] for image in images] == ["a red <picture>", "left", "right", "a curve"]
    assert images[0]["width"] == "32"
    content = base64.b64decode(images[0]["src"].partition(",")[2])
    picture = Image.open(io.BytesIO(content))
    assert picture.size == (8, 6)
    assert picture.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_text_is_escaped(full_report):
    page = full_report.html()
    assert "<h1>Run &lt;1&gt;</h1>" in page
    assert "<p>First <code>code</code> part.</p><p>Second &lt;part&gt;.</p>" in page
    assert "&amp;&amp; ls" in page
    assert "<picture>" not in page


def test_table_aligns_rounds_and_fills(full_report):
    page = full_report.html()
    assert '<td class="number">1,234.6</td>' in page
    assert '<td class="number">–</td>' in page
    assert '<th class="number">value</th>' in page
    assert "<td>fid</td>" in page


def test_rows_may_be_sequences_but_must_fit():
    page = Report("t").table([["a", 3], ["b", 0.012345]], ["name", "value"], "caption").html()
    assert '<td class="number">0.01235</td>' in page
    assert "<caption>caption</caption>" in page
    with pytest.raises(ConfigError, match="1 cells for 2 columns"):
        Report("t").table([["a"]], ["name", "value"])


def test_contents_appear_from_three_sections_on():
    assert "<nav" not in Report("t").section("a").section("b").html()
    page = Report("t").section("a").section("b").section("c").html()
    assert re.findall(r'<a href="#([^"]+)">', page) == ["section-1", "section-2", "section-3"]


def test_save_is_atomic_and_utf8(tmp_path, full_report):
    path = tmp_path / "new" / "report.html"
    full_report.save(path)
    assert path.read_text(encoding="utf-8") == full_report.html()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
