#!/usr/bin/env bash
# Type-checks the package as it is installed: mypy follows neither package-dir nor the editable finder.
# Builds from a copy, because a stale build/ in the tree would bring deleted modules back.
# usage: tools/check_types.sh [PYTHON]
set -euo pipefail
python=${1:-.venv/bin/python}
rooms=(instances formulations solvers bounds heuristics)

# A fixed folder rather than a temporary one: mypy's cache is keyed by path.
rm -rf .typecheck
mkdir -p .typecheck/source
cp -R pyproject.toml LICENSE src "${rooms[@]}" .typecheck/source/
[ ! -f README.md ] || cp README.md .typecheck/source/
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target .typecheck/installed .typecheck/source

# Messages name the file to edit, not its installed copy.
MYPYPATH=.typecheck/installed "$python" -m mypy --strict -p headroom 2>&1 |
  sed -E -e "s#^\.typecheck/installed/headroom/($(IFS='|'; echo "${rooms[*]}"))/#\1/#" -e 's#^\.typecheck/installed/#src/#'
