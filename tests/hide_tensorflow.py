"""Import this first in a process, and tensorflow cannot be found in it."""

import sys


class WithoutTensorflow:
    """A finder of modules that does not find tensorflow."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] == "tensorflow"
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [WithoutTensorflow(finder) for finder in sys.meta_path]
