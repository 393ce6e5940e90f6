"""Lets launchers start the command as a module: `accelerate launch -m wvq train-tokenizer ...`."""

import sys

from wvq.app.cli import main

sys.exit(main())
