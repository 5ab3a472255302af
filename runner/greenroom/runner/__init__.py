"""What users meet: backends, installations, engines, models, daemon, HTTP and command line.

The public names stand in `__init__.pyi` and are described in docs/embedding.md; everything else may change in
any version. A name is imported when it is first used, so that the command line stays quick.

CONTRIBUTING.md maps the modules and packages in it.
"""

from greenroom import public_names

__all__, __getattr__, __dir__ = public_names(__name__)
