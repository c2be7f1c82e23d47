"""Which tasks the suite holds: plain ones whose names tell all, private ones with hidden facts, and unseen families."""

from __future__ import annotations

import random
from dataclasses import dataclass

from abmll.tasks.synthetic.choosing import OPERATIONS, ROLES, SEQUENCES, odd, pick, role, sequence, sums
from abmll.tasks.synthetic.reading import blend, contrast, entail, mostly, size, team, tone, topic
from abmll.tasks.synthetic.rules import Rule
from abmll.tasks.synthetic.words import INVENTED, NAMES, TOPICS

SEEN_FAMILIES = ("tone", "topic", "entail", "sums", "sequence", "pick", "odd", "role")
UNSEEN_FAMILIES = ("blend", "contrast", "mostly", "size", "team")


@dataclass(frozen=True, slots=True)
class Spec:
    """A task before its rows are drawn.

    Attributes:
        name: the task's name in prompts.
        family: the generator it comes from.
        facts: "plain" (the prompt says all there is to know) or "private" (labelled examples are needed).
        hidden: what the prompt does not tell, in words; "" for a plain task.
        rule: the generator of its items.
    """

    name: str
    family: str
    facts: str
    hidden: str
    rule: Rule


def plain_specs() -> tuple[Spec, ...]:
    """One task a seen family with real words throughout: what the embedded model was pretrained to answer."""
    subjects = ("food", "sport", "money", "animal")
    rules: dict[str, tuple[str, Rule]] = {
        "tone": ("tone", tone(("negative", "positive"))),
        "topic": ("topic", topic(subjects, subjects)),
        "entail": ("entail", entail(("no", "maybe", "yes"))),
        "total": ("sums", sums("total")),
        "next": ("sequence", sequence("next")),
        "music": ("pick", pick("music")),
        "odd": ("odd", odd()),
        "giver": ("role", role("giver")),
    }
    return tuple(Spec(name, family, "plain", "", rule) for name, (family, rule) in rules.items())


