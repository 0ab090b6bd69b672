"""TCAV: derivatives of a logit along a concept, shares of positive ones, and the test against random vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from concept_nets import cifar, digits, drawn, painted, random_cnn
from torch import nn

import architectures
from actinium.core.edits import Add
from actinium.core.errors import ActiniumWarning, InputError, SiteError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.features.cav import CAV
from actinium.features.sensitivity import activations_at, concept_sensitivity, gradients_at, tcav_score
from actinium.features.tcav_scores import random_sets, score_test, tcav

few = pytest.mark.filterwarnings("ignore:.*random sets:actinium.core.errors.ActiniumWarning")
MAP = "module:1"


def vector_of(values, pool="none"):
    """A CAV with a vector of our own."""
    cav = CAV("mean_diff", pool=pool)
    cav.vector_, cav.norm_, cav.bias_ = values.double() / values.double().norm(), 1.0, 0.0
    return cav


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_on_a_linear_head_every_input_has_the_derivative_w_v(scale):
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    model, x, v = Model(net), drawn(20, 5), drawn(4, seed=1)
    found = concept_sensitivity(model, "module:0", x, 2, vector_of(scale * v))
    want = float(net[1].weight[2].detach().double() @ v.double() / v.double().norm())
    assert torch.allclose(found, torch.full((20,), want, dtype=torch.float64), atol=1e-6)
    assert tcav_score(found) == float(want > 0)
    assert tcav_score(concept_sensitivity(model, "module:0", x, 2, vector_of(-v))) == float(want < 0)


@pytest.mark.parametrize("pool", ["none", "mean"])
@pytest.mark.parametrize(("site", "in_place"), [("module:1", False), ("module:1.1", True), ("module:0.0", True)])
def test_derivatives_are_those_of_finite_differences_in_a_cnn(site, in_place, pool):
    """Also before a ReLU that works in place, where the tensor that was recorded is overwritten."""
    model, x = Model(random_cnn(torch.float64, in_place)), drawn(6, 3, 12, 12).double()
    shape = model.record(x, site)[site].shape[1:]
    v = drawn(*(shape[:1] if pool == "mean" else shape), seed=5).double()
    cav = vector_of(v.flatten(), pool)
    step = 1e-5 * (v / v.norm())
    step = step[:, None, None].expand(shape) if pool == "mean" else step
    logits = []
    for sign in (1, -1):
        with torch.no_grad(), model.edit({site: Add(sign * step)}):
            logits.append(model.logits(x)[:, 3])
    found = concept_sensitivity(model, site, x, 3, cav, batch_size=4)
    assert torch.allclose(found, (logits[0] - logits[1]) / 2e-5, atol=1e-6)
    assert found.std() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("positions", "pool"), [(-1, "none"), (1, "none"), (None, "mean")])
def test_derivatives_are_those_of_finite_differences_in_padded_text(name, positions, pool):
    model = architectures.shared(name)
    site = "blocks.1.resid_post" if positions == -1 else "blocks.0.resid_post"
    ids, mask = architectures.token_ids(3, 7), torch.ones(3, 7, dtype=torch.bool)
    mask[0, 5:], mask[2, :2] = False, False
    tokens = Tokens(ids, mask, torch.arange(3))
    v = drawn(32, seed=5)
    last = mask.long().mul(torch.arange(7)).argmax(1)
    logits = []
    for sign in (1, -1):
        edit = Add(sign * 1e-2 * v / v.norm())
        where = slice(None) if positions is None else positions
        with torch.no_grad(), model.edit({site: edit.at(positions=where)}):
            logits.append(model.logits(tokens)[torch.arange(3), last, 17].double())
    found = concept_sensitivity(model, site, tokens, 17, vector_of(v, pool), positions=positions, batch_size=2)
    assert torch.allclose(found, (logits[0] - logits[1]) / 2e-2, rtol=2e-2, atol=2e-3)


def test_activations_of_text_are_read_at_one_token_or_averaged_over_real_ones():
    model, site = architectures.shared("llama"), "blocks.1.resid_post"
    ids, mask = architectures.token_ids(2, 6), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    tokens = Tokens(ids, mask, torch.arange(2))
    whole = model.record(tokens, site)[site].double()
    at = activations_at(model, tokens, [site], positions=-1)[site]
    assert torch.equal(at, torch.stack([whole[0, 3], whole[1, 5]]))
    mean = activations_at(model, tokens, [site], pool="mean")[site]
    assert torch.allclose(mean, torch.stack([whole[0, :4].mean(0), whole[1].mean(0)]))
    with pytest.raises(InputError, match="differ in length"):
        activations_at(model, tokens, [site])
    with pytest.raises(InputError, match="outside a text of 4 tokens"):
        activations_at(model, tokens, [site], positions=4)


def test_a_derivative_of_zero_is_not_positive():
    assert tcav_score(torch.tensor([0.0, 1.0, -1.0, 2.0])) == 0.5
    with pytest.raises(InputError, match="finite sensitivities"):
        tcav_score(torch.tensor([float("nan")]))


def test_the_test_is_scipys_with_bonferroni_and_undefined_where_nothing_varies():
    from scipy.stats import ttest_ind

    a, b = drawn(20).double().numpy() + 1, drawn(30, seed=1).double().numpy()
    found = score_test(a, b, alpha=0.05, tests=5)
    assert found.p_value == pytest.approx(ttest_ind(a, b).pvalue)
    assert found.level == 0.01 and found.significant == (found.p_value < 0.01)
    p = found.p_value
    assert score_test(a, b, 0.5).significant and not score_test(a, b, min(0.9, p * 4), tests=5).significant
    for other in (np.ones(9), np.zeros(9)):
        still = score_test(np.ones(4), other)
        assert np.isnan(still.p_value) and not still.significant
    with pytest.raises(InputError, match="two finite scores"):
        score_test(a[:1], b)
    with pytest.raises(InputError, match="alpha"):
        score_test(a, b, 0.0)


def test_random_sets_are_drawn_without_repeats_from_tensors_arrays_and_texts():
    pool = torch.arange(30).float()[:, None]
    sets = random_sets(pool, 4, 10, seed=1)
    assert [len(s.unique()) for s in sets] == [10] * 4
    assert any(not torch.equal(sets[0], s) for s in sets[1:])
    assert np.array_equal(random_sets(pool.numpy(), 4, 10, seed=1)[2], sets[2].numpy())
    texts = random_sets([str(i) for i in range(30)], 4, 10, seed=1)
    assert texts[3] == [str(int(i)) for i in sets[3][:, 0]]
    with pytest.raises(InputError, match="cannot draw"):
        random_sets(pool, 2, 31)


@pytest.fixture(scope="module")
def planted():
    """Test digits, and TCAV of a painted column for the 3s, in a net that knows the column and in one that does not."""
    out = {}
    for with_column in (True, False):
        net, x, y = digits(with_column)
        others, rest = x[y != 3], x[y == 3]
        sets = random_sets(others[:-60], 20, 60)
        model = Model(net)
        concepts = {"column": painted(others[-60:])}
        out[with_column] = model, rest, concepts, sets, tcav(model, "module:3", rest, 3, concepts, sets)
    return out


def test_a_planted_column_speaks_for_the_class_and_one_that_training_never_saw_does_not(planted):
    found = planted[True][-1]
    assert found["score"].item() > 0.95 and found["significant"].item()
    assert found["accuracy"].item() > 0.75
    # No random set in the column's place changes the logit as much.
    assert found["p_rank"].item() == pytest.approx(1 / 21)
    # Scores of random vectors lie near 0 or near 1.
    assert found["random_std"].item() > 0.35
    assert 0.2 < found["random_score"].item() < 0.8
    assert planted[False][-1]["score"].item() < 0.4


def test_scores_and_p_are_those_of_torch_scikit_learn_and_scipy_alone(planted):
    from scipy.stats import ttest_ind
    from sklearn.linear_model import SGDClassifier

    model, x, concepts, sets, found = planted[True]
    net = model.module
    below, above = net[:4], net[4:]
    a = below(x).detach().requires_grad_()
    (grad,) = torch.autograd.grad(above(a)[:, 3].sum(), a)
    rows = np.random.default_rng(0).permutation(60)[20:]

    def score(one, other):
        acts = [below(s).detach().double().numpy()[rows] for s in (one, other)]
        fit = SGDClassifier(alpha=0.01, max_iter=1000, tol=1e-3, random_state=0)
        fit.fit(np.concatenate(acts), np.repeat([1, 0], 40))
        return float((grad.double().numpy() @ fit.coef_[0] > 0).mean())

    scores = [score(concepts["column"], s) for s in sets]
    assert found["scores"].values[0, 0] == pytest.approx(scores)
    pairs = [(i, j) for i in range(20) for j in range(20) if i != j]
    randoms = [score(sets[i], sets[j]) for i, j in pairs]
    assert found["random_scores"].values[0] == pytest.approx(randoms)
    assert found["p_value"].item() == pytest.approx(ttest_ind(scores, randoms).pvalue)


@few
def test_activations_recordings_and_inputs_give_the_same_result(planted):
    model, x, concepts, sets, _ = planted[True]
    sites = ["module:1", "module:3"]
    options = {"cav": CAV("mean_diff"), "random_runs": 6}
    first = tcav(model, sites, x, 3, concepts, sets[:4], **options)
    recordings = [model.record(s, sites) for s in sets[:4]]
    plain = {"column": {s: model.record(concepts["column"], sites)[s] for s in sites}}
    second = tcav(model, sites, x, 3, plain, recordings, **options)
    assert first == second and first.provenance == second.provenance
    assert first["scores"].sizes == {"concept": 1, "site": 2, "run": 4}
    assert first.data.attrs["level"] == 0.025
    assert first["random_scores"].sizes == {"site": 2, "random_run": 6}
    with pytest.raises(InputError, match="no activations of module:3"):
        tcav(model, sites, x, 3, {"column": {"module:1": plain["column"]["module:1"]}}, recordings, **options)


@few
def test_a_counterpart_plays_the_concept_in_every_random_run(planted):
    model, x, concepts, sets, _ = planted[True]
    found = tcav(model, "module:3", x, 3, concepts, sets[:5], cav=CAV("mean_diff"), counterpart=2)
    assert found["random_scores"].sizes["random_run"] == 4 and np.isnan(found["p_rank"].item())
    acts = [model.record(s, "module:3")["module:3"] for s in sets[:5]]
    (grad,) = gradients_at(model, x, ["module:3"], 3).values()
    want = [tcav_score(CAV("mean_diff").fit(acts[2], acts[j]).sensitivity(grad)) for j in (0, 1, 3, 4)]
    assert found["random_scores"].values[0] == pytest.approx(want)


def test_the_rank_of_random_sets_in_a_concepts_place_is_uniform_and_the_t_test_rejects_too_often(planted):
    model, x, _, sets, _ = planted[True]
    pool = torch.cat(sets).unique(dim=0)
    drawn_sets = random_sets(pool, 40, 60, seed=7)
    concepts = {str(i): s for i, s in enumerate(drawn_sets[:20])}
    with pytest.warns(ActiniumWarning, match="not linearly present"):
        found = tcav(model, "module:3", x, 3, concepts, drawn_sets[20:], cav=CAV("mean_diff"))
    assert 0.25 < float(found["p_rank"].mean()) < 0.75
    assert int((found["p_rank"] <= 0.1).sum()) <= 6
    assert int((found["p_value"] < 0.05).sum()) >= 6


def test_the_rank_counts_random_sets_with_a_magnitude_as_large(planted):
    found = planted[True][-1]
    model, x, _, sets, _ = planted[True]
    other = tcav(model, "module:3", x, 3, {"half": torch.cat([sets[0][:30], painted(sets[1][:30])])}, sets)
    assert other["magnitude"].item() < found["magnitude"].item()
    (grad,) = gradients_at(model, x, ["module:3"], 3).values()
    acts = [model.record(s, "module:3")["module:3"] for s in sets]
    own = [np.mean([float(CAV().fit(acts[i], acts[j]).sensitivity(grad).mean()) for j in range(20) if j != i])
           for i in range(20)]  # fmt: skip
    want = (1 + sum(abs(m) >= abs(other["magnitude"].item()) for m in own)) / 21
    assert other["p_rank"].item() == pytest.approx(want)


@few
def test_a_result_is_saved_and_runs_again_to_the_same_numbers(planted, tmp_path):
    model, x, concepts, sets, _ = planted[True]
    both = [tcav(model, "module:3", x, 3, concepts, sets[:3], progress=p) for p in (False, True)]
    assert both[0] == both[1]
    both[0].save(tmp_path / "tcav.zarr")
    assert Result.load(tmp_path / "tcav.zarr") == both[0]


def test_a_target_may_be_a_function_of_the_logits(planted):
    model, x, *_ = planted[True]
    difference = gradients_at(model, x, ["module:3"], lambda logits: logits[:, 3] - logits[:, 5])["module:3"]
    each = [gradients_at(model, x, ["module:3"], k)["module:3"] for k in (3, 5)]
    assert torch.allclose(difference, each[0] - each[1], atol=1e-6)


def test_absent_concepts_and_few_random_sets_are_warned_about(planted):
    model, x, _, sets, _ = planted[True]
    with pytest.warns(ActiniumWarning) as said:
        tcav(model, "module:3", x, 3, {"nothing": sets[0]}, sets[1:])
    assert any("take 20 or more" in str(w.message) for w in said)
    assert any("'nothing' is not linearly present" in str(w.message) for w in said)


class Beside(nn.Module):
    """A branch that does not reach the logits, one that is not differentiable, and dropout."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        self.unused(x)
        return self.head(self.drop(self.used(x)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"randoms": 1}, InputError, "two random sets"),
        ({"randoms": 2, "counterpart": 0}, InputError, "third random set"),
        ({"counterpart": 4}, InputError, "counterpart"),
        ({"random_runs": 1}, InputError, "two random runs"),
        ({"target": 3}, InputError, "class from 0 to 2"),
        ({"target": True}, InputError, "class from 0 to 2"),
        ({"target": lambda logits: logits}, InputError, "one number for each row"),
        ({"at": "module:unused"}, InputError, "does not depend on module:unused"),
        ({"at": "module:usd"}, SiteError, "module:used"),
        ({"at": "module:*"}, InputError, "means 4 sites"),
        ({"inputs": torch.zeros(0, 4)}, InputError, "empty"),
        ({"concepts": {}}, InputError, "no concepts"),
        ({"concepts": {"c": torch.zeros(0, 4)}}, InputError, "concept 'c'"),
        ({"concepts": {"c": {"module:used": torch.zeros(5, 3)}}}, InputError, "have shape"),
        ({"concepts": {"c": {"module:used": torch.full((5, 4), float("nan"))}}}, InputError, "NaN"),
        ({"positions": -1}, InputError, "has none"),
        ({"batch_size": 0}, InputError, "batch_size"),
    ],
)
def test_what_cannot_be_tested_is_refused(change, error, message):
    sets = [drawn(6, 4, seed=i) for i in range(change.get("randoms", 4))]
    given = {"at": "module:used", "inputs": drawn(5, 4), "target": 1, "concepts": {"c": drawn(6, 4, seed=9) + 3}}
    given |= {k: v for k, v in change.items() if k != "randoms"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(Beside().eval())
    with pytest.raises(error, match=message):
        tcav(model, randoms=sets, **given)


def test_training_mode_and_gradients_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="drop is in training mode"):
        gradients_at(Model(Beside()), drawn(3, 4), ["module:used"], 0)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x):
            return self.same(x).sqrt()

    with pytest.raises(InputError, match="not finite"):
        gradients_at(Model(Root()), torch.zeros(3, 2), ["module:same"], 0)


