#!/usr/bin/env bash
# Build the image where there is neither a Docker engine nor a registry: on a base by debootstrap, with buildah.
#
#   apt-get install buildah debootstrap
#   scripts/build-image-offline.sh [OPTION OF buildah build]...     as root; takes about 5 GB in build/image
#
# pip looks for packages where it does on this machine: its configuration is a build secret, folders and
# certificates that it names are mounted, and nothing of that gets into the image. Where its indexes have no CPU
# build of the Dockerfile's torch, name a version that they have: --build-arg TORCH_VERSION=2.13.0
#
# build/image/rootfs is the image's root file system; scripts/run-image-offline.sh starts what is in it.
set -euo pipefail
cd "$(dirname "$0")/.."

base=build/image/base
store=(--root "$PWD/build/image/storage" --runroot "$PWD/build/image/run" --storage-driver vfs)
pip_conf=$(mktemp)
trap 'rm -f "$pip_conf"' EXIT

if ! test -e "$base/etc/debian_version"; then
    mkdir -p "$base"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$base"
    rm -rf "$base"/var/cache/apt/archives/*.deb "$base"/var/lib/apt/lists/*
fi
if ! buildah "${store[@]}" inspect --type image captioner-base &>/dev/null; then
    container=$(buildah "${store[@]}" from scratch)
    buildah "${store[@]}" config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah "${store[@]}" add --quiet "$container" "$base" /
    buildah "${store[@]}" commit --quiet --rm "$container" captioner-base
fi

volumes=()
while read -r path; do
    volumes+=(--volume "$path:$path:ro")
done < <(python3 scripts/pip_configuration.py "$pip_conf")

version=$(python3 -c "import tomllib; print(tomllib.load(open('pyproject.toml', 'rb'))['project']['version'])")
buildah "${store[@]}" build --isolation chroot --format docker --tag captioner \
    --build-arg BASE_IMAGE=localhost/captioner-base --build-arg VERSION="$version" \
    --secret id=pip.conf,src="$pip_conf" "${volumes[@]}" "$@" .

buildah "${store[@]}" rm captioner-rootfs &>/dev/null || true
buildah "${store[@]}" from --name captioner-rootfs captioner >/dev/null
ln --symbolic --force --no-dereference "$(buildah "${store[@]}" mount captioner-rootfs)" build/image/rootfs
chmod a+x build/image/storage{,/vfs,/vfs/dir} # for the image's user on the way to its root
buildah "${store[@]}" inspect --type image captioner >build/image/config.json
buildah "${store[@]}" rmi --prune >/dev/null
du --summarize --human-readable --dereference-args build/image/rootfs
