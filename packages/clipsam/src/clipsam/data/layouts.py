"""How published data sets lie on disk: a reader for each layout, which lists the images of a split and decodes nothing.

Masks decide only where the layout says nothing else: of KolektorSDD2 and of loose images a black mask means a normal
one. Which layouts there are is told in ``folders.py``.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clipsam.samples import GOOD, UNKNOWN
from frugal_shared.images import IMAGE_SUFFIXES, ImageError, image_files, opened

NORMAL_NAMES = frozenset({"good", "normal", "ok", "free", "mt_free"})
DEFECTIVE_NAMES = frozenset({"bad", "ng", "ko", "nok", "defect", "defective", "anomaly", "anomalous", "abnormal"})
MASK_FOLDERS = frozenset({"mask", "masks", "ground_truth", "groundtruth", "gt", "label", "labels"})
MASK_ENDINGS = ("_mask", "_gt", "_label", "")
"""What a mask's name has behind its image's, in any case."""
SUFFIXES = (".png", *sorted(IMAGE_SUFFIXES - {".png"}))
TEST_FOLDERS = ("test", "test_public")  # the latter is MVTec-AD2's, whose other test splits nobody has masks of
HELD_BACK = 10
"""Raw VisA has no split: every tenth normal image is for testing (``1cls.csv`` chose others, as many)."""


@dataclass(frozen=True)
class Record:
    """One image of a data set on disk."""

    category: str
    defect: str
    image: Path
    mask: Path | None
    """A file, or a folder of files that count together; None where it is not known which pixels are defective."""


class Listing:
    """What lies in folders, by name in lower case; every folder is looked at once."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, Path]] = {}

    def names(self, folder: Path) -> dict[str, Path]:
        """Return the paths in a folder by their names."""
        if folder not in self._known:
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
            self._known[folder] = {path.name.lower(): path for path in paths}
        return self._known[folder]

    def mask(self, folder: Path, image: Path) -> Path:
        """Return an image's mask; the usual name if there is none, to say so when it is read."""
        return self.found_mask(folder, image) or folder / f"{image.stem}_mask.png"

    def found_mask(self, folder: Path, image: Path) -> Path | None:
        """Return an image's mask in a folder, a file or a folder of files; in its own folder no name is its own."""
        names, stem = self.names(folder), image.stem.lower()
        for ending in MASK_ENDINGS[:-1] if folder == image.parent else MASK_ENDINGS:
            for suffix in SUFFIXES:
                if f"{stem}{ending}{suffix}" in names:
                    return names[f"{stem}{ending}{suffix}"]
        return None if folder == image.parent else names.get(stem)

    def is_mask(self, path: Path) -> bool:
        """Return whether a file is the mask of another one in its folder."""
        names, stem = self.names(path.parent), path.stem.lower()
        stems = [stem.removesuffix(ending) for ending in MASK_ENDINGS[:-1] if stem.endswith(ending)]
        return any(f"{stem}{suffix}" in names for stem in stems for suffix in SUFFIXES)


# --- VisA's split_csv/1cls.csv: object,split,label,image,mask ---


def has_table(root: Path) -> bool:
    """Return whether a folder has VisA's table."""
    return (root / "split_csv" / "1cls.csv").is_file()


def read_table(root: Path, split: str) -> list[Record]:
    """List what the table says.

    Raises:
        ValueError: it is damaged.
    """
    path = root / "split_csv" / "1cls.csv"
    fields = ("object", "split", "label", "image", "mask")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            _check_fields(path, fields, table.fieldnames or ())
            lines = [line for line in table if line["split"] == split]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no table ({error})") from None
    for line in lines:
        _check_fields(path, fields[:-1], [field for field in fields if line[field] is not None])
    return [_listed(root, line["object"], line["label"], line["image"], line["mask"]) for line in lines]


def _listed(root: Path, category: str, label: str, image: str, mask: str | None) -> Record:
    """Return the row of an image named in a table, whose paths start at the data set's folder."""
    defect = _defect(label)
    return Record(category, defect, root / image, root / mask if mask and defect != GOOD else None)


# --- meta.json: {split: {category: [{img_path, mask_path, specie_name, anomaly}]}} ---


def has_list(root: Path) -> bool:
    """Return whether a folder has a ``meta.json``."""
    return (root / "meta.json").is_file()


