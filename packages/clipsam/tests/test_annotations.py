"""COCO and labelme: what is drawn from the annotations is the mask that they were made of."""

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clipsam.annotations import Annotated, coco, doubled_area, labelme, loops


def masks():
    """One of every kind: a block, a hole, pixels that meet in a corner, the whole image, nothing, noise."""
    block = np.zeros((20, 30), bool)
    block[3:9, 4:20] = True
    hole = block.copy()
    hole[5:7, 8:12] = False
    corner = np.zeros((6, 6), bool)
    corner[[1, 2, 3, 3], [1, 2, 3, 1]] = True
    noise = np.random.default_rng(0).random((24, 18)) < 0.4
    return {"block": block, "hole": hole, "corner": corner, "full": np.ones((5, 7), bool), "none": ~np.ones((5, 7), bool), "noise": noise}  # fmt: skip  # noqa: E501


def drawn(outline, shape):
    """The pixels whose centres lie in an outline, by the number of edges to their left."""
    inside = np.zeros(shape, int)
    for (x, y), (next_x, next_y) in zip(outline, [*outline[1:], outline[0]]):
        if x == next_x:
            inside[min(y, next_y) : max(y, next_y), x:] += 1
    return inside % 2 == 1


def from_runs(runs):
    values = np.repeat(np.arange(len(runs["counts"])) % 2, runs["counts"])
    return values.reshape(runs["size"], order="F").astype(bool)


@pytest.mark.parametrize("kind", masks())
def test_outlines_enclose_the_mask(kind):
    mask = masks()[kind]
    outlines = loops(mask)
    total = sum((drawn(outline, mask.shape).astype(int) * np.sign(doubled_area(outline)) for outline in outlines), np.zeros(mask.shape, int))  # fmt: skip  # noqa: E501
    assert np.array_equal(total, mask.astype(int))
    assert sum(map(doubled_area, outlines)) == 2 * mask.sum()


def test_a_block_has_four_corners():
    assert loops(masks()["block"], left=100, top=10) == [[[104, 13], [120, 13], [120, 19], [104, 19]]]


@pytest.mark.parametrize("kind", masks())
def test_coco_holds_the_mask(kind):
    mask = masks()[kind]
    found = coco([Annotated("a.png", ~mask, 0.1), Annotated("b.png", mask, 0.7, "scratch")])
    again = np.zeros(mask.shape, bool)
    own = [annotation for annotation in found["annotations"] if annotation["image_id"] == 2]
    for annotation in own:
        region = annotation["segmentation"]
        part = from_runs(region) if isinstance(region, dict) else np.any(
            [drawn(np.reshape(points, (-1, 2)).tolist(), mask.shape) for points in region], axis=0
        )  # fmt: skip
        x, y, width, height = annotation["bbox"]
        assert part.sum() == annotation["area"] and part[y : y + height, x : x + width].sum() == annotation["area"]
        again |= part
    assert np.array_equal(again, mask)
    assert (
        found["images"][1]["score"] == 0.7 and (found["images"][0]["height"], found["images"][0]["width"]) == mask.shape
    )
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert all(names[annotation["category_id"]] == "scratch" for annotation in own)
    assert len({annotation["id"] for annotation in found["annotations"]}) == len(found["annotations"])


@pytest.mark.parametrize("kind", masks())
def test_labelme_holds_the_mask(kind):
    mask = masks()[kind]
    found = labelme(Annotated("../b.png", mask, 0.7))
    again = np.zeros(mask.shape, bool)
    for shape in found["shapes"]:
        if shape["shape_type"] == "mask":
            (left, top), (right, bottom) = shape["points"]
            part = np.array(Image.open(BytesIO(base64.b64decode(shape["mask"]))))
            again[top : bottom + 1, left : right + 1] |= part.astype(bool)
        else:
            again |= drawn(shape["points"], mask.shape)
    assert np.array_equal(again, mask) and found["imagePath"] == "../b.png"
    assert (found["imageHeight"], found["imageWidth"]) == mask.shape


@pytest.mark.parametrize("kind", masks())
def test_pycocotools_reads_it(tmp_path, kind):
    tools = pytest.importorskip("pycocotools.coco", reason="pycocotools is missing")
    import json

    mask = masks()[kind]
    (tmp_path / "coco.json").write_text(json.dumps(coco([Annotated("a.png", mask, 0.5)])))
    read = tools.COCO(str(tmp_path / "coco.json"))
    again = np.zeros(mask.shape, bool)
    for annotation in read.loadAnns(read.getAnnIds()):
        again |= read.annToMask(annotation).astype(bool)
    assert np.array_equal(again, mask)
