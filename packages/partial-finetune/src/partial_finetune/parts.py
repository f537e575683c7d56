"""The parts of a timm backbone: which parameter and which buffer belongs to what, in the order in which parts run.

A block is found from the top: it is a module with a token mixer and a channel mixer among its direct children, or an
inverted residual of convolutions. The names of those children say what they are, by equality and never by substring
(``cpb_mlp`` is inside an attention, ``attn_pool.mlp`` is in the head). What lies outside the blocks is known by its
name and by its place: before, between or after them. Every parameter and every buffer is in exactly one unit, and a
model that leaves something over is refused.

Inside blocks there are these kinds of units: ``attn`` (whatever mixes tokens: ``token_mixer``, ``mlp_tokens``, the
``conv_dw`` of a ConvNeXt, and what serves it, such as the projection of its shortcut), ``ffn``, ``norm`` and ``scale``;
in inverted residuals ``expand``, ``depthwise``, ``project``, ``se`` and ``norm``. Outside: ``stem``, ``down`` (what
runs between two blocks, numbered by the second), ``final_norm``, ``neck`` (pretrained layers between the last block and
the classifier: ``attn_pool``, ``conv_head``) and ``classifier``, which is exactly what a new data set replaces.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

MIXERS = {"attn", "attn_downsample", "conv_dw", "linear_tokens", "mlp_tokens", "modulation", "token_mixer"}
FFNS = {"mlp", "mlp_channels"}
BESIDE = {"attn_mask", "cpe1", "cpe2", "local_mp", "proj", "shortcut_proj_attn"}  # token mixers' own helpers
BLOCK = {
    **dict.fromkeys(MIXERS | BESIDE, "attn"),
    **dict.fromkeys(FFNS | {"shortcut_proj_mlp"}, "ffn"),
    **dict.fromkeys(["norm", "norm1", "norm1_post", "norm2", "norm2_post", "norm3"], "norm"),
    **dict.fromkeys(["gamma", "gamma1", "gamma2", "gamma3", "gamma_1", "gamma_2", "ls1", "ls2"], "scale"),
    **dict.fromkeys(["layer_scale", "layer_scale1", "layer_scale2", "layer_scale_1", "layer_scale_2"], "scale"),
    **dict.fromkeys(["res_scale1", "res_scale2"], "scale"),
}
INVERTED_RESIDUAL = {
    **dict.fromkeys(["conv", "conv_exp", "conv_pw"], "expand"),
    "conv_dw": "depthwise",
    "conv_pwl": "project",
    "se": "se",
    **dict.fromkeys(["bn1", "bn2", "bn3"], "norm"),
}
SEPARABLE = {**INVERTED_RESIDUAL, "conv_pw": "project"}  # has nothing to expand: depthwise first

TOKENS = {"cls_token", "dist_token", "pos_embed", "pos_embed_win", "pos_embed_window", "reg_token"}
BEFORE = {
    **dict.fromkeys(["bn1", "conv_stem", "embeds", "patch_embed", "patch_embeds", "stem"], "stem"),
    **dict.fromkeys(["norm_pre", "patch_drop", "pos_drop", "pos_embed", "rel_pos_bias", "rope"], "stem"),
    "shared_rel_pos": "stem",
}
BETWEEN = dict.fromkeys(["downsample", "network", "norm", "patch_embeds", "pool", "pos_block", "pos_emb"], "down")
AFTER = {
    **dict.fromkeys(["bn2", "fc_norm", "norm", "norm_head", "norm_pre"], "final_norm"),
    **dict.fromkeys(["attn_pool", "conv_head", "fc1", "final_conv", "neck", "pre_logits"], "neck"),
    "aux_head": "classifier",
}
# Twins lists these by stage: entry i runs so many blocks after the first block of stage i begins
BY_STAGE = {"patch_embeds": 0, "pos_block": 1}

LAYERS = ("attn", "ffn", "expand", "depthwise", "project")
HEAD = ("neck", "final_norm", "classifier")
KINDS = ("stem", "down", *LAYERS, "se", "norm", "scale", *HEAD)


@dataclass(frozen=True)
class Unit:
    """Parameters and buffers of one kind, of one block or outside the blocks."""

    kind: str
    """One of :data:`KINDS`."""
    block: int | None
    """Number of the block in execution order over the whole model (for ``down``: that runs next); None outside."""
    modules: tuple[str, ...]
    """Paths of the modules that make it up; bare parameters have none."""
    parameters: tuple[str, ...]
    """Full names, in the model's order."""
    buffers: tuple[str, ...]
    """Full names, in the model's order."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the parameters."""

    @property
    def name(self) -> str:
        """Its name, and the term that selects it: ``attn[3]``, ``stem``."""
        return self.kind if self.block is None else f"{self.kind}[{self.block}]"

    def below(self, parameter: str) -> tuple[str, ...]:
        """Return the components of a parameter's name below the unit's module; outside blocks, the whole name's."""
        if self.block is None:
            return tuple(parameter.split("."))
        for module in self.modules:
            if parameter.startswith(f"{module}."):
                return tuple(parameter.removeprefix(f"{module}.").split("."))
        return (parameter.rpartition(".")[2],)


