"""python -m jaxpt.data fetch|prepare|show: corpora on this machine, their token records, a look at them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxpt.data.prepare import TASKS, TextTask, named_task, prepare
from jaxpt.data.records import TokenRecords, read_info
from jaxpt.data.vocabularies import Vocabulary


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a user's mistake is one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxpt.data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="fetch|prepare|show")

    fetch = commands.add_parser("fetch", help="download and read corpora; --list names them")
    fetch.add_argument("names", nargs="*", metavar="NAME")
    fetch.add_argument("--list", action="store_true", help="list the corpora")
    fetch.set_defaults(run=_fetch)

    make = commands.add_parser("prepare", help="corpora -> token records; continues where it was stopped")
    make.add_argument("--task", help=f"a named task ({', '.join(TASKS)}), in place of the next options")
    make.add_argument("--corpora", help="names with commas between, for example python-code,python-prose")
    make.add_argument("--vocabulary", default="bytes", help="bytes, bpe:SIZE, sentencepiece:SIZE, or a path")
    make.add_argument("--validation", type=float, default=0.05, help="share of documents held out")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--name", help="name of the data set; the corpora's names if not given")
    make.add_argument("--out", type=Path, help="folder; one in the cache if not given")
    make.add_argument("--processes", type=int, help="how many tokenise; all cores, for much text, if not given")
    make.add_argument("--runner", choices=("local", "beam"), default="local")
    make.set_defaults(run=_prepare)

    show = commands.add_parser("show", help="counts of a prepared folder, and some of its packed sequences")
    show.add_argument("folder", type=Path)
    show.add_argument("--split", default="train")
    show.add_argument("--sequence-length", type=int, default=256)
    show.add_argument("--mode", default="isolate", help="isolate or concatenate")
    show.add_argument("--n", type=int, default=3, help="how many sequences to print")
    show.set_defaults(run=_show)
    return parser


def _fetch(options: argparse.Namespace) -> None:
    from jaxpt.data.corpora import CORPORA, open_corpus

    if options.list or not options.names:
        width = max(map(len, CORPORA))
        for corpus in CORPORA.values():
            print(f"{corpus.name:{width}}  {corpus.licence:12}  {corpus.description}")
    for name in options.names:
        documents = size = 0
        for document in open_corpus(name):
            documents += 1
            size += len(document.text.encode())
        print(f"{name}: {documents:,} documents, {size:,} bytes of text")


def _prepare(options: argparse.Namespace) -> None:
    if (options.task is None) == (options.corpora is None):
        raise ValueError("give either --task NAME or --corpora A,B")
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"--processes is at least 1, got {options.processes}")
    if options.task is not None:
        task = named_task(options.task)
    else:
        corpora = tuple(name for name in options.corpora.split(",") if name)
        name = options.name or "".join(c if c.isalnum() or c in "-+." else "_" for c in "+".join(corpora))[:60]
        task = TextTask(name, corpora, options.vocabulary, options.validation, options.seed)
    if options.runner == "beam":
        from jaxpt.data.beam_prepare import prepare_beam

        folder = prepare_beam(task, options.out)
    else:
        folder = prepare(task, options.out, processes=options.processes)
    _counts(folder)
    print(folder)


def _show(options: argparse.Namespace) -> None:
    from jaxpt.data import vocabularies
    from jaxpt.data.packing import pack

    _counts(options.folder)
    records = TokenRecords(options.folder, options.split)
    vocabulary = vocabularies.load(options.folder / "vocabulary")
    packing = pack(records, options.sequence_length, options.mode)
    full = packing.tokens / (len(packing) * packing.sequence_length)
    print(f"\n{len(packing):,} sequences of {packing.sequence_length}, {options.mode}: {full:.1%} full")
    for i in range(min(options.n, len(packing))):
        _print_sequence(records, packing.sequence(i), vocabulary, i)


def _counts(folder: Path) -> None:
    """A table of documents, bytes and tokens by split and domain."""
    from rich.console import Console
    from rich.table import Table

    info = read_info(folder)
    table = Table("split", "domain", *("documents", "bytes", "tokens"), title=info["name"])
    for column in table.columns[2:]:
        column.justify = "right"
    for split, counts in info["splits"].items():
        for domain, row in (*counts["domains"].items(), ("all", counts)):
            table.add_row(split, domain, *(f"{row[k]:,}" for k in ("documents", "bytes", "tokens")))
    Console().print(table)


def _print_sequence(records: TokenRecords, spans: np.ndarray, vocabulary: Vocabulary, number: int) -> None:
    """One sequence: a line that names each piece's document, then its text, in a colour of its own."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.rule(f"sequence {number}")
    colours = ("green", "cyan", "magenta", "yellow", "blue")
    for piece, ((index, start, length), record) in enumerate(zip(spans, records.read(spans[:, 0]), strict=True)):
        document = records.documents.id[records.document[index]]
        console.print(Text(f"[{document}, {length} tokens]", style="bold reverse"))
        text = vocabulary.decode(record[start + 1 : start + length + 1].tolist())
        console.print(Text(text, style=colours[piece % len(colours)]))


if __name__ == "__main__":
    sys.exit(main())
