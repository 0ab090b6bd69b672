"""The check-up as a person runs it: a model goes in, findings and three files come out."""

from __future__ import annotations

import contextlib
import io
import json
import re
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
import torch

import actinium as ac
from actinium.report import measurements
from actinium.report.checkup import Interrupted
from actinium.report.rules.rule import SEVERITIES
from actinium.report.write_docs import SCHEMA


@pytest.fixture(scope="module")
def llama_report(tiny_llama, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    return ac.report.scan(tiny_llama, text=text_file, out=out, progress=False)


def states(report):
    return {m.name: m.state for m in report.document.measurements}


def reasons(report):
    return {m.name: m.reason for m in report.document.measurements}


def test_three_files_are_written(llama_report):
    assert [path.name for path in llama_report.files] == ["report.html", "report.json", "report.md"]
    assert all(path.stat().st_size > 1000 for path in llama_report.files)
    assert sorted(p.name for p in llama_report.files[0].parent.iterdir()) == sorted(p.name for p in llama_report.files)


def test_language_model_gets_every_measurement_but_those_of_classifiers(llama_report):
    left_out = {name for name, state in states(llama_report).items() if state != "done"}
    assert left_out == {"classes", "massive_effect"}
    assert reasons(llama_report)["massive_effect"] == "there are no massive activations"


def test_json_follows_its_schema_and_is_strict(llama_report):
    text = llama_report.files[1].read_text()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    document = json.loads(text, parse_constant=refuse)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    broken = document | {"findings": [{"rule": "x"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema, cls=jsonschema.Draft202012Validator)


def test_json_holds_the_numbers_of_the_results(llama_report):
    document = json.loads(llama_report.files[1].read_text())
    held = {m["name"]: m for m in document["measurements"]}
    for name, result in llama_report.results.items():
        for variable, array in result.data.data_vars.items():
            if variable in held[name]["omitted"]:
                continue
            written = held[name]["variables"][variable]
            assert written["dims"] == list(array.dims)
            if array.dtype.kind in "fiub":
                values = np.array(written["values"], dtype=object)
                values = np.where(values == None, np.nan, values)  # noqa: E711 - elementwise
                np.testing.assert_array_equal(values.astype(float), array.values.astype(float))


def test_loss_is_that_of_the_model(llama_report, tiny_llama):
    model = ac.load(tiny_llama)
    tokens = llama_report.results["prediction"]
    inputs = ac.report.read(model, text=_text(llama_report)).inputs
    assert float(tokens["loss"]) == pytest.approx(float(model.loss(inputs).detach()), abs=1e-6)
    assert float(tokens["uniform_loss"]) == pytest.approx(np.log(40))


def _text(report):
    return re.search(r"text='([^']+)'", report.document.setup).group(1)


class Loads(HTMLParser):
    """What a page would fetch, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "poster", "srcset") and value:
                self.loads.append(value)
        if tag not in ("meta", "link", "br", "img", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_loads_nothing(llama_report):
    page = llama_report.files[0].read_text()
    parser = Loads()
    parser.feed(page)
    assert parser.open == []
    assert parser.scripts == 0
    assert all(target.startswith(("#", "data:")) for target in parser.loads)
    assert not re.search(r"@import|url\((?!#)", page)


def test_html_has_a_figure_for_what_can_be_drawn(llama_report):
    page = llama_report.files[0].read_text()
    assert "could not be drawn" not in page
    for name in ("norms", "massive", "attention", "similarity", "lens", "sparsity", "rank", "quantisation"):
        assert f'aria-label="{name}"' in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_markdown_names_every_finding(llama_report):
    text = llama_report.files[2].read_text()
    assert llama_report.findings
    for finding in llama_report.findings:
        assert finding.rule in text
        assert finding.look.strip() in text


def test_two_runs_write_the_same_json(llama_report, tiny_llama, text_file):
    again = ac.report.scan(tiny_llama, text=text_file, out=None, progress=False)
    assert again.to_json() == llama_report.files[1].read_text()
    assert again.to_html() == llama_report.files[0].read_text()
    assert again.files == []


def run_python(code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<look closer>", "exec"), {})
    return printed.getvalue()


def test_every_look_closer_runs_and_prints(llama_report):
    for finding in llama_report.findings:
        assert run_python(finding.look).strip(), finding.rule


def test_findings_are_ordered_and_their_code_fits_a_terminal(llama_report):
    severities = [SEVERITIES.index(f.severity) for f in llama_report.findings]
    assert severities == sorted(severities)
    for finding in llama_report.findings:
        look = finding.look.removeprefix(llama_report.document.setup)
        assert all(len(line) <= 76 for line in look.splitlines()), look


def test_setup_makes_the_same_inputs(llama_report):
    space = {}
    exec(llama_report.document.setup, space)
    from actinium.core.provenance import fingerprint

    assert fingerprint(space["inputs"]) == llama_report.document.data.fingerprint


def test_random_weights_are_said_to_predict_no_better_than_counts(llama_report):
    assert {"worse-than-uniform", "no-better-than-counts"} & {f.rule for f in llama_report.findings}


def test_token_ids_from_an_array_file(tiny_gpt2, tmp_path):
    ids = np.random.default_rng(0).integers(0, 30, (12, 60))
    np.save(tmp_path / "ids.npy", ids)
    report = ac.report.scan(tiny_gpt2, data=tmp_path / "ids.npy", out=None, progress=False)
    assert report.document.data.rows == 24  # 60 tokens give two windows of 24, the rest is said to be left out
    assert "windows of 24 tokens" in " ".join(report.document.data.notes)
    assert states(report)["lens"] == "done"
    assert not [m for m in report.document.measurements if m.state == "failed"]


def test_vit_reads_a_folder_of_images(tiny_vit, pictures, tmp_path):
    report = ac.report.scan(tiny_vit, data=pictures, out=tmp_path / "out", progress=False)
    assert report.document.data.used == 24
    assert report.results["attention"].data.sizes == {"layer": 2, "head": 2, "sink_rank": 0}
    assert states(report)["lens"] == "not applicable"
    assert "language model" in reasons(report)["lens"]
    assert not [m for m in report.document.measurements if m.state == "failed"]
    for finding in report.findings:
        assert run_python(finding.look).strip(), finding.rule


def test_vit_with_an_image_processor_sees_what_it_prepares(tiny_vit, pictures, tmp_path):
    import shutil

    from PIL import Image
    from transformers import AutoImageProcessor, ViTImageProcessor

    folder = tmp_path / "vit"
    shutil.copytree(tiny_vit, folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    model = ac.load(folder)
    sample = ac.report.read(model, data=pictures)
    first = sorted(pictures.rglob("*.png"))[0]
    image = Image.open(first).convert("RGB")
    expected = AutoImageProcessor.from_pretrained(folder)(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.allclose(sample.inputs[:1], expected, atol=1e-6)


def test_cnn_of_a_factory_reads_a_folder_of_images(factory, pictures, tmp_path):
    report = ac.report.scan(f"{factory}:build", data=pictures, out=tmp_path / "out", progress=False)
    done = {name for name, state in states(report).items() if state == "done"}
    assert {"finite", "classes", "norms", "outliers", "similarity", "dead", "zeros", "rank", "quantisation"} <= done
    assert not [m for m in report.document.measurements if m.state == "failed"]
    assert "could not be drawn" not in report.files[0].read_text()
    for finding in report.findings:
        assert run_python(finding.look).strip(), finding.rule


def test_exact_zeros_of_a_relu_are_counted(factory, pictures):
    report = ac.report.scan(f"{factory}:build", data=pictures, out=None, progress=False)
    model = ac.load(f"{factory}:build")
    images = ac.report.read(model, data=pictures).inputs
    seen = []
    hook = model.module[1].relu.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        model.module(images)
    hook.remove()
    expected = float((torch.cat(seen) == 0).double().mean())
    measured = report.results["zeros"].data.set_index(site="site").sel(site="module:1.relu")
    assert float(measured["sparsity"]) == pytest.approx(expected, abs=1e-9)


def test_similarity_compares_only_sites_with_the_same_positions(factory, pictures):
    report = ac.report.scan(f"{factory}:build", data=pictures, out=None, progress=False)
    cosine = report.results["similarity"]["cosine"].to_pandas()
    assert np.isfinite(cosine.loc["module:1.first", "module:1.second"])
    assert np.isnan(cosine.loc["module:1.first", "module:4"])


def test_digits_fit_a_module_of_a_fixed_size(factory):
    report = ac.report.scan(f"{factory}:fixed", dataset="digits", out=None, limit=40, progress=False)
    assert report.document.data.available == 1797
    assert report.document.data.used == 40
    from sklearn.datasets import load_digits

    model = ac.load(f"{factory}:fixed")
    inputs = ac.report.read(model, dataset="digits", limit=2000).inputs
    assert torch.equal(inputs[:, 0], torch.from_numpy(load_digits().images).float() / 16)


def test_flat_module_gets_flat_digits(factory):
    report = ac.report.scan(f"{factory}:flat", dataset="digits", out=None, limit=40, progress=False)
    assert states(report)["classes"] == "done"
    assert "Tanh" in reasons(report)["saturated"]


def test_recurrent_module_reads_float_arrays(factory, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(30, 7, 5)), y=np.zeros(30))
    report = ac.report.scan(f"{factory}:recurrent", data=tmp_path / "x.npz", out=None, progress=False)
    assert report.document.data.source == "array 'x' of x.npz"
    assert states(report)["finite"] == "done"
    assert not [m for m in report.document.measurements if m.state == "failed"]


def test_module_in_training_mode_is_measured_in_evaluation_mode_and_left_as_it_was():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Dropout(0.5), torch.nn.ReLU())
    module[1].eval()
    array = torch.rand(40, 64)
    first, second = (ac.report.scan(module, data=array, out=None, progress=False) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert module.training
    assert module[2].training
    assert not module[1].training


def test_masked_and_encoder_decoder_models_are_read():
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForMaskedLM(BertConfig(**size, vocab_size=40, max_position_embeddings=32)).eval()
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40)
    ).eval()
    ids = np.random.default_rng(0).integers(3, 40, (20, 16))
    masked = ac.report.scan(bert, data=ids, out=None, progress=False)
    assert states(masked)["lens"] == "done"
    both = ac.report.scan(t5, data=ids, out=None, progress=False)
    assert list(both.results["norms"]["site"].values) == ["encoder.blocks.0.resid_post", "encoder.blocks.1.resid_post"]
    for report in (masked, both):
        assert not [m for m in report.document.measurements if m.state == "failed"]


def test_trained_model_from_outside(outside_data, tmp_path):
    report = ac.report.scan(outside_data / "stories260K", out=tmp_path, limit=700, progress=False)
    assert not [m for m in report.document.measurements if m.state == "failed"]
    prediction = report.results["prediction"]
    assert float(prediction["loss"]) < float(prediction["unigram_loss"]) < float(prediction["uniform_loss"])
    assert "plain English" in report.document.data.source
    assert "no text was given" in report.document.data.notes[0]
    assert "critical" not in {f.severity for f in report.findings}
    for finding in report.findings:
        assert run_python(finding.look).strip(), finding.rule


def test_shipped_model_reads_its_held_out_text():
    report = ac.report.scan("world:lm", out=None, limit=700, progress=False)
    assert report.document.data.source == "held-out text of world:lm"
    assert not [m for m in report.document.measurements if m.state == "failed"]
    assert float(report.results["prediction"]["loss"]) < float(report.results["prediction"]["unigram_loss"])


def test_interrupt_keeps_what_was_measured(tiny_llama, text_file, tmp_path, monkeypatch):
    def stop(plan):
        raise KeyboardInterrupt

    table = list(measurements.MEASUREMENTS)
    place = [m.name for m in table].index("attention")
    table[place] = type(table[place])("attention", "Attention", "", stop)
    monkeypatch.setattr("actinium.report.checkup.MEASUREMENTS", tuple(table))
    with pytest.raises(Interrupted) as stopped:
        ac.report.scan(tiny_llama, text=text_file, out=tmp_path, progress=False)
    report = stopped.value.report
    assert f"{tmp_path / 'report.html'}" in str(stopped.value)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["state"] == "interrupted"
    kept = {m["name"]: m["state"] for m in document["measurements"]}
    assert kept["outliers"] == "done"
    assert kept["attention"] == kept["rank"] == "not run"
    assert report.results["norms"].data.sizes == {"layer": 3}
    assert "Interrupted" in (tmp_path / "report.html").read_text()
    assert "Interrupted" in (tmp_path / "report.md").read_text()


def test_interrupt_before_anything_leaves_no_report(tiny_llama, text_file, tmp_path, monkeypatch):
    def stop(plan):
        raise KeyboardInterrupt

    table = [type(m)(m.name, m.title, m.about, stop) for m in measurements.MEASUREMENTS]
    monkeypatch.setattr("actinium.report.checkup.MEASUREMENTS", tuple(table))
    with pytest.raises(KeyboardInterrupt, match="nothing was measured"):
        ac.report.scan(tiny_llama, text=text_file, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_failing_measurement_is_reported_and_the_rest_goes_on(tiny_llama, text_file, tmp_path, monkeypatch):
    def fail(plan):
        raise RuntimeError("a bug <here>")

    table = [type(m)(m.name, m.title, m.about, fail) if m.name == "rank" else m for m in measurements.MEASUREMENTS]
    monkeypatch.setattr("actinium.report.checkup.MEASUREMENTS", tuple(table))
    report = ac.report.scan(tiny_llama, text=text_file, out=tmp_path, progress=False)
    assert states(report)["rank"] == "failed"
    assert reasons(report)["rank"].startswith("RuntimeError: a bug <here> (actinium/report/")
    assert states(report)["quantisation"] == "done"
    assert "a bug &lt;here&gt;" in (tmp_path / "report.html").read_text()


def test_planted_massive_activation_is_found_with_its_token_and_channel(tiny_llama, text_file):
    model = ac.load(tiny_llama)
    with torch.no_grad():
        model.module.model.embed_tokens.weight[1, 5] = 4000.0  # <bos>
    report = ac.report.scan(model, text=text_file, out=None, progress=False)
    finding = next(f for f in report.findings if f.rule == "massive-activations")
    assert finding.where == "layers 0-2, channel 5"
    assert "token '<bos>' at the start" in finding.what
    assert "set to zero, perplexity goes from" in finding.what
    assert finding.value > 1000
    assert states(report)["massive_effect"] == "done"
    space = {"module": model}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(finding.look, space)
    assert "<bos>" in printed.getvalue()
    assert "first-position" in {f.rule for f in report.findings}


def test_the_signal_is_measured_where_it_is_asked_for(tmp_path):
    found = ac.report.scan("world:digits-cnn", dataset="digits", out=tmp_path, formats=["md"], limit=64, signal=True)
    assert float(found.results["signal"]["variance"].min()) > 0
    assert "Signal propagation" in (tmp_path / "report.md").read_text()
    plain = ac.report.scan("world:digits-cnn", dataset="digits", out=None, limit=64)
    assert "signal" not in plain.results
