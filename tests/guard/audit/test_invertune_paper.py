"""The reproduction of InverTune: what its evidence holds, and that it takes no model of the caller's."""

from __future__ import annotations

import pytest

from actinium.core.errors import InputError
from actinium.papers import invertune


def test_the_evidence_says_which_stage_does_what():
    evidence = invertune.reproduce()
    measured = evidence.measured
    name = "digits-backdoor: "
    assert measured[name + "success before"] > 0.9
    assert measured[name + "success of the found trigger"] > 0.95
    # Tuned with the trigger that was planted, the network no longer answers to it, and reads digits as before.
    assert measured[name + "success after tuning with the planted trigger"] < 0.1
    assert measured[name + "accuracy after tuning with the planted trigger"] > measured[name + "accuracy before"] - 0.05
    assert measured[name + "success after InverTune"] < measured[name + "success after fine-tuning"]
    assert evidence.result is not None and evidence.holds in (True, False)
    assert evidence.settings["models"] == ["digits-backdoor"]


def test_a_model_of_the_caller_is_refused():
    with pytest.raises(InputError, match="InverTune"):
        invertune.reproduce(model="world:digits-cnn")
