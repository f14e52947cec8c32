#!/bin/sh
# Runs once, when the data volume is empty. Temporal and this project each get a role that owns nothing but its own.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set temporal="$TEMPORAL_DB_PASSWORD" --set routes="$ROUTES_DB_PASSWORD" <<'SQL'
CREATE ROLE temporal LOGIN CREATEDB PASSWORD :'temporal';
CREATE ROLE timemachine LOGIN PASSWORD :'routes';
CREATE DATABASE timemachine OWNER timemachine;
SQL