def read_list(root: Path, split: str) -> list[Record]:
    """List what ``meta.json`` says.

    Raises:
        ValueError: it is damaged.
    """
    path = root / "meta.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    images = listed.get(split) if isinstance(listed, dict) else None
    if not isinstance(images, dict) or not all(isinstance(items, list) for items in images.values()):
        raise ValueError(f"{path}: {split!r} is missing; allowed: {{split: {{category: [image, ...]}}}}")
    return [_item(path, category, item) for category, items in images.items() for item in items]


def _item(path: Path, category: str, item: dict) -> Record:
    _check_fields(path, ("img_path", "anomaly"), item if isinstance(item, dict) else ())
    for field, kinds in (("img_path", str), ("mask_path", str | None), ("specie_name", str | None)):
        if not isinstance(item.get(field), kinds):
            raise ValueError(f"{path}: {field}={item.get(field)!r} of an image; allowed: a text")
    label = (item.get("specie_name") or "defect") if item["anomaly"] else GOOD
    return _listed(path.parent, category, label, item["img_path"], item.get("mask_path"))


# --- VisA as it is downloaded: <category>/Data/{Images/{Normal,Anomaly},Masks/Anomaly} ---


def raw_categories(root: Path) -> list[Path]:
    """Return the categories' folders."""
    return [folder for folder in (root, *_folders(root)) if (folder / "Data" / "Images").is_dir()]


def read_raw(root: Path, split: str) -> list[Record]:
    """List VisA's folders."""
    return [row for folder in raw_categories(root) for row in _raw_category(folder, split)]


def _raw_category(folder: Path, split: str) -> list[Record]:
    category, data = folder.resolve().name, folder / "Data"
    normal = _images(data / "Images" / "Normal")
    held_back = normal[::HELD_BACK]
    if split == "train":
        return [Record(category, GOOD, image, None) for image in normal if image not in held_back]
    masks, listing = data / "Masks" / "Anomaly", Listing()
    defective = [
        Record(category, "anomaly", image, listing.mask(masks, image)) for image in _images(data / "Images" / "Anomaly")
    ]
    return [Record(category, GOOD, image, None) for image in held_back] + defective


# --- MVTec-AD, LOCO, AD2: <category>/{train/good,test/<defect>,ground_truth/<defect>} ---


def mvtec_categories(root: Path) -> list[Path]:
    """Return the categories' folders, however deep they lie."""
    if any((root / name).is_dir() for name in ("train", *TEST_FOLDERS)):
        return [root]
    return [found for folder in _folders(root) for found in mvtec_categories(folder)]


def read_mvtec(root: Path, split: str) -> list[Record]:
    """List MVTec-AD's folders; images without a kind of defect are of unknown state."""
    names, listing = TEST_FOLDERS if split == "test" else (split,), Listing()
    found = []
    for category in mvtec_categories(root):
        for part in (category / name for name in names):
            masks = next(
                (above / "ground_truth" for above in (part, category) if (above / "ground_truth").is_dir()), None
            )
            found += [Record(category.resolve().name, UNKNOWN, image, None) for image in _images(part)]
            for kind in _folders(part):
                if kind != masks:
                    found += [_mvtec_image(category, kind, image, masks, listing) for image in image_files(kind)]
    return found


def _mvtec_image(category: Path, kind: Path, image: Path, masks: Path | None, listing: Listing) -> Record:
    defect, folder = _defect(kind.name), image.parent.relative_to(kind.parent)
    mask = None if defect == GOOD or masks is None else listing.mask(masks / folder, image)
    return Record(category.resolve().name, defect, image, mask)


# --- KolektorSDD2: {train,test}/{<name>.png,<name>_GT.png}, a black mask of a normal image ---


def has_pairs(root: Path) -> bool:
    """Return whether a split's images have their masks beside them."""
    listing = Listing()
    return any(listing.is_mask(path) for split in ("test", "train") for path in _images(root / split))


def read_pairs(root: Path, split: str) -> list[Record]:
    """List images with their masks beside them."""
    listing = Listing()
    images = [path for path in _images(root / split) if not listing.is_mask(path)]
    return [_by_mask(root.resolve().name, image, listing.found_mask(image.parent, image)) for image in images]


def _by_mask(category: str, image: Path, mask: Path | None) -> Record:
    """Return the row of an image whose mask alone tells whether it is defective."""
    if mask is None:
        return Record(category, UNKNOWN, image, None)
    return Record(category, GOOD, image, None) if _is_black(mask) else Record(category, "defect", image, mask)


def _is_black(mask: Path) -> bool:
    try:
        with opened(mask) as picture:
            return picture.convert("L" if picture.mode in ("1", "P", "RGB", "RGBA") else picture.mode).getbbox() is None
    except ImageError:  # told when the sample is read
        return False


