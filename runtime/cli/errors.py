"""How every command of ours ends when something is wrong: one line on stderr and a known exit code, no traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from ..errors import HolocronError

USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that a user can act on into `error: …` on stderr and an exit.

    A :class:`~runtime.errors.HolocronError`, a wrong option, an error of the file system (a full disk, say) and
    exhausted memory exit with 2; an interrupt with 130; a pipe that its reader closed, quietly, with 141. Anything else
    is a mistake of ours and keeps its traceback.

    Raises:
        SystemExit: with that exit code
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        raise SystemExit(BROKEN_PIPE) from None
    except (KeyboardInterrupt, click.Abort):
        print_error("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except click.exceptions.Exit as e:
        raise SystemExit(e.exit_code) from None
    except click.ClickException as e:
        print_error(e.format_message())
        raise SystemExit(USAGE) from None
    except HolocronError as e:
        print_error(str(e))
        raise SystemExit(USAGE) from None
    except OSError as e:
        where = f": {e.filename}" if e.filename else ""
        print_error(f"{e.strerror or e}{where}")
        raise SystemExit(USAGE) from None
    except MemoryError:
        print_error("there is not enough memory")
        raise SystemExit(USAGE) from None


class OneLineCommand(click.Command):
    """A click command that ends as :func:`one_line_errors` says: `@click.command(cls=OneLineCommand)`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Its errors end here: click's own `main` handles an interrupt and a closed pipe its way."""
        with one_line_errors():
            return super().invoke(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command line, run, and exit."""
        kwargs["standalone_mode"] = False
        with _terminated_as_interrupted(), one_line_errors():
            code = super().main(*args, **kwargs)
        sys.exit(code if isinstance(code, int) else 0)


def print_error(message: str) -> None:
    """Print `error: …` to stderr, in one line whatever the message holds."""
    click.echo(f"error: {' '.join(message.split())}", err=True)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """What stops a service manager's job also cleans up after itself, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # there is no other that may say so
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _silence_stdout() -> None:
    # The interpreter flushes stdout once more when it ends, and would print about the pipe then.
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
