#!/bin/sh
# Installs Debian's Chromium for tests/browser, where that is possible without asking, and says what
# it did. It never fails: without a browser those tests are skipped.

for name in "${LORAKIT_CHROMIUM:-chromium}" chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then
        echo "Browser for tests: $(command -v "$name")"
        exit 0
    fi
done
as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null 2>&1 && $as_root true 2>/dev/null; then
    echo "Installing Chromium for the tests of the studio ..."
    $as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 ||
        { $as_root apt-get update -qq && $as_root apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1
fi
if command -v chromium >/dev/null 2>&1; then
    echo "Browser for tests: $(command -v chromium)"
else
    echo "No Chromium is installed, and it cannot be installed here: tests/browser will be skipped."
    echo "Install it (Debian: apt-get install chromium), or name a browser in LORAKIT_CHROMIUM."
fi
