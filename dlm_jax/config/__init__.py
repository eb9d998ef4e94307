"""Strict gin: files and command-line bindings, checked as a whole before anything runs.

The language and its parser are gin-config's. What differs is the meaning of a mistake: names come
from an explicit table, every binding must reach the entry function, and every value must fit the
annotation of the parameter it is bound to; whatever does not is one `UserError`.
"""

from dlm_jax.config.loading import imported_modules, load
from dlm_jax.config.operative import Config
from dlm_jax.config.record import record

__all__ = ["Config", "imported_modules", "load", "record"]
