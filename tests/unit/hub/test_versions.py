"""Version order against the `packaging` library."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import InvalidVersion
from packaging.version import Version as TheirVersion

from openhearth.hub.versions import parse_version

VERSIONS = ["0", "0.1", "0.1.2", "0.1.10", "1", "1.0", "1.0.0", "1.0a1", "1.0alpha1", "1.0b2", "1.0rc1",
            "1.0c1", "1.0-pre3", "1.0.dev1", "1.0a1.dev2", "1.0.post1", "1.0-1", "1.0.rev2", "1.0.post1.dev3",
            "1!0.5", "v2.0", "2.0+local.1", "2.0+local.10", "2.0+abc", "2.0", "2024.10.1", "1.0RC1", " 1.1 "]


def test_every_pair_sorts_as_packaging_says():
    for one, other in itertools.product(VERSIONS, repeat=2):
        ours, ours_other = parse_version(one).key, parse_version(other).key
        theirs, theirs_other = TheirVersion(one), TheirVersion(other)
        assert (ours < ours_other) == (theirs < theirs_other), (one, other)
        assert (ours == ours_other) == (theirs == theirs_other), (one, other)


@pytest.mark.parametrize("text", VERSIONS)
def test_pre_releases_are_those_of_packaging(text):
    assert parse_version(text).is_pre == TheirVersion(text).is_prerelease


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.abcrdevpost-+!_v \u0663", max_size=14))
def test_what_is_a_version_is_what_packaging_takes(text):
    try:
        theirs = TheirVersion(text)
    except InvalidVersion:
        theirs = None
    ours = parse_version(text)
    assert (ours is None) == (theirs is None)
    if ours:
        assert ours.is_pre == theirs.is_prerelease
