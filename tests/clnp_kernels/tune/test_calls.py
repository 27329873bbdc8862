"""Calls and the classes of calls that entries hold for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clnp_kernels.tune.calls import ALIGNED, ALIGNMENTS, LISTS, OPERATORS, Key, call_of, runs, takes
from clnp_kernels.tune.cases import Layer, Maker, check_layers
from clnp_kernels.tune.plan import measurements


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_checked_layers_have_the_alignment(operator: str, alignment: int) -> None:
    for small in (True, False):
        for layer in check_layers(operator, alignment, small=small):
            call = call_of(operator, Maker(layer, torch.float16, "meta").arguments(operator), "")
            if operator in LISTS:
                assert call.alignment == 1
            elif layer.free_out or operator != "channel_activity":
                assert call.alignment == alignment
            assert call.dtype == "float16"


@pytest.mark.parametrize("operator", OPERATORS)
def test_shapes_alone_describe_a_call(operator: str) -> None:
    """Tensors of the meta device have the key of real ones."""
    side = 5 if "conv2d" in operator or "norm" in operator else 0
    layer = Layer(6, 8, 24, 16, 32, side)
    keys = [
        call_of(operator, Maker(layer, torch.float32, device).arguments(operator), "graph").key
        for device in ("meta", "cpu")
    ]
    assert keys[0] == keys[1]


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 4000), st.integers(0, 4000))
def test_alignment_divides_all_boundaries(i: int, o: int, active_in: int, active_out: int) -> None:
    active_in, active_out = min(active_in, i), min(active_out, o)
    layer = Layer(3, active_in, i - active_in, active_out, o - active_out)
    made = Maker(layer, torch.float32, "meta")
    call = call_of("masked_linear_fwd", made.arguments("masked_linear_fwd"), "eager")
    boundaries = (active_in, i, active_out, o)
    assert all(n % call.alignment == 0 for n in boundaries)
    assert call.alignment == 16 or any(n % (2 * call.alignment) for n in boundaries)
    assert call.flop == 6 * (active_in * active_out + i * (o - active_out))


def test_a_moved_boundary_has_the_same_key() -> None:
    keys = set()
    for active in (1000, 1016, 1032):
        made = Maker(
            Layer(256, active, 2000 - active, active, 2000 - active), torch.float32, "meta"
        )
        call = call_of("masked_linear_fwd", made.arguments("masked_linear_fwd"), "graph")
        keys.add(call.key)
        assert call.alignment == 8
    assert len(keys) == 1


def test_options_and_layouts_are_told_apart() -> None:
    layer = Layer(2, 4, 4, 4, 4, 5)
    variants = [layer, Layer(2, 4, 4, 4, 4, 5, last=False), Layer(2, 4, 4, 4, 4, 5, plain=True)]
    kinds = set()
    for one in variants:
        made = Maker(one, torch.float32, "meta").arguments("masked_conv2d_fwd")
        kinds.add(call_of("masked_conv2d_fwd", made, "eager").key.kind)
    assert len(kinds) == 3


def test_optimizers_of_mixed_dtypes() -> None:
    lists = [[torch.zeros(2), torch.zeros(3, dtype=torch.bfloat16)]] * 2
    assert call_of("adam_l1", lists, "eager").dtype == "bfloat16+float32"


@pytest.mark.parametrize("implementation", ALIGNED)
def test_aligned_implementations_take_16_bytes(implementation: str) -> None:
    """8 elements of 2 bytes and 4 of 4 bytes; only multiples of these."""
    taken = {
        dtype: [n for n in ALIGNMENTS if takes(implementation, dtype, n)]
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert taken == {torch.bfloat16: [16, 8], torch.float32: [16, 8, 4]}
    assert all(takes("triton", torch.bfloat16, n) for n in ALIGNMENTS)


def test_capabilities() -> None:
    """Copies by TMA begin at sm_90; everything else is for all that are supported."""
    assert [runs("triton-persistent", n) for n in (80, 89, 90, 120)] == [False, False, True, True]
    assert runs("triton", 80)
    assert runs("cublaslt", 80)


def test_distance() -> None:
    key = Key("sgd_l1", "float32", 1, (4, 8), 2, "", "eager")
    assert key.distance(key) == 0
    assert key.distance(key._replace(sizes=(6, 8))) == 2
    assert key.distance(key._replace(active=1)) == 1


def test_measurements_are_of_different_kinds() -> None:
    for full in (False, True):
        jobs = measurements(None, full=full)
        assert len({job.key for job in jobs}) == len(jobs)
        assert {job.operator for job in jobs} == set(OPERATORS)
        assert {job.key.alignment for job in jobs} >= {1, 16}
