"""Few weighted labels give the correlation over all inputs, at the cost that the plan says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, UnknownNameError
from actinium.features.explanation_evaluation import (
    ExplanationEvaluator,
    compare_explainers,
    importance_sampling_correlation,
)
from actinium.features.explanation_sampling import model_guided_sampling, sampling_density
from actinium.features.rating_aggregation import BayesRatingAggregator
from actinium.features.rating_plan import plan_cost
from actinium.features.rating_table import RatingTable


def unit(n=20_000, base=0.01, accuracy=0.9, seed=0):
    """Activation, truth and the calibrated presence of a cheap model: the card's experiment."""
    source = np.random.default_rng(seed)
    c = (source.random(n) < base).astype(float)
    a = np.maximum(0, 0.3 * source.standard_normal(n) + c * source.normal(2, 0.7, n))
    said = np.where(source.random(n) < accuracy, c, 1 - c)
    right = np.where(said == 1, accuracy, 1 - accuracy) * c.mean()
    return a, c, right / (right + np.where(said == 1, 1 - accuracy, accuracy) * (1 - c.mean()))


def rmse(a, c, n, repeats, **how):
    truth, found = np.corrcoef(a, c)[0, 1], []
    for seed in range(repeats):
        drawn, w = model_guided_sampling(a, n=n, seed=seed, **how)
        found.append(importance_sampling_correlation(a, drawn, w, c[drawn]).correlation)
    return float(np.sqrt(np.mean((np.array(found) - truth) ** 2)))


@pytest.mark.parametrize("moments", ["sample", "population"])
@pytest.mark.parametrize("normalise", ["self", "plain"])
def test_every_input_once_gives_pearson(moments, normalise):
    a, c, _ = unit(500, 0.2)
    found = importance_sampling_correlation(
        a, np.arange(500), np.ones(500), c, moments=moments, normalise=normalise, top=0.1
    )
    assert found.correlation == pytest.approx(np.corrcoef(a, c)[0, 1], abs=1e-12)
    assert found.ess == pytest.approx(500)
    assert found.positives == c.sum()
    assert found.presence == pytest.approx(c.mean())
    on = a >= np.quantile(a, 0.9)
    both = (on & (c == 1)).sum()
    assert found.precision == pytest.approx(both / on.sum())
    assert found.recall == pytest.approx(both / c.sum())
    assert found.f1 == pytest.approx(2 * both / (on.sum() + c.sum()))
    assert found.iou == pytest.approx(both / (on | (c == 1)).sum())


def test_uniform_sampling_is_the_plain_sample_estimate():
    a, c, _ = unit(2000, 0.2)
    drawn, w = model_guided_sampling(a, n=100, density=np.full(2000, 7.0))
    assert w == pytest.approx(np.ones(100))
    found = importance_sampling_correlation(a, drawn, w, c[drawn])
    assert found.correlation == pytest.approx(np.corrcoef(a[drawn], c[drawn])[0, 1], abs=1e-12)


def test_plain_weighted_sums_are_unbiased():
    a, c, p = unit(300, 0.1)
    z = (a - a.mean()) / a.std()
    drawn, w = model_guided_sampling(a, p, n=100_000, seed=3)
    terms = w * z[drawn] * c[drawn]
    assert abs(terms.mean() - (z * c).mean()) < 3 * terms.std() / np.sqrt(len(w))
    assert abs((w * c[drawn]).mean() - c.mean()) < 3 * (w * c[drawn]).std() / np.sqrt(len(w))