@dataclass(frozen=True)
class Anatomy:
    """A model's units, in the order in which they run; inside a block in the order of its definition."""

    units: tuple[Unit, ...]
    blocks: tuple[str, ...]
    """Module paths of the blocks in execution order."""
    parameters: tuple[str, ...]
    """Names of all parameters, in the model's order."""

    def unit(self, name: str) -> Unit:
        """Return the unit of this name, such as ``"attn[3]"``; ``ValueError`` if there is none."""
        if name not in self._by_name:
            raise ValueError(f"the model has no unit {name!r}; allowed: {', '.join(self._by_name)}")
        return self._by_name[name]

    def owner(self, tensor: str) -> Unit:
        """Return the unit that a parameter or buffer belongs to; ``ValueError`` if there is none."""
        if tensor not in self._by_tensor:
            raise ValueError(f"the model has no parameter or buffer {tensor!r}; allowed: its {len(self._by_tensor)}")
        return self._by_tensor[tensor]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that the model has, in order of their first unit."""
        return tuple(dict.fromkeys(unit.kind for unit in self.units))

    @property
    def layers(self) -> tuple[Unit, ...]:
        """The units that are a block's token or channel mixer, or a convolution of an inverted residual."""
        return tuple(unit for unit in self.units if unit.kind in LAYERS and unit.parameters)

    def groups(self) -> tuple[tuple[Unit, ...], ...]:
        """Return the homogeneous groups: layers of the same kind whose parameters have the same shapes."""
        found: dict[tuple[str, tuple[tuple[int, ...], ...]], list[Unit]] = defaultdict(list)
        for unit in self.layers:
            found[unit.kind, unit.shapes].append(unit)
        return tuple(map(tuple, found.values()))

    @cached_property
    def _by_name(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.units}

    @cached_property
    def _by_tensor(self) -> dict[str, Unit]:
        return {name: unit for unit in self.units for name in (*unit.parameters, *unit.buffers)}


Place = tuple[str, int | None]  # kind and block of a unit


def anatomy(model: nn.Module) -> Anatomy:
    """Return the units of a timm backbone, which may be on the meta device.

    Tied parameters count once, under their first name.

    Raises:
        ValueError: the model is not understood; the message lists the names of what is left over.
    """
    atoms = tuple(_atoms(model, _whole(model)))
    blocks = tuple(path for path, module in atoms if _table(module))
    places = _places(model, atoms, blocks)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    owned: dict[Place | None, list[str]] = defaultdict(list)
    for name in (*shapes, *(name for name, _ in model.named_buffers())):
        owned[_owner(places, name)].append(name)
    if None in owned or not blocks:
        raise ValueError(_refusal(model, owned[None] or [name for names in owned.values() for name in names]))
    order = sorted(dict.fromkeys(places.values()), key=_rank)
    units = tuple(_unit(place, places, owned[place], shapes) for place in order if owned[place])
    return Anatomy(units, blocks, tuple(shapes))


