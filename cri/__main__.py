"""`python -m cri` is `cri-jails`."""

import sys

from cri.cli import main

sys.exit(main())
