"""`mrcnn data report` as it is called."""

import base64
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from typer.testing import CliRunner

from mrcnn_lightning.app.cli import app

IMAGES = re.compile(r'<img src="data:image/([a-z+]+);base64,([^"]+)" alt="([^"]*)">')


def test_a_page_needs_nothing_beside_it(shapes_root: Path, tmp_path: Path) -> None:
    file = tmp_path / "a<b>.json"
    text = (shapes_root / "annotations/instances_val.json").read_text()
    file.write_text(text.replace('"disc"', '"<script>$x$"'))
    page = tmp_path / "deep" / "page.html"
    images = str(shapes_root / "val")
    result = CliRunner().invoke(app, ["data", "report", str(file), images, "--out", str(page)])
    assert result.exit_code == 0, result.output
    html = page.read_text()
    assert "http" not in html and "<script" not in html and "a&lt;b&gt;.json" in html
    pictures = IMAGES.findall(html)
    assert Counter(kind for kind, _, _ in pictures) == {"svg+xml": 4, "jpeg": 9}
    figures = [base64.b64decode(data) for kind, data, _ in pictures if kind == "svg+xml"]
    words = ["".join(ElementTree.fromstring(figure).itertext()) for figure in figures]
    assert "<script>$x$" in words[0] and "3 classes" in words[0]
    assert "sizes of objects at 800/1333" in words[1]
    assert "10 images" in html


def test_a_file_that_is_none_of_cocos_gets_no_page(tmp_path: Path) -> None:
    file, page = tmp_path / "set.json", tmp_path / "page.html"
    file.write_text("[1, 2]")
    arguments = ["data", "report", str(file), str(tmp_path), "--out", str(page)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "error: no COCO-format file" in result.stderr
    assert not page.exists()
