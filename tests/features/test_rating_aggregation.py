"""Bayes' rule over raters gives the hand-computed posteriors, EM ends at the mode, and tables come back from disk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import beta, binom

from actinium.core.errors import InputError, LoadError
from actinium.features.rating_aggregation import BayesRatingAggregator, majority_vote, mean_rating
from actinium.features.rating_table import RatingTable, read_ratings


def simulated(items=400, raters=6, base=0.3, seed=0):
    source = np.random.default_rng(seed)
    truth = source.random(items) < base
    tpr, fpr = np.linspace(0.65, 0.95, raters), np.linspace(0.3, 0.05, raters)
    said = source.random((items, raters)) < np.where(truth[:, None], tpr, fpr)
    return truth.astype(int), said.astype(int), tpr, fpr


def test_posterior_of_two_yes_and_one_no():
    bayes = BayesRatingAggregator(0.1, 0.8, 0.1)
    # Odds 1/9 * 8 * 8 * (0.2 / 0.9).
    odds = 64 * 0.2 / 0.9 / 9
    found = bayes.posterior([[1, 1, 0], [0, 1, 1], [1, None, 0, 1], []])
    assert found[0] == pytest.approx(odds / (1 + odds), abs=1e-12)
    assert found[0] == pytest.approx(0.6124, abs=5e-5)
    assert found[1] == found[2] == pytest.approx(found[0], abs=1e-14)
    assert found[3] == pytest.approx(0.1, abs=1e-15)


def test_raters_without_information_leave_the_prior():
    bayes = BayesRatingAggregator([0.2, 0.7], 0.4, 0.4, allow_adversarial=True)
    assert bayes.posterior([[1, 1], [0]]) == pytest.approx([0.2, 0.7], abs=1e-12)


@given(st.lists(st.lists(st.sampled_from([0, 1, None]), max_size=9), min_size=1, max_size=8), st.floats(0.55, 0.95))
def test_even_prior_and_symmetric_raters_vote_by_majority(ratings, tpr):
    post = BayesRatingAggregator(0.5, tpr, 1 - tpr).posterior(ratings)
    vote = majority_vote(ratings)
    known = ~np.isnan(vote)
    assert (np.sign(np.round(post - 0.5, 9))[known] == np.sign(vote - 0.5)[known]).all()
    assert post[~known] == pytest.approx(0.5)


def test_votes_count_only_given_answers():
    ratings = [[1, None, 0, 1], [1, 0], [None], [0, 0, 1]]
    np.testing.assert_array_equal(majority_vote(ratings), [1, 0.5, np.nan, 0])
    np.testing.assert_allclose(mean_rating(ratings), [2 / 3, 0.5, np.nan, 1 / 3])
    wide = np.array([[1, np.nan, 0, 1], [1, 0, np.nan, np.nan], [np.nan] * 4, [0, 0, 1, np.nan]])
    np.testing.assert_array_equal(mean_rating(wide), mean_rating(ratings))
    np.testing.assert_array_equal(
        BayesRatingAggregator(0.2).posterior(wide), BayesRatingAggregator(0.2).posterior(ratings)
    )


def test_em_ends_where_an_optimiser_ends():
    _, said, _, _ = simulated()
    raters = [[f"r{j}" for j in range(6)]] * len(said)
    bayes = BayesRatingAggregator().fit_em(said, raters)

    def loss(x):
        rate, tpr, fpr = expit(x[0]), expit(x[1:7]), expit(x[7:13])
        yes = np.log(rate) + binom.logpmf(said, 1, tpr).sum(1)
        no = np.log1p(-rate) + binom.logpmf(said, 1, fpr).sum(1)
        # A Beta(a, b) over log-odds has the density of Beta(a + 1, b + 1) up to a constant.
        prior = beta.logpdf(tpr, 9, 3).sum() + beta.logpdf(fpr, 2, 10).sum() + beta.logpdf(rate, 2, 2)
        return -np.logaddexp(yes, no).sum() - prior

    best = minimize(loss, np.r_[0, np.ones(6), -np.ones(6)], method="BFGS", options={"gtol": 1e-6}).x
    names = [f"r{j}" for j in range(6)]
    assert [bayes.worker_tpr_[n] for n in names] == pytest.approx(expit(best[1:7]), abs=1e-5)
    assert [bayes.worker_fpr_[n] for n in names] == pytest.approx(expit(best[7:]), abs=1e-5)
    assert bayes.base_rate(said, raters) == pytest.approx(expit(best[0]), abs=1e-5)
    assert (np.diff(bayes.log_posterior_) > -1e-8).all()
    assert bayes.n_iter_ == len(bayes.log_posterior_) < 1000


def test_em_recovers_raters_and_decides_better_than_the_majority():
    truth, said, tpr, fpr = simulated(3000, seed=1)
    raters = [list(range(6))] * len(said)
    bayes = BayesRatingAggregator().fit_em(said, raters)
    assert [bayes.worker_tpr_[j] for j in range(6)] == pytest.approx(tpr, abs=0.05)
    assert [bayes.worker_fpr_[j] for j in range(6)] == pytest.approx(fpr, abs=0.04)
    error = ((bayes.posterior(said, raters) > 0.5) != truth).mean()
    assert error < 0.8 * ((majority_vote(said) > 0.5) != truth).mean()


def test_gold_items_give_smoothed_shares_and_rare_raters_share_theirs():
    truth = [1, 1, 0, 0]
    ratings, raters = [[1, 1], [0, 1], [0, 1], [0]], [["a", "b"], ["a", "c"], ["a", "b"], ["a"]]
    bayes = BayesRatingAggregator(0.5, min_ratings=4).fit_gold(ratings, truth, raters)
    assert bayes.worker_tpr_ == {"a": pytest.approx((8 + 1) / (10 + 2))}
    assert bayes.worker_fpr_ == {"a": pytest.approx(1 / (10 + 2))}
    assert (bayes.tpr_, bayes.fpr_) == pytest.approx(((8 + 2) / (10 + 2), (1 + 1) / (10 + 1)))
    stranger = bayes.posterior([[1]], [["new"]])[0]
    assert stranger == pytest.approx(bayes.tpr_ / (bayes.tpr_ + bayes.fpr_))


def test_weights_stand_for_repeated_items():
    _, said, _, _ = simulated(60, seed=2)
    times = np.random.default_rng(0).integers(1, 4, 60)
    settings = {"tpr_prior": (8.0, 2.0)}
    one = BayesRatingAggregator(0.3, **settings).fit_em(said, weights=times)
    # Weights are scaled to mean 1, so priors are scaled to match the repeated items.
    scale = times.mean()
    priors = {"tpr_prior": (8 * scale, 2 * scale), "fpr_prior": (scale, 9 * scale)}
    many = BayesRatingAggregator(0.3, **priors).fit_em(np.repeat(said, times, 0))
    assert (one.tpr_, one.fpr_) == pytest.approx((many.tpr_, many.fpr_), abs=1e-7)


def test_an_informative_prior_lowers_the_error_of_labels():
    # Card: 30 % positives, three ratings, a cheap model that is right in 90 % of the items.
    source = np.random.default_rng(0)
    truth = source.random(40_000) < 0.3
    said = source.random((40_000, 3)) < np.where(truth, 0.8, 0.1)[:, None]
    cheap = truth ^ (source.random(40_000) < 0.1)
    right = np.where(cheap, 0.9, 0.1) * 0.3
    prior = right / (right + np.where(cheap, 0.1, 0.9) * 0.7)
    bayes = BayesRatingAggregator(tpr=0.8, fpr=0.1)
    by_prior = ((bayes.posterior(said, prior=prior) > 0.5) != truth).mean()
    by_rate = ((bayes.posterior(said, prior=0.3) > 0.5) != truth).mean()
    by_vote = ((majority_vote(said) > 0.5) != truth).mean()
    assert by_rate == by_vote == pytest.approx(0.0504, abs=0.003)
    assert by_prior == pytest.approx(0.0365, abs=0.003)


def test_a_fitted_aggregator_comes_back_from_disk(tmp_path):
    _, said, _, _ = simulated(100)
    raters = [[f"r{j}" for j in range(6)]] * 100
    bayes = BayesRatingAggregator(0.3).fit_em(said, raters)
    again = BayesRatingAggregator.load(bayes.save(tmp_path / "raters"))
    assert again.get_params() == bayes.get_params()
    assert (again.posterior(said, raters) == bayes.posterior(said, raters)).all()
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(LoadError, match="cannot read the rating aggregator"):
        BayesRatingAggregator.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BayesRatingAggregator(0.5).posterior([[1, 2]]), "item 0: a rating is 0, 1 or None"),
        (lambda: BayesRatingAggregator(0.5).posterior(np.array([[1.0, 0.5]])), "a rating is 0, 1 or None"),
        (lambda: BayesRatingAggregator(0.5).posterior([]), "got none"),
        (lambda: BayesRatingAggregator(1.0).posterior([[1]]), "prior of 0 or 1"),
        (lambda: BayesRatingAggregator([0.5, 0.2]).posterior([[1]]), "one for each item"),
        (lambda: BayesRatingAggregator(0.5, 0.3, 0.4).posterior([[1]]), "no better than chance"),
        (lambda: BayesRatingAggregator(0.5, 1.0, 0.4).posterior([[1]]), "between 0 and 1"),
        (lambda: BayesRatingAggregator(0.5).posterior([[1, 0]], [["a"]]), "shape of the ratings"),
        (lambda: BayesRatingAggregator(0.5).fit_em([[], []]), "no rating to fit"),
        (lambda: BayesRatingAggregator(0.5).fit_em([[1], [0]], weights=[1, -1]), "weights"),
        (lambda: BayesRatingAggregator(0.5).fit_gold([[1]], [2]), "truth"),
        (lambda: BayesRatingAggregator(0.5).save("nowhere"), "not fitted"),
    ],
)
def test_what_cannot_be_aggregated_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_rater_who_says_the_opposite_is_named():
    truth, said, _, _ = simulated(200)
    said[:, 0] = 1 - truth
    raters = [[f"r{j}" for j in range(6)]] * 200
    with pytest.raises(InputError, match=r"rater 'r0'.*no better than chance"):
        BayesRatingAggregator(0.3).fit_gold(said, truth, raters)
    bayes = BayesRatingAggregator(0.3, allow_adversarial=True).fit_gold(said, truth, raters)
    assert bayes.worker_tpr_["r0"] < 0.2 < 0.8 < bayes.worker_fpr_["r0"]
    # Who is always wrong tells as much as who is always right.
    assert bayes.posterior([[0]], [["r0"]])[0] > 0.7


def test_tables_of_ratings_come_back_from_csv(tmp_path):
    table = RatingTable(("1", "1", "2"), ("a dog, or a cat",) * 3, ("w1", "w2", "w1"), (1, None, 0))
    assert read_ratings(table.save(tmp_path / "r.csv")) == table
    ratings, raters = table.lists("a dog, or a cat", [2, 1, 7])
    assert ratings == [[0], [1, None], []]
    assert raters == [["w1"], ["w1", "w2"], []]


def test_batch_files_of_mechanical_turk_are_read(tmp_path):
    path = tmp_path / "batch.csv"
    path.write_text(
        "HITId,WorkerId,AssignmentStatus,Input.image,Input.text,Answer.present\n"
        'h1,w1,Approved,12,"a dog",Yes\nh1,w2,Rejected,12,"a dog",No\nh2,w1,Submitted,13,"a dog",no\n'
    )
    names = {"item": "Input.image", "explanation": "Input.text", "worker": "WorkerId", "rating": "Answer.present"}
    assert read_ratings(path, columns=names) == RatingTable(("12", "13"), ("a dog",) * 2, ("w1", "w1"), (1, 0))
    with pytest.raises(LoadError, match=r"no column 'Answer.presnt'; did you mean 'Answer.present'"):
        read_ratings(path, columns=names | {"rating": "Answer.presnt"})
    with pytest.raises(InputError, match=r"row 2: no answer 'yes'"):
        read_ratings(path, columns=names, answers={"agree": 1})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((("1",), ("e",), ("w",), (2,)), "0, 1 or None"),
        ((("1", "2"), ("e",), ("w",), (1,)), "one length"),
        ((("1", "1"), ("e", "e"), ("w", "w"), (1, 0)), "rated item '1' for 'e' twice"),
    ],
)
def test_senseless_tables_are_refused(rows, message):
    with pytest.raises(InputError, match=message):
        RatingTable(*rows)


def test_unreadable_tables_are_refused(tmp_path):
    with pytest.raises(LoadError, match="cannot read the ratings"):
        read_ratings(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").write_text("item,explanation,worker,rating\n")
    with pytest.raises(InputError, match="holds no ratings"):
        read_ratings(tmp_path / "empty.csv")
