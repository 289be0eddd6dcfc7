"""What a training waits for before its first step."""

import subprocess
import sys


def test_a_training_starts_without_what_only_its_end_needs():
    late = ("matplotlib", "jinja2", "tensorflow")
    code = f"import regvq_jax.main, sys; print([x for x in {late} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
