"""Many runs from one command line: `refresher train -m optimizer.lr=1e-2,1e-3`."""
