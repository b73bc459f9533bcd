"""Durations of the tests, by file and by test, from what a run of them prints.

    bash launch/test.sh --durations=0 | tee fast.log
    bash launch/test.sh --all --durations=0 | tee all.log
    python -m benchmarks.suite fast.log all.log

Each log is stored under its name in benchmarks/results/suite.json. A test's seconds are those of
its call and of the fixtures that it was the first to need; cases of one function are added up.
Processes run side by side, so that the sum of all tests exceeds the time on the clock.
"""

import collections
import pathlib
import re
import sys

from benchmarks.environment import store

_DURATION = re.compile(r"([\d.]+)s (?:call|setup|teardown) +(tests/\S+?)(?:\[.*)?(?:@.*)?$")
_LAST_LINE = re.compile(r"=+ (.*) in ([\d.]+)s")


def main() -> None:
    """Stores the durations that the logs named on the command line hold."""
    tiers = {
        path.stem: durations(path.read_text(encoding="utf-8"))
        for path in map(pathlib.Path, sys.argv[1:])
    }
    for name, tier in tiers.items():
        print(f"{name}: {tier['outcome']} in {tier['seconds']} s, {tier['sum_s']} s of tests")
        for test, seconds in list(tier["tests_over_4_s"].items())[:10]:
            print(f"  {seconds:6.1f} s  {test}")
    store("suite", tiers, ("pytest", "pytest-xdist", "hypothesis"))


def durations(log: str) -> dict:
    """Returns the outcome, the seconds on the clock, and those of files and of long tests."""
    files: collections.Counter = collections.Counter()
    tests: collections.Counter = collections.Counter()
    for line in log.splitlines():
        if match := _DURATION.match(line.strip()):
            seconds, test = float(match[1]), match[2]
            tests[test] += seconds
            files[test.partition("::")[0]] += seconds
    outcome, seconds = _LAST_LINE.findall(log)[-1]
    return {
        "outcome": outcome,
        "seconds": round(float(seconds)),
        "sum_s": round(sum(files.values())),
        "files": {name: round(value, 1) for name, value in files.most_common()},
        "tests_over_4_s": {
            name: round(value, 1) for name, value in tests.most_common() if value >= 4
        },
    }


if __name__ == "__main__":
    main()
