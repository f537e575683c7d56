"""A rough map refined with a segmenter of one's own, here one that finds what is bright."""

import numpy as np
import torch

from clipsam import refine


class Threshold:
    """Answers every prompt with the bright pixels; its small grid is the image itself."""

    def embed(self, image):
        """Return the brightness."""
        return torch.from_numpy(image).float().mean(2)

    def decode(self, embedding, prompts):
        """Return one level of logits and its score for every prompt."""
        queries = len(prompts.boxes)
        return (embedding - 128).expand(queries, 1, -1, -1), torch.ones(queries, 1)


image = np.zeros((64, 64, 3), np.uint8)
image[20:40, 20:40] = 255  # the defect
rough = np.zeros((64, 64), np.float32)
rough[15:35, 15:35] = 0.9  # what some method says of it, beside the truth
found = refine(image, rough, Threshold())
assert len(found.boxes) == 1
change, defect = found.anomaly_map - rough, image[..., 0] > 0
assert change[defect].mean() > 0 > change[~defect].mean()
assert (found.masks[0] == defect).all()
