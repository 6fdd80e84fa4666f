#!/bin/sh
# Installs into /opt/venv, at build time:  install.sh uv | server | worker | worker-cpu | product
# Every package is installed once, and checked against its hash in requirements.lock, except PyTorch's build for the CPU.
set -eu

if [ -s /local/ca.pem ]; then
    export SSL_CERT_FILE=/local/ca.pem PIP_CERT=/local/ca.pem
fi
if [ -n "$PACKAGE_INDEX" ]; then
    export UV_DEFAULT_INDEX="$PACKAGE_INDEX" PIP_INDEX_URL="$PACKAGE_INDEX"
fi
if [ -d /local/wheels ]; then
    export UV_FIND_LINKS=/local/wheels PIP_FIND_LINKS=/local/wheels
fi
export UV_CACHE_DIR=/cache/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/venv

install() {
    uv pip install ${OFFLINE:+--no-index} "$@"
}

# What pyproject.toml names, in the versions of the lock. Not what label-studio-sdk names and nobody here imports: 200 MB.
locked() {
    printf '%s\n' appdirs datamodel-code-generator doclang ijson jsf jsonschema lxml nltk opencv-python-headless \
        requests requests-mock ujson urllib3 watchfiles xmljson $unused >/tmp/unused.txt
    install --require-hashes --excludes /tmp/unused.txt --constraints "$lock" --requirements pyproject.toml "$@"
}

unused=
lock=requirements.lock
case $1 in
uv)
    pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore ${OFFLINE:+--no-index} uv==0.13.9
    uv venv --quiet /opt/venv
    ;;
server)
    unused=pandas
    locked
    # 24 MB of tests of their own.
    find /opt/venv/lib/python*/site-packages/numpy /opt/venv/lib/python*/site-packages/scipy \
        -path '*/tests/*' '(' -name 'test_*.py' -o -path '*/data/*' ')' -type f -delete
    ;;
worker)
    locked --compile-bytecode --extra worker
    ;;
worker-cpu)
    # The lock has the hashes of the builds with CUDA. Those for the CPU are other files of the same versions.
    lock=/tmp/without-torch.lock
    awk '/^[a-z]/ { torch = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ } !torch' requirements.lock >$lock
    torch=$(sed -n 's/^\(torch\(vision\)*==[^ ]*\).*/\1/p' requirements.lock)
    if [ -n "$TORCH_INDEX" ]; then
        install --index "$TORCH_INDEX" --constraints $lock $torch
    elif [ -n "$OFFLINE" ]; then
        install --constraints $lock $torch
    else
        install --torch-backend=cpu --constraints $lock $torch
    fi
    unused="torch torchvision"
    locked --compile-bytecode --extra worker
    ;;
product)
    install --no-deps /source
    ;;
esac
