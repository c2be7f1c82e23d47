"""The embedded suite: the same everywhere, its oracle true to its labels, its families really held out."""

import math
import random
from collections import Counter

import pytest

from abmll.errors import UserError
from abmll.tasks.synthetic import bayes_ceiling, mini_suite
from abmll.tasks.synthetic.choosing import OPERATIONS, SEQUENCES, pick, role, sequence, sums
from abmll.tasks.synthetic.plan import SEEN_FAMILIES, UNSEEN_FAMILIES, Spec
from abmll.tasks.synthetic.reading import contrast, entail, mostly, size, tone
from abmll.tasks.synthetic.rules import Item, graded, with_noise
from abmll.tasks.synthetic.siblings import siblings
from abmll.tasks.synthetic.suite import _rows
from abmll.tasks.synthetic.words import INVENTED, NAMES, SYNONYMS, TOPICS, WEIGHT, vocabulary
from abmll.tasks.task import Example, Suite


@pytest.fixture(scope="module")
def suite() -> Suite:
    return mini_suite()


def test_the_global_generator_is_left_alone() -> None:
    random.seed(3)
    before = random.getstate()
    mini_suite(rows=3)
    assert random.getstate() == before


def test_parts_kinds_and_sizes(suite: Suite) -> None:
    assert len(suite.train) >= 24
    assert len(suite.test) >= 12
    assert len(suite.validation) >= 4
    assert {t.family for t in suite.train} == set(SEEN_FAMILIES)
    kinds = Counter(t.metadata["kind"] for t in suite.test)
    assert kinds["unseen-family"] >= 5
    assert kinds["seen-family"] >= 5
    for task in suite.test:
        assert (task.family in UNSEEN_FAMILIES) == (task.metadata["kind"] == "unseen-family")
        assert task.metadata["facts"] == "private"
        assert task.metadata["hidden"]
    assert all(len(task) == 200 for task in suite.tasks)
    assert all(2 <= len(e.options) <= 5 for task in suite.tasks for e in task.examples)


def test_unseen_families_stay_out_of_training_and_pretraining(suite: Suite) -> None:
    assert not set(UNSEEN_FAMILIES) & {t.family for t in (*suite.train, *suite.validation)}
    stream = siblings(random.Random(0), dict.fromkeys((*SEEN_FAMILIES, *UNSEEN_FAMILIES), 1.0), private=0.3)
    drawn = [next(stream) for _ in range(2000)]
    assert {s.family for s in drawn} == set(SEEN_FAMILIES)
    contrasts = [e.input for t in suite.test if t.family == "contrast" for e in t.examples]
    assert all(" but " in text for text in contrasts)  # a mark of the unseen family ...
    assert not any(" but " in s.item.input for s in drawn)  # ... that pretraining text never shows
    private = {w for t in suite.tasks for w in (t.name, *(t.labels or ())) if w in INVENTED}
    assert len(private) >= 60
    assert not private & set(SYNONYMS)  # no word of a private task has a fixed meaning in pretraining


def test_no_two_tasks_share_an_input_and_siblings_avoid_them_all(suite: Suite) -> None:
    inputs = [e.input for t in suite.tasks for e in t.examples]
    assert len(set(inputs)) == len(inputs)
    taken = frozenset(inputs)
    weights = {"role": 1.0}  # the smallest input space: without `avoid` it collides often
    free = siblings(random.Random(0), weights, 0.0)
    assert any(next(free).item.input in taken for _ in range(3000))
    kept = siblings(random.Random(0), weights, 0.0, avoid=taken)
    assert not any(next(kept).item.input in taken for _ in range(3000))


def test_the_oracle_is_a_distribution_over_the_options(suite: Suite) -> None:
    for task in suite.tasks:
        for example in task.examples:
            assert example.oracle is not None
            assert len(example.oracle) == len(example.options)
            assert math.isclose(sum(example.oracle), 1.0, abs_tol=1e-12)
            assert min(example.oracle) >= 0
            assert example.oracle[example.label] > 0


def test_outputs_are_drawn_from_the_oracle() -> None:
    """How often the likeliest option was drawn, against its exact expectation, in every task."""
    for task in mini_suite(seed=5, rows=400).tasks:
        oracles = [e.oracle or () for e in task.examples]
        best = [p.index(max(p)) for p in oracles]
        hits = sum(e.label == b for e, b in zip(task.examples, best, strict=True))
        chances = [p[b] for p, b in zip(oracles, best, strict=True)]
        sd = math.sqrt(sum(p * (1 - p) for p in chances))
        assert abs(hits - sum(chances)) <= 4.5 * sd + 1e-9, task.name


