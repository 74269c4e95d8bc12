"""Damaged files: whatever is in one, it is read, or refused in one sentence that names it."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.checking.boxes import AnchorLevel
from mrcnn_lightning.data.checking.check import check
from mrcnn_lightning.data.checking.repair import repair
from mrcnn_lightning.data.checking.whole_set import TrainingSize
from mrcnn_lightning.data.object_masks import masks_of
from mrcnn_lightning.data.report import contents, oddities
from mrcnn_lightning.user_error import UserError
from tests.data.test_annotations import content

fixed = settings(derandomize=True, deadline=None, max_examples=300)
NUMBERS = [0, 1, -1, 2, 0.5, 1e9, 1e37, 2**31, 2**63, 2**70, 10**400, 1e39, 1e308]
ODD_NUMBERS = [float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "0", "\ud800", "é" * 300, "a/../b", "\0", "52203", "[/red]", "x" * 100_000]
VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS + ODD_NUMBERS) | st.sampled_from(TEXTS),
    lambda value: st.lists(value, max_size=7) | st.dictionaries(st.sampled_from("ab"), value),
    max_leaves=8,
)
SIZE = TrainingSize(
    "10/10",
    lambda size: (min(size[0], 100), min(size[1], 100)),
    [AnchorLevel(np.array([[-4.0, -4.0, 4.0, 4.0]]), (4, 4), 0.0)],
)


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a file, with each key or index into it."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += nodes(value[key])
    return found


@st.composite
def other_values(draw: st.DrawFn) -> bytes:
    """A good file in which a few values are others, missing, or there twice."""
    value = copy.deepcopy(content())
    for _ in range(draw(st.integers(1, 3))):
        places = nodes(value)
        if not places:
            break
        node, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "delete", "repeat"]))
        if change == "replace":
            node[key] = draw(VALUES)
        elif change == "delete":
            del node[key]
        elif isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
    return json.dumps(value).encode()


@st.composite
def other_bytes(draw: st.DrawFn) -> bytes:
    """A good file of which bytes are others, missing or too many."""
    data = json.dumps(content()).encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.sampled_from([start, start + 1, start + 5, len(data)]))
        new = draw(st.binary(max_size=3) | st.sampled_from([b"-", b"9" * 5000, b"[" * 9999, b"1e"]))
        data = data[:start] + new + data[end:]
    return data


def read_all(data: bytes) -> None:
    """What training, evaluation and the start read of a file; a refusal must be a sentence."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file.json")
        file.write_bytes(data)
        try:
            annotations = Annotations.load(file, cache_dir=folder)
        except ValueError as error:
            sentence = str(error)
            assert "file.json" in sentence and "\n" not in sentence and len(sentence) < 1000
            sentence.encode()
            return
        sizes = annotations.image_sizes.tolist()
        for index, (height, width) in enumerate(sizes):
            objects = annotations.objects(index)
            assert objects.boxes.isfinite().all() and (objects.labels > 0).all()
            if height * width < 1e6:
                masks_of(objects, (height, width))
            annotations.file_name(index)
        truth = annotations.ground_truth(annotations.image_ids.tolist(), of_masks=True)
        assert all(entry["area"] > 0 for entry in truth["annotations"])
        "".join([*contents(annotations), *oddities(annotations, is_evaluated=True)]).encode()


@fixed
@given(other_values())
def test_other_values(data: bytes) -> None:
    read_all(data)


@fixed
@given(other_bytes())
def test_other_bytes(data: bytes) -> None:
    read_all(data)


def check_and_repair(data: bytes) -> None:
    """Whatever is in a file, its faults are sentences, and what is repaired can be read."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "file.json"), Path(folder, "new.json")
        file.write_bytes(data)
        for name in ("a/x.png", "ü.jpg", "z.jpg"):
            Path(folder, name).parent.mkdir(exist_ok=True)
            Image.new("L", (10, 20 if name == "ü.jpg" else 8)).save(Path(folder, name))
        checked = check(file, folder, size=SIZE)
        for fault in checked.found():
            fault.sentence().encode()
            assert "\n" not in fault.sentence()
        try:
            repaired = repair(file, folder, out, checked=checked, size=SIZE)
        except UserError as error:
            assert "file.json cannot be repaired" in str(error)
            return
        if not any(fault.severity == "error" for fault in repaired.checked.found()):
            Annotations.load(out, cache_dir=folder)


@settings(fixed, max_examples=60)
@given(other_values())
def test_check_of_other_values(data: bytes) -> None:
    check_and_repair(data)


@settings(fixed, max_examples=40)
@given(other_bytes())
def test_check_of_other_bytes(data: bytes) -> None:
    check_and_repair(data)
