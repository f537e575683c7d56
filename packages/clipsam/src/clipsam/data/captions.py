"""What is written under a drawn sample: phrases of state, defect, object and colour, to train a text tower on.

The vocabulary is everything these tables can say; :data:`OBJECT_WORDS` alone has several hundred names.
"""

import numpy as np

from clipsam.samples import GOOD

# "surface", "object", ... name every category, so that the class-agnostic prompts are learnt as well
ANY_TEXTURE = ("surface", "material", "texture", "sheet of material")
ANY_OBJECT = ("object", "item", "product", "part", "component", "piece")
GENERIC_SHARE = 0.15


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


OBJECT_WORDS: dict[str, tuple[str, ...]] = {
    "brushed_metal": _words(
        "brushed metal, brushed steel, metal, steel, metal sheet, steel plate, aluminium, stainless steel, metal "
        "surface, rolled steel, metal panel, sheet metal"
    ),
    "fabric": _words(
        "fabric, woven fabric, cloth, textile, canvas, linen, cotton cloth, denim, weave, woven cloth, twill, "
        "burlap, sackcloth"
    ),
    "wood": _words(
        "wood, timber, wooden board, wood grain, plank, wooden surface, oak, pine board, veneer, lumber, plywood"
    ),
    "floorboards": _words(
        "floorboards, wooden floor, parquet, hardwood floor, laminate floor, wooden planks, decking, panelling, "
        "wooden boards"
    ),
    "marble": _words(
        "marble, marble slab, stone slab, polished stone, veined stone, marble countertop, marble tile, natural stone"
    ),
    "concrete": _words(
        "concrete, cement, concrete wall, concrete slab, plaster, stucco, pavement, mortar, cement floor, rendered wall"
    ),
    "leather": _words(
        "leather, leather hide, cowhide, leather seat, upholstery, leather cover, artificial leather, faux leather, "
        "leather bag"
    ),
    "ceramic_tiles": _words(
        "ceramic tiles, tiles, tile, tiled wall, tiled floor, bathroom tiles, mosaic, porcelain tiles, floor tiles, "
        "tile grid"
    ),
    "brick_wall": _words("brick wall, bricks, brickwork, masonry, brick, wall of bricks, brick facade"),
    "wire_mesh": _words(
        "wire mesh, grid, wire grid, mesh, metal grid, grating, wire fence, screen, grille, sieve, netting, metal "
        "lattice"
    ),
    "carpet": _words("carpet, rug, carpeting, floor covering, doormat, carpet pile, plush, mat"),
    "ruled_paper": _words(
        "ruled paper, graph paper, paper, sheet of paper, lined paper, squared paper, notepad, form, page"
    ),
    "striped_print": _words(
        "printed pattern, striped print, wallpaper, printed fabric, stripes, printed sheet, patterned paper, "
        "wrapping paper, dotted print, checked print, label"
    ),
    "corrugated_sheet": _words(
        "corrugated sheet, corrugated iron, corrugated metal, roofing sheet, ribbed panel, metal cladding, ribbed "
        "sheet, corrugated roof"
    ),
    "foam": _words("foam, sponge, foam rubber, porous foam, polyurethane foam, foam block, porous material"),
    "galvanized_steel": _words(
        "galvanized steel, galvanized sheet, zinc, zinc coating, galvanized metal, zinc plated sheet, crystalline "
        "metal, spangled zinc"
    ),
    "perforated_sheet": _words(
        "perforated sheet, perforated metal, perforated plate, pegboard, speaker grille, hole plate, perforated "
        "panel, strainer"
    ),
    "knitwear": _words("knitwear, knitted fabric, knit, sweater, jersey, wool, pullover, knitted wool"),
    "louvre": _words(
        "louvre, blinds, shutter, window blind, slats, ventilation grille, radiator, vent, jalousie, heat sink"
    ),
    "terrazzo": _words("terrazzo, terrazzo floor, granite, speckled stone, stone floor, granite slab, composite stone"),
    "tread_plate": _words(
        "tread plate, checker plate, diamond plate, anti-slip plate, metal flooring, stair plate, embossed metal"
    ),
    "basket_weave": _words("basket weave, wicker, rattan, basket, woven strips, cane work, straw mat, webbing"),
    "asphalt": _words("asphalt, road surface, tarmac, sandpaper, grit, abrasive paper, gravel surface, road"),
    "cardboard": _words("cardboard, carton, cardboard box, packaging, corrugated board, paperboard, parcel"),
    "bolt": _words("bolt, bolt head, hex bolt, hexagon bolt, machine bolt, hexagonal bolt, fastener"),
    "screw": _words("screw, screw head, wood screw, machine screw, metal screw, grub screw, fixing screw"),
    "washer": _words("washer, ring, metal ring, gasket, flat washer, spacer, seal ring, shim"),
    "nut": _words("nut, metal nut, hex nut, hexagon nut, lock nut, threaded nut"),
    "pill": _words("pill, tablet, medicine tablet, drug, medical tablet, aspirin, vitamin tablet"),
    "capsule": _words("capsule, gel capsule, medicine capsule, drug capsule, softgel, vitamin capsule"),
    "bottle_cap": _words("bottle cap, crown cap, bottle top, crown cork, lid, cap, beer cap, bottle lid"),
    "gear": _words("gear, cogwheel, gear wheel, sprocket, cog, toothed wheel, pinion"),
    "button": _words("button, shirt button, coat button, plastic button, sewing button, clothes button"),
    "cable": _words("cable, wire, cables, wires, power cord, electric cable, cord, hose, lead, wiring"),
    "circuit_board": _words(
        "circuit board, pcb, printed circuit board, electronic board, circuit, mainboard, board traces, electronics"
    ),
    "coin": _words("coin, metal coin, token, medal, penny, coinage, medallion"),
    "zipper": _words("zipper, zip, zip fastener, fly, jacket zipper, zip teeth, bag zipper"),
    "bearing": _words("bearing, ball bearing, roller bearing, wheel bearing, race ring"),
    "chip": _words("chip, integrated circuit, microchip, ic, semiconductor package, processor, electronic chip"),
    "spring": _words("spring, coil spring, metal spring, coil, compression spring, helical spring"),
    "battery": _words("battery, cell battery, aa battery, dry battery, rechargeable battery, accumulator"),
    "connector": _words("connector, plug, socket, pin header, terminal block, electrical connector, port"),
}

