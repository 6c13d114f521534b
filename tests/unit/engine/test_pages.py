"""Page bookkeeping."""

import random

import pytest

from openhearth.engine.pages import PageTable


def table(num_pages=4, **settings):
    return PageTable(num_pages, 2, salt="weights", **settings)


def test_pages_are_used_until_their_last_user_leaves():
    pages = table()
    page = pages.allocate()
    pages.acquire(page)
    pages.release(page)
    assert (pages.num_used, pages.num_free, pages.num_users(page)) == (1, 3, 1)
    pages.release(page)
    assert (pages.num_used, pages.num_free, pages.num_cached) == (0, 4, 0)
    pages.check()


def test_every_page_is_handed_out_once_and_low_ones_first():
    pages = table()
    assert [pages.allocate() for _ in range(4)] == [0, 1, 2, 3]
    assert pages.num_available == 0


def test_freed_pages_are_reused_before_untouched_ones():
    pages = table()
    first = pages.allocate()
    pages.release(first)
    assert pages.allocate() == first


def test_a_named_page_stays_cached_and_can_be_taken_again():
    pages = table()
    page, name = pages.allocate(), pages.name(pages.root, [1, 2])
    pages.register(page, name)
    pages.release(page)
    assert (pages.num_cached, pages.num_free, pages.num_available) == (1, 3, 4)
    assert pages.find(name) == page
    pages.acquire(page)
    assert (pages.num_cached, pages.num_used) == (0, 1)
    pages.check()


def test_the_page_unused_for_longest_is_evicted_first_and_forgotten():
    pages = table(2)
    names = [pages.name(pages.root, [i, i]) for i in range(2)]
    for page, name in zip([pages.allocate(), pages.allocate()], names, strict=True):
        pages.register(page, name)
    pages.release(1)
    pages.release(0)
    assert pages.allocate() == 1
    assert pages.find(names[1]) is None and pages.find(names[0]) == 0
    pages.check()


def test_equal_content_is_registered_once():
    pages = table()
    name = pages.name(pages.root, [1, 2])
    first, second = pages.allocate(), pages.allocate()
    pages.register(first, name)
    pages.register(second, name)
    assert pages.find(name) == first
    pages.release(second)
    assert (pages.num_cached, pages.num_free) == (0, 3)
    pages.check()


def test_names_depend_on_tokens_their_order_the_parent_and_the_salt():
    pages, other = table(), PageTable(4, 2, salt="other weights")
    one = pages.name(pages.root, [1, 2])
    names = [one, pages.name(pages.root, [2, 1]), pages.name(one, [1, 2]), other.name(other.root, [1, 2]),
             pages.name(pages.root, [1, 2 + 2**32])]
    assert len(set(names)) == 5
    assert pages.name(pages.root, (1, 2)) == one


def test_without_prefix_cache_nothing_is_found():
    pages = table(has_prefix_cache=False)
    page, name = pages.allocate(), pages.name(pages.root, [1, 2])
    pages.register(page, name)
    pages.release(page)
    assert pages.find(name) is None and pages.num_free == 4


def test_dropping_the_cache_frees_it_and_keeps_what_is_used():
    pages = table()
    for i in range(3):
        pages.register(pages.allocate(), pages.name(pages.root, [i, i]))
    pages.release(0)
    pages.release(1)
    pages.drop_cached()
    assert (pages.num_free, pages.num_cached, pages.num_used) == (3, 0, 1)
    assert pages.find(pages.name(pages.root, [2, 2])) == 2
    pages.check()


def test_a_page_released_too_often_is_our_mistake():
    pages = table()
    page = pages.allocate()
    pages.release(page)
    with pytest.raises(AssertionError, match="more often"):
        pages.release(page)


@pytest.mark.parametrize("seed", range(20))
def test_random_operations_never_lose_a_page(seed):
    draw, pages = random.Random(seed), table(8)
    held, names = [], []
    for _ in range(300):
        action = draw.random()
        if action < 0.4 and pages.num_available:
            held.append(pages.allocate())
        elif action < 0.6 and held:
            pages.acquire(page := draw.choice(held))
            held.append(page)
        elif action < 0.8 and held:
            pages.release(held.pop(draw.randrange(len(held))))
        elif action < 0.9 and held:
            names.append(pages.name(pages.root, [draw.randrange(20), 0]))
            pages.register(draw.choice(held), names[-1])
        elif names and (found := pages.find(draw.choice(names))) is not None:
            pages.acquire(found)
            held.append(found)
        pages.check()
        assert pages.num_used == len(set(held))
        assert pages.num_used + pages.num_free + pages.num_cached == 8
        assert all(pages.num_users(page) == held.count(page) for page in range(8))