@pytest.mark.parametrize("log_odds", [-3.0, -0.5, 0.0, 1.0, 4.0])
def test_frequencies_of_graded_labels(log_odds: float) -> None:
    two = graded(log_odds, 2)
    assert math.isclose(math.log(two[1] / two[0]), log_odds, abs_tol=1e-9)
    three = graded(log_odds, 3)
    assert math.isclose(math.log(three[2] / three[0]), log_odds, abs_tol=1e-9)
    assert graded(0.0, 3)[1] == max(graded(0.0, 3))
    assert with_noise((1.0, 0.0), 0.1) == pytest.approx((0.95, 0.05))


def test_tone_reads_the_adjectives_whatever_the_order_of_labels() -> None:
    rule = tone(("low", "high"), order=(1, 0), steepness=2.0)
    rng = random.Random(0)
    for _ in range(50):
        item = rule(rng)
        assert item.options == ("high", "low")
        score = 2.0 * sum(WEIGHT[w] for w in item.input.split() if w in WEIGHT)
        assert item.probabilities[0] == pytest.approx(1 / (1 + math.exp(-score)))


def test_choosing_families_answer_their_question() -> None:
    """Each rule's answer, worked out again from the text."""
    rng = random.Random(0)
    for _ in range(50):
        for operation, f in OPERATIONS.items():
            item = sums(operation)(rng)
            a, b = (int(w) for w in item.input.split() if w.isdigit())
            assert right(item) == str(f(a, b))
            assert len(set(item.options)) == 4
        for name, k in SEQUENCES.items():
            item = sequence(name)(rng)
            first, second, _ = (int(w) for w in item.input.split() if w.isdigit())
            assert right(item) == str(first + k * (second - first))
        assert right(pick("food")(rng)) in TOPICS["food"]
        for wanted, word in (("getter", "to"), ("giver", "from")):
            item = role(wanted)(rng)
            words = item.input.split()
            assert right(item) == words[words.index(word) + 1]


def test_reading_families_answer_their_question() -> None:
    rng = random.Random(1)
    for _ in range(50):
        item = mostly(("f", "s"), ("food", "sport"))(rng)
        counts = [sum(w in TOPICS[t] for w in item.input.split()) for t in ("food", "sport")]
        assert right(item) == ("f" if counts[0] > counts[1] else "s")
        item = contrast(("bad", "good"), last=True)(rng)
        assert (right(item) == "good") == (WEIGHT[item.input.split()[-1]] > 0)
        item = size(("few", "many"), 20.5)(rng)
        n = next(int(w) for w in item.input.split() if w.isdigit())
        assert (right(item) == "many") == (n > 20.5)
        item = entail(("no", "open", "yes"))(rng)
        premise, claim = (part.split() for part in item.input.rstrip(" ?").split(" . "))
        if premise[0] != claim[0]:
            assert right(item) == "open"
        else:
            assert (right(item) == "yes") == (" ".join(claim[2:]) in " ".join(premise))


def draw_rows(spec: Spec, rows: int) -> list[Example]:
    return list(_rows(spec, rows, random.Random(0), set()))


def right(item: Item) -> str:
    return item.options[item.probabilities.index(max(item.probabilities))]


def test_bayes_ceiling_is_the_expected_score_of_the_oracle() -> None:
    rows = [Example("x", ("a", "b"), "a", (0.9, 0.1)), Example("y", ("a", "b"), "b", (0.5, 0.5))]
    accuracy, nll = bayes_ceiling(rows)
    assert accuracy == pytest.approx(0.7)
    assert nll == pytest.approx((-0.9 * math.log(0.9) - 0.1 * math.log(0.1) + math.log(2)) / 2)
    with pytest.raises(UserError, match="no oracle"):
        bayes_ceiling([Example("x", ("a", "b"), "a")])
    with pytest.raises(UserError, match="at least one"):
        bayes_ceiling([])


def test_drawn_outputs_reach_the_ceiling_on_average(suite: Suite) -> None:
    gap = [
        -math.log((e.oracle or ())[e.label]) - bayes_ceiling([e])[1]
        for t in suite.tasks
        for e in t.examples
        if e.oracle
    ]
    assert abs(sum(gap) / len(gap)) < 0.02


def test_every_word_is_in_the_vocabulary(suite: Suite) -> None:
    known = set(vocabulary())
    assert set(NAMES) < known
    for task in suite.tasks:
        text = " ".join([task.name, *(" ".join([e.input, *e.options]) for e in task.examples)])
        assert set(text.split()) <= known, set(text.split()) - known


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="rows is 0"):
        mini_suite(rows=0)
    with pytest.raises(UserError, match="no more different inputs"):
        draw_rows(Spec("tiny", "tiny", "plain", "", lambda rng: Item(rng.choice("ab"), ("x", "y"), (1.0, 0.0))), 3)
