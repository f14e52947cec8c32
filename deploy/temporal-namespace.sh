#!/bin/sh
# Creates the namespace, or sets how long an existing one keeps the stories of ended jobs.
set -eu
namespace=$TEMPORAL_NAMESPACE # always named: these commands do not read it from the environment
tries=60

until_answered() { # a command
    until "$@" >/dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || exit 1
        sleep 1
    done
}

# A frontend's port is open before it answers.
until_answered temporal operator cluster health
temporal operator namespace describe --namespace "$namespace" >/dev/null 2>&1 ||
    temporal operator namespace create --namespace "$namespace" --retention "$RETENTION"

# The server takes some seconds to use a new namespace; what runs next needs it at once.
until_answered temporal operator search-attribute list --namespace "$namespace"
temporal operator namespace update --namespace "$namespace" --retention "$RETENTION"
