import sys

from langsamp_jax.cli import main

sys.exit(main())