def _table(module: nn.Module) -> Mapping[str, str] | None:
    """Return what the names of a block's children mean, or None if the module is no block."""
    names = {name for name, _ in module.named_children()}
    if names & MIXERS and names & FFNS:
        return BLOCK
    if "conv_pwl" in names or {"conv", "bn1"} <= names:
        return INVERTED_RESIDUAL
    return SEPARABLE if {"conv_dw", "conv_pw"} <= names else None


def _classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    found = getattr(model, "get_classifier", tuple)()
    return tuple(found) if isinstance(found, tuple) else (found,)


def _whole(model: nn.Module) -> set[int]:
    """Return the ids of the modules that are taken as a whole: blocks and classifiers."""
    return {id(module) for module in model.modules() if _table(module)} | set(map(id, _classifiers(model)))


def _atoms(module: nn.Module, whole: set[int], path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield, with their paths and from the top, what is whole and the modules beside it."""
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        holds_more = isinstance(child, nn.ModuleList) or any(id(each) in whole for each in child.modules())
        if id(child) not in whole and holds_more:
            yield from _atoms(child, whole, here)
        else:
            yield here, child


def _places(model: nn.Module, atoms: Iterable[tuple[str, nn.Module]], blocks: Sequence[str]) -> dict[str, Place]:
    """Return the unit of every module path and bare tensor whose name is known where it is."""
    places: dict[str, Place] = {name: ("stem", None) for name in _bare(model) if name in TOKENS}
    classifiers = set(map(id, _classifiers(model)))
    seen = 0  # blocks
    for path, module in atoms:
        if id(module) in classifiers:
            places[path] = "classifier", None
        elif table := _table(module):
            names = [*(name for name, _ in module.named_children()), *_bare(module)]
            places |= {f"{path}.{name}": (table[name], seen) for name in names if name in table}
            seen += 1
        elif kind := _kind_outside(path, before := _runs_before(path, seen, blocks), len(blocks)):
            places[path] = kind, before if kind == "down" else None
    return places


def _kind_outside(path: str, before: int, blocks: int) -> str | None:
    """Return what a module beside the blocks is, of which there are ``blocks``, if it runs before number ``before``."""
    name = next((part for part in reversed(path.split(".")) if not part.isdecimal()), "")
    table = BEFORE if before == 0 else AFTER if before == blocks else BETWEEN
    return table.get(name)


def _runs_before(path: str, seen: int, blocks: Sequence[str]) -> int:
    """Return the number of the block before which a module runs: by order of definition, or by stage."""
    name, _, stage = path.rpartition(".")
    if name not in BY_STAGE:
        return seen
    first = next((number for number, block in enumerate(blocks) if f".{stage}." in block), seen)
    return first + BY_STAGE[name]


def _bare(module: nn.Module) -> list[str]:
    """Return the names of a module's own parameters and buffers."""
    return [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]


def _owner(places: Mapping[str, Place], tensor: str) -> Place | None:
    parts = tensor.split(".")
    paths = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((places[path] for path in paths if path in places), None)


def _rank(place: Place) -> tuple[float, bool]:
    """Return what units sort by; those that are alike stay in the order of definition."""
    kind, block = place
    if block is None:
        return (-1, False) if kind == "stem" else (math.inf, kind == "classifier")
    return block, kind != "down"


def _unit(place: Place, places: Mapping[str, Place], tensors: Sequence[str], shapes: Mapping[str, tuple]) -> Unit:
    modules = tuple(path for path, owner in places.items() if owner == place and path not in tensors)
    parameters = tuple(name for name in tensors if name in shapes)
    buffers = tuple(name for name in tensors if name not in shapes)
    return Unit(*place, modules, parameters, buffers, tuple(shapes[name] for name in parameters))


def _refusal(model: nn.Module, left_over: Sequence[str]) -> str:
    shown = ", ".join(left_over[:6]) + f" and {len(left_over) - 6} more" * (len(left_over) > 6)
    why = f"{shown} left over" if left_over else "it has no parameters"
    return (
        f"model {type(model).__name__} is not understood, {why}; allowed: timm backbones of blocks with separate "
        "token and channel mixers, or of inverted residuals"
    )
