"""Which parameters to tune, said in one line: ``attn[0:6] | ffn[6:12]``, ``block[::2] - norm``, ``attn.proj``.

::

    expression = set (("|" or "&" or "-") set)*          union, intersection, difference
    set        = (term or "(" expression ")") ("+norm" or "+bias" or "+scale")*
    term       = name ("." component)* ("[" index ("," index)* "]")?

A *name* is a kind of unit (see :mod:`partial_finetune.parts`), ``block`` (everything in blocks and between them),
``head`` (everything after the last block), ``bias`` (every bias of the model) or a preset. *Components* are those of
parameter names below the unit's module, compared as a whole (``attn.proj``, ``ffn.fc1``, ``attn.bias``). An *index* is
Python's, or a slice, over the numbers of the blocks in execution order; ``half`` stands for half their number. As of
Python's sets, ``-`` binds more tightly than ``&``, and that more tightly than ``|``. ``+norm`` adds the norms of the
blocks that the set right before it touches: ``(attn[0] | ffn[3])+norm``.

Unless the expression names ``head`` or a part of it, ``head`` is tuned too.
"""

import operator
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from partial_finetune.parts import HEAD, KINDS, Anatomy, Unit

PRESETS = {
    "full": "stem | block | head",
    "linear": "classifier",
    "bitfit": "bias",
    "apla": "attn.proj",
    "first_half": "block[:half]",
    "last_half": "block[half:]",
    "attn_first": "attn[:half]",
    "attn_last": "attn[half:]",
    "ffn_first": "ffn[:half]",
    "ffn_last": "ffn[half:]",
    "last_K": "block[-K:]",
    "random_K": "K random layers of every homogeneous group, or all of a smaller one",
}
"""Name → what it stands for; K is a number: ``last_2``, ``random_3``."""

GRID8 = ("attn", "ffn", "first_half", "last_half", "attn_first", "attn_last", "ffn_first", "ffn_last")
"""Eight manual strategies, {both, attn, ffn} × {all, first half, last half} without full fine-tuning. Which eight
arXiv 2312.15681 compared could not be read: these are a reconstruction."""

BIASES = {"bias", "q_bias", "k_bias", "v_bias", "beta"}  # BEiT and EVA have the bias of qkv apart; ResMLP's norm has β
EXTRAS = ("norm", "bias", "scale")
OPERATORS: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
    ("|", operator.or_),
    ("&", operator.and_),
    ("-", operator.sub),
)  # the loosest first
Names = frozenset[str]  # of parameters


class StrategyError(ValueError):
    """An expression that cannot be used; the message points at the column."""

    def __init__(self, expression: str, column: int, problem: str) -> None:
        super().__init__(f"strategy {expression!r}, column {column}: {problem}")
        self.column = column
        """Counted from 1."""
        self.problem = problem


@dataclass(frozen=True)
class Selection:
    """What an expression selects in a model."""

    expression: str
    parameters: tuple[str, ...]
    """Names of the parameters to tune, with the head's, in the model's order."""
    units: tuple[str, ...]
    """Names of the units of which at least one parameter is tuned, in execution order."""


def select_parameters(expression: str, anatomy: Anatomy, *, seed: int = 0) -> Selection:
    """Return the parameters that an expression selects.

    Args:
        expression: as described above.
        anatomy: of the model.
        seed: of ``random_K``.

    Raises:
        StrategyError: it does not parse, names what the model lacks, or selects nothing.
    """
    parser = _Parser(expression, anatomy, seed)
    chosen = parser.parse()
    if not parser.names_head:
        chosen |= _parameters(unit for unit in anatomy.units if unit.kind in HEAD)
    parameters = tuple(name for name in anatomy.parameters if name in chosen)
    units = tuple(unit.name for unit in anatomy.units if not chosen.isdisjoint(unit.parameters))
    return Selection(expression, parameters, units)


