#!/bin/sh
# Installs Debian's Chromium without windows for tests/browser, where that is possible without asking,
# and says what it did. It never fails: without a browser those tests are skipped.

find_browser() {
    for name in "$LORAKIT_CHROMIUM" chromium-headless-shell chromium chromium-browser google-chrome; do
        command -v "${name:-none}" && return
    done
}

as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo -n"
if [ -z "$(find_browser)" ] && command -v apt-get >/dev/null 2>&1 && $as_root true 2>/dev/null; then
    echo "Installing Chromium for the tests of the studio ..."
    for package in chromium-headless-shell chromium; do
        $as_root apt-get install -y -qq --no-install-recommends $package >/dev/null 2>&1 && break
        $as_root apt-get update -qq >/dev/null 2>&1
        $as_root apt-get install -y -qq --no-install-recommends $package >/dev/null 2>&1 && break
    done
fi
if [ -n "$(find_browser)" ]; then
    echo "Browser for tests: $(find_browser)"
else
    echo "No Chromium is installed, and it cannot be installed here: tests/browser will be skipped."
    echo "Install it (Debian: apt-get install chromium-headless-shell), or name a browser in LORAKIT_CHROMIUM."
fi