def test_a_module_that_runs_twice_needs_a_call_number():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 3)

        def forward(self, x):
            return self.one(self.one(x).tanh())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(Twice())
    x = drawn(4, 3)
    with pytest.raises(InputError, match="ran 2 times"):
        gradients_at(model, x, ["module:one"], 1)
    found = gradients_at(model, x, ["module:one#0"], 1)["module:one#0"]
    inner = model.module.one(x).detach().requires_grad_()
    (want,) = torch.autograd.grad(model.module.one(inner.tanh())[:, 1].sum(), inner)
    assert torch.allclose(found, want.double())


def test_of_four_textures_a_classes_own_raises_its_logit_most_in_the_shipped_network():
    from actinium.core.loading import load
    from actinium.world import shapes

    model, test = load("world:shapes-cnn"), shapes.render(600, seed=1)
    textures = shapes.CONCEPTS["texture"]
    concepts = {t: shapes.concept_set("texture", t, 40, seed=5).images for t in textures}
    randoms = random_sets(shapes.random_set(300, seed=2).images, 20, 40)
    for own in textures[1:]:
        inputs = test.where(label=f"{own} circle")
        found = tcav(model, "module:stage3.0", inputs.images, int(inputs.labels[0]), concepts, randoms, random_runs=20)
        assert textures[int(found["magnitude"].values.argmax())] == own


def test_on_a_trained_resnet_colours_of_the_ground_mean_what_one_would_expect(outside_data):
    """Images of the training part tinted blue, against untinted ones: ships rather than frogs."""
    net, x, y = cifar(outside_data)
    blue = torch.tensor([-0.6, 0.0, 1.0])[:, None, None]
    pool = x[200:800]
    sets = random_sets(pool, 20, 40)
    found = {}
    for name, k in (("ship", 8), ("frog", 6)):
        inputs = x[y == k][:40]
        result = tcav(Model(net), ["module:layer2", "module:layer3"], inputs, k, {"blue": x[:40] + blue}, sets,
                      cav=CAV("logistic", pool="mean"), random_runs=40)  # fmt: skip
        assert result["sensitivity"].shape == (1, 2, 20, 40) and bool((result["accuracy"] > 0.6).all())
        found[name] = result["score"].values[0]
    assert (found["ship"] > found["frog"] + 0.3).all()
