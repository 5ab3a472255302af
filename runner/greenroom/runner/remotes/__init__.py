"""Remote backends: engines that Greenroom sends requests to but does not run.

- `asking`: one question to such a backend, bounded in time and bytes: which models it has
- `watch`: asks each of them regularly, and knows whether it answers
- `reading`: what it knows of one
- `model`: their models, as the front door sees them
"""
