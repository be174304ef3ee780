# Sourced by the other scripts: one virtual environment for all of them, made and filled on demand.
# ${JAXRLHF_VENV:-.venv} is where it lies; $PYTHON, if set, is the only interpreter that is tried.

venv="${JAXRLHF_VENV:-.venv}"
# Nothing is compiled in advance, for most of it is never imported: whoever imports a module first
# does, and keeps it for the others, also where the environment says not to.
unset PYTHONDONTWRITEBYTECODE

# Print the first Python of a supported version.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        # Run it: a pyenv shim exists for versions that are not there.
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: needs Python 3.11, 3.12 or 3.13; found none as: ${PYTHON:-python3.11 python3.12" \
        "python3.13 python3 python}. Name one with PYTHON=/path/to/python." >&2
    return 1
}

# Make the environment if there is none that works.
make_venv() {
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local python
    python="$(find_python)"
    echo "Making a Python environment in $venv ($("$python" --version))"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv --clear "$venv"
    elif "$python" -c 'import pip, venv' 2>/dev/null; then
        # Debian leaves ensurepip out of Python; its own pip can fill the environment instead.
        "$python" -m venv --clear --without-pip "$venv"
        "$python" -m pip --quiet --disable-pip-version-check --python "$venv/bin/python" install pip
    else
        echo "error: $python can make no virtual environment: it has neither ensurepip nor pip." \
            "On Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    fi
}

# install [EXTRA]: this checkout, editable, at the tested versions; nothing to do if that was done.
install() {
    make_venv
    local extra="${1:-}" stamp wanted
    stamp="$venv/.installed${extra:+-$extra}"
    wanted="$(pwd) $(cat pyproject.toml constraints.txt | cksum)"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    echo "Installing jaxrlhf${extra:+ with what \"$extra\" needs} (some minutes the first time)"
    fill ".${extra:+[$extra]}"
    echo "$wanted" >"$stamp"
}

# fill WHAT: by uv, in a fifth of the time that pip takes; by pip where uv cannot.
fill() {
    local pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input)
    if "${pip[@]}" install --no-compile -c constraints.txt uv && (
        # uv reads neither pip's files nor its variables.
        export UV_INDEX_URL="${UV_INDEX_URL:-$(pip_setting index-url)}"
        export UV_EXTRA_INDEX_URL="${UV_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}"
        export UV_FIND_LINKS="${UV_FIND_LINKS:-$(pip_setting find-links | tr ' ' ',')}"
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" \
            --index-strategy unsafe-best-match -c constraints.txt -e "$1"
    ); then
        return
    fi
    echo "uv could not install it; pip goes on"
    "${pip[@]}" install --no-compile -c constraints.txt -e "$1"
}

# pip_setting NAME: what pip is told, by a variable or in a file, of where packages are.
pip_setting() {
    "$venv/bin/python" -m pip config list |
        awk -F "'" -v name=".$1=" 'index($0, name) && !n++ { gsub(/\\n/, " ", $2); print $2 }'
}
