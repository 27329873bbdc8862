"""EsaCL (Ren & Honavar 2024, arXiv:2401.05667), reconstructed, in parts that can be used alone.

No code of the authors is public, and the formulas here are put together from the abstract, notes on
the paper and the works it builds on; each part says from what. `docs/methods.md` has the list.
"""

from clnp.methods.esacl.co2l import asymmetric_contrast, instance_distillation
from clnp.methods.esacl.ids import eliminate_redundant, gradient_embedding, select, support_examples
from clnp.methods.esacl.polytope import channel_vertex, in_channel_polytope, in_polytope, vertex
from clnp.methods.esacl.sdp import FrankWolfe, perturbed, prune_to
from clnp.methods.esacl.structured import (
    SDPSettings,
    StructuredFit,
    channel_scores,
    structured_sdp,
)

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
    "structured_sdp",
    "support_examples",
    "vertex",
]
