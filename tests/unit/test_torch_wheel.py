"""Which torch is installed where, and that it is said: nobody fetches gigabytes of CUDA for a machine without a GPU."""

import importlib.util
import socket
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "install" / "torch_wheel.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_wheel", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["torch_wheel"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


wheel = loaded()
NOTHING = {"system": "Linux", "has_driver": False, "wants_gpu": False, "installed": None, "own_index": False}


def chosen(answers: bool = True, **facts):
    return wheel.choose("2.13.0", wheel.Facts(**{**NOTHING, **facts}), lambda: answers)


def test_without_a_driver_it_is_the_cpu_build_from_pytorchs_own_index():
    choice = chosen()
    assert choice.argv == ("--no-deps", "--index-url", wheel.CPU_INDEX, "torch==2.13.0")
    assert wheel.CPU_SIZE in choice.words and choice.or_else.argv[-1] == "torch==2.13.0"


def test_without_that_index_it_is_the_usual_one_and_its_size_is_said():
    choice = chosen(answers=False)
    assert "--index-url" not in choice.argv and choice.argv[-1] == "torch==2.13.0"
    assert "2.7 GB" in choice.words and "does not answer" in choice.words


@pytest.mark.parametrize("facts", [{"has_driver": True}, {"wants_gpu": True}, {"has_driver": True, "wants_gpu": True}])
def test_with_a_driver_or_by_wish_it_is_cuda(facts):
    def never() -> bool:
        raise AssertionError("nobody needs to ask")

    choice = wheel.choose("2.13.0", wheel.Facts(**{**NOTHING, **facts}), never)
    assert "--index-url" not in choice.argv and "2.7 GB" in choice.words and "--force-reinstall" not in choice.argv


def test_a_cpu_build_is_replaced_where_cuda_is_wanted_and_left_alone_elsewhere():
    assert "--force-reinstall" in chosen(wants_gpu=True, installed="2.13.0+cpu").argv
    assert chosen(installed="2.13.0+cpu").argv == () == chosen(installed="2.13.0", has_driver=True).argv
    assert chosen(installed="2.12.0").argv


def test_a_mac_and_a_machine_with_only_places_of_its_own_are_left_alone():
    assert chosen(system="Darwin", has_driver=True).argv == ("-c", str(wheel.CONSTRAINTS), "torch==2.13.0")
    assert "--index-url" not in chosen(own_index=True).argv


def test_what_fails_there_is_tried_at_the_usual_index_aloud():
    said, ran = [], []

    def pip(argv) -> int:
        ran.append(argv)
        return len(ran) % 2  # the first fails

    assert wheel.install(chosen(), pip, said.append) == 0
    assert [wheel.CPU_INDEX in argv for argv in ran] == [True, False] and len(said) == 3
    assert wheel.install(chosen(installed="2.13.0"), pip, said.append) == 0 and len(ran) == 2


def test_the_version_is_the_tested_one():
    assert wheel.pinned_version(wheel.CONSTRAINTS.read_text()).count(".") == 2


def test_an_index_that_keeps_silent_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun_s = time.monotonic()
        assert not wheel.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", within_s=0.1)
        assert time.monotonic() - begun_s < 5
    assert not wheel.answers("nonsense")
