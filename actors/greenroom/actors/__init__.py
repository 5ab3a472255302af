"""The event-sourced actor system: kernel, journal, and the actors of a model runner.

The public names stand in `__init__.pyi` and are described in docs/embedding.md; everything else may change in
any version. A name is imported when it is first used, so that to import one module does not import all.

CONTRIBUTING.md maps the modules and packages in it.
"""

from greenroom import public_names

__all__, __getattr__, __dir__ = public_names(__name__)
