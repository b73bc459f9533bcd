"""The files that say whose the package is, under which license, and how it is cited."""

import tomllib

import yaml

import tiny

PROJECT = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
LICENSE = (tiny.ROOT / "LICENSE").read_text()
CITATION = yaml.safe_load((tiny.ROOT / "CITATION.cff").read_text())


def test_the_license_is_all_of_apache_2():
    sections = [line for line in LICENSE.splitlines() if line[:6].strip(" 123456789") == "."]
    assert [line.split(".")[0].strip() for line in sections] == [str(n) for n in range(1, 10)]
    assert "Apache License\n                           Version 2.0, January 2004" in LICENSE
    assert "END OF TERMS AND CONDITIONS" in LICENSE
    assert "Copyright 2026 ddae_jax contributors" in LICENSE
    assert "[yyyy]" not in LICENSE


def test_all_files_name_the_same_license_and_version():
    assert PROJECT["license"] == {"text": CITATION["license"]} == {"text": "Apache-2.0"}
    assert PROJECT["version"] == str(CITATION["version"])
    assert f"## {PROJECT['version']} " in (tiny.ROOT / "CHANGELOG.md").read_text()


def test_the_citation_has_what_its_format_requires():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= CITATION.keys()
    assert CITATION["authors"] == [{"name": "ddae_jax contributors"}]
    [paper] = CITATION["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert all({"family-names", "given-names"} == author.keys() for author in paper["authors"])
    assert paper["doi"] == "10.1609/aaai.v38i2.27864"
