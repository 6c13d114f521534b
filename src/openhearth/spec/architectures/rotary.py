"""What several families say of their rotary embedding: how much of a head it turns, and its factors."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from openhearth.spec.architectures.records import Settings
from openhearth.spec.fields import Fields


def rope_fields(config: Fields) -> Fields:
    """Return the rotary settings of a `config.json`, in the older or the newer place."""
    return config.mapping("rope_scaling" if config.has("rope_scaling") else "rope_parameters")


def read_rotary_dim(config: Fields, settings: Settings) -> Settings:
    """Return `rotary_dim`, where less than a whole head is turned.

    `partial_rotary_factor` among the rotary settings goes before that of the configuration, as in
    transformers 5.23 (`standardize_rope_params`).
    """
    rope = rope_fields(config)
    owner = rope if rope.has("partial_rotary_factor") else config
    share = owner.number("partial_rotary_factor", 1e-6, 1.0, 1.0)
    return {} if share == 1 else {"rotary_dim": int(settings["head_dim"] * share)}


def turned_share(rotary_dim: int, head_dim: int) -> float:
    """Return the `partial_rotary_factor` that gives rotary_dim when its product with head_dim is cut off."""
    share = rotary_dim / head_dim
    return share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1.0)


def as_float32(values: Sequence[float]) -> tuple[float, ...]:
    """Return numbers rounded to float32."""
    layout = f"<{len(values)}f"
    return struct.unpack(layout, struct.pack(layout, *values))


def yarn_factor(factor: float) -> float:
    """Return the multiplier of cosine and sine that yarn gives a context grown by factor.

    Source: arXiv 2309.00071, equation 22.
    """
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
