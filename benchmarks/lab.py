"""The degradation lab: one chain of runs a seed, then its table, curves and films.

    make lab                                    seed 0 on the built-in scenes, into runs/lab
    make lab LAB_LIBRARY=PACK SEEDS="0 1 2"     three seeds on a pack of cut-outs (docs/data.md)

The same as `python benchmarks/lab.py runs/lab --library PACK --seeds 0 1 2`; the same again goes on where it stopped.
healthy -> control | induced stress -> from its step 150: cured, late, early, relieved (`lab_chain.ARMS`), two runs at a
time. Writes degradation-lab.md and images/ into the folder. The pages of the documentation were made by

    python benchmarks/lab.py FOLDER --seeds 0 1 2 --docs docs
    python benchmarks/lab.py OTHER --seeds 0 1 2 --library PACK --docs docs --name degradation-lab-pack --no-pictures
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import tyro
from lab_chain import Lab
from lab_films import draw_all
from lab_page import write_page
from lab_scores import measure


def main(
    folder: Path,
    /,
    seeds: tuple[int, ...] = (0,),
    library: str = "",
    docs: Path | None = None,
    jobs: int = 2,
    page_only: bool = False,
    name: str = "degradation-lab",
    pictures: bool = True,
) -> None:
    """Run the chains that are not there yet into `folder`, and write the page about them.

    `library`: path of a cut-out pack; none: the built-in scenes. `jobs`: runs at a time. `page_only`: train nothing.
    `name`: of the page. `pictures`: draw curves and films, too (those of a pack show its pictures).
    """
    lab, started = Lab(folder=folder, seeds=seeds, library=library), time.monotonic()
    if not page_only:
        lab.run_stages(jobs)
    trained = time.monotonic() - started
    docs = docs or folder
    if pictures:
        draw_all(lab, docs / "images")
    page = write_page(lab, measure(lab), docs / f"{name}.md", command(seeds, library), pictures=pictures)
    print(page.read_text(encoding="utf-8"))
    whole = (time.monotonic() - started) / 60
    print(f"{page} was written: {trained / 60:.1f} minutes by the clock for the runs, {whole:.1f} with the page.")


def command(seeds: tuple[int, ...], library: str) -> str:
    words = [f'SEEDS="{" ".join(map(str, seeds))}"'] if seeds != (0,) else []
    return " ".join(["make lab", *(["LAB_LIBRARY=PACK"] if library else []), *words])


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
