"""A picture is the same to every package: what was scaled, hidden or turned in its file is so for all."""

import numpy as np
import pytest
from PIL import Image

from bdp_nas.commands.data import open_data as searched_on
from bdp_nas.commands.options import TaskConfig
from clipsam.data.images import read_image
from delta_dit.commands.scores import read_pictures
from partial_finetune.data.images import open_data as tuned_on

SIDE = 12
RAMP = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
GREY = np.stack([RAMP] * 3, axis=2)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def with_hidden_colour():
    """Return a picture whose left half is transparent, and red where nobody could see it."""
    pixels = np.dstack([GREY, np.full_like(RAMP, 255)])
    pixels[:, : SIDE // 2] = 255, 0, 0, 0
    return Image.fromarray(pixels)


PICTURES = {
    "16-bit grey": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, GREY),
    "hidden colour": (with_hidden_colour(), {}, np.where(np.arange(SIDE)[:, None] < SIDE // 2, 255, GREY)),
    "turned": (Image.fromarray(RAMP), {"exif": exif(6)}, np.rot90(GREY, -1)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_same_to_every_package(tmp_path, name):
    picture, options, expected = PICTURES[name]
    for number in range(4):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **options)
    (tmp_path / "test").symlink_to(tmp_path / "train")
    searched = searched_on(TaskConfig(data=str(tmp_path), val_share=0)).test.pixels[0]
    found = {
        "clipsam": read_image(path),
        "delta-dit": read_pictures(tmp_path / "train")[0].permute(1, 2, 0).numpy(),
        "partial-finetune": np.asarray(tuned_on(str(tmp_path)).test[0][0]),
        "bdp-nas": np.broadcast_to(searched.permute(1, 2, 0).numpy(), expected.shape),
    }
    assert [package for package, pixels in found.items() if not np.array_equal(pixels, expected)] == []