def test_the_density_is_optimal_up_to_its_floor():
    a, _, p = unit(1000, 0.1)
    z = (a - a.mean()) / a.std()
    q = sampling_density(a, p, eps=0.0, floor=1e-9)
    np.testing.assert_allclose(q, np.abs(z) * np.sqrt(p) / (np.abs(z) * np.sqrt(p)).sum(), rtol=1e-4)
    # Expected square of w z c over one draw, for independent c: no neighbouring density has a lower one.
    cost = lambda d: (z**2 * p / d).sum()  # noqa: E731
    other = q * np.exp(0.3 * np.random.default_rng(0).standard_normal(1000))
    assert cost(q) < cost(other / other.sum())
    assert sampling_density(a, p).min() >= 0.1 / 1000
    assert sampling_density(a, floor=1.0) == pytest.approx(np.full(1000, 1 / 1000))
    both = sampling_density(a, np.stack([p, 1 - p]))
    np.testing.assert_allclose(both, (sampling_density(a, p) + sampling_density(a, 1 - p)) / 2)


def test_guided_sampling_needs_fewer_labels_for_a_rare_concept():
    a, c, p = unit()
    # Card: 0.106 and 0.079 with 50 labels, over 600 repeats.
    by_activation, guided = rmse(a, c, 50, 150), rmse(a, c, 50, 150, presence=p)
    assert by_activation == pytest.approx(0.106, abs=0.02)
    assert guided == pytest.approx(0.079, abs=0.015)
    assert guided < by_activation


def test_without_positives_the_correlation_is_undefined_and_counted():
    a, c, _ = unit(2000)
    drawn = np.flatnonzero(c == 0)[:50]
    found = importance_sampling_correlation(a, drawn, np.ones(50), np.zeros(50), bootstrap=20)
    assert np.isnan([found.correlation, found.low, found.high, found.recall]).all()
    assert (found.positives, found.undefined, found.presence) == (0.0, 1.0, 0.0)


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    a, c, _ = unit(5000, 0.1)
    truth, hits = np.corrcoef(a, c)[0, 1], 0
    for seed in range(100):
        drawn, w = model_guided_sampling(a, n=300, density=np.ones(5000), seed=seed)
        found = importance_sampling_correlation(a, drawn, w, c[drawn], bootstrap=200, seed=seed)
        hits += found.low <= truth <= found.high
    # 95 of 100 with a standard error of 2.2.
    assert 88 <= hits <= 100


def test_soft_labels_have_the_variance_of_the_concept():
    a, _, p = unit(400, 0.2)
    z = (a - a.mean()) / a.std()
    found = importance_sampling_correlation(a, np.arange(400), np.ones(400), p)
    assert found.correlation == pytest.approx((z * p).mean() / np.sqrt(p.mean() * (1 - p.mean())), abs=1e-12)


def test_one_sample_serves_two_explanations_and_ratings_are_aggregated():
    a, c, p = unit(4000, 0.05)
    wrong = np.roll(c, 1)
    guess = np.clip(0.9 * wrong + 0.02, 0, 1)
    evaluator = ExplanationEvaluator(150, bootstrap=100).fit(a, {"right": p, "wrong": guess})
    asked = evaluator.questions()
    assert len(asked) == 2 * len(set(evaluator.indices_.tolist()))
    source = np.random.default_rng(0)
    rows = [(i, e, f"w{j}") for i, e in asked.itertuples(index=False) for j in range(9)]
    truth = np.array([(c if e == "right" else wrong)[i] for i, e, _ in rows])
    said = (source.random(len(rows)) < np.where(truth == 1, 0.8, 0.1)).astype(int)
    table = RatingTable(*zip(*rows, strict=True), tuple(said.tolist()))
    found = evaluator.evaluate(table)
    exact = evaluator.evaluate({"right": c[evaluator.indices_], "wrong": wrong[evaluator.indices_]})
    assert found["correlation"].sel(explanation="right") == pytest.approx(np.corrcoef(a, c)[0, 1], abs=0.1)
    assert exact["correlation"].sel(explanation="right") == pytest.approx(np.corrcoef(a, c)[0, 1], abs=0.06)
    assert abs(float(exact["correlation"].sel(explanation="wrong"))) < 0.1
    for result in (found, exact):
        assert (result["low"] <= result["correlation"]).all()
        assert (result["correlation"] <= result["high"]).all()
    assert "correlation_base_rate" in found.data
    assert "correlation_base_rate" not in exact.data
    # With the true errors of the raters, EM has nothing to add.
    known = ExplanationEvaluator(150, bootstrap=0, aggregator=BayesRatingAggregator(tpr=0.8, fpr=0.1))
    again = known.fit(a, {"right": p, "wrong": guess}).evaluate(table)
    assert again["correlation"].values == pytest.approx(found["correlation"].values, abs=0.05)
    votes = ExplanationEvaluator(150, bootstrap=0, aggregator="majority").fit(a, {"right": p, "wrong": guess})
    assert votes.evaluate(table)["correlation"].sel(explanation="right") > 0.5


