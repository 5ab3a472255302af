"""Kills itself before every single change it makes to the disk: `store_crash.py FOLDER OPERATION`.

For n = 1, 2, 3, … a copy of the store is made and a forked child does the operation, but is gone (SIGKILL)
in the moment of its n-th change. Then the store is opened as after a restart. Prints one JSON line for each
n: whether the child got to the end, what is in the store, and what is wrong with it.
"""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from greenroom.runner.models.creation import of_files
from greenroom.runner.models.recipe import Recipe
from greenroom.runner.models.references import digest_of
from greenroom.runner.models.store import ModelStore

CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
NEVER = threading.Event()


def arrive(store: ModelStore, folder: Path, names: list[str], tag: str) -> str:
    with store.arrival() as arrival:
        for name in names:
            arrival.take(folder / name, name, how="link", cancel=NEVER)
        return store.commit(arrival, tag=tag).id


def prepare(store: ModelStore, folder: Path) -> None:
    store.prepare()
    arrive(store, folder, ["a.gguf", "mmproj-a.gguf"], "t")


def operate(store: ModelStore, folder: Path, operation: str) -> None:
    """Each shares a file with what is there, and moves or takes a tag."""
    if operation == "commit":
        arrive(store, folder, ["b.gguf", "mmproj-a.gguf"], "t")
    elif operation == "remove":
        store.remove(store.models()[0].id)
    elif operation == "tag":
        store.tag(store.models()[0].id, "u")
    elif operation == "recipe":
        recipe = Recipe(system="s", parameters={"seed": 1}, template="{{ messages }}", licenses=("MIT",))
        store.repackage(store.models()[0].id, tag="t", recipe=recipe)
    elif operation == "create":
        data = (folder / "b.gguf").read_bytes()
        upload = store.uploads.begin(digest_of(data))
        upload.write(data)
        upload.finish()
        upload.close()
        files = {
            "b.gguf": digest_of(data),
            "mmproj-a.gguf": digest_of((folder / "mmproj-a.gguf").read_bytes()),
        }
        of_files(store, files, tag="t", recipe=Recipe(system="s", template="{{ messages }}"))
    elif operation == "sweep":
        store.sweep()


def killed_at(change: int) -> None:
    """From here on, die in the moment of the n-th change."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        written = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in CHANGES or written:
            count += 1
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    folder, operation = Path(sys.argv[1]), sys.argv[2]
    base = folder / "base"
    prepare(ModelStore(base), folder)
    (base / "blobs" / "sha256" / ("0" * 64)).write_bytes(b"left over")
    for change in range(1, 200):
        root = folder / "models"
        shutil.copytree(base, root)
        pid = os.fork()
        if not pid:
            killed_at(change)
            operate(ModelStore(root), folder, operation)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        store = ModelStore(root)
        before = [(m.id, m.tags) for m in store.models()]
        store.prepare()
        wrong = [reason for _, reason in store.damaged()]
        wrong += [reason for model in store.models() for reason in store.verify(model.id)]
        for model in store.look():
            store.open_model(model.id)
        if before != [(m.id, m.tags) for m in store.look()]:
            wrong.append("a restart changed what is in the store")
        store.sweep(kept=0)
        if store.sweep(kept=0) or store.usage().other > 10_000:
            wrong.append("something was left behind")
        finished = os.WIFEXITED(status)
        print(json.dumps({"change": change, "finished": finished, "models": before, "wrong": wrong}))
        shutil.rmtree(root)
        if finished:
            return


if __name__ == "__main__":
    main()
