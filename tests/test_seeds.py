"""Random streams are named: equal names give equal draws, others are independent."""

import numpy as np

from dynamics.seeds import name_hash, stream


def test_the_same_name_gives_the_same_numbers():
    np.testing.assert_array_equal(
        stream(1, "slice", "math").integers(0, 100, 20), stream(1, "slice", "math").integers(0, 100, 20)
    )


def test_other_names_and_seeds_give_other_numbers():
    draws = [
        tuple(stream(seed, *name).integers(0, 2**31, 4))
        for seed in (0, 1)
        for name in (("a",), ("b",), ("a", "b"), ("ab",))
    ]
    assert len(set(draws)) == len(draws)


def test_hashes_are_the_same_on_every_machine():
    assert name_hash("slice", "math", 7) == 16880329047830419819
    assert name_hash("1") != name_hash(1)
