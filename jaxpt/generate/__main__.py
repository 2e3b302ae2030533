"""python -m jaxpt.generate --model smollm2 --chat "...": a text, printed while it grows."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from jaxpt.models.generate import Sampling


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; a user's mistake is one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxpt.generate", description=__doc__)
    parser.add_argument("--model", default="smollm2", help="smollm2 (downloaded once), a .gguf file, or a folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--chat", metavar="TEXT", help="a message to answer")
    what.add_argument("--prompt", metavar="TEXT", help="a text to continue")
    parser.add_argument("--system", metavar="TEXT", help="the system message of the chat, in place of the model's own")
    parser.add_argument("--max-new", type=int, default=256, help="tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be repeated")
    parser.add_argument("--quiet", action="store_true", help="no timing on stderr")
    return parser


def _run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    keep_compiled()
    from jaxpt.generate.engine import Engine
    from jaxpt.interop import text_model

    engine = Engine.of(text_model.load(options.model))
    given = {
        "max_new": options.max_new, "sampling": sampling, "seed": options.seed, "stop": tuple(options.stop)
    }  # fmt: skip
    if options.chat is not None:
        turns = [("system", options.system)] if options.system is not None else []
        request = engine.chat([*turns, ("user", options.chat)], **given)
    else:
        request = engine.prompt(options.prompt, **given)
    loaded = time.perf_counter()
    first, pieces = None, []
    for piece in engine.stream(request):
        first = first or time.perf_counter()
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    if not options.quiet:
        count = len(engine.model.vocabulary.encode("".join(pieces)))
        end = time.perf_counter()
        print(
            f"loaded in {loaded - start:.1f} s, first text after {(first or end) - start:.1f} s, "
            f"about {count} tokens in {end - loaded:.1f} s",
            file=sys.stderr,
        )


def keep_compiled() -> None:
    """Keeps compiled programs in the cache folder, so that a second start does not compile again."""
    import jax

    from jaxpt.data.corpora import cache_dir

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


if __name__ == "__main__":
    raise SystemExit(main())
