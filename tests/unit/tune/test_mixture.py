"""Which problems a step asks, again after a resume, from several tasks and by curriculum."""

from collections import Counter

import pytest

from openhearth.errors import UsageError
from openhearth.tasks import Generated, Listed, Problem, Task, correct
from openhearth.tune.mixture import Mixture


def problem(name, number):
    return Problem(f"{name}/{number}", ({"role": "user", "content": f"{name} {number}"},), "x", split="train")


def listed(name, count=5):
    return Task(name, {"train": Listed([problem(name, number) for number in range(count)])},
                lambda problem, response: correct())


def endless(name, distinct=10**9):
    def make(index):
        return f"{name} {index % distinct}", problem(name, index % distinct)

    return Task(name, {"train": Generated(make, "train")}, lambda problem, response: correct())


def ids(taken):
    return [problem.id for _, problem in taken]


def test_a_resumed_mixture_asks_what_an_uninterrupted_one_would():
    def mixture():
        return Mixture([listed("a"), endless("b")], seed=3, weights=(1.0, 2.0))

    whole = mixture()
    wanted = [ids(whole.take(step, 4)) for step in range(6)]
    first = mixture()
    assert [ids(first.take(step, 4)) for step in range(3)] == wanted[:3]
    second = mixture()
    second.load_state(first.state())
    assert [ids(second.take(step, 4)) for step in range(3, 6)] == wanted[3:]


def test_a_listed_task_is_asked_whole_before_it_repeats():
    mixture = Mixture([listed("a", 5)], seed=0)
    taken = [name for step in range(4) for name in ids(mixture.take(step, 5))]
    assert all(len(set(taken[start:start + 5])) == 5 for start in range(0, 20, 5))
    assert taken[:5] != taken[5:10], "in another order"


def test_a_generator_that_runs_out_starts_again():
    mixture = Mixture([endless("b", distinct=6)], seed=0)
    taken = [name for step in range(4) for name in ids(mixture.take(step, 4))]
    counts = Counter(taken)
    assert 1 < len(counts) <= 6 and max(counts.values()) - min(counts.values()) <= 2


def test_a_task_without_training_problems_says_so():
    task = Task("a", {"test": Listed([problem("a", 0)])}, lambda problem, response: correct())
    with pytest.raises(UsageError, match="no `train` problems"):
        Mixture([task], seed=0).take(0, 1)


def test_weights_decide_how_often_a_task_is_drawn():
    mixture = Mixture([endless("a"), endless("b")], seed=0, weights=(1.0, 3.0))
    drawn = Counter(place for step in range(100) for place, _ in mixture.take(step, 8))
    assert drawn[1] / drawn[0] == pytest.approx(3, rel=0.25)


def test_a_curriculum_goes_on_when_enough_is_solved_and_keeps_the_old():
    mixture = Mixture([endless("a"), endless("b"), endless("c")], seed=0, curriculum=0.75)
    assert {place for place, _ in mixture.take(0, 16)} == {0}
    mixture.note([0.7, None, None])
    assert mixture.level == 0
    mixture.note([0.8, None, None])
    assert mixture.level == 1 and {place for place, _ in mixture.take(1, 32)} == {0, 1}
    mixture.note([0.2, 0.9, None])
    drawn = Counter(place for step in range(2, 60) for place, _ in mixture.take(step, 8))
    assert mixture.level == 2 and drawn[2] == pytest.approx(58 * 8 / 2, rel=0.15)
    mixture.note([1.0, 1.0, 1.0])
    assert mixture.level == 2, "there is no harder one"
