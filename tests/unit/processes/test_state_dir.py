"""What a coordinator remembers: whole, or as if there were nothing; and a new `up` asks branches anew."""

import errno
import json

import attrs
import pytest

from hydra.actors.families.coordinator import SavedState
from hydra.actors.planning.desired_model import DesiredModel
from hydra.processes.state_dir import FILE_NAME, begin_anew, read_state, write_state
from hydra.protocol.ids import TERM_MAX

STATE = SavedState(
    term=4,
    desired=(DesiredModel("/models/m", "m", "float32"), DesiredModel("org/m", pinned="org/m@0123")),
    nodes=("w0", "w1"),
)

NO_TERM = json.dumps({"term": 1 << 32, "wishes": [], "nodes": []})  # no step could say it
NO_WISH = json.dumps({"term": 1, "wishes": ["m"], "nodes": []})


def test_what_was_written_is_read(tmp_path):
    write_state(tmp_path / "state", STATE)
    assert read_state(tmp_path / "state") == STATE


def test_what_an_earlier_version_wrote_is_read_too(tmp_path):
    old = {"term": 2, "wishes": [{"model_path": "/m", "model_id": None, "dtype": None}], "nodes": []}
    (tmp_path / FILE_NAME).write_text(json.dumps(old))
    assert read_state(tmp_path) == SavedState(term=2, desired=(DesiredModel("/m"),))


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "[]",
        '{"term": "x"}',
        '{"term": 1}',
        '{"term": 1e999, "wishes": [], "nodes": []}',
        '{"term": true, "wishes": [], "nodes": []}',
        '{"term": 1, "wishes": [["m"]], "nodes": []}',
        '{"term": 1, "wishes": [{"model_path": 5}], "nodes": []}',
        '{"term": 1, "wishes": [{"model_path": "m", "model_id": 5}], "nodes": []}',
        '{"term": 1, "wishes": [], "nodes": 7}',
        '{"term": 1, "wishes": [{"model_path": "m", "quantize": "int3"}], "nodes": []}',
        '{"term": 1, "wishes": [{"model_path": "m", "quantize": ["int4"]}], "nodes": []}',
        "[" * 100_000,
        NO_TERM,
        NO_WISH,
        "\x00",
    ],
)
def test_nonsense_is_a_new_cluster(tmp_path, raw):
    (tmp_path / FILE_NAME).write_text(raw)
    assert read_state(tmp_path) == SavedState()


def test_a_file_that_cannot_be_read_is_a_new_cluster(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    assert read_state(tmp_path) == SavedState()
    (tmp_path / "file").write_text("no directory")
    assert read_state(tmp_path / "file") == SavedState()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write_state(tmp_path, STATE)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("hydra.processes.state_dir.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_state(tmp_path, SavedState(term=9))
    assert read_state(tmp_path) == STATE and [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    begin_anew(tmp_path)
    assert read_state(tmp_path) == STATE, "and a new `up` starts all the same"


@pytest.mark.parametrize("term", [2**32, 2**64, TERM_MAX, -1])
def test_a_term_that_cannot_be_is_forgotten_and_the_wishes_stay(tmp_path, term):
    write_state(tmp_path, attrs.evolve(STATE, term=term))
    assert read_state(tmp_path) == attrs.evolve(STATE, term=0)


def test_a_new_up_is_noted_and_forgets_commits_and_nothing_else(tmp_path):
    begin_anew(tmp_path)
    assert read_state(tmp_path) == SavedState()
    write_state(tmp_path, STATE)
    assert not read_state(tmp_path).first_life
    begin_anew(tmp_path)
    desired = (STATE.desired[0], DesiredModel("org/m"))
    assert read_state(tmp_path) == SavedState(term=4, desired=desired, nodes=STATE.nodes, anew=True)
    assert read_state(tmp_path).first_life
