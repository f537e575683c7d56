"""Search spaces. A new one is a file with a :class:`~bdp_nas.spaces.space.Space`, and a line here."""

from typing import TYPE_CHECKING

from bdp_nas.registry import look_up

if TYPE_CHECKING:  # a list of names needs no torch
    from bdp_nas.spaces.space import Space

SPACES = {
    "nasbench201": "bdp_nas.spaces.nasbench201:NASBench201Space",
    "darts": "bdp_nas.spaces.darts:DartsSpace",
    "mobilenet": "bdp_nas.spaces.mobilenet:MobileNetSpace",
    "macro": "bdp_nas.spaces.macro:MacroSpace",
}


def get_space(name: str) -> "Space":
    """Return a space by its name.

    Raises:
        ValueError: a name that is not in ``SPACES``.
    """
    return look_up("space", name, SPACES)()
