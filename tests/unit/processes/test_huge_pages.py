"""A worker's malloc asks for huge pages, unless somebody has tuned it otherwise."""

import os
import subprocess
import sys

import pytest

from hydra.processes.huge_pages import huge_pages_env


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": ""}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
    ],
)
def test_what_was_tuned_is_kept_and_huge_pages_are_added(said, meant):
    assert huge_pages_env(said) == {"GLIBC_TUNABLES": meant}


def test_who_chose_about_huge_pages_is_left_alone():
    assert huge_pages_env({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) == {}


def test_a_process_starts_with_it():
    env = {**os.environ, **huge_pages_env(os.environ)}
    said = subprocess.run([sys.executable, "-c", "print(1)"], env=env, capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("1\n", "")
