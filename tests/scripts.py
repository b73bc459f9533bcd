"""Runs scripts of launch/ where no cloud and no cluster can be reached, but tools play them."""

import pathlib
import shlex
import shutil
import subprocess

import tiny

LAUNCH = tiny.ROOT / "launch"

ORDINARY = """
bash cat date dirname env flock git grep id mkdir mktemp mv nohup paste printenv rm sed setsid sleep
sort tail touch tr true
""".split()  # noqa: SIM905 - a list would have a line for each

CHANGES = (
    "--config.model.supervised_depths=(6,8)",
    "--config.data.data_dir=/mnt/shared/two words",
    '--config.data.name=it\'s $HOME "quoted" & more;',
)
"""Changes of a config that a shell would not leave as they are."""


class Tools:
    """A folder to find programs in: ordinary ones, and those that a test plays.

    Played programs write down how they were called, in one list together.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)
        self._calls = folder / "calls"
        for name in ORDINARY:
            (self.programs / name).symlink_to(shutil.which(name))

    def play(self, name: str, body: str = "") -> None:
        """Adds a program. Its body is Bash, starts in the folder, and may use ``pop FILE``.

        ``pop`` takes the first line of a file away and prints it; the last one stays.
        """
        path = self.programs / name
        path.unlink(missing_ok=True)
        path.write_text(
            f"#!{shutil.which('bash')}\n"
            f"cd {shlex.quote(str(self.folder))}\n"
            f"{{ printf '%q ' {name} \"$@\"; echo; }} >>calls\n"
            'pop() { sed -n 1p "$1"; [ "$(grep -c . "$1")" = 1 ] || sed -i 1d "$1"; }\n' + body
        )
        path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """Programs that were called, each with its arguments, from the first on."""
        return commands(self._calls.read_text()) if self._calls.exists() else []

    def run(self, script: str | pathlib.Path, *arguments: str, **options):
        """Runs a script with these tools alone; its output is text."""
        options = {"cwd": self.folder, "input": "", "env": {}} | options
        options["env"] = {"PATH": str(self.programs), "HOME": str(self.folder)} | options["env"]
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )

    def output(self, script: str | pathlib.Path, *arguments: str, **options) -> str:
        """What a script prints, which ends well."""
        done = self.run(script, *arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, script: str | pathlib.Path, *arguments: str, **options) -> str:
        """What a script says that refuses its arguments, before any played program is called."""
        done = self.run(script, *arguments, **options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert self.calls() == []
        return done.stderr


def commands(printed: str) -> list[list[str]]:
    """The commands of a printed shell script, as a shell reads them; comments are none."""
    return [words for line in printed.splitlines() if (words := shlex.split(line, comments=True))]
