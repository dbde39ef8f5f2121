import sys

from langsamp_jax.cli.main import main

sys.exit(main())
