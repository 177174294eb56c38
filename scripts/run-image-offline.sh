#!/usr/bin/env bash
# Run what scripts/build-image-offline.sh built, as Docker would with --read-only and --tmpfs /tmp.
#
#   apt-get install bubblewrap jq
#   scripts/run-image-offline.sh [--volume FOLDER:PLACE]... [--env NAME=VALUE]... [--no-network] [ARGUMENT]...
#
# The image's entry point gets the arguments, or else the image's own. It runs as the image's user, who has no
# rights, on a root file system that nobody can write to. PLACE is /photos, or something below /run; it is
# read-only, too.
set -euo pipefail
cd "$(dirname "$0")/.."

image=build/image
get() { jq --raw-output ".OCIv1.config.$1" "$image/config.json"; }

options=()
while IFS='=' read -r name value; do
    options+=(--setenv "$name" "$value")
done < <(get 'Env[]')
while [[ ${1-} == --* ]]; do
    case $1 in
    --volume) options+=(--ro-bind "${2%%:*}" "${2#*:}") && shift 2 ;;
    --env) options+=(--setenv "${2%%=*}" "${2#*=}") && shift 2 ;;
    --no-network) options+=(--unshare-net) && shift ;;
    *) echo "unknown option $1" >&2 && exit 2 ;;
    esac
done

mapfile -t command < <(get 'Entrypoint[]')
if (($#)); then
    command+=("$@")
else
    mapfile -t -O "${#command[@]}" command < <(get 'Cmd[]')
fi
user=$(get User)
exec setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups --no-new-privs \
    bwrap --ro-bind "$image/rootfs" / --proc /proc --dev /dev --tmpfs /tmp --tmpfs /run --clearenv \
    --setenv HOME /tmp "${options[@]}" --remount-ro /run --chdir "$(get WorkingDir)" \
    --unshare-user --unshare-pid --unshare-ipc --unshare-uts --as-pid-1 --die-with-parent "${command[@]}"