class Private:
    """Makes private tasks: draws invented names and labels, each used once, and the hidden facts."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.words = list(INVENTED)
        rng.shuffle(self.words)

    def _labels(self, n: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """`n` invented labels, and the order in which the classes are shown."""
        order = list(range(n))
        self.rng.shuffle(order)
        return tuple(self.words.pop() for _ in range(n)), tuple(order)

    def _topics(self, n: int) -> tuple[str, ...]:
        return tuple(self.rng.sample(tuple(TOPICS), n))

    def _spec(self, family: str, hidden: str, rule: Rule) -> Spec:
        return Spec(self.words.pop(), family, "private", hidden, rule)

    def tone(self, classes: int = 2, noise: float = 0.0, steepness: float = 2.0) -> Spec:
        """Invented labels, worst to best."""
        labels, order = self._labels(classes)
        rule = tone(labels, order=order, noise=noise, steepness=steepness)
        return self._spec("tone", f"worst to best: {', '.join(labels)}", rule)

    def flipped_tone(self) -> Spec:
        """Real label words that mean the opposite of what they say."""
        rule = tone(("good", "bad"), order=self.rng.sample((0, 1), 2))
        return self._spec("tone", "good is said of what is bad, and bad of what is good", rule)

    def topic(self, classes: int, noise: float = 0.0) -> Spec:
        """Invented labels for some topics."""
        (labels, order), topics = self._labels(classes), self._topics(classes)
        hidden = ", ".join(f"{label} = {t}" for label, t in zip(labels, topics, strict=True))
        return self._spec("topic", hidden, topic(labels, topics, order=order, noise=noise))

    def entail(self, classes: int, noise: float = 0.0) -> Spec:
        """Invented labels for what follows and what does not."""
        labels, order = self._labels(classes)
        return self._spec(
            "entail", f"not, (open,) follows: {', '.join(labels)}", entail(labels, order=order, noise=noise)
        )

    def sums(self, operation: str, noise: float = 0.0) -> Spec:
        """A name that does not tell the operation."""
        assert operation in OPERATIONS
        return self._spec("sums", f"the {operation}", sums(operation, noise=noise))

    def sequence(self, wanted: str, noise: float = 0.0) -> Spec:
        """A name that does not tell which term."""
        assert wanted in SEQUENCES
        return self._spec("sequence", f"the {wanted} term", sequence(wanted, noise=noise))

    def pick(self, wanted: str, options: int = 4, noise: float = 0.0) -> Spec:
        """A name that does not tell the category."""
        return self._spec("pick", f"the {wanted} word", pick(wanted, options=options, noise=noise))

    def role(self, wanted: str, noise: float = 0.0) -> Spec:
        """A name that does not tell whether giver or getter."""
        assert wanted in ROLES
        return self._spec("role", f"the {wanted}", role(wanted, noise=noise))

    def blend(self, noise: float = 0.0) -> Spec:
        """Four invented labels for two topics times two tones."""
        (labels, order), (a, b) = self._labels(4), self._topics(2)
        hidden = f"{a} bad, {a} good, {b} bad, {b} good: {', '.join(labels)}"
        return self._spec("blend", hidden, blend(labels, (a, b), order=order, noise=noise))

    def contrast(self, last: bool, noise: float = 0.0) -> Spec:
        """Invented labels; one hidden clause decides."""
        labels, order = self._labels(2)
        hidden = f"tone of the {'second' if last else 'first'} clause: {', '.join(labels)}"
        return self._spec("contrast", hidden, contrast(labels, last=last, order=order, noise=noise))

    def mostly(self, noise: float = 0.0) -> Spec:
        """Invented labels for two topics."""
        (labels, order), (a, b) = self._labels(2), self._topics(2)
        return self._spec(
            "mostly", f"{labels[0]} = {a}, {labels[1]} = {b}", mostly(labels, (a, b), order=order, noise=noise)
        )

    def size(self, threshold: float) -> Spec:
        """Invented labels and a hidden threshold."""
        labels, order = self._labels(2)
        return self._spec(
            "size", f"{labels[1]} from {threshold} on, else {labels[0]}", size(labels, threshold, order=order)
        )

    def team(self, people: int, noise: float = 0.0) -> Spec:
        """Invented labels and hidden member lists."""
        labels, order = self._labels(2)
        names = self.rng.sample(NAMES, people)
        teams = (names[: people // 2], names[people // 2 :])
        hidden = "; ".join(f"{label}: {' '.join(t)}" for label, t in zip(labels, teams, strict=True))
        return self._spec("team", hidden, team(labels, teams, order=order, noise=noise))


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of the suite by part, before their rows are drawn."""

    train: tuple[Spec, ...]
    validation: tuple[Spec, ...]
    test: tuple[Spec, ...]


def plan(rng: random.Random) -> Plan:
    """33 train tasks (8 plain, 25 private), 5 validation, 16 test tasks (9 of seen families, 7 of unseen ones)."""
    make = Private(rng)
    train = (
        *plain_specs(),
        *(make.tone(2), make.tone(2, noise=0.1), make.tone(2, steepness=1.0), make.tone(3), make.flipped_tone()),
        *(make.topic(2), make.topic(3, noise=0.05), make.topic(4), make.topic(5), make.topic(3)),
        *(make.entail(3), make.entail(2, noise=0.05), make.entail(2)),
        *(make.sums("total"), make.sums("difference"), make.sums("larger"), make.sums("smaller", noise=0.05)),
        *(make.sequence("skip"), make.sequence("previous")),
        *(make.pick("food"), make.pick("sport", options=5), make.pick("weather", noise=0.05), make.pick("home")),
        *(make.role("giver"), make.role("getter", noise=0.05)),
    )
    validation = (make.tone(2), make.topic(3), make.entail(2), make.pick("travel"), make.sums("larger"))
    test = (
        *(make.tone(2), make.tone(2, noise=0.1), make.tone(3)),
        *(make.topic(3), make.topic(4, noise=0.05)),
        make.entail(2),
        *(make.pick("animal"), make.sums("smaller"), make.role("getter")),
        *(make.blend(), make.contrast(last=True), make.contrast(last=False, noise=0.05)),
        *(make.mostly(), make.mostly(noise=0.05), make.size(23.5), make.team(6)),
    )
    return Plan(train, validation, test)
