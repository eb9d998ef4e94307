"""`python -m dlm_jax.cli`, the same as `dlm`."""

import sys

from dlm_jax.cli import main

sys.exit(main())
