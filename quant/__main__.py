import sys

if not sys.flags.safe_path:  # `python -m` puts the working directory first, and a random.py there before Python's own
    sys.path.append(sys.path.pop(0))

from quant.cli import main

sys.exit(main())
