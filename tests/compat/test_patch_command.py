"""``customloss patch`` runs a script as Python does, with our losses in it, and in the processes
that the script or a launcher starts."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import like_torchvision
import pytest

import customloss

PACKAGE = str(Path(customloss.__file__).parents[1])
PATCH = ("-m", "customloss", "patch")
OURS, THEIRS = "customloss.compat.torchvision", "torchvision.ops.focal_loss"


@pytest.fixture(scope="module", autouse=True)
def _library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A library whose loss is replaced, on the path of every process of these tests."""
    folder = like_torchvision.write(tmp_path_factory.mktemp("library"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((PACKAGE, str(folder))))
        yield


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder that is not that of the repository."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


LOOKS = """\
import sys
import beside
print(__name__, __file__, __package__, __spec__ and __spec__.name, sys.argv, sys.path[0])
print(sorted({*vars()} - {"__annotations__"}), type(__loader__).__name__)
print(vars(sys.modules["__main__"]) is globals())
def annotated(x: "int") -> None: ...
print(annotated.__annotations__)
"""


def test_a_script_sees_what_python_shows_it(tmp_path: Path) -> None:
    written(tmp_path, "inside/train.py", LOOKS)
    written(tmp_path, "inside/beside.py", "")
    given = ("a", "--any-version", "--", "-m")
    plain = python(tmp_path, "inside/train.py", *given)
    assert plain.returncode == 0, plain.stderr
    ours = python(tmp_path, *PATCH, "torchvision", "--", "inside/train.py", *given)
    assert ours.stdout == plain.stdout
    assert "customloss.patch: torchvision 0.28.0" in ours.stderr


def test_a_module_sees_what_python_shows_it(tmp_path: Path) -> None:
    written(tmp_path, "package/__init__.py", "")
    written(tmp_path, "package/train.py", LOOKS)
    written(tmp_path, "beside.py", "")
    plain = python(tmp_path, "-m", "package.train", "a", "-m")
    assert plain.returncode == 0, plain.stderr
    ours = python(tmp_path, *PATCH, "--quiet", "--", "-m", "package.train", "a", "-m")
    assert (ours.stdout, ours.stderr) == (plain.stdout, "")


def test_a_folder_and_an_archive_run_as_python_runs_them(tmp_path: Path) -> None:
    written(tmp_path, "app/__main__.py", "import beside, sys; print(__name__, sys.argv)")
    written(tmp_path, "app/beside.py", "print('beside')")
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        for name in ("__main__.py", "beside.py"):
            archive.write(tmp_path / "app" / name, name)
    for program in ("app", "app.pyz"):
        ran = python(tmp_path, *PATCH, "torchvision", "--quiet", "--", program, "x")
        assert ran.stdout.splitlines()[0] == "beside", ran.stderr
        assert "__main__" in ran.stdout and "'x'" in ran.stdout


def test_the_losses_of_a_script_are_ours(tmp_path: Path) -> None:
    written(
        tmp_path,
        "train.py",
        "from torchvision.ops import sigmoid_focal_loss as f; print(f.__module__)",
    )
    assert python(tmp_path, "train.py").stdout == f"{THEIRS}\n"
    for libraries in ((), ("torchvision", "torchvision")):
        ran = python(tmp_path, *PATCH, *libraries, "--", "train.py")
        assert ran.stdout == f"{OURS}\n", ran.stderr


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("sys.exit(7)", 7), ("sys.exit('said')", 1), ("raise KeyError('mine')", 1), ("", 0),
        ("raise KeyboardInterrupt", None), ("import os; os._exit(9)", 9),
    ],
)  # fmt: skip
def test_exit_codes_and_exceptions_pass_through(
    ends: str, code: int | None, tmp_path: Path
) -> None:
    script = written(tmp_path, "train.py", f"import sys, atexit\natexit.register(print, 1)\n{ends}")
    plain = python(tmp_path, "train.py")
    ours = python(tmp_path, *PATCH, "torchvision", "--quiet", "--", "train.py")
    assert ours.returncode == plain.returncode and code in (None, ours.returncode)
    assert ours.stdout == plain.stdout
    assert ours.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]
    if "raise" in ends:
        assert f'File "{script}", line 3, in <module>' in ours.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--", "nope.py"), "there is no file 'nope.py' in {folder}"),
        (("--", "-m", "no.such"), "-m: there is no module 'no.such'"),
        (("--", "-m"), "-m: expected a module, got none"),
        (("--", "-c", "1"), "expected a script or -m MODULE behind --, got '-c'"),
        (("torchvision",), "expected a script behind --, got none"),
        ((), "expected a script behind --, got none"),
        (("train.py",), "got 'train.py'; the script stands behind --"),
        (("monay", "--", "train.py"), "or all, got 'monay'\n"),
    ],
)
def test_what_cannot_be_run_is_told(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    written(tmp_path, "train.py", "print('ran')")
    ran = python(tmp_path, *PATCH, *arguments)
    assert ran.returncode == 2 and ran.stdout == "" and "Traceback" not in ran.stderr
    assert said.format(folder=tmp_path) in ran.stderr
    assert "usage: customloss patch [LIBRARY ...]" in ran.stderr


def test_a_library_that_is_refused_stops_before_the_script(tmp_path: Path) -> None:
    written(tmp_path, "train.py", "print('ran')")
    other = "import importlib.metadata as m; m.version = lambda name: '9.0'\n"
    code = other + "import sys\nfrom customloss.__main__ import main\nmain()"
    ran = python(tmp_path, "-c", code, "patch", "torchvision", "--", "train.py")
    assert ran.returncode == 2 and ran.stdout == ""
    assert "compared with, got 9.0: --any-version takes it all the same" in ran.stderr
    ran = python(tmp_path, "-c", code, "patch", "torchvision", "--any-version", "--", "train.py")
    assert ran.stdout == "ran\n" and ran.returncode == 0


def test_help_needs_nothing_but_python(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['typer'] = sys.modules['rich'] = None\n"
        "from customloss.__main__ import main; main()"
    )
    ran = python(tmp_path, "-c", code, "patch", "--help")
    assert ran.returncode == 0 and "torchrun" in ran.stdout and "transformers" in ran.stdout


STARTS = """\
import multiprocessing, os, sys
import torch
from torchvision.ops import sigmoid_focal_loss

class Data(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, index): return sigmoid_focal_loss.__module__

def child(where):
    print(where, sigmoid_focal_loss.__module__, __name__, flush=True)

if __name__ == "__main__":
    os.environ.pop("PYTHONPATH"), os.chdir("..")  # what a new process would find customloss by
    for method in sys.argv[1:]:
        loader = torch.utils.data.DataLoader(
            Data(), num_workers=1, multiprocessing_context=method, batch_size=2
        )
        print("worker", *next(iter(loader)))
        process = multiprocessing.get_context(method).Process(target=child, args=(method,))
        process.start(), process.join()
        assert process.exitcode == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="starts processes in all three ways")
def test_processes_that_the_script_starts_are_patched(tmp_path: Path) -> None:
    """They find the package where the process found it that started them."""
    written(tmp_path, "train.py", STARTS)
    ways = ("spawn", "forkserver", "fork")
    ran = python(tmp_path, *PATCH, "torchvision", "--quiet", "--", "train.py", *ways)
    assert ran.returncode == 0, ran.stderr
    workers = [f"worker {OURS} {OURS}"] * 3
    assert [line for line in ran.stdout.splitlines() if line.startswith("worker")] == workers
    for method in ("spawn", "forkserver"):
        assert f"{method} {OURS} __mp_main__" in ran.stdout


def test_processes_are_left_alone_after_unpatch(tmp_path: Path) -> None:
    text = STARTS.replace(
        'if __name__ == "__main__":',
        'if __name__ == "__main__":\n    import customloss\n    customloss.unpatch()',
    )
    written(tmp_path, "train.py", text)
    ran = python(tmp_path, *PATCH, "torchvision", "--quiet", "--", "train.py", "spawn")
    assert f"spawn {THEIRS} __mp_main__" in ran.stdout, ran.stderr


@pytest.mark.distributed
def test_every_rank_of_torchrun_is_patched(tmp_path: Path) -> None:
    written(
        tmp_path, "train.py",
        "import os, sys\nfrom torchvision.ops import sigmoid_focal_loss as f\n"
        "sys.stdout.write(f'{os.environ[\"RANK\"]} {f.__module__} {sys.argv[1]}\\n')",
    )  # fmt: skip
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    ran = python(tmp_path, *launcher, *PATCH[:2], "patch", "torchvision", "--", "train.py", "x",
                 OMP_NUM_THREADS="1")  # fmt: skip
    assert sorted(ran.stdout.splitlines()) == [f"0 {OURS} x", f"1 {OURS} x"], ran.stderr
    assert ran.stderr.count("customloss.patch: torchvision 0.28.0") == 1  # one rank says it


def test_the_other_commands_name_it(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    pytest.importorskip("rich")
    ran = python(tmp_path, "-m", "customloss", "--help", COLUMNS="200")
    assert "customloss patch -- SCRIPT" in ran.stdout, ran.stderr
