"""ClipSAM (arXiv 2401.12665): CLIP and UMCI find the anomaly, SAM refines it.

clipsam = ClipSAM.from_pretrained("checkpoint", segmenter=open_segmenter("sam_vit_h_4b8939.pth"))
[found] = clipsam.segment([image], "metal nut")
found.anomaly_map, found.boxes, found.score
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipsam.backbone import Backbone, weights_hash
from clipsam.checkpoint import described_options, load_heads, read_description, save_heads
from clipsam.clip_files import open_backbone
from clipsam.map_scale import as_map
from clipsam.memory import LIMIT, Manner, Memory, coreset, middle, turned
from clipsam.mmr import CutOff, MMRConfig, check, refine
from clipsam.precision import TowerPrecision
from clipsam.prompt_bank import PromptBank
from clipsam.promptable import Segmenter
from clipsam.rarity import by_rarity
from clipsam.score import POOLING, Pooling, image_score
from clipsam.tiles import Scored, Seen, Tiling, averaged, seen_in_tiles
from clipsam.umci import UMCIHead, rough_map

TEMPERATURE = 0.07  # CLIP's own at the start of its training; of the map from texts alone


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What is anomalous in an image.

    Args:
        anomaly_map: ``(H, W)`` float32 in [0, 1], on the image's own pixels and comparable between images.
        rough_map: the same before the refinement.
        score: of the image, in [0, 1]: the highest value (see ``score.py``) of the rough map, which a mask cannot lift;
            where the pipeline counts rarity, of the map that ``rarity.py`` makes of it, and with a memory of the map
            that ``memory.py`` makes of that.
        boxes: ``(K, 4)``, x₀ y₀ x₁ y₁ of the anomalous regions, in pixels; none without a segmenter.
        masks: ``(K, H, W)`` bool.
        mask_scores: ``(K,)`` in [0, 1].
        cut_off: how many components of the rough map SAM was not asked about.
    """

    anomaly_map: NDArray[np.float32]
    rough_map: NDArray[np.float32]
    score: float
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    masks: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), bool))
    mask_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    cut_off: CutOff = field(default_factory=CutOff)


