"""An open, complete Emu Edit: it makes its own edit pairs, trains one editor on them, judges it and serves it."""
