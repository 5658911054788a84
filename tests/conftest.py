"""One OpenMP thread a test process: several share few cores, where OpenMP's spinning collapses."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch; child processes inherit it
