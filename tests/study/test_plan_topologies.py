"""Machines: what is understood, what is refused with the list of what is allowed."""

import pytest

from dynamics.errors import UserError
from dynamics.study.topologies import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("text", "chips", "islands"),
    [("v5p:4x4x4", 64, 1), ("v5e:16x16", 256, 1), ("v4:2x2x2", 8, 1), ("h100:64", 64, 8), ("a100-40:4", 4, 1)],
)
def test_a_topology_has_as_many_chips_as_it_says(text, chips, islands):
    machine = parse_topology(text)
    assert (machine.num_chips, machine.islands) == (chips, islands)


def test_slices_multiply_chips_and_are_islands():
    machine = parse_topology("v5e:4x4", slices=4)
    assert (machine.num_chips, machine.islands, machine.label) == (64, 4, "4 x v5e:4x4")


@pytest.mark.parametrize(
    ("text", "slices", "words"),
    [
        ("v5f:2x4", 1, ["v5f:2x4", "did you mean", "v5p:8x8x8", "h200:64"]),
        ("tpu", 1, ["tpu", "v4:8x8x8", "v5e:16x16", "a100-80:64"]),
        ("v5p:4x4", 1, ["3 sizes joined by x", "2x2x1", "4x4x4"]),
        ("v5e:2y4", 1, ["2 sizes joined by x", "2x4"]),
        ("v5e", 1, ["2 sizes"]),
        ("v5e:0x4", 1, ["2 sizes"]),
        ("h100:8x8", 1, ["the number of GPUs", "64"]),
        ("h100:12", 1, ["12 GPUs", "nodes of 8", "16"]),
        ("h100:16", 2, ["--slices 2", "h100:16"]),
        ("v5e:2x4", 0, ["--slices 0"]),
    ],
)
def test_what_is_not_understood_is_named_with_what_is(text, slices, words):
    with pytest.raises(UserError) as caught:
        parse_topology(text, slices=slices)
    for word in words:
        assert word in str(caught.value)


def test_a_torus_that_closes_is_fed_from_both_sides():
    """v5p: three rings of 4 feed a chip by six links; open dimensions of 2 by one each."""
    link = CHIPS["v5p"].link
    assert parse_topology("v5p:4x4x4").inside == 6 * link
    assert parse_topology("v5p:2x2x2").inside == 3 * link
    assert parse_topology("v5p:2x2x1").inside == 2 * link
    assert parse_topology("h100:64").inside == CHIPS["h100"].link


def test_the_slower_of_links_and_network_decides():
    machine = parse_topology("h100:16")
    assert machine.seconds(450e9, 0) == pytest.approx(1)
    assert machine.seconds(450e9, 100e9) == pytest.approx(2)
