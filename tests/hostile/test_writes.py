"""A training and a packaged model, with every opening for writing on record: none lies outside the places of the run.

Python's audit hook sees files that Python opens, renames, removes and links, and programs that it starts; what a library's
C code opens by itself it does not see. So the folders around are compared, too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from point_models import point_model
from test_attacks import points, train_points

WATCHED = """
import json, os, sys
seen = []
def hook(event, args):
    if event == "open":
        path, mode, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if isinstance(path, (str, bytes)) and (writes or (mode and set(mode) & set("wax+"))):
            seen.append(os.path.abspath(os.fsdecode(path)))
    elif event in ("os.rename", "os.link", "os.symlink"):
        seen.append(os.path.abspath(os.fsdecode(args[1])))
    elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"):
        if not isinstance(args[0], int):  # by a folder's descriptor: inside an rmtree, which is on record
            seen.append(os.path.abspath(os.fsdecode(args[0])))
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        started.append([str(part) for part in (args[1] if len(args) > 1 and args[1] else [args[0]])])
    elif event == "pickle.find_class":
        unpickled.append(".".join(map(str, args)))
started, unpickled = [], []
sys.addaudithook(hook)
"""
TRAIN = """
from jobs.train import main
code = main(json.loads(sys.argv[1]))
"""
PACKAGE = """
from pathlib import Path
from pipeline.packages.models import load_package
model = load_package(sys.argv[1])
code = 0 if len(model.sample(5, 3)) == 5 and len(model.encode(model.sample(5, 3))) == 5 else 1
model.save(Path(sys.argv[2]))
"""
REPORT = 'print("RECORD " + json.dumps([code, seen, started, unpickled]))'


def watched(program: str, arguments: list[str], cwd: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """(places written, programs started, classes unpickled) by a program in a process of its own; it has to succeed."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(cwd), "TMPDIR": str(cwd / "tmp")}
    (cwd / "tmp").mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = str(root)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + program + REPORT, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORD ")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    code, seen, started, unpickled = json.loads(lines[-1].removeprefix("RECORD "))
    assert code == 0, done.stderr[-3000:]
    return seen, started, unpickled


def outside(seen: list[str], allowed: list[Path]) -> list[str]:
    return sorted({p for p in seen if p != os.devnull and not any(Path(p).is_relative_to(place) for place in allowed)})


def test_a_training_writes_in_its_folders_only(tmp_path: Path) -> None:
    data, place, home = points(tmp_path / "data"), tmp_path / "place", tmp_path / "home"
    home.mkdir()
    seen, _, unpickled = watched(TRAIN, [json.dumps(train_points(data, place, "one"))], home)
    assert any(Path(p).is_relative_to(place / "runs" / "one" / "checkpoints") for p in seen), "the hook saw nothing"
    assert outside(seen, [place / "runs" / "one", place / "runs", place / "cache", place, home / "tmp"]) == []
    assert sorted(p.name for p in place.iterdir()) in (["runs"], ["cache", "runs"])
    assert [p.name for p in (place / "runs").iterdir()] == ["one"]
    assert [p.name for p in home.iterdir()] == ["tmp"] and not list((home / "tmp").iterdir())
    assert unpickled == []


def test_a_packaged_model_writes_nothing_and_starts_nothing(tmp_path: Path) -> None:
    folder, home = tmp_path / "model", tmp_path / "home"
    home.mkdir()
    point_model("gaussian").save(folder)
    seen, started, unpickled = watched(PACKAGE, [str(folder), str(tmp_path / "copy")], home)
    assert outside(seen, [tmp_path / "copy", home / "tmp"]) == []
    assert any(Path(p).is_relative_to(tmp_path / "copy") for p in seen), "the hook saw nothing"
    assert [p.name for p in home.iterdir()] == ["tmp"] and not list((home / "tmp").iterdir())
    assert started == [] and unpickled == []