# --- magnetic tiles as they are downloaded: MT_<kind>/Imgs/{<name>.jpg,<name>.png} ---


def tile_kinds(root: Path) -> list[Path]:
    """Return the folders of the kinds of defect."""
    return [folder for folder in _folders(root) if folder.name.startswith("MT_") and (folder / "Imgs").is_dir()]


def read_tiles(root: Path, split: str) -> list[Record]:
    """List the magnetic tiles, all of them for testing.

    Raises:
        ValueError: another split is asked for.
    """
    if split != "test":
        raise ValueError(f"{root}: magnetic tiles have no split={split!r}; allowed: test")
    found = []
    for folder in tile_kinds(root):
        defect = _defect(folder.name)
        for image in _images(folder / "Imgs"):
            if image.suffix.lower() in (".jpg", ".jpeg"):
                mask = None if defect == GOOD else image.with_suffix(".png")
                found.append(Record("magnetic tile", defect.removeprefix("MT_").lower(), image, mask))
    return found


# --- a plain folder: images in folders that say what is wrong with them, and masks in folders of their own ---


def has_images(root: Path) -> bool:
    """Return whether there is any image below a folder."""
    return any(True for _ in image_files(root))


def read_plain(root: Path, split: str, mask_dir: Path | None = None) -> list[Record]:
    """List images however deep they lie.

    Args:
        root: the folder.
        split: only "test".
        mask_dir: where the masks are; unset: below folders that are called so.

    Raises:
        ValueError: another split is asked for.
    """
    if split == "train":
        raise ValueError(f"{root}: a plain folder has no split='train'; allowed: test")
    files = sorted(image_files(root), key=lambda path: (len(path.parts), path))
    of_masks = {path for path in files if _in_mask_folder(path, root) or (mask_dir and mask_dir in path.parents)}
    masks = _named_masks(image_files(mask_dir) if mask_dir else sorted(of_masks))
    listing = Listing()
    images = [path for path in files if path not in of_masks and not listing.is_mask(path)]
    return [_plain_image(root, image, masks, listing) for image in images]


def _plain_image(root: Path, image: Path, masks: dict[str, list[Path]], listing: Listing) -> Record:
    category, defect = _meaning(root, image.relative_to(root).parts[:-1])
    if defect == GOOD:
        return Record(category, GOOD, image, None)
    mask = _mask_of(image, masks) or listing.found_mask(image.parent, image)
    return _by_mask(category, image, mask) if defect == UNKNOWN else Record(category, defect, image, mask)


def _meaning(root: Path, folders: tuple[str, ...]) -> tuple[str, str]:
    """Return category and defect of an image by the folders that it lies in.

    Up to one that says good or bad they are the category, behind it the kind of defect; where none says so, the last
    one is the kind.
    """
    if not folders:
        return root.resolve().name, UNKNOWN
    words = [number for number, name in enumerate(folders) if name.lower() in NORMAL_NAMES | DEFECTIVE_NAMES]
    at = words[0] if words else len(folders) - 1
    defect = GOOD if folders[at].lower() in NORMAL_NAMES else folders[-1]
    return "/".join(folders[:at]) or root.resolve().name, defect


def _in_mask_folder(path: Path, root: Path) -> bool:
    return any(name.lower() in MASK_FOLDERS for name in path.relative_to(root).parts[:-1])


def _named_masks(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Return masks by the name of their image, in lower case."""
    named: dict[str, list[Path]] = {}
    for path in paths:
        stem = path.stem.lower()
        ending = next(ending for ending in MASK_ENDINGS if stem.endswith(ending))
        for name in {stem, stem.removesuffix(ending)}:
            named.setdefault(name, []).append(path)
    return named


def _mask_of(image: Path, masks: dict[str, list[Path]]) -> Path | None:
    """Return an image's mask: of several with its name the one whose folders are most like its own."""
    named = masks.get(image.stem.lower(), [])
    alike = [len(set(image.parent.parts) & set(mask.parent.parts)) for mask in named]
    return named[alike.index(max(alike))] if named else None


# --- shared by the layouts ---


def _defect(name: str) -> str:
    return GOOD if name.lower() in NORMAL_NAMES else name


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Return the images in a folder itself."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def _check_fields(path: Path, needed: Iterable[str], given: Iterable[str]) -> None:
    missing = [field for field in needed if field not in given]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} is missing")
