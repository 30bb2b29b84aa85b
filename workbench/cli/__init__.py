"""The shell: `workbench VERB ...`, one module a group of verbs.

To add a verb, write a function with its arguments in the module it belongs to, decorate it with
`@app.command()`, and return an exit code: 0 for fine, 1 for a check that failed. What goes wrong is raised as
a WorkbenchError in the words of the shell; `main` prints it and returns 2. Imports of what is slow to import
stand inside the verb, so that help is quick. Arguments that several verbs share stand in `common.py`.
"""

from workbench.cli.common import options_of
from workbench.cli.main import main, shell

__all__ = ["main", "options_of", "shell"]
