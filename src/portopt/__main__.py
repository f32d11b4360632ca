"""`python -m portopt`: the command line."""

from portopt_tools.command_line import main

if __name__ == "__main__":
    raise SystemExit(main())
