#!/bin/sh
# Changes the nodes of compose.yml while clients work, so that no request fails:
#
#     deploy/compose/nodes.sh scale 5     as many nodes as that; those that go are drained first
#     deploy/compose/nodes.sh replace     a new container for every node: after a build, or to have them read what changed
#
# COMPOSE names another compose: docker-compose, or one with --project-name. A run that was cut off is just run again.
set -eu

cd "$(dirname "$0")/../.."
SOCKET=/run/haproxy/registry.sock
PATIENCE=120 # seconds for any one condition

compose() { ${COMPOSE:-docker compose} "$@" </dev/null; }
say() { echo "nodes: $*" >&2; }
die() { say "$*"; exit 1; }

# The command line inside of the balancer, which has HAProxy's stats socket.
status() { compose exec -T balancer registry-cluster status --socket $SOCKET; }
drain() { compose exec -T balancer registry-cluster drain --socket $SOCKET "$@"; }

# eventually WHAT COMMAND...: asks again until the command goes well.
eventually() {
    what=$1 deadline=$(($(date +%s) + PATIENCE))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt $deadline ] || die "not within $PATIENCE s: $what"
        sleep 1
    done
}

nodes() { compose ps -q node; }

# What HAProxy says of a container: its own name for it, the address, the state. Nothing when it does not know it.
seen() {
    seen=$(status)
    for address in $(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$1"); do
        echo "$seen" | grep -F " $address:" || true
    done
}

# All places without a node, which there may be none of.
drain_free() {
    free=$(status | sed -n 's/^free: //p')
    # shellcheck disable=SC2086
    [ -z "$free" ] || drain "$@" $free
}

is_healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]; }

# Whether HAProxy sends work to a container. One that is healthy behind a closed place is let in.
is_up() {
    case $(seen "$1") in
        *" UP "*) ;;
        *" DRAIN "*)
            if is_healthy "$1"; then drain --undo "$(seen "$1" | cut -d ' ' -f 1)"; fi
            false
            ;;
        *) false ;;
    esac
}

are_up() { for node in $(nodes); do is_up "$node" || return 1; done; }

# start NUMBER: HAProxy takes an address that DNS has just told for a node that is up. So the free places are closed
# until the nodes that get them are healthy.
start() {
    drain_free
    compose up --detach --no-build --no-recreate --no-deps --scale node="$1" node
    eventually "HAProxy sends work to all nodes" are_up
    drain_free --undo
}

# remove CONTAINER...: no new work, then SIGTERM: what is under way may take as long as stop_grace_period says.
remove() {
    places=""
    for node in "$@"; do
        place=$(seen "$node" | cut -d ' ' -f 1)
        if [ -n "$place" ]; then
            say "draining $place"
            drain "$place"
            places="$places $place"
        fi
        docker stop "$node" >/dev/null
        docker rm "$node" >/dev/null
    done
    # HAProxy keeps an address for a minute after DNS has dropped it. Whoever gets the place then must find it open.
    for place in $places; do
        eventually "HAProxy has forgotten the address of $place" is_free "$place"
        drain --undo "$place"
    done
}

is_free() { ! status | grep -q "^$1 "; }

before=$(nodes)
count=$(echo "$before" | grep -c . || true)
case "${1-}" in
    scale)
        [ "${2-}" -gt 0 ] 2>/dev/null || die "scale: found '${2-}', wanted a number of nodes, such as 5"
        if [ "$count" -gt "$2" ]; then
            # shellcheck disable=SC2046
            remove $(echo "$before" | tail -n $((count - $2)))
        fi
        start "$2"
        ;;
    replace)
        [ "$count" -gt 0 ] || die "there are no nodes: start them with ${COMPOSE:-docker compose} up --detach"
        start $((2 * count))
        # shellcheck disable=SC2086
        remove $before
        ;;
    *) die "usage: nodes.sh scale NUMBER | replace" ;;
esac
