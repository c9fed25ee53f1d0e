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
pip install --constraint "$constraints" torch # first, from wherever the constraints' build comes
pip install --constraint "$constraints" "$wheels"/lorakit-*.whl

cd "$outside"
lorakit=$outside/venv/bin/lorakit
"$lorakit" --version
for command in init plan train evaluate generate merge quickstart; do
  "$lorakit" "$command" --help > /dev/null
done
"$lorakit" quickstart
"$lorakit" inspect quickstart-run/lora > /dev/null
ls "$wheels"
