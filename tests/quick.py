"""Compiler flags of tests: most of their time is compiling, and plain code runs them as well."""

import importlib.metadata

_VERSION = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
FLAGS = "--xla_backend_optimization_level=0"
if _VERSION < (0, 12):  # emitters that compile a third longer; later ones have no other
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
