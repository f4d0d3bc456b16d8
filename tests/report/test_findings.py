"""What reports say: odds that are right, findings that cannot contradict each other, few bars."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from passportize.report.bars import MOST, bars_of
from passportize.report.findings import findings_of, limits_of, odds_in_words, sentence_of
from passportize.verification.verdict import SiteVerdict
from tests.report.test_report import VERDICT


@pytest.mark.parametrize(
    ("strength", "words"),
    [
        (0.0, "about even, or better"),
        (1.0, "one in two"),
        (2.4, "one in five"),
        (10.0, "one in 1,000"),
        (14.0, "one in 16,000"),
        (19.9, "one in 980,000"),
        (64.0, "one in ten to the 19"),
        (778.0, "one in ten to the 234"),
        (4800.0, "one in ten to the 1,445"),
        (1e6, "one in ten to the 301,030"),
    ],
)
def test_odds_in_words(strength, words):
    assert odds_in_words(strength) == words


VERDICTS = [
    replace(
        VERDICT,
        accepted=accepted,
        fidelity=fidelity,
        private_accuracy=private,
        samples=samples,
        total=total,
        matched=min(total, 300),
    )
    for accepted, fidelity, private, samples, total in itertools.product(
        (True, False, None), (True, False, None), (96.5, None), (0, 359), (304, 0)
    )
]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_one_finding_decides_and_the_other_says_that_it_does_not(verdict):
    signature, private = findings_of(verdict)
    assert signature.role == "decides the verdict" and "decides nothing" in private.role
    assert signature.outcome == {True: "accepted", False: "refused", None: "open"}[verdict.accepted]
    # The second one never bears the colour of a refusal, and never that of success by itself.
    assert private.outcome != "refused"
    if verdict.accepted and verdict.fidelity is False and verdict.private_accuracy is not None:
        assert "stands as it was found" in private.text
    if verdict.accepted is False and private.outcome == "accepted":
        assert "proves nothing" in private.text
    for text in (signature.text, private.text, sentence_of(verdict, "Acme"), *limits_of(verdict)):
        assert text[-1] in ".?!" and text[-2] not in ".?!"
        assert text[0].isupper() or text[0].isdigit()
        assert "=" not in text.replace("p = ", "") and "None" not in text


def test_the_limits_name_what_the_finding_could_be_taken_for():
    accepted, refused, undecided = (
        " ".join(limits_of(replace(VERDICT, accepted=value))) for value in (True, False, None)
    )
    assert "Who was first" in accepted and "in law" in accepted
    assert "no copy" in refused and "--released" in refused
    assert "for or against" in undecided
    assert "Acme's passport" in sentence_of(VERDICT, "Acme")
    assert "one in ten to the 83" in sentence_of(VERDICT)


def sites(*counts: tuple[int, int]) -> list[SiteVerdict]:
    return [SiteVerdict(f"l{i}", "w", matched, bits) for i, (matched, bits) in enumerate(counts)]


def test_full_bars_are_one_and_no_bit_is_lost():
    bars = bars_of(sites(*[(64, 64)] * 40, (30, 64), (0, 0), (0, 0), (0, 0)))
    assert [(bar.label, bar.text) for bar in bars] == [
        ("40 layers with every bit", "2,560 / 2,560"),
        ("l40", "30 / 64"),
        ("3 layers that are missing", "missing"),
    ]
    assert [bar.label for bar in bars_of(sites((8, 8), (8, 8), (7, 8)))] == ["l0", "l1", "l2"]


def test_of_many_layers_the_worst_are_shown():
    given = sites(*[(32 + n % 30, 64) for n in range(200)])
    bars = bars_of(given)
    assert len(bars) == MOST + 1 and bars[-1].label == f"{200 - MOST} further layers"
    assert sum(bar.matched for bar in bars) == sum(site.matched for site in given)
    assert sum(bar.bits for bar in bars) == 200 * 64
    assert max(bar.share for bar in bars[:-1]) <= 55
    assert bars_of([]) == []
