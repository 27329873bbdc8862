"""Division of work among ranks, without processes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from clnp.data.batches import batch_sizes, batches
from clnp.data.images import Images
from clnp.data.inputs import Split
from clnp.parallel.ranks import ALONE, Ranks, current, sharing

CPU = torch.device("cpu")


def of(size: int) -> list[Ranks]:
    """Ranks that only divide."""
    ranks = [Ranks() for _ in range(size)]
    for number, rank in enumerate(ranks):
        rank.rank, rank.size = number, size
    return ranks


def splits(total: int) -> dict[str, Split]:
    x, y = torch.arange(total).float()[:, None] / 7, torch.arange(total)
    images = torch.arange(total).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return {
        "tensors": (x, y),
        "data set": TensorDataset(x, y),
        "images": Images(images, y, ((0.0,), (1.0,))),
    }


def drawn(split: Split, batch_size: int, ranks: Ranks, seed: int | None) -> list[list[Tensor]]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return [list(batch) for batch in batches(split, batch_size, CPU, generator, ranks)]


@pytest.mark.parametrize("kind", ["tensors", "data set", "images"])
@pytest.mark.parametrize(("total", "batch_size", "size"), [(41, 8, 2), (50, 16, 3), (9, 4, 4)])
def test_ranks_divide_every_shuffled_batch(
    kind: str, total: int, batch_size: int, size: int
) -> None:
    split = splits(total)[kind]
    alone = drawn(split, batch_size, ALONE, seed=3)
    shares = [drawn(split, batch_size, ranks, seed=3) for ranks in of(size)]
    assert [len(y) for _, y in alone] == batch_sizes(total, batch_size)
    for parts, (x, y) in zip(zip(*shares, strict=True), alone, strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("kind", ["tensors", "data set", "images"])
@pytest.mark.parametrize(("total", "size"), [(41, 2), (50, 3), (2, 4)])
def test_in_order_every_rank_takes_a_piece(kind: str, total: int, size: int) -> None:
    split = splits(total)[kind]
    pieces = [drawn(split, 8, ranks, seed=None) for ranks in of(size)]
    assert all(0 < len(y) <= 8 for _, y in itertools.chain(*pieces))
    labels = torch.cat([y for _, y in itertools.chain(*pieces)])
    assert torch.equal(labels, torch.arange(total))


def test_seeds_of_ranks_differ_and_the_first_is_that_of_one_process() -> None:
    seeds = [ranks.seed(11) for ranks in of(8)]
    assert seeds[0] == ALONE.seed(11) == 11
    assert len(set(seeds)) == 8
    assert seeds == [ranks.seed(11) for ranks in of(8)]


def test_sharing_ends_with_its_block() -> None:
    first = of(2)[0]
    with sharing(first):
        assert current() is first
        with sharing(ALONE):
            assert current() is ALONE
        assert current() is first
    assert current() is ALONE


def test_one_process_needs_no_messages() -> None:
    assert ALONE.total(5) == 5
    assert torch.equal(ALONE.sum(torch.ones(3)), torch.ones(3))
    assert ALONE.from_first("word") == "word"
    assert ALONE.gather("word") == ["word"]
    ALONE.agree("nothing", "at all")
    with pytest.raises(KeyError), ALONE.together("failing"):
        raise KeyError("own")