def test_images_are_averaged_and_tensors_are_read():
    source = np.random.default_rng(0)
    maps = source.random((50, 3, 3))
    assert (sampling_density(torch.tensor(maps)) == sampling_density(maps.mean((1, 2)))).all()


def test_methods_are_compared_over_the_same_units():
    found = compare_explainers({"one": [0.1, 0.3, np.nan], "two": [0.5, 0.7, 0.9]})
    assert found["mean"].values == pytest.approx([0.2, 0.7])
    assert found["standard_error"].values == pytest.approx([np.std([0.1, 0.3], ddof=1) / 2**0.5, 0.2 / 3**0.5])
    assert found["undefined"].values.tolist() == [1, 0]


@pytest.mark.parametrize("aggregation", ["majority", "mean", "bayes"])
def test_the_plan_foresees_the_error(aggregation):
    a, c, p = unit(4000, 0.1)
    plan = plan_cost(a, c, 0.06, 0.2, presence=p, ratings=(3,))
    chosen = plan.data.sel(sampling="guided", aggregation=aggregation, ratings=3)
    truth, source, found = np.corrcoef(a, c)[0, 1], np.random.default_rng(0), []
    bayes = BayesRatingAggregator(tpr=0.8, fpr=0.1)
    for seed in range(150):
        drawn, w = model_guided_sampling(a, p, n=300, seed=seed)
        said = (source.random((300, 3)) < np.where(c[drawn] == 1, 0.8, 0.1)[:, None]).astype(int)
        labels = {
            "majority": said.sum(1) > 1,
            "mean": said.mean(1),
            "bayes": bayes.posterior(said, prior=p[drawn]),
        }[aggregation]
        found.append(importance_sampling_correlation(a, drawn, w, labels).correlation)
    assert np.mean(found) - truth == pytest.approx(float(chosen["bias"]), abs=0.015)
    assert np.std(found) * 300**0.5 == pytest.approx(float(chosen["spread"]), rel=0.2)


def test_a_plan_costs_more_for_less_error_and_says_what_is_out_of_reach():
    a, c, p = unit(4000, 0.1)
    loose, strict = (plan_cost(a, c, target, 0.5, presence=p, ratings=(1, 15)) for target in (0.2, 0.05))
    assert (loose["cost"] <= strict["cost"]).all()
    assert np.isinf(strict["items"].sel(aggregation="mean")).all()
    fifteen = strict.data.sel(aggregation="bayes", ratings=15)
    assert float(fifteen["cost"].sel(sampling="guided")) < float(fifteen["cost"].sel(sampling="uniform"))
    assert float(fifteen["cost"].sel(sampling="guided")) == 15 * 0.5 * float(fifteen["items"].sel(sampling="guided"))


