"""Everything public says what it does."""

import importlib
import inspect
import pkgutil

import regvq_jax

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(regvq_jax.__path__, "regvq_jax.")
    if not module.name.endswith("__main__")
)


def test_every_public_module_class_and_function_has_a_docstring():
    silent = []
    for name in MODULES:
        module = importlib.import_module(name)
        if not module.__doc__:
            silent.append(name)
        for member_name, member in vars(module).items():
            public = not member_name.startswith("_") and getattr(member, "__module__", None) == name
            if public and (inspect.isfunction(member) or inspect.isclass(member)):
                # A dataclass without a docstring gets its signature for one.
                signature_only = inspect.isclass(member) and (member.__doc__ or "").startswith(
                    f"{member_name}("
                )
                if not member.__doc__ or signature_only:
                    silent.append(f"{name}.{member_name}")
    assert not silent