PERFECT = _words(
    "flawless, perfect, unblemished, intact, undamaged, good, normal, clean, faultless, pristine, new, fine, "
    "spotless, healthy, sound"
)
DAMAGED = _words(
    "damaged, broken, defective, faulty, flawed, imperfect, blemished, bad, abnormal, spoiled, anomalous, ruined, "
    "marred"
)
FLAWS = _words("defect, flaw, damage, blemish, fault, anomaly, imperfection")

# kind of defect -> what such an object is called, and what it is said to have
DEFECT_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scratch": (
        _words("scratched, scraped, scuffed, grazed"),
        _words("scratch, scratches, scrape, score mark"),
    ),
    "crack": (
        _words("cracked, fractured, split, fissured"),
        _words("crack, cracks, fracture, fissure, split"),
    ),
    "hole": (
        _words("perforated, punctured, pierced, holed"),
        _words("hole, puncture, pit, perforation, opening"),
    ),
    "stain": (
        _words("stained, soiled, dirty, smeared"),
        _words("stain, smear, dirt, liquid stain, spill"),
    ),
    "dark_region": (
        _words("partly dark, darkened, burnt, blackened"),
        _words("dark region, dark area, dark blotch, black patch, inactive area"),
    ),
    "bright_spot": (
        _words("partly bright, overexposed, bleached"),
        _words("bright spot, bright blotch, white spot, hot spot"),
    ),
    "dent": (
        _words("dented, bent, deformed, squeezed"),
        _words("dent, bump, deformation, bulge, depression"),
    ),
    "cut_paste": (
        _words("patched, misassembled, mixed-up"),
        _words("foreign patch, wrong part, swapped part, misplaced piece"),
    ),
    "blend": (
        _words("discoloured, corroded, rusty, mouldy, rotten"),
        _words("corrosion, rust, mould, discolouration, foreign texture"),
    ),
    "missing_part": (
        _words("incomplete, torn, cut off"),
        _words("missing part, missing piece, gap, cut, break"),
    ),
    "colour_spot": (
        _words("spotted, coloured, painted"),
        _words("colour spot, coloured spot, paint drop, ink spot"),
    ),
    "broken_line": (
        _words("interrupted, worn, frayed"),
        _words("broken line, interruption, broken structure, worn area"),
    ),
    "thread": (
        _words("contaminated, hairy, littered"),
        _words("thread, hair, fibre, contamination, foreign body"),
    ),
    "chip": (
        _words("chipped, nicked, notched"),
        _words("chipped edge, chip, nick, notch, broken edge"),
    ),
    "misprint": (
        _words("misprinted, smudged, mislabelled"),
        _words("misprint, double print, faulty imprint, print error"),
    ),
}

TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a close-up photo of {}",
    "a cropped photo of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a blurry photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photo of {} for visual inspection",
    "a photo of {} for anomaly detection",
    "a close-up of {}",
    "a microscope image of {}",
    "there is {} in the scene",
    "a low resolution photo of {}",
)


def object_word(category: str, rng: np.random.Generator) -> str:
    """Return one of the category's names; a word for any surface or object now and then."""
    names = OBJECT_WORDS.get(category, (category.replace("_", " "),))
    if rng.random() < GENERIC_SHARE:
        names = ANY_TEXTURE + ANY_OBJECT
    return _one(names, rng)


def caption(category: str, defect: str, colour: str, rng: np.random.Generator) -> str:
    """Return a random phrase such as ``"a photo of a cracked brown leather"``.

    Args:
        category: a key of :data:`OBJECT_WORDS`, or any other name (underscores become spaces).
        defect: a key of :data:`DEFECT_WORDS`, or ``"good"``.
        colour: ``""`` leaves it out; else it is said in two of three phrases.
        rng: the source of every choice.
    """
    name = object_word(category, rng)
    if colour and rng.random() < 2 / 3:
        name = f"{colour} {name}"
    phrase = _good_phrase(name, rng) if defect == GOOD else _defect_phrase(name, defect, rng)
    return _one(TEMPLATES, rng).format(phrase)


def captions(category: str, defect: str, colour: str, rng: np.random.Generator, count: int) -> list[str]:
    """Return ``count`` phrases for one image, each as in :func:`caption`; some may be equal."""
    return [caption(category, defect, colour, rng) for _ in range(count)]


def vocabulary() -> tuple[str, ...]:
    """Return every single word that a caption can hold, sorted, without the colours."""
    phrases = [*PERFECT, *DAMAGED, *FLAWS, *TEMPLATES, *ANY_TEXTURE, *ANY_OBJECT, "a an with without any no and has"]
    phrases += [word for words in OBJECT_WORDS.values() for word in words]
    phrases += [word for kinds in DEFECT_WORDS.values() for words in kinds for word in words]
    return tuple(sorted({word for phrase in phrases for word in phrase.replace("{}", "").split()}))


def _good_phrase(name: str, rng: np.random.Generator) -> str:
    form = rng.integers(4)
    if form == 0:
        return _with_article(name)
    if form == 1:
        return f"{_with_article(name)} {_one(('without', 'with no'), rng)} {_one(FLAWS, rng)}"
    return _with_article(f"{_one(PERFECT, rng)} {name}")


def _defect_phrase(name: str, defect: str, rng: np.random.Generator) -> str:
    adjectives, nouns = DEFECT_WORDS[defect]
    form = rng.integers(6)
    if form < 2:
        return _with_article(f"{_one(adjectives, rng)} {name}")
    if form < 4:
        return f"{_with_article(name)} with {_with_article(_one(nouns, rng))}"
    if form == 4:
        return _with_article(f"{_one(DAMAGED, rng)} {name}")
    return f"{_with_article(name)} with {_with_article(_one(FLAWS, rng))}"


def _with_article(phrase: str) -> str:
    if phrase.endswith("s") and not phrase.endswith("ss"):  # tiles, cracks
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
