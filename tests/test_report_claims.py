"""Claims of a suite: sums over rows, weighed by target and in the mean; from stores made by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from steadysam.bench.claims import Claim, keep_claims, kept_claims
from steadysam.bench.evidence import Evidence
from steadysam.detection.average_precision import FoundBoxes, match_boxes
from steadysam.errors import InputError
from steadysam.report.benchmark import claims
from steadysam.report.benchmark.pooling import read_store
from steadysam.report.benchmark.write import write_report
from stores import case, dices, put, scored

MEAN = "mean over targets"
AHEAD = {"A before B": Claim(rows={"A": 1, "B": -1})}


def rows_of(store, found):
    keep_claims(store, found)
    return {(row["claim"], row["target"]): row for row in claims.claim_rows(read_store(store, draws=200))}


def boxes(ap):
    scores = {"AP50": ap, "AP75": ap, "AP": ap, "found": 1, "true": 1, "least_score": 0.001}
    return {"detection": scores}


def matched(*right):
    """Evidence of a true box per case, found where `right`; elsewhere a box of a lower score is in the wrong place."""
    true = np.array([[0.0, 0, 4, 4]])
    found = [FoundBoxes(true if hit else true + 9, np.array([0.9 if hit else 0.8])) for hit in right]
    matches = {f"c{n}": match_boxes([one], [true]) for n, one in enumerate(found)}
    return {"detection": Evidence(found=len(found), matches=matches).detection()}


def test_the_mean_weighs_targets_alike_and_its_interval_draws_patients_of_each(tmp_path):
    put(tmp_path, "A", dices(0.5, 0.7), target="LV")
    put(tmp_path, "B", dices(0.4, 0.5), target="LV")
    put(tmp_path, "A", dices(*[0.8] * 6), target="LA")
    put(tmp_path, "B", dices(*[0.5] * 6), target="LA")
    found = rows_of(tmp_path, AHEAD)
    assert found["A before B", "LV"]["value"] == pytest.approx(0.15)
    low, high = (found["A before B", "LV"][end] for end in ("low", "high"))
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.2)), "either patient alone"
    mean = found["A before B", MEAN]
    assert mean["value"] == pytest.approx((0.15 + 0.3) / 2), "not weighted by how many patients a target has"
    assert (mean["low"], mean["high"]) == (pytest.approx(0.2), pytest.approx(0.25))
    assert (mean["verdict"], mean["targets above"], mean["patients"]) == ("holds", "2 of 2", 8)


@pytest.mark.parametrize(("gains", "verdict"), [((0.1, 0.2), "holds"), ((-0.1, -0.2), "fails"), ((-0.2, 0.3), "open")])
def test_the_verdict_is_where_the_interval_lies(tmp_path, gains, verdict):
    put(tmp_path, "A", dices(*(0.5 + gain for gain in gains)))
    put(tmp_path, "B", dices(0.5, 0.5))
    assert rows_of(tmp_path, AHEAD)["A before B", MEAN]["verdict"] == verdict


@pytest.mark.parametrize(("worse", "verdict"), [(0.001, "holds"), (0.003, "fails")])
def test_not_worse_allows_a_margin_and_no_more(tmp_path, worse, verdict):
    put(tmp_path, "A", dices(0.5 - worse, 0.6 - worse))
    put(tmp_path, "B", dices(0.5, 0.6))
    found = rows_of(tmp_path, {"A not behind B": Claim(rows={"A": 1, "B": -1}, margin=0.002)})["A not behind B", MEAN]
    assert (found["verdict"], found["seeds above"]) == (verdict, "0 of 1"), "seeds are counted above zero all the same"
    assert found["sum"] == "A − B, not below −0.002"


def test_seeds_that_disagree_leave_a_claim_open_though_all_patients_agree(tmp_path):
    for seed, gain in ((0, 0.3), (1, -0.1)):
        put(tmp_path, "A", dices(*[0.5 + gain] * 8), seed=seed)
        put(tmp_path, "B", dices(*[0.5] * 8), seed=seed)
    mean = rows_of(tmp_path, AHEAD)["A before B", MEAN]
    assert mean["value"] == pytest.approx(0.1)
    assert (mean["low"], mean["high"]) == (pytest.approx(-0.1), pytest.approx(0.3)), "either seed alone"
    assert (mean["verdict"], mean["seeds above"]) == ("open", "1 of 2")


def test_one_patient_says_nothing_of_others(tmp_path):
    for seed in (0, 1):
        put(tmp_path, "A", dices(0.9), seed=seed)
        put(tmp_path, "B", dices(0.1), seed=seed)
    mean = rows_of(tmp_path, AHEAD)["A before B", MEAN]
    assert (mean["low"], mean["verdict"]) == (None, "open")


def test_only_seeds_that_all_rows_have_count_and_each_is_told(tmp_path):
    for seed, gain in ((1, 0.3), (2, -0.1)):
        put(tmp_path, "A", dices(0.5 + gain, 0.5 + gain), seed=seed)
        put(tmp_path, "B", dices(0.5, 0.5), seed=seed)
    put(tmp_path, "A", dices(0.0, 0.0), seed=3)
    found = rows_of(tmp_path, AHEAD)
    assert found["A before B", "LV"]["seeds"] == "1, 2"
    assert found["A before B", MEAN]["value"] == pytest.approx(0.1)
    assert found["A before B", MEAN]["seeds above"] == "1 of 2"


def test_a_margin_that_grows_and_half_of_a_gap_are_sums(tmp_path):
    for row, dice in (("few", 0.5), ("few, other", 0.3), ("all", 0.9), ("all, other", 0.8)):
        put(tmp_path, row, dices(dice, dice))
    grows = Claim(rows={"few": 1, "few, other": -1, "all": -1, "all, other": 1})
    half = Claim(rows={"few": 1, "few, other": -0.5, "all": -0.5})
    found = rows_of(tmp_path, {"grows": grows, "half": half})
    assert found["grows", MEAN]["value"] == pytest.approx(0.1)
    assert found["half", MEAN]["value"] == pytest.approx(0.5 - 0.15 - 0.45)
    assert half.formula == "few − 0.5 × few, other − 0.5 × all"


def test_a_row_with_another_prompt_set(tmp_path):
    put(tmp_path, "A", dices(0.9, 0.9))
    put(tmp_path, "A", dices(0.6, 0.7), prompts="noisy, more")
    loses = Claim(rows={"A": 1, "A [noisy, more]": -1})
    assert rows_of(tmp_path, {"loses": loses})["loses", MEAN]["value"] == pytest.approx(0.25)


def test_samples_without_the_measure_are_left_out_of_all_rows(tmp_path):
    put(tmp_path, "A", [case("c0", [scored(0.9), scored(None, empty=True)]), case("c1", [scored(0.7)])])
    put(tmp_path, "B", [case("c0", [scored(0.5), scored(0.3, empty=True)]), case("c1", [scored(0.5)])])
    where = {"there": Claim(rows={"A": 1, "B": -1}, measure="dsc_positive")}
    row = rows_of(tmp_path, where)["there", "LV"]
    assert (row["n"], row["value"]) == (2, pytest.approx(0.3))


def test_rows_on_other_slices_are_refused(tmp_path):
    put(tmp_path, "A", [case("c0", [scored(0.9), scored(0.9)])])
    put(tmp_path, "B", [case("c0", [scored(0.9)])])
    with pytest.raises(InputError, match="EVAL_SLICES"):
        rows_of(tmp_path, AHEAD)


def test_average_precision_has_no_interval_and_needs_seeds_of_one_voice(tmp_path):
    for seed, (a, b, c) in enumerate([(0.5, 0.3, 0.6), (0.6, 0.3, 0.2)]):
        for row, ap in (("A", a), ("B", b), ("C", c)):
            put(tmp_path, row, dices(0.5, 0.5), seed=seed, evidence=boxes(ap))
    put(tmp_path, "D", dices(0.5, 0.5), evidence=boxes(0.1))
    put(tmp_path, "no boxes", dices(0.5, 0.5))
    pairs = {name: Claim(rows={"A": 1, name: -1}, measure="AP") for name in ("B", "C", "D", "no boxes")}
    found = rows_of(tmp_path, pairs)
    assert found["B", MEAN]["value"] == pytest.approx(0.25)
    assert [found[name, MEAN]["verdict"] for name in pairs] == ["holds", "open", "open", "rows missing"]


def test_a_share_of_a_gap_that_is_not_there_is_not_judged(tmp_path):
    for row, dice in (("student", 0.5), ("distilled", 0.8), ("teacher", 0.4)):
        put(tmp_path, row, dices(dice, dice))
    gap = Claim(rows={"teacher": 1, "student": -1})
    half = Claim(rows={"distilled": 1, "student": -0.5, "teacher": -0.5}, given="gap")
    found = rows_of(tmp_path, {"half": half, "gap": gap})  # in any order
    assert (found["gap", MEAN]["verdict"], found["half", MEAN]["verdict"]) == ("fails", "nothing to judge")
    put(tmp_path, "teacher", dices(0.7, 0.7))
    assert rows_of(tmp_path, {"half": half, "gap": gap})["half", MEAN]["verdict"] == "holds"


def test_the_report_shows_claims_first_and_names_those_whose_rows_are_missing(tmp_path):
    put(tmp_path / "store", "A", dices(0.5, 0.7))
    put(tmp_path / "store", "B", dices(0.4, 0.5))
    keep_claims(tmp_path / "store", AHEAD | {"A before C": Claim(rows={"A": 1, "C": -1})})
    page = write_report(tmp_path / "store", tmp_path / "out").read_text("utf-8")
    assert page.index("<h2>Claims") < page.index("<h2>Prompts: noisy")
    lines = (tmp_path / "out" / "claims.md").read_text("utf-8").splitlines()
    assert "| A before B | holds | 0.150 (0.100 to 0.200) | 0.150 (0.100 to 0.200) |" in lines[4]
    assert lines[5].startswith("| A before C | rows missing | – |")
    assert (tmp_path / "out" / "figures" / "claims.png").read_bytes()[:4] == b"\x89PNG"
    assert "LV" in (tmp_path / "out" / "claims.csv").read_text("utf-8")


def test_a_store_keeps_its_claims(tmp_path):
    assert kept_claims(tmp_path) == {}
    keep_claims(tmp_path, {})
    assert not list(tmp_path.iterdir()), "a suite that claims nothing leaves no file"
    keep_claims(tmp_path, AHEAD)
    assert kept_claims(tmp_path) == AHEAD


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": {}},
        {"rows": {"A": 0}},
        {"rows": {"A": 1}, "measure": "dice"},
        {"rows": {"A": 1}, "margin": -0.1},
        {"rows": {"A": 1}, "margin": float("inf")},
        {"rows": {"A": 1}, "than": "AP50"},
        {"rows": {"A": 1}, "measure": "AP75", "than": "dsc"},
    ],
)
def test_a_claim_without_rows_weight_or_measure_is_refused(wrong):
    with pytest.raises(ValidationError):
        Claim(**wrong)


def test_average_precision_has_an_interval_where_cells_kept_their_matches(tmp_path):
    claim = {"A before B": Claim(rows={"A": 1, "B": -1}, measure="AP")}
    for seed in (0, 1):
        put(tmp_path, "A", dices(*[0.5] * 6), seed=seed, evidence=matched(*[True] * 6))
        put(tmp_path, "B", dices(*[0.5] * 6), seed=seed, evidence=matched(True, *[False] * 5))
    mean = rows_of(tmp_path, claim)["A before B", MEAN]
    share = 1 - 17 / 101  # recall 1/6 of precision 1: the levels 0.00 to 0.16
    assert mean["value"] == pytest.approx(share, abs=1e-5)
    assert 0 < mean["low"] < share < mean["high"] <= 1
    assert (mean["verdict"], mean["seeds above"]) == ("holds", "2 of 2")
    put(tmp_path, "B", dices(*[0.5] * 6), seed=1, evidence=boxes(0.1))
    mean = rows_of(tmp_path, claim)["A before B", MEAN]
    assert (mean["low"], mean["verdict"]) == (None, "holds"), "an older cell: two seeds with one voice"


def test_all_rows_of_a_claim_are_drawn_with_the_same_patients_and_seeds(tmp_path):
    claim = {"A before B": Claim(rows={"A": 1, "B": -1}, measure="AP")}
    for seed, right in ((0, (True, False, True, False)), (1, (True, False, False, False))):
        for row in ("A", "B"):
            put(tmp_path, row, dices(*[0.5] * 4), seed=seed, evidence=matched(*right))
    mean = rows_of(tmp_path, claim)["A before B", MEAN]
    assert (mean["value"], mean["low"], mean["high"]) == (0, 0, 0)


def tight(*overlaps):
    """Evidence of a true box per case, found with that IoU."""
    true = np.array([[0.0, 0, 10, 10]])
    found = [FoundBoxes(true * [1, 1, 1, overlap], np.array([0.9])) for overlap in overlaps]
    matches = {f"c{n}": match_boxes([one], [true]) for n, one in enumerate(found)}
    return {"detection": Evidence(found=len(found), matches=matches).detection()}


def test_a_gain_in_one_precision_is_weighed_against_that_in_another(tmp_path):
    put(tmp_path, "A", dices(*[0.5] * 6), evidence=tight(*[0.9] * 6))
    put(tmp_path, "B", dices(*[0.5] * 6), evidence=tight(*[0.9] * 3, *[0.6] * 3))  # all found at 0.5, half at 0.75
    more = {
        "AP75": Claim(rows={"A": 1, "B": -1}, measure="AP75", than="AP50"),
        "AP50": Claim(rows={"A": 1, "B": -1}, measure="AP50", than="AP75"),
        "alone": Claim(rows={"A": 1, "B": -1}, measure="AP75"),
    }
    found = {name: rows_of(tmp_path, more)[name, MEAN] for name in more}
    assert found["AP75"]["value"] == found["alone"]["value"] > 0, "nothing is gained at 0.5"
    assert found["AP50"]["value"] == -found["AP75"]["value"]
    assert found["AP75"]["measure"] == "AP75 − AP50"
    assert found["AP75"]["low"] < found["AP75"]["value"] < found["AP75"]["high"]
    put(tmp_path, "B", dices(*[0.5] * 6), evidence=boxes(0.1))
    assert rows_of(tmp_path, more)["AP75", MEAN]["low"] is None, "an older cell has no matches to draw"
