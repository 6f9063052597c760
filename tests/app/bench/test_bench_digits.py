import numpy as np
import pytest
import torch

from sdslora.app.bench import digits
from sdslora.app.errors import UserError

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def test_parts_share_no_image_and_hold_all() -> None:
    parts = digits.load()
    assert [len(part.labels) for part in parts] == [1000, 300, 497]
    together = np.concatenate([part.pixels.flatten(1).numpy() for part in parts])
    labels = np.concatenate([part.labels.numpy() for part in parts])
    bunch = sklearn_datasets.load_digits()
    got = np.column_stack([together * 16, labels])
    wanted = np.column_stack([bunch.data, bunch.target])
    assert np.array_equal(got[np.lexsort(got.T)], wanted[np.lexsort(wanted.T)])


def test_shape_and_range() -> None:
    pixels, labels = digits.load().train
    assert pixels.shape == (1000, 1, 8, 8)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert sorted(set(labels.tolist())) == list(range(10))


@pytest.mark.parametrize("rotate", [1, 2, 3, -1])
def test_rotation(rotate: int) -> None:
    upright, turned = digits.load(), digits.load(rotate=rotate)
    for before, after in zip(upright, turned, strict=True):
        wanted = np.rot90(before.pixels.numpy(), rotate, axes=(2, 3))
        assert np.array_equal(after.pixels.numpy(), wanted)
        assert not torch.equal(after.pixels, before.pixels)
        assert torch.equal(after.labels, before.labels)


def test_four_quarter_turns_are_none() -> None:
    assert torch.equal(digits.load(rotate=4).test.pixels, digits.load().test.pixels)


def test_inversion() -> None:
    upright, inverted = digits.load(), digits.load(invert=True)
    for before, after in zip(upright, inverted, strict=True):
        assert torch.equal(after.pixels + before.pixels, torch.ones_like(before.pixels))


@pytest.mark.parametrize("seed", [0, 1])
def test_relabelling_is_one_permutation(seed: int) -> None:
    upright, relabelled = digits.load(), digits.load(relabel=seed)
    pairs = {
        pair
        for before, after in zip(upright, relabelled, strict=True)
        for pair in zip(before.labels.tolist(), after.labels.tolist(), strict=True)
    }
    assert len(pairs) == 10
    assert {new for _, new in pairs} == set(range(10))
    assert sum(old == new for old, new in pairs) < 5
    assert torch.equal(upright.train.pixels, relabelled.train.pixels)


def test_relabelling_depends_on_the_seed() -> None:
    first, again, other = (digits.load(relabel=seed).train.labels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_orientations_stand_in_turn() -> None:
    both = digits.load(rotate=3, orientations=2)
    upright = digits.load()
    for part, before in zip(both, upright, strict=True):
        size = len(before.labels)
        assert len(part.labels) == 2 * size
        by_turn = part.pixels.view(size, 2, 1, 8, 8).numpy()
        original = before.pixels.numpy()
        assert np.array_equal(by_turn[:, 0], np.rot90(original, 3, axes=(2, 3)))
        assert np.array_equal(by_turn[:, 1], original)


def test_each_orientation_has_names_of_its_own() -> None:
    part, upright = digits.load(relabel=5, orientations=4).train, digits.load().train
    names = []
    for turn in range(4):
        labels = part.labels[turn::4]
        pairs = set(zip(upright.labels.tolist(), labels.tolist(), strict=True))
        assert len(pairs) == len({new for _, new in pairs}) == 10
        names.append(sorted(pairs))
    assert all(names[i] != names[j] for i in range(4) for j in range(i))
    assert torch.equal(part.labels[::4], digits.load(relabel=5).train.labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rotate": 0.5}, "rotate"),
        ({"invert": 1}, "invert"),
        ({"relabel": "yes"}, "relabel"),
        ({"orientations": 5}, "orientations"),
    ],
)
def test_wrong_values(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        digits.load(**options)
