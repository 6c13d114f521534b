"""Change one store without end, to be killed at any moment: ``python store_churn.py HOME SEED``.

Prints ``committed`` once, after the first model it finished.
"""

import hashlib
import random
import sys
from pathlib import Path

from openhearth.errors import HearthError
from openhearth.hub.leftovers import remove_leftovers
from openhearth.hub.manifest import Manifest, StoredFile
from openhearth.hub.store import Store

CONTENTS = [bytes([i]) * (2000 + i) for i in range(6)]


def put(store: Store, rng: random.Random, name: str) -> None:
    files = {}
    for path in ("a.gguf", "config.json", "sub/b.json")[: rng.randint(1, 3)]:
        content = rng.choice(CONTENTS)
        digest = hashlib.sha256(content).hexdigest()
        part = store.partial / f"{digest}-{rng.random()}"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        store.add_blob(part, digest)
        files[path] = StoredFile(digest, len(content))
    store.commit(Manifest(name, files, (), "hub:o/n", "2026-01-01T00:00:00Z"), lambda path: ("a.gguf",))


def main(home: str, seed: str) -> None:
    store, rng, reported = Store(Path(home)), random.Random(seed), False
    while True:
        name, action = f"model{rng.randrange(4)}", rng.random()
        try:
            if action < 0.7:
                put(store, rng, name)
                if not reported:
                    print("committed", flush=True)
                    reported = True
            elif action < 0.97:
                store.remove([name])
            else:
                remove_leftovers(store)
        except (HearthError, FileNotFoundError):
            continue  # another process was faster: removed the model, the blob or the part


if __name__ == "__main__":
    main(*sys.argv[1:])
