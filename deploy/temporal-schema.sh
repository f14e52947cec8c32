#!/bin/sh
# Temporal's own tool brings its two databases to its version. Each step may be repeated, so an upgrade runs it again.
set -eu
update() { # database, its schema, its server
    temporal-sql-tool --endpoint "$3" --db "$1" create --defaultdb postgres
    temporal-sql-tool --endpoint "$3" --db "$1" setup-schema -v 0.0
    temporal-sql-tool --endpoint "$3" --db "$1" update-schema --schema-name "postgresql/v12/$2"
}
update temporal temporal "$SQL_HOST"
update temporal_visibility visibility "${VISIBILITY_SQL_HOST:-$SQL_HOST}"
