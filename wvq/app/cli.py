"""The command `wvq`: parses one subcommand, runs it, and turns bad input into one line and exit code 2.

Only light modules are imported here; a command imports torch when it runs, so that every --help answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

import wvq
from wvq.app import commands
from wvq.app.failures import end_after_another, fail
from wvq.app.recipes import QuickstartRecipe
from wvq.errors import ConfigError, WVQError, near_match
from wvq.eval.recipes import AtomicRecipe, EvaluationRecipe, GenerationEvaluation, ReconstructionEvaluation
from wvq.files.user_folders import unwritable_cache
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.recipes import GeneratorRecipe
from wvq.interruption import RunInterrupted
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.plain_output import one_line, plain_output
from wvq.settings.parser import Parser, recipe_file
from wvq.tokenizer.recipes import ExportRecipe, ImportCodesRecipe, TokenizerRecipe


@dataclass(frozen=True)
class Command:
    """One subcommand: its help, its arguments, and the function that runs it."""

    name: str
    help: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[Namespace], None]


def _recipe_arguments(recipe: type, resume: bool) -> Callable[[Parser], None]:
    def add(parser: Parser) -> None:
        parser.add_argument(
            "--config", action="config", help="recipe: a YAML file, or a shipped one such as openmoji_32/tokenizer"
        )
        if resume:
            parser.add_argument("--resume", type=bool, default=False, help="continue the run in the output folder")
        parser.add_recipe(recipe)

    return add


def _sampling_arguments(parser: Parser) -> None:
    kinds = get_type_hints(SamplingSettings)
    for field in fields(SamplingSettings):
        kind = kinds[field.name]
        form: dict[str, Any] = {"type": kind | None}
        if get_origin(kind) is tuple:
            form = {"type": get_args(kind)[0], "nargs": len(get_args(kind))}
        parser.add_argument(f"--{field.name}", help=field.metadata["help"], **form)
    parser.add_argument("--weights", type=str | None, help="bf16 or int8: faster sampling, nearly the same codes")
    parser.add_argument("--seed", type=int, default=0, help="sample i is drawn from seed + i")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures at once")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; the best there is if not given")


def _sample_arguments(parser: Parser) -> None:
    parser.add_argument("pipeline", type=str, help="pipeline folder or Hub id")
    parser.add_argument("--class", dest="classes", type=str, nargs="+", help="class names or ids")
    parser.add_argument("--prompt", type=str, nargs="+", help="texts")
    parser.add_argument("--prompt_file", type=str | None, help="text file with a prompt a line")
    parser.add_argument("--num_images", type=int | None, help="pictures in all; one a condition if not given")
    parser.add_argument("--image", type=str, nargs="+", help="pictures to keep in part: one for all, or one a picture")
    parser.add_argument(
        "--mask_image", type=str, nargs="+", help="masks of the same size, white where they are redrawn"
    )
    parser.add_argument(
        "--keep_scales", type=int | None, help="coarsest scales of --image to keep, of multi-scale codes"
    )
    parser.add_argument(
        "--preview", type=bool, default=False, help="show the batch being drawn on preview.png in --out"
    )
    parser.add_argument("--out", type=str, default="samples", help="new folder for the pictures and their sheet")
    parser.add_argument("--resume", type=bool, default=False, help="go on with the job in the output folder")
    _sampling_arguments(parser)


def _evaluation_arguments(parser: Parser, recipe: type[EvaluationRecipe], *others: str) -> None:
    """Add the fields that both recipes share, then those of ``recipe``; ``others`` are added elsewhere."""
    _recipe_arguments(EvaluationRecipe, resume=False)(parser)
    parser.add_recipe(recipe, skip={*EvaluationRecipe.__dataclass_fields__, *others})


def _reconstruction_arguments(parser: Parser) -> None:
    parser.add_argument("tokenizer", type=str, help="tokenizer folder or Hub id")
    _evaluation_arguments(parser, ReconstructionEvaluation, "tokenizer")


def _generation_arguments(parser: Parser) -> None:
    parser.add_argument("pipeline", type=str, help="pipeline folder or Hub id")
    sampling = ("sampling", "weights", "seed", "batch_size", "device")
    _evaluation_arguments(parser, GenerationEvaluation, "pipeline", *sampling)
    _sampling_arguments(parser)


def _compare_arguments(parser: Parser) -> None:
    parser.add_argument("results", type=str, nargs="+", help="JSON files of wvq evaluate")


def _import_arguments(parser: Parser) -> None:
    parser.add_argument("name", type=str | None, nargs="?", help="published model, or the family of the files given")
    parser.add_argument("--list", type=bool, default=False, help="show the published models")
    parser.add_recipe(ImportRecipe, skip=("name",))


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("pipeline", type=str, help="pipeline folder or Hub id")
    parser.add_argument("--out", type=str, required=True, help="new file of the generator, .pt or .safetensors")
    parser.add_argument("--tokenizer_out", type=str | None, help="new file of the tokenizer, .pt; none if not given")


def _info_arguments(parser: Parser) -> None:
    parser.add_argument("path", type=str, help="a folder or file of wvq: model, codes, run, samples, features, result")


def _import_codes_arguments(parser: Parser) -> None:
    parser.add_argument("source", type=str, help="folder NAME_codes beside NAME_labels, .tar or .jsonl")
    parser.add_recipe(ImportCodesRecipe, skip={"source"})


def _quickstart_arguments(parser: Parser) -> None:
    parser.add_recipe(QuickstartRecipe)


COMMANDS = {
    command.name: command
    for command in (
        Command("quickstart", "train both stages on pictures in minutes, with a report", _quickstart_arguments,
                commands.quickstart),
        Command("train-tokenizer", "stage one: train an image tokenizer", _recipe_arguments(TokenizerRecipe, True),
                commands.train_tokenizer),
        Command("export-codes", "encode pictures into a code cache", _recipe_arguments(ExportRecipe, False),
                commands.export_codes),
        Command("import-codes", "make a code cache of another project's token files", _import_codes_arguments,
                commands.import_codes),
        Command("train-generator", "stage two: train a generator over a code cache",
                _recipe_arguments(GeneratorRecipe, True), commands.train_generator),
        Command("sample", "draw pictures by class or prompt", _sample_arguments, commands.sample),
        Command("evaluate reconstruction", "measure a tokenizer on held-out pictures", _reconstruction_arguments,
                commands.evaluate_reconstruction),
        Command("evaluate generation", "measure a pipeline's samples against real pictures", _generation_arguments,
                commands.evaluate_generation),
        Command("evaluate compare", "rank results that were measured in the same way", _compare_arguments,
                commands.evaluate_compare),
        Command("import", "bring a model of another project into this form", _import_arguments, commands.import_model),
        Command("export llamagen", "write a generator as LlamaGen's programs read it", _export_arguments,
                commands.export_llamagen),
        Command("study atomic", "quantizers against features of a known distribution",
                _recipe_arguments(AtomicRecipe, False), commands.study_atomic),
        Command("info", "describe a folder or result file", _info_arguments, commands.info),
    )
}  # fmt: skip


def usage() -> str:
    """The text of `wvq --help`."""
    rows = "\n".join(f"  {command.name:<25}{command.help}" for command in COMMANDS.values())
    return (
        f"wvq {wvq.__version__}: Wasserstein-VQ image tokenizers and autoregressive generators\n\n"
        f"usage: wvq COMMAND [OPTIONS]\n\ncommands:\n{rows}\n\n"
        "wvq COMMAND --help lists a command's options; any recipe field is an option by its dotted name,\n"
        "for example --train.batch_size 64.\n"
    )


def _find_command(arguments: list[str]) -> tuple[Command, list[str]]:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return COMMANDS[name], arguments[words:]
    kinds = [name.split()[1] for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if kinds:
        if any(word in ("-h", "--help") for word in arguments[1:2]):
            print(usage(), end="")
            raise SystemExit(0)
        kind = arguments[1] if len(arguments) > 1 else ""
        named = [f'"{kind}"' for kind in kinds]
        choices = f"{', '.join(named[:-1])} or {named[-1]}" if named[1:] else named[0]
        raise ConfigError(f'{arguments[0]} needs {choices}, got "{kind}"')
    raise ConfigError(f'unknown command "{arguments[0]}"{near_match(arguments[0], COMMANDS)}; see wvq --help')


def _normalise(arguments: Sequence[str]) -> list[str]:
    """Options with underscores for dashes (--num-images), and the path of a recipe that is shipped with the package."""
    words = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = f"--{name[2:].replace('-', '_')}{equals}{value}"
        words.append(argument)
    for index, argument in enumerate(words):
        if argument.startswith("--config="):
            words[index] = f"--config={recipe_file(argument.partition('=')[2])}"
        elif argument == "--config" and index + 1 < len(words):
            words[index + 1] = str(recipe_file(words[index + 1]))
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # OpenMP threads that spin long while they wait make a run slower as soon as another program wants a core; a short
    # spin costs nothing on a quiet machine. Read when torch is first imported, which is when a command runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(message)}\n"  # no source lines for users
    with plain_output():
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        print(f"wvq {wvq.__version__}")
        return 0
    program, values = "wvq", None
    try:
        command, rest = _find_command(arguments)
        program = f"wvq {command.name}"
        parser = Parser(program, command.help)
        command.add_arguments(parser)
        values = parser.build(parser.parse(_normalise(rest)))
        command.run(values)
        if "wvq.distributed" in sys.modules:  # else nothing has been started
            from wvq.distributed import leave_processes

            leave_processes()
    except WVQError as error:
        fail(program, unwritable_cache(error) or error)
    except RunInterrupted as stop:
        again = "; the same command with --resume goes on from there" if "--resume" in parser.format_help() else ""
        print(f"\n{program}: {stop}{again}", file=sys.stderr)
        return 128 + stop.signal
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except OSError as error:  # a full disk, a folder without permission
        full = error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
        if cache := unwritable_cache(error):
            fail(program, cache)
        place = error.filename or (full and getattr(values, "out", None)) or "input/output"
        fail(program, f"{place}: {error.strerror or error}")
    except RuntimeError as error:
        if not _has_lost_another(error):
            raise
        end_after_another(program)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return 130
    finally:
        if "wvq.distributed" in sys.modules:
            from wvq.distributed import drop_processes

            drop_processes()
    return 0


def _has_lost_another(error: RuntimeError) -> bool:
    if "wvq.distributed" not in sys.modules:  # else nothing has been started
        return False
    from wvq.distributed import is_lost_process

    return is_lost_process(error)


if __name__ == "__main__":
    sys.exit(main())
