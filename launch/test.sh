#!/usr/bin/env bash
# Formatter, linter, and the whole test suite, or the tests that the arguments name.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
.venv/bin/ruff format --check .
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadgroup --basetemp=.cache/pytest "$@"
