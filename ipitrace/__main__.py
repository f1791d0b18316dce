# SPDX-License-Identifier: Apache-2.0
"""`ipitrace`, and `python -m ipitrace`: the only entry point."""

from ipitrace.base import search_path


def main() -> None:
    """Run the command line, with nothing imported that others could have put there."""
    search_path.clean()
    from ipitrace.cli import main as run  # noqa: PLC0415 - imports other packages

    run()


if __name__ == "__main__":
    main()