class ClipSAM(TowerPrecision):
    """The pipeline: a module, whose ``.to()`` and ``.half()`` move everything and let the towers alone change format.

    Args:
        backbone: the frozen CLIP.
        umci: trained heads on it; None scores by texts alone.
        bank: the sentences.
        segmenter: refines the map; None leaves it rough.
        mmr: options of the refinement.
        rarity: whether the heads' image score counts an anomaly by how rare it is in its image, see ``rarity.py``.
        provenance: what the heads were trained on, for reports: "data" is a list of data sets' names.
        pooling: how a map becomes its image's score, see ``score.py``.
        scales: sides of the squares that CLIP sees an image as, whose maps and scores are averaged; none: its own.
        tiling: how images that are larger than a tile are cut, see ``tiles.py``; None: they are seen as a whole.

    Raises:
        ValueError: a scale that the CLIP cannot see.
    """

    def __init__(
        self,
        backbone: Backbone,
        umci: UMCIHead | None = None,
        bank: PromptBank | None = None,
        segmenter: Segmenter | None = None,
        *,
        mmr: MMRConfig | None = None,
        rarity: bool = False,
        provenance: dict[str, Any] | None = None,
        pooling: Pooling = POOLING,
        scales: Sequence[int] = (),
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.segmenter, self.rarity = backbone, segmenter, rarity
        self.umci = None if umci is None else umci.eval()
        self.bank, self.mmr, self.provenance = bank or PromptBank(), mmr or MMRConfig(), provenance or {}
        self.pooling: Pooling = pooling
        self.see_at(scales, tiling)

    def see_at(self, scales: Sequence[int] = (), tiling: Tiling | None = None) -> Self:
        """Choose at which scales, and in which tiles, images are seen from now on; return the pipeline.

        Raises:
            ValueError: a scale that the CLIP cannot see.
        """
        patch = self.backbone.patch
        if any(side < patch or side % patch for side in scales) or len(set(scales)) < len(scales):
            raise ValueError(f"scales={tuple(scales)!r} are not possible; allowed: different multiples of {patch}")
        self.scales, self.tiling = tuple(scales) or (self.backbone.image_size,), tiling
        return self

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Let CLIP's towers and SAM's image encoder compute in another number format; the rest stays in float32."""
        self.backbone.compute_in(dtype)
        if isinstance(self.segmenter, TowerPrecision):
            self.segmenter.compute_in(dtype)
        return self

    def segment(
        self, images: Sequence[NDArray[np.uint8]], category: str, memory: Memory | None = None
    ) -> list[Segmentation]:
        """Segment images of one category, whatever their sizes; each comes out as if it were alone.

        Args:
            images: each ``(H, W, 3)``, RGB in 0..255.
            category: such as "metal nut", or "object" for any.
            memory: what :meth:`remember` made of others of their kind; map and score take it into account.

        Raises:
            ValueError: an image of another shape, or a memory without heads.
        """
        scored = self.scored(images, category, memory)
        return [self.refined(image, anomaly_map, score) for image, (anomaly_map, score) in zip(images, scored)]

    @torch.no_grad()
    def rough(self, images: Sequence[NDArray[np.uint8]], category: str) -> list[NDArray[np.float32]]:
        """Return the rough map O of every image, ``(H, W)`` in [0, 1]: UMCI's, or the texts' without one."""
        return [anomaly_map for anomaly_map, _ in self.scored(images, category)]

    @torch.no_grad()
    def remember(
        self,
        references: Sequence[NDArray[np.uint8]],
        category: str = "object",
        *,
        manner: Manner = "combined",
        turn: bool = False,
        limit: int = LIMIT,
    ) -> Memory:
        """Return the memory of a few images of one kind, most of them sound; nobody has to say which.

        It keeps patch tokens of the middle stages: 0.8 MB for each image with ViT-S at 224 pixels, 11 MB with ViT-L at
        518.

        Args:
            references: each ``(H, W, 3)``, RGB in 0..255.
            category: as in :meth:`segment`.
            manner: see ``memory.py``: "combined" with the rough map, the "distance" alone, or "mutual" if the
                references are the very images that are to be segmented.
            turn: keep every reference in all of its eight positions, for parts that lie as they fell.
            limit: bytes; beyond them a coreset of each image's patches is kept.

        Raises:
            ValueError: none, an image of another shape, an unknown manner, or no heads.
        """
        if not references:
            raise ValueError("references=() is empty; allowed: one image or more")
        if self.umci is None:
            raise ValueError("a memory with umci=None, which scores by texts alone; allowed: trained heads")
        kept, seen, digests, side = [], [], [], self.scales[0]  # of several scales none can be compared with others
        for image in references:
            own = self.backbone.patches(self._batch([image], side))
            seen.append(self._rough_and_counted(own, category))
            if turn:
                every = self.backbone.patches(self._batch(turned(image), side))
                own = [stage.transpose(0, 1).flatten(1, 2)[None] for stage in every]  # (1, C, 8 h, w)
            most = limit // len(references) // sum(4 * stage.shape[1] for stage in middle(own))
            kept.append(coreset(own, max(1, most)))
            digests.append(
                hashlib.sha256(np.ascontiguousarray(image).tobytes() + repr(image.shape).encode()).hexdigest()
            )
        maps, counted = (torch.cat(values) for values in zip(*seen))
        told = f"{turn} {limit} {sorted(digests)}"
        fingerprint = hashlib.sha256(told.encode()).hexdigest()
        stages = [torch.cat(stage) for stage in zip(*kept)]
        return Memory(stages, maps, counted, manner=manner, fingerprint=fingerprint)

    def describe_scoring(self, memory: Memory | None = None) -> dict[str, Any]:
        """Return everything that an image's map and score depend on, by hashes: scores made alike are comparable."""
        heads = None if self.umci is None else weights_hash(self.umci)
        return {
            "clip": self.backbone.hash,
            "heads": heads,
            "prompts": self.bank.hash,
            "scales": sorted(self.scales),
            "tiles": None if self.tiling is None else [self.tiling.side, self.tiling.overlap],
            "rarity": self.rarity,
            "pooling": self.pooling,
            "score": "map" if memory is None else memory.manner,
            "references": None if memory is None else memory.fingerprint,
        }

    @torch.no_grad()
    def scored(self, images: Sequence[NDArray[np.uint8]], category: str, memory: Memory | None = None) -> list[Scored]:
        """Return the rough map of every image with the image's score.

        Raises:
            ValueError: an image of another shape, or a memory without heads, with scales or with tiles.
        """
        if self.umci is None:
            return self._without_heads(self.text_scored(images, category), memory)

        def see(few: Sequence[NDArray[np.uint8]], side: int) -> Seen:
            patches = self.backbone.patches(self._batch(few, side))
            maps, counted = self._rough_and_counted(patches, category, memory)
            return {"umci": scored_by(counted, maps, few, self.pooling)}

        return self._seen(images, see, memory)["umci"]

    @torch.no_grad()
    def text_map(self, images: Sequence[NDArray[np.uint8]], category: str) -> list[NDArray[np.float32]]:
        """Return the map that CLIP gives without any training, ``(H, W)`` in [0, 1].

        In WinCLIP's manner (arXiv 2303.14814): windows of one, two and three patches are compared with the two
        language tokens, and the probabilities of all windows on a patch are averaged.
        """
        return [anomaly_map for anomaly_map, _ in self.text_scored(images, category)]

    @torch.no_grad()
    def text_scored(self, images: Sequence[NDArray[np.uint8]], category: str) -> list[Scored]:
        """Return the maps of :meth:`text_map` with the images' scores."""

        def see(few: Sequence[NDArray[np.uint8]], side: int) -> Seen:
            joint = self.backbone.joint(self._batch(few, side))
            return {"clip": with_scores(self._text_maps(joint, few, category), self.pooling)}

        return self._seen(images, see)["clip"]

    @torch.no_grad()
    def every_stage(
        self, images: Sequence[NDArray[np.uint8]], category: str, *memories: Memory
    ) -> dict[str, list[Scored]]:
        """Return maps and scores by stage, with the tower run once: "clip", "umci", and the manner of every memory.

        Raises:
            ValueError: an image of another shape, or a memory without heads, with scales or with tiles.
        """

        def see(few: Sequence[NDArray[np.uint8]], side: int) -> Seen:
            patches, joint = self.backbone.patches_and_joint(self._batch(few, side))
            text = with_scores(self._text_maps(joint, few, category), self.pooling)
            if self.umci is None:
                return {"clip": text, "umci": self._without_heads(text, *memories)}
            maps, counted = self._rough_and_counted(patches, category)
            found = {"clip": text, "umci": scored_by(counted, maps, few, self.pooling)}
            for memory in memories:
                beside, judged = memory.seen(maps, counted, patches)
                found[memory.manner] = scored_by(judged, beside, few, self.pooling)
            return found

        return self._seen(images, see, *memories)

    def _seen(
        self,
        images: Sequence[NDArray[np.uint8]],
        see: Callable[[Sequence[NDArray[np.uint8]], int], Seen],
        *memories: Memory | None,
    ) -> Seen:
        """Return what is seen of images at every scale, of those that are larger than a tile in tiles."""
        if any(memory is not None for memory in memories) and (len(self.scales) > 1 or self.tiling is not None):
            raise ValueError("a memory with several scales or tiles; allowed: one scale and no tiles")

        def at_all_scales(few: Sequence[NDArray[np.uint8]]) -> Seen:
            return averaged([see(few, side) for side in self.scales])

        if self.tiling is None:
            return at_all_scales(images)
        side = self.tiling.side_for(max(self.scales))
        if all(max(image.shape[:2]) <= side for image in images):
            return at_all_scales(images)
        each = [seen_in_tiles(image, side, self.tiling, at_all_scales) for image in images]
        return {name: [one[name][0] for one in each] for name in each[0]}

    def _without_heads(self, text: list[Scored], *memories: Memory | None) -> list[Scored]:
        if any(memory is not None for memory in memories):
            raise ValueError("a memory with umci=None, which scores by texts alone; allowed: trained heads")
        return text

    def _rough_and_counted(
        self, patches: list[Tensor], category: str, memory: Memory | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the rough maps, and the maps that images are scored by, ``(B, h, w)`` each."""
        umci: Any = self.umci
        maps = rough_map(umci(patches, self.backbone.text(category, self.bank)))
        counted = by_rarity(maps, patches) if self.rarity else maps
        return (maps, counted) if memory is None else memory.seen(maps, counted, patches)

    def _text_maps(
        self, joint: Tensor, images: Sequence[NDArray[np.uint8]], category: str
    ) -> list[NDArray[np.float32]]:
        language = self.backbone.text(category, self.bank)
        maps = torch.stack([window_probability(joint, language, side) for side in (1, 2, 3)]).mean(0)
        return [to_native(values, image) for values, image in zip(maps, images)]

    def refined(self, image: NDArray[np.uint8], rough: NDArray[np.float32], score: float | None = None) -> Segmentation:
        """Return the refinement of a rough map, with the image's score; unset: that of the map alone.

        Raises:
            ValueError: the map holds something else than numbers in [0, 1].
        """
        check(image)
        rough = as_map(rough, image.shape[:2])
        score = image_score(rough, self.pooling) if score is None else score
        if self.segmenter is None:
            return Segmentation(rough, rough, score)
        found = refine(image, rough, self.segmenter, self.mmr)
        return Segmentation(found.anomaly_map, rough, score, found.boxes, found.masks, found.scores, found.cut_off)

    def _batch(self, images: Sequence[NDArray[np.uint8]], side: int | None = None) -> Tensor:
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"an image of shape {image.shape} and {image.dtype}; allowed: (H, W, 3) and uint8")
        return torch.stack([self.backbone.preprocess(image, side) for image in images]).to(self.backbone.device)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write UMCI's weights and what they belong to; CLIP's and SAM's weights are not copied.

        Raises:
            ValueError: there is no UMCI.
        """
        if self.umci is None:
            raise ValueError("umci=None has nothing to save; allowed: trained heads")
        description = {
            "clip": self.backbone.hash,
            "backbone": {
                "name": self.backbone.name,
                "configuration": self.backbone.configuration,
                "source": self.backbone.source,
            },
            "prompts": self.bank.hash,
            "bank": asdict(self.bank),
            "image_size": self.backbone.image_size,
            "stages": self.backbone.stages,
            "mmr": asdict(self.mmr),
            "rarity": self.rarity,
            "provenance": self.provenance,
        }
        save_heads(Path(folder), self.umci, description)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        backbone: Backbone | None = None,
        segmenter: Segmenter | None = None,
        bank: PromptBank | None = None,
    ) -> Self:
        """Load trained heads, with the CLIP that they were trained on.

        Args:
            folder: what :meth:`save_pretrained` wrote.
            backbone: that CLIP, with the same image size and stages; unset: it is opened from where it came from then.
            segmenter: refines the map.
            bank: sentences; default: those of the training.

        Raises:
            ValueError: a damaged or foreign checkpoint, or one for another CLIP, size, stages or prompts.
            OSError: it cannot be read.
        """
        folder = Path(folder)
        description = read_description(folder)
        backbone = backbone or described_backbone(folder, description)
        own, mmr = described_options(folder, description)
        bank = bank or own
        umci = load_heads(folder, description, backbone, bank)
        rarity, provenance = description["rarity"], description["provenance"]
        return cls(backbone, umci, bank, segmenter, mmr=mmr, rarity=rarity, provenance=provenance)


def described_backbone(folder: Path, description: dict[str, Any]) -> Backbone:
    """Return the CLIP that heads were trained on, from where it came from then.

    Raises:
        ValueError: that is not told, or there is something else by now.
    """
    told = description["backbone"]
    if told["source"] is None:
        raise ValueError(f"{str(folder)!r} was trained with clip={told['name']!r}; allowed: that CLIP, as backbone=")
    try:
        parts = {"image_size": description["image_size"], "stages": tuple(description["stages"])}
        return open_backbone(**told["source"], **parts)
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(folder)!r} was trained with clip={told['name']!r}, but {error}") from error