def test_neurons_of_a_model_from_outside(outside_data):
    """A neuron of stories260K and a token class: 200 guided labels come near to all of them."""
    import actinium as ac

    model = ac.load(str(outside_data / "stories260K"))
    texts = [
        "Once upon a time, there was a little girl named Lily. She liked to play in the park.",
        "Tim had a big red ball. He was very happy. One day, Tim and Sue went to the shop.",
        "The dog ran to the cat. The cat was sad, but the dog said, let us play together.",
    ] * 8
    rec = model.record(texts, "blocks.2.mlp.post")
    words = np.array([w.strip().lower() for row in rec.words for w in row])
    acts = rec["blocks.2.mlp.post"][rec.mask].double().numpy()
    c = np.isin(words, ["he", "she", "lily", "tim", "sue", "girl", "dog", "cat"]).astype(float)
    truth = np.array([np.corrcoef(column, c)[0, 1] if column.std() > 0 else 0.0 for column in acts.T])
    best = int(truth.argmax())
    assert truth[best] > 0.3
    assert rmse(acts[:, best], c, 200, 50, presence=np.clip(c, 0.1, 0.9)) < 0.08


A = np.arange(20.0)
FULL = A, np.arange(20), np.ones(20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling_density(np.ones(20)), "the same on every input"),
        (lambda: sampling_density(np.r_[A, np.nan]), "NaN"),
        (lambda: sampling_density([]), "on every input"),
        (lambda: sampling_density(A, np.full(20, 2.0)), "probability from 0 to 1"),
        (lambda: sampling_density(A, np.zeros(20)), "nothing to sample"),
        (lambda: sampling_density(A, np.ones(3)), "expected presence"),
        (lambda: sampling_density(A, floor=0.0), "floor"),
        (lambda: model_guided_sampling(A, n=5), "10 draws or more"),
        (lambda: model_guided_sampling(A, density=np.r_[0, np.ones(19)]), "never be seen"),
        (lambda: model_guided_sampling(A, density=np.ones(3)), "expected a density"),
        (lambda: importance_sampling_correlation(*FULL, np.full(20, 2)), "labels are 0 or 1"),
        (lambda: importance_sampling_correlation(*FULL, np.ones(19)), "of one length"),
        (lambda: importance_sampling_correlation(A, np.arange(9), np.ones(9), np.ones(9)), "10 or more"),
        (lambda: importance_sampling_correlation(A, np.arange(1, 21), np.ones(20), np.ones(20)), "from 0 to 19"),
        (lambda: importance_sampling_correlation(A, np.arange(20), np.zeros(20), np.ones(20)), "above 0"),
        (lambda: importance_sampling_correlation(*FULL, np.ones(20), top=0), "top"),
        (lambda: ExplanationEvaluator().questions(), "not fitted"),
        (lambda: ExplanationEvaluator().fit(A, []), "list of explanations"),
        (
            lambda: ExplanationEvaluator().fit(A, {"x": None, "y": np.full(20, 0.5)}),
            "for all explanations, or for none",
        ),
        (lambda: ExplanationEvaluator().fit(A, {"x": A > 9}), "0 or 1 cannot be changed"),
        (lambda: ExplanationEvaluator().fit(A, ["day"]).evaluate({"dya": np.ones(200)}), "did you mean 'dya'"),
        (lambda: compare_explainers({}), "one method or more"),
        (lambda: compare_explainers({"a": [1, 2], "b": [1]}), "one value for each unit"),
        (lambda: compare_explainers({"a": [1, np.nan]}), "two units"),
        (lambda: plan_cost(A, np.zeros(20), 0.1, 1.0, presence=np.full(20, 0.5)), "expected truth"),
        (lambda: plan_cost(A, A > 9, 0.1, 1.0), "prior of 0 or 1"),
        (lambda: plan_cost(A, A > 9, 0.1, 1.0, tpr=0.1, fpr=0.2), "fpr < tpr"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_unknown_names_and_missing_ratings_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'sample'"):
        importance_sampling_correlation(*FULL, np.ones(20), moments="samples")
    one = RatingTable(("1",), ("day",), ("w",), (1,))
    evaluator = ExplanationEvaluator(aggregator="majority").fit(A, ["day"])
    with pytest.raises(InputError, match="drawn inputs have no rating"):
        evaluator.evaluate(one)
    with pytest.raises(UnknownNameError, match="did you mean 'majority'"):
        evaluator.set_params(aggregator="majorty").evaluate(one)
