"""`python -m monocloud_async`: the command line."""

import sys

from monocloud_async.cli import main

sys.exit(main())