def window_probability(joint: Tensor, language: Tensor, side: int) -> Tensor:
    """Return the probability of "abnormal" averaged over all windows of ``side`` × ``side`` patches on a patch.

    Args:
        joint: ``(B, C_t, h, w)``, patches of length 1.
        language: ``(2, C_t)``.
        side: at most 3.
    """
    side = min(side, *joint.shape[-2:])
    windows = F.normalize(F.avg_pool2d(joint, side, 1), dim=1)  # (B, C_t, h - side + 1, w - side + 1)
    similarity = torch.einsum("bchw,lc->blhw", windows, language)
    abnormal = (similarity / TEMPERATURE).softmax(1)[:, 1:]
    total, count = (
        F.conv_transpose2d(values, torch.ones(1, 1, side, side, device=values.device))
        for values in (abnormal, torch.ones_like(abnormal))
    )
    return (total / count)[:, 0]


def to_native(values: Tensor, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Enlarge a map ``(h, w)`` to its image, ``(H, W)`` float32."""
    size = image.shape[0], image.shape[1]
    large = F.interpolate(values[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
    return large.clamp(0, 1).cpu().numpy()


def with_scores(maps: Sequence[NDArray[np.float32]], pooling: Pooling = POOLING) -> list[Scored]:
    """Return maps, each with its own score."""
    return [(anomaly_map, image_score(anomaly_map, pooling)) for anomaly_map in maps]


def scored_by(
    counted: Tensor, maps: Tensor, images: Sequence[NDArray[np.uint8]], pooling: Pooling = POOLING
) -> list[Scored]:
    """Return maps ``(B, h, w)`` on the images' own pixels, with the scores of others, or of themselves."""
    native = [to_native(values, image) for values, image in zip(maps, images)]
    if counted is maps:
        return with_scores(native, pooling)
    scores = [image_score(to_native(values, image), pooling) for values, image in zip(counted, images)]
    return list(zip(native, scores))
