#!/bin/sh
# Takes what Distribution's images take: a configuration file, or a command of the registry with or without its name.
set -eu
case "${1-}" in
    registry | registry-cluster | htpasswd | sh | /*.sh | /bin/*) ;;
    *.yml | *.yaml) set -- registry-cluster serve "$@" ;;
    *) set -- registry-cluster "$@" ;;
esac
exec "$@"
