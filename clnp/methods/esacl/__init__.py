"""EsaCL (Ren & Honavar 2024, arXiv:2401.05667), reconstructed, in parts that can be used alone.

No code of the authors is public, and the formulas here are put together from the abstract, notes on
the paper and the works it builds on; each part says from what. `docs/methods.md` has the list.
"""

from ...pruning.norms import channel_scores
from ...training.frank_wolfe import FrankWolfe, perturbed, prune_to
from ...training.polytope import channel_vertex, in_channel_polytope, in_polytope, vertex
from ...training.sdp_fit import SDPSettings, StructuredFit
from ..co2l import asymmetric_contrast, instance_distillation
from .ids import eliminate_redundant, gradient_embedding, select, support_examples

__all__ = [
    "FrankWolfe",
    "SDPSettings",
    "StructuredFit",
    "asymmetric_contrast",
    "channel_scores",
    "channel_vertex",
    "eliminate_redundant",
    "gradient_embedding",
    "in_channel_polytope",
    "in_polytope",
    "instance_distillation",
    "perturbed",
    "prune_to",
    "select",
    "support_examples",
    "vertex",
]
