"""A model out of an installed package: found by what the installer wrote down, and nothing of it is imported."""

import pytest

from hydra.protocol.refusal import RefusalError
from hydra.store.models.packaged_model import find_packaged_model

BAIT = "raise AssertionError('imported')\n"


def install(site, files, package="some-model", recorded=None):
    """As an installer does: files beside a .dist-info folder that lists them; `recorded` are those it lists."""
    module = package.replace("-", "_")
    info = site / f"{module}-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(f"[llm]\nbait = {module}\n")
    (site / module).mkdir()
    (site / module / "__init__.py").write_text(BAIT)
    for name in files:
        (site / module / name).write_bytes(b"GGUF")
    names = [f"{module}/__init__.py", *(f"{module}/{name}" for name in (files if recorded is None else recorded))]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    return site / module


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def test_the_one_gguf_file_of_the_package_is_found(site):
    folder = install(site, ["Model.Q4_1.gguf", "notes.txt"])
    found = find_packaged_model("some-model")
    assert found is not None and found.version == "1.2.3"
    assert found.path == folder / "Model.Q4_1.gguf" and found.path.is_absolute()


def test_a_package_that_is_not_there_is_no_model(site):
    install(site, ["Model.gguf"])
    assert find_packaged_model("another-model") is None


@pytest.mark.parametrize(
    ("files", "recorded", "count"),
    [([], [], "no"), (["a.txt"], None, "no"), ([], ["gone.gguf"], "no"), (["a.gguf", "b.gguf"], None, "2")],
)
def test_a_package_without_its_file_says_how_to_mend_it(site, files, recorded, count):
    install(site, files, recorded=recorded)
    with pytest.raises(RefusalError) as refused:
        find_packaged_model("some-model")
    assert refused.value.refusal.code == "bad_model"
    assert f"some-model 1.2.3 is installed and holds {count} .gguf" in str(refused.value)
    assert "--force-reinstall --no-deps some-model" in str(refused.value)
