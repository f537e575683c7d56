from .choice import Choice, select
from .cost import Cost, training_cost
from .deltas import base_hashes, load_delta, merge, open_delta, save_delta
from .fine_tuned_angle import angle, angles
from .frozen import Frozen, freeze
from .network import Network, open_pretrained
from .optimizer_groups import parameter_groups
from .parts import Anatomy, anatomy
from .prediction import predict
from .tuned import load_tuned

__version__: str
__all__ = [
    "Anatomy",
    "Choice",
    "Cost",
    "Frozen",
    "Network",
    "anatomy",
    "angle",
    "angles",
    "base_hashes",
    "freeze",
    "load_delta",
    "load_tuned",
    "merge",
    "open_delta",
    "open_pretrained",
    "parameter_groups",
    "predict",
    "save_delta",
    "select",
    "training_cost",
]