@dataclass
class _Parser:
    """Recursive descent over the tokens of one expression, which is evaluated on the way."""

    expression: str
    anatomy: Anatomy
    seed: int
    names_head: bool = False
    position: int = 0

    def __post_init__(self) -> None:
        """Split the expression into tokens with their columns; the last one is empty."""
        found = [(match[1], match.start(1) + 1) for match in re.finditer(r"\s*(\w+|\S)", self.expression)]
        self.tokens = [*found, ("", len(self.expression) + 1)]

    @property
    def token(self) -> str:
        return self.tokens[self.position][0]

    @property
    def column(self) -> int:
        return self.tokens[self.position][1]

    def fail(self, problem: str, column: int | None = None) -> NoReturn:
        raise StrategyError(self.expression, column or self.column, problem)

    def take(self) -> str:
        token = self.token
        self.position += bool(token)  # the empty one at the end stays
        return token

    def accept(self, token: str) -> bool:
        found = self.token == token
        self.position += found
        return found

    def expect(self, token: str) -> None:
        if not self.accept(token):
            self.unexpected(repr(token))

    def unexpected(self, allowed: str) -> NoReturn:
        self.fail(f"found {repr(self.token) if self.token else 'the end'}; allowed: {allowed}")

    def parse(self) -> Names:
        chosen = self.operation()
        if self.token:
            self.unexpected("| & - for another set, '+', or the end")
        return chosen or self.fail("selects nothing; allowed: an expression that leaves something", 1)

    def operation(self, level: int = 0) -> Names:
        if level == len(OPERATORS):
            return self.extended()
        sign, combine = OPERATORS[level]
        chosen = self.operation(level + 1)
        while self.accept(sign):
            chosen = combine(chosen, self.operation(level + 1))
        return chosen

    def extended(self) -> Names:
        if self.accept("("):
            chosen = self.operation()
            self.expect(")")
        else:
            chosen = self.term()
        while self.accept("+"):
            chosen |= self.extra(chosen)
        return chosen

    def extra(self, chosen: Names) -> Names:
        """Return the norms, biases or scales of the blocks that ``chosen`` touches."""
        if self.token not in EXTRAS:
            self.unexpected(", ".join(EXTRAS))
        column, word = self.column, self.take()
        touched = {self.block(name) for name in chosen} - {None}
        added = frozenset(name for name in self.named(word, column) if self.block(name) in touched)
        return added or self.fail(f"+{word} adds nothing; allowed: after a set that touches blocks", column)

    def term(self) -> Names:
        column = self.column
        chosen = self.named(self.take(), column)
        if self.token == ".":
            chosen = self.below(chosen)
        if self.token == "[":
            chosen = self.within(chosen)
        return chosen or self.fail("selects nothing; allowed: what has parameters", column)

    def below(self, chosen: Names) -> Names:
        """Return the parameters whose names pass through the components that follow."""
        column, path = self.column + 1, ()
        while self.accept("."):
            if not re.match(r"\w", self.token):
                self.unexpected("a component of parameter names, such as proj")
            path += (self.take(),)
        components = {name: self.anatomy.owner(name).below(name) for name in chosen}
        found = frozenset(name for name, parts in components.items() if _passes(parts, path))
        there = sorted({part for parts in components.values() for part in parts})
        return found or self.fail(f"no {'.'.join(path)!r} there; allowed: {', '.join(there)}", column)

    def within(self, chosen: Names) -> Names:
        """Return the parameters in the blocks that the brackets enumerate."""
        column = self.column
        self.expect("[")
        numbers = set(self.index())
        while self.accept(","):
            numbers |= set(self.index())
        self.expect("]")
        found = frozenset(name for name in chosen if self.block(name) in numbers)
        there = sorted({number for name in chosen if (number := self.block(name)) is not None})
        return found or self.fail(f"no such block there; allowed: {', '.join(map(str, there)) or 'no index'}", column)

    def index(self) -> Iterable[int]:
        """Return the numbers of the blocks that an index or a slice stands for."""
        column, blocks = self.column, range(len(self.anatomy.blocks))
        bounds = [self.bound()]
        while len(bounds) < 3 and self.accept(":"):
            bounds.append(self.bound())
        if len(bounds) > 1:
            return blocks[slice(*bounds)] if bounds[2:] != [0] else self.fail("step 0; allowed: any other", column)
        if bounds[0] is None:
            self.unexpected("a number, half, or a slice such as 0:6")
        if not -len(blocks) <= bounds[0] < len(blocks):
            self.fail(f"no block {bounds[0]}; allowed: {-len(blocks)} to {len(blocks) - 1}", column)
        return [blocks[bounds[0]]]

    def bound(self) -> int | None:
        sign = -1 if self.accept("-") else 1
        if self.accept("half"):
            return sign * (len(self.anatomy.blocks) // 2)
        if self.token.isdecimal():
            return sign * int(self.take())
        return self.unexpected("a number or half") if sign < 0 else None

    def named(self, word: str, column: int) -> Names:
        """Return what a name stands for, without components and index."""
        self.names_head |= word == "head" or word in HEAD
        units = self.anatomy.units
        if word == "bias":
            return frozenset(name for name in self.anatomy.parameters if name.rpartition(".")[2] in BIASES)
        if word == "block":
            return _parameters(unit for unit in units if unit.block is not None)
        if word == "head":
            return _parameters(unit for unit in units if unit.kind in HEAD)
        if word in self.anatomy.kinds:
            return _parameters(unit for unit in units if unit.kind == word)
        return self.preset(word, column)

    def preset(self, word: str, column: int) -> Names:
        name, _, number = word.rpartition("_")
        if f"{name}_K" in PRESETS and number.isdecimal():
            return self.counted(name, int(number), column)
        if word in PRESETS and "_K" not in word:
            return self.nested(word, PRESETS[word], column)
        found = f"the model has no {word!r}" if word in KINDS else f"found {word!r}" if word else "found the end"
        self.fail(f"{found}; allowed: {', '.join(self.anatomy.kinds)}, block, head, bias, {', '.join(PRESETS)}", column)

    def counted(self, name: str, count: int, column: int) -> Names:
        groups = self.anatomy.groups()
        most = len(self.anatomy.blocks) if name == "last" else max(map(len, groups), default=0)
        if not 1 <= count <= most:
            self.fail(f"{name}_{count} is out of range; allowed: {name}_1 to {name}_{most}", column)
        if name == "last":
            return self.nested(f"last_{count}", PRESETS["last_K"].replace("K", str(count)), column)
        drawn = random.Random(self.seed)
        return _parameters(unit for group in groups for unit in drawn.sample(group, min(count, len(group))))

    def nested(self, word: str, expression: str, column: int) -> Names:
        inner = _Parser(expression, self.anatomy, self.seed)
        try:
            chosen = inner.parse()
        except StrategyError as error:
            self.fail(f"{word} is {expression!r}, which fails: {error.problem}", column)
        self.names_head |= inner.names_head
        return chosen

    def block(self, parameter: str) -> int | None:
        return self.anatomy.owner(parameter).block


def _parameters(units: Iterable[Unit]) -> Names:
    return frozenset(name for unit in units for name in unit.parameters)


def _passes(components: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Return whether a parameter's name passes through ``path``; every bias may be called ``bias``."""
    names = [components]
    if components[-1] in BIASES:
        names.append((*components[:-1], "bias"))
    return any(name[start : start + len(path)] == path for name in names for start in range(len(name)))
