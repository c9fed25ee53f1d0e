#!/usr/bin/env bash
# Build a wheel, install it into an empty environment, and use it outside the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH

constraints=$PWD/constraints.txt
wheels=$PWD/build/wheel
rm -rf "$wheels"
outside=$(mktemp -d)
trap 'rm -rf "$outside"' EXIT

"${PYTHON:-python3}" -m venv "$outside/venv"
pip() { "$outside/venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
PIP_CONSTRAINT=$constraints pip wheel --no-deps --wheel-dir "$wheels" .
# Every file of the sources is in the wheel: data, templates, styles and scripts of pages too.
in_sources=$(cd src && find lorakit -type f -not -path '*/__pycache__/*' | LC_ALL=C sort)
in_wheel=$("$outside/venv/bin/python" -c 'import sys, zipfile; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep="\n")' \
  "$wheels"/lorakit-*.whl | grep -v '^[^/]*\.dist-info/' | LC_ALL=C sort)
diff <(echo "$in_sources") <(echo "$in_wheel") || { echo "The wheel lacks files of src (<)" >&2; exit 1; }
pip install --constraint "$constraints" torch # first, from wherever the constraints' build comes
pip install --constraint "$constraints" "$wheels"/lorakit-*.whl

cd "$outside"
lorakit=$outside/venv/bin/lorakit
"$lorakit" --version
for command in init plan train evaluate generate merge quickstart studio; do
  "$lorakit" "$command" --help > /dev/null
done
"$lorakit" quickstart
"$lorakit" inspect quickstart-run/lora > /dev/null
ls "$wheels"
