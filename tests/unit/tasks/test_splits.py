"""Splits are disjoint and the same in every run."""

import pytest

from openhearth.errors import UsageError
from openhearth.tasks import Generated, Listed, Problem, find, split_of


def numbers(modulus):
    def make(index):
        question = f"question {index % modulus}"
        return question, Problem(f"n/{index}", ({"role": "user", "content": question},), "", {},
                                 split_of(question))
    return make


def test_a_quarter_is_for_testing_and_no_question_is_in_both():
    parts = {split: Generated(numbers(4000), split) for split in ("train", "test")}
    train = {parts["train"][i].messages[0]["content"] for i in range(2900)}
    test = {parts["test"][i].messages[0]["content"] for i in range(900)}
    assert len(train) == 2900 and len(test) == 900 and not train & test


def test_white_space_does_not_move_a_question():
    assert all(split_of(f"a  b\n{i}") == split_of(f"a b {i} ") for i in range(50))


def test_the_same_index_is_the_same_problem_in_any_order_of_asking():
    first, second = Generated(numbers(1000), "test"), Generated(numbers(1000), "test")
    backwards = [second[i] for i in reversed(range(50))]
    assert [first[i] for i in range(50)] == backwards[::-1]


def test_a_generator_that_repeats_itself_ends_with_its_count():
    problems = Generated(numbers(40), "test")
    count = sum(split_of(f"question {i}") == "test" for i in range(40))
    assert problems[count - 1].split == "test"
    with pytest.raises(UsageError, match=f"only {count} different"):
        problems[count]


def test_the_seed_orders_a_list_and_loses_none():
    problems = [Problem(str(i), (), "") for i in range(100)]
    first, again, other = Listed(problems, 1), Listed(problems, 1), Listed(problems, 2)
    order = [first[i].id for i in range(100)]
    assert order == [again[i].id for i in range(100)] != [other[i].id for i in range(100)]
    assert sorted(order) == sorted(problem.id for problem in problems)


def test_generated_problems_of_neighbouring_seeds_stay_disjoint_across_splits():
    """reasoning-gym's seeds overlap: problem i of seed 1 is problem i + 1 of seed 0."""
    trained = find("chain_sum:seed=0")
    tested = find("chain_sum:seed=1")
    train = {trained.problem("train", i).messages[0]["content"] for i in range(400)}
    test = {tested.problem("test", i).messages[0]["content"] for i in range(100)}
    assert not train & test
    same = {tested.problem("train", i).messages[0]["content"] for i in range(400)}
    assert len(train & same) > 300, "the seeds do overlap, which is what the splits guard against"
