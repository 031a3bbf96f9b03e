"""`python -m emuedit` runs the command `emuedit`."""

from emuedit.cli import console_main

if __name__ == "__main__":
    console_main()
