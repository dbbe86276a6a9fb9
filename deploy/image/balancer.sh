#!/bin/sh
# HAProxy with the configuration that the nodes' config.yml gives. `reload` has a running one take up a changed file.
set -eu
file=/run/haproxy/haproxy.cfg
registry-cluster haproxy >$file.new
haproxy -c -q -f $file.new
mv $file.new $file
if [ "${1-}" = reload ]; then
    kill -USR2 1
else
    exec haproxy -W -db -f $file
fi
